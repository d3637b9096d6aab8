"""Training speed of `neumann train` with everything on, beside a loop by hand and a bare Lightning Trainer, in turns.

    python benchmarks/train.py [--rounds 40] [--device cpu|cuda] [--threads N] [--only WORD] [--write]

Every contender of a case trains the same network with the same optimizer, precision and batch, on noise of the same
shape that lies on the device. "Everything on" is the product's default: metrics, records, checkpoints, census and W&B
offline. The notes at the end of the report say what each contender does.

Each contender is a process of its own that waits for its turn. A round gives every contender one turn of some steps, in
an order of its own, and a ratio is that of two turns of the same round, so that a machine with other work to do slows
both. A turn includes making the batches and ends when the device is done; no evaluation falls into it. The rounds are
shared out over several starts of every process, since where a process happens to lie in memory stays with it for life.

A batch of 32,000 by accumulation stands beside its micro-batch. JPEG files decoded by worker processes stand beside
timm's own loader with as many workers; there a turn is a pass over the folder.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from neumann.config import RunSpec, make_spec
from neumann.freed_memory import keep_freed_memory
from neumann.models.classifiers import build_model
from neumann.store.provenance import provenance
from neumann.training.optimizers import build_optimizer

RESULTS = Path(__file__).parent / "results"
WARM_UP = 3  # turns of each contender that are not counted, after each start
STARTS = 4  # of every contender's process
HAND, KEPT, TRAINER = "hand-written loop", "hand-written loop, freed memory kept", "Lightning, barebones"
OURS, QUIET = "neumann train", "neumann train, logger=none"
MICRO, TIMM = "its micro-batch as the batch", "timm's create_loader"
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """What is trained and by whom.

    Args:
        name: what the report calls it.
        common: words of `neumann train` that hold for every contender.
        turn: batches that the network sees in a turn.
        contenders: keys of `TRAIN`; the first is the one that the others are compared with.
        goal: what the last ones are to reach.
    """

    name: str
    common: tuple[str, ...]
    turn: int
    contenders: tuple[str, ...] = (HAND, KEPT, TRAINER, OURS, QUIET)
    goal: str = ""


def noise(size: int, channels: int, count: int) -> tuple[str, ...]:
    """Return the words of a set of noise with ten classes."""
    shape = (f"data.image_size={size}", f"data.channels={channels}")
    return ("data=fake", *shape, f"data.train_count={count}", "data.validation_count=200", "data.test_count=200")


def cases(device: str) -> list[Case]:
    """Return the cases: on a CPU the small network, whose steps are short, and a CIFAR ResNet; on a GPU the latter."""
    cpu = device == "cpu"
    found = [
        Case(f"small CNN, 8 × 8, {optimizer}, batch {batch}",
             (*noise(8, 1, 1500), "model=small_cnn", f"optimizer={optimizer}", f"batch.size={batch}"),
             40, goal="overhead at most 0.7 ms a step")
        for optimizer in ("sgd", "neumann") for batch in (32, 128) if cpu
    ]  # fmt: skip
    found += [
        Case(f"CIFAR ResNet-20, 32 × 32, neumann, batch {batch}",
             (*noise(32, 3, 45_000), "model=resnet20", "optimizer=neumann", f"batch.size={batch}"),
             (10 if batch == 32 else 4) if cpu else 50, goal=f"ratio at least {'0.98' if cpu else '0.95'}")
        for batch in ((32, 128) if cpu else (128, 512))
    ]  # fmt: skip
    micro = 250 if cpu else 2000
    found.append(
        Case(f"CIFAR ResNet-20, 32 × 32, neumann, batch 32,000 in micro-batches of {micro}",
             (*noise(32, 3, 64_000), "model=resnet20", "optimizer=neumann", "batch.norm_size=50"),
             32_000 // micro if not cpu else 4, (MICRO, OURS), goal="ratio at least 0.97")
    )  # fmt: skip
    return found


def spec_of(case: Case, contender: str, device: str, folder: str) -> RunSpec:
    """Return the run that ``contender`` trains, long enough for any number of turns and never evaluated in one."""
    words = [*case.common, f"output={folder}", f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}"]
    words += ["trainer.max_epochs=100000", "trainer.check_val_every_n_epoch=100000"]
    if MICRO in case.contenders:
        micro = case.name.rsplit(" ", 1)[1]
        sizes = [f"batch.size={micro}"] if contender == MICRO else ["batch.size=32000", f"batch.max_per_device={micro}"]
        words += sizes
    words += ["logger=none"] if contender == QUIET else []
    return make_spec(words)


class Turns:
    """The turns of this process: waits for a line, lets ``size`` batches pass, and answers the seconds."""

    def __init__(self, size: int, device: str) -> None:
        self._size, self._device = size, device

    def over(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield ``batches``; a turn begins before its first is made and ends when the last one's step is over."""
        while sys.stdin.readline():
            wait(self._device)
            begun = time.perf_counter()
            for _ in range(self._size):
                yield next(batches)
            wait(self._device)
            print(f"seconds {time.perf_counter() - begun}", flush=True)
        os._exit(0)  # the run has no end of its own


def wait(device: str) -> None:
    """Wait until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass
class Bare:
    """A network, its optimizer and images on the device, without the framework."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    pixels: Tensor
    labels: Tensor
    batch: int

    @classmethod
    def of(cls, spec: RunSpec, device: str) -> Bare:
        """Build what ``spec`` trains."""
        config, about = spec.config, spec.facts
        shape: dict[str, Any] = {"in_chans": about.channels, "num_classes": about.num_classes}
        shape["image_size"] = about.image_size
        model = (
            build_model(config.model.name, dict(config.model.kwargs), **shape, channels_last=config.model.channels_last)
            .to(device)
            .train()
        )
        count = int(config.data["train_count"])
        pixels = torch.randint(0, 256, (count, about.channels, *about.image_size), dtype=torch.uint8, device=device)
        labels = torch.arange(count, device=device) % about.num_classes
        optimizer = build_optimizer(model, config.optimizer, config.recipe.weight_decay_filter)
        return cls(model, optimizer, pixels, labels, config.batch.size)

    def batches(self) -> Iterator[Batch]:
        """Yield normalised batches for ever, in a new order each epoch."""
        half = torch.full((self.pixels.shape[1], 1, 1), 127.5, device=self.pixels.device)
        while True:
            for rows in torch.randperm(len(self.pixels), device=self.pixels.device).split(self.batch):
                if len(rows) == self.batch:
                    yield self.pixels[rows].float().sub_(half).div_(half), self.labels[rows]


def by_hand(spec: RunSpec, turns: Turns, device: str) -> None:
    """Train in the hand-written loop."""
    bare = Bare.of(spec, device)
    for images, labels in turns.over(bare.batches()):
        bare.optimizer.zero_grad()
        functional.cross_entropy(bare.model(images), labels).backward()
        bare.optimizer.step()


def by_hand_in_kept_memory(spec: RunSpec, turns: Turns, device: str) -> None:
    """Train in the hand-written loop, in a process that keeps the memory it frees, as a run's does."""
    keep_freed_memory()
    by_hand(spec, turns, device)


def by_lightning(spec: RunSpec, turns: Turns, device: str) -> None:
    """Train in a bare Lightning Trainer."""
    import pytorch_lightning as pl

    bare = Bare.of(spec, device)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = bare.model

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return bare.optimizer

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return functional.cross_entropy(self.model(batch[0]), batch[1])

    class Loader:
        def __iter__(self) -> Iterator[Batch]:
            return turns.over(bare.batches())

        def __len__(self) -> int:  # with a length Lightning fetches no batch ahead
            return 10**9

    accelerator = "gpu" if device == "cuda" else "cpu"
    trainer = pl.Trainer(barebones=True, accelerator=accelerator, devices=1, max_epochs=1)
    trainer.fit(Module(), train_dataloaders=Loader())


def by_neumann(spec: RunSpec, turns: Turns, device: str) -> None:
    """Train as `neumann train` does."""
    from neumann.training import attempt, checkpoints, run

    class Stream(checkpoints.Stream):
        def __iter__(self) -> Iterator[Batch]:
            return turns.over(super().__iter__())

    attempt.Stream = Stream  # type: ignore[attr-defined]  # the one place where this looks inside
    run.run(spec, Console(file=io.StringIO()))


TRAIN: dict[str, Callable[[RunSpec, Turns, str], None]] = {
    HAND: by_hand, KEPT: by_hand_in_kept_memory, TRAINER: by_lightning, OURS: by_neumann, QUIET: by_neumann,
    MICRO: by_neumann,
}  # fmt: skip


def work(number: int, contender: str, device: str, threads: int) -> None:
    """Be one contender: train in turns until the end of the input."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    case = cases(device)[number]
    with tempfile.TemporaryDirectory() as folder:
        TRAIN[contender](spec_of(case, contender, device, folder), Turns(case.turn, device), device)


def measure(number: int, device: str, threads: int, rounds: int, order: random.Random) -> dict[str, Any]:
    """Give every contender of a case its turns; return milliseconds a batch and ratios."""
    case = cases(device)[number]
    words = [sys.executable, __file__, "--device", device, "--threads", str(threads), "--worker", str(number)]
    took: dict[str, list[float]] = {name: [] for name in case.contenders}
    for start in range(STARTS):
        counted = rounds * (start + 1) // STARTS - rounds * start // STARTS
        _rounds(case, words, threads, counted, order, took)
    return summary(case.name, case.goal, took, case.contenders[0])


def _rounds(
    case: Case, words: list[str], threads: int, counted: int, order: random.Random, took: dict[str, list[float]]
) -> None:
    """Start every contender, and add the milliseconds a batch of ``counted`` rounds to ``took``."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    at_work = {name: subprocess.Popen([*words, name], env=env, **pipes) for name in case.contenders}  # type: ignore[call-overload]
    try:
        for turn in range(WARM_UP + counted):
            for name in order.sample(case.contenders, len(case.contenders)):
                seconds = _turn(at_work[name])
                if turn >= WARM_UP:
                    took[name].append(1e3 * seconds / case.turn)
    finally:
        for process in at_work.values():
            process.stdin.close()
            process.wait(60)


def _turn(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("seconds "):
            return float(line.split()[1])
    raise SystemExit(f"a contender ended with status {process.wait()}: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]


def summary(case: str, goal: str, took: dict[str, list[float]], baseline: str) -> dict[str, Any]:
    """Return median and quartiles of times, and of speeds relative to the baseline's in the same round."""
    rows = []
    for name, own in took.items():
        ratios = [base / one for one, base in zip(own, took[baseline], strict=True)]
        more = [one - base for one, base in zip(own, took[baseline], strict=True)]
        rows.append(
            {
                "name": name,
                "ms": statistics.median(own),
                "ms_quartiles": quartiles(own),
                "ratio": statistics.median(ratios),
                "ratio_quartiles": quartiles(ratios),
                "overhead_ms": statistics.median(more),
                "overhead_ms_quartiles": quartiles(more),
            }
        )
    return {"case": case, "goal": goal, "n": len(took[baseline]), "rows": rows}


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the lower and the upper quartile."""
    low, _, high = statistics.quantiles(values, n=4)
    return [low, high]


JPEGS, SIDE, STREAM_BATCH = 1200, (500, 375), 50  # as many pixels as a typical image of ImageNet
STREAMED = f"JPEG files of {SIDE[0]} × {SIDE[1]} to crops of 224"


def streaming(device: str, workers: int, rounds: int, order: random.Random) -> dict[str, Any]:
    """Return milliseconds an image of a pass over a folder of JPEGs: random crops of 224, from disk to the device."""
    from timm.data import ImageDataset, create_loader

    from neumann.data import facts
    from neumann.data.module import build

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        _write_jpegs(root)
        data = {
            "kind": "image_folder", "root": place, "in_memory": False, "workers": workers, "image_size": 224,
            "augmentation": "random_resized_crop",
        }  # fmt: skip
        module = build(data, facts(data), batch_size=STREAM_BATCH, seed=0)
        ours = module.train_dataloader()
        theirs = create_loader(
            ImageDataset(str(root / "train")), (3, 224, 224), STREAM_BATCH, is_training=True, num_workers=workers,
            device=torch.device(device), use_prefetcher=True, persistent_workers=True, color_jitter=None,
            interpolation="bilinear",
        )  # fmt: skip
        passes: dict[str, Callable[[int], Any]] = {TIMM: lambda _: theirs, OURS: lambda epoch: _epoch(ours, epoch)}
        took: dict[str, list[float]] = {name: [] for name in passes}
        for turn in range(1 + rounds):
            for name in order.sample(list(passes), len(passes)):
                begun, images = time.perf_counter(), 0
                for batch, _ in passes[name](turn):
                    images += len(batch)
                wait(device)
                if turn:
                    took[name].append(1e3 * (time.perf_counter() - begun) / images)
    name = f"{STREAMED}, {workers} workers, batch {STREAM_BATCH} (an image)"
    return summary(name, "ratio at least 1.0", took, TIMM)


def _epoch(batches: Any, epoch: int) -> Any:
    batches.set_epoch(epoch)
    return batches


def _write_jpegs(root: Path) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", JPEGS), ("validation", 10), ("test", 10)):
        for number in range(count):
            folder = root / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize(SIDE, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


def table(part: dict[str, Any]) -> list[str]:
    """Return what was measured of one case as Markdown."""
    lines = [
        f"## {part['case']}", "", f"Goal: {part['goal']}. {part['n']} rounds.", "",
        "| contender | ms a batch (quartiles) | speed × the first (quartiles) | overhead, ms (quartiles) |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for row in part["rows"]:
        cells = [
            f"{row['ms']:.3g} ({row['ms_quartiles'][0]:.3g}–{row['ms_quartiles'][1]:.3g})",
            f"{row['ratio']:.3f} ({row['ratio_quartiles'][0]:.3f}–{row['ratio_quartiles'][1]:.3f})",
            f"{row['overhead_ms']:.2f} ({row['overhead_ms_quartiles'][0]:.2f}–{row['overhead_ms_quartiles'][1]:.2f})",
        ]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return [*lines, ""]


NOTES = """\
Times are of a batch from its making to the end of its step. A ratio and an overhead compare two turns of one round, so
their medians need not follow from those of the times.

- **hand-written loop**: index the images on the device, normalise them, drop the gradients, forward, backward, step.
  It reads no loss, counts nothing and cannot be stopped and resumed.
- **hand-written loop, freed memory kept**: the same after `neumann.freed_memory.keep_freed_memory()`. What lies between
  it and the plain one is the time in which the system clears memory that the step before has given back.
- **Lightning, barebones**: `Trainer(barebones=True)` around the same batches, without callbacks and loggers.
- **neumann train**: the whole run with its default settings but for its length: order and count of every example,
  sum of the losses, schedule, stop signals, lease, W&B offline in a thread and a process of its own.
- **neumann train, logger=none**: the same without W&B.
- **its micro-batch as the batch**: `neumann train` with a step of the optimizer for every micro-batch.
- **timm's create_loader**: decoding, random crop, flip and normalisation with as many workers, for an epoch of images.
  timm's own `train.py` is not part of timm's wheel and so no contender; this is the loader that it trains with.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=40, help="turns of every contender that are counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/train-DEVICE.json and .md")
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(int(given.worker[0]), given.worker[1], given.device, given.threads)
        return
    known = cases(given.device)
    if given.write and given.only:
        parser.error("--only measures a part, and --write would put it in the place of the whole: give one of the two")
    if not any(given.only in name for name in (*(case.name for case in known), STREAMED)):
        parser.error(f"--only {given.only} is in no case: {', '.join((*(case.name for case in known), STREAMED))}")
    order, measured = random.Random(0), []
    lines: list[str] = []
    for number, case in enumerate(known):
        if given.only in case.name:
            measured.append(measure(number, given.device, given.threads, given.rounds, order))
            print("\n".join(part := table(measured[-1])), flush=True)
            lines += part
    if given.only in STREAMED:
        workers = len(os.sched_getaffinity(0))
        measured.append(streaming(given.device, workers, max(4, given.rounds // 5), order))
        print("\n".join(part := table(measured[-1])), flush=True)
        lines += part
    if not given.write:
        return
    where = provenance()
    gpu = torch.cuda.get_device_name() if given.device == "cuda" else None
    host = where["host"]
    content = {
        "cases": measured,
        "threads": given.threads,
        "gpu": gpu,
        **{k: where[k] for k in ("host", "packages", "git")},
    }
    about = f"{gpu or host['processor']}, {given.threads} of {host['cores']} cores, torch {where['packages']['torch']}"
    missing = [] if gpu else ["CUDA: not yet measured; no GPU was at hand."]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"train-{given.device}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = ["# make bench-train", "", about, "", *lines, NOTES, *missing]
    (RESULTS / f"train-{given.device}.md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
