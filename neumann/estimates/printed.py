"""What `--estimate` prints: the cost of the runs that are left, each kind of run measured once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from neumann.config import LocalLaunchConfig, RunSpec
from neumann.config.schema import batch_split
from neumann.errors import UserError, printable
from neumann.estimates.cost import Cost, cost_of, images_per_second
from neumann.estimates.rate import Rate, duration, read_rate, with_prefix
from neumann.estimates.recorded import costs, runs_at_once
from neumann.fitting import print_table, say
from neumann.processes.ranks import RankPlace, world_size

if TYPE_CHECKING:
    from neumann.training.step_cost import ModelCost, StepTimes

Left = Sequence[tuple[RunSpec, str, float]]  # a run without a result, its label, and how often it counts
MOST_ROWS = 30
ASIDE = "start-up, checkpoints and the exchange between devices aside"
COUNTED = "convolutions, matrix products and attention, a multiply-add being 2"


@dataclass(frozen=True)
class _Kind:
    """Runs that differ in nothing that decides what a step costs: the first one, its label, the cost of each."""

    spec: RunSpec
    label: str
    model: ModelCost
    pace: Rate | StepTimes
    runs: list[tuple[Cost, float]]

    @property
    def count(self) -> float:
        return sum(times for _, times in self.runs)

    def total(self) -> tuple[float, float, float]:
        """Return seconds, device-hours and FLOPs over all runs."""
        of = [(cost.seconds, cost.device_hours, cost.flops) for cost, _ in self.runs]
        each = [times for _, times in self.runs]
        seconds, hours, flops = (
            sum(v * n for v, n in zip(column, each, strict=True)) for column in zip(*of, strict=True)
        )
        return seconds, hours, flops

    def images(self) -> float:
        """Return the images that a device trains on in a second."""
        if not isinstance(self.pace, Rate):
            return images_per_second(self.spec, self.pace)
        return self.pace.images or (self.pace.flops or 0.0) / max(self.model.training, 1.0)


def print_estimate(console: Console, left: Left, *, finished: int, rate: str, several: bool) -> None:
    """Print what the runs ``left`` cost, of a run alone or of ``several``; nothing is trained or written.

    ``finished`` is how many others are over, and ``rate`` what `read_rate` reads. Raises UserError for a run that
    cannot be built, for no rate, and where torchrun or srun has started this process as a rank.
    """
    stated = read_rate(rate)
    if (ranks := RankPlace.from_environment()) is not None:
        raise UserError(f"--estimate is one process, and {ranks.starter} starts the ranks of a run: leave it out")
    if not left:
        say(console, f"nothing is left to train: {finished} run{'s are' if finished != 1 else ' is'} over")
        return
    kinds = _kinds(left, stated, console, several=several)
    if several:
        _print_table(console, kinds, finished)
    else:
        _print_one(console, kinds[0])


def _kinds(left: Left, stated: Rate | None, console: Console, *, several: bool) -> list[_Kind]:
    _use_gpus(left[0][0])
    from neumann.training.step_cost import model_cost, step_times  # torch is imported where something is to be counted

    grouped: dict[str, list[tuple[RunSpec, str, float]]] = {}
    for spec, label, times in left:
        grouped.setdefault(costs(spec.signed())[0], []).append((spec, label, times))
    found = []
    for number, runs in enumerate(grouped.values()):
        spec, label, _ = runs[0]
        model = model_cost(spec)
        pace: Rate | StepTimes
        if stated is not None:
            pace = stated
        else:
            of = f"{number + 1} of {len(grouped)}: " if len(grouped) > 1 else ""
            with console.status(Text(printable(f"measuring {of}{label}"))):
                pace = step_times(spec, threads=_threads(spec, several=several))
        found.append(_Kind(spec, label, model, pace, [(cost_of(one, model, pace), times) for one, _, times in runs]))
    return found


def _use_gpus(spec: RunSpec) -> None:
    """Let torch see the first GPU of launch.devices alone, on which the steps are measured."""
    launch = spec.config.launch
    if isinstance(launch, LocalLaunchConfig) and launch.devices is not None:
        from neumann.launch.gpus import chosen_gpus
        from neumann.visible_gpus import variables_for

        os.environ |= variables_for(chosen_gpus(launch.devices)[:1])


def _threads(spec: RunSpec, *, several: bool) -> int | None:
    """Return torch's threads in a process of ``spec``, as the command without --estimate would set them."""
    launch = spec.config.launch
    if not isinstance(launch, LocalLaunchConfig):
        return None
    if several or world_size(spec) > 1:
        from neumann.launch.local import LocalLauncher

        return LocalLauncher(launch).threads(spec)
    from neumann.cores import cores

    return launch.threads or (None if "OMP_NUM_THREADS" in os.environ else cores())


def _print_one(console: Console, kind: _Kind) -> None:
    spec, cost, model = kind.spec, kind.runs[0][0], kind.model
    on = _count(cost.devices, "device")
    hours = f"{duration(cost.seconds)} on {on}, {_hours(cost.device_hours)}"
    say(console, (f"{spec.name}: ", "bold"), f"{hours} ({ASIDE})")
    each = f"{with_prefix(model.training)}FLOPs forward and backward, {with_prefix(model.forward)}FLOPs forward"
    lines = {
        "parameters": f"{model.parameters:,}",
        "an example": f"{each} ({COUNTED})",
        "training": _training(kind, on),
        "evaluation": _evaluation(kind),
        "pace": _pace(kind),
    }
    offered = _offered(kind)
    if offered:
        lines["precision"] = offered
    for name, text in lines.items():
        say(console, f"  {name:<12}{text}")


def _training(kind: _Kind, on: str) -> str:
    spec, cost, split = kind.spec, kind.runs[0][0], batch_split(kind.spec.config)
    counts, flops = cost.counts, cost.counts.examples * kind.model.training
    epochs = counts.steps / spec.config.derived.steps_per_epoch
    factors = f"{split.micro_batch:,} at once × {split.accumulation} × {on}"
    return (
        f"{epochs:,.4g} epochs: {counts.steps:,} steps of {spec.config.batch.size:,} examples ({factors}), "
        f"{counts.examples:,} examples, {with_prefix(flops)}FLOPs, {duration(cost.training_seconds)}"
    )


def _evaluation(kind: _Kind) -> str:
    cost, facts, points = kind.runs[0][0], kind.spec.facts, kind.model.points
    flops = cost.counts.forwards * kind.model.forward
    at = f"each of {points} points" if points > 1 else "1 point"
    return (
        f"{cost.counts.evaluations:,} × {facts.validation_count:,} validation images and {facts.test_count:,} test "
        f"images at {at}, {with_prefix(flops)}FLOPs, {duration(cost.evaluation_seconds)}"
    )


def _pace(kind: _Kind) -> str:
    """Return in words at which pace a device trains, and on what that rests."""
    if isinstance(kind.pace, Rate):
        also = "" if kind.pace.images is not None else f", which is {kind.images():,.4g} images/s"
        return f"{kind.pace}{also}, as stated; nothing was measured"
    pace, split = kind.pace, batch_split(kind.spec.config)
    step = split.accumulation * pace.micro_batch + pace.update
    low, high = pace.spread
    return (
        f"{kind.images():,.4g} images/s a device, {_seconds(step)} a step: measured on {_device(pace)}, {pace.steps} "
        f"steps of {split.micro_batch:,} after {pace.warm_up} of warm-up, from {low:.2f} "
        f"to {high:.2f} of the median; {1 / pace.evaluation:,.4g} images/s in evaluation"
    )


def _offered(kind: _Kind) -> str | None:
    """Return in words that the processor which was measured computes in bf16 too, None where it does not or is told."""
    if isinstance(kind.pace, Rate) or kind.pace.device != "cpu" or kind.spec.config.trainer.precision != "32-true":
        return None
    from neumann.training.precision import processor_has_bf16

    if not processor_has_bf16():
        return None
    return "32-true; this processor has instructions for bf16, so trainer.precision=bf16-mixed may be faster"


def _device(pace: StepTimes) -> str:
    return f"{pace.device}, {_count(pace.threads, 'thread')}" if pace.device == "cpu" else pace.device


def _print_table(console: Console, kinds: Sequence[_Kind], finished: int) -> None:
    names = ["runs like", "runs", "parameters", "FLOPs/example", "images/s", "a run", "device-hours"]
    rows = []
    for kind in kinds[:MOST_ROWS]:
        seconds, hours, _ = kind.total()
        cells = [
            printable(kind.label), f"{kind.count:,.4g}", f"{kind.model.parameters:,}", with_prefix(kind.model.training),
            f"{kind.images():,.4g}", duration(seconds / kind.count), _short_hours(hours),
        ]  # fmt: skip
        rows.append([Text(cell) for cell in cells])
    print_table(console, names, rows, right=names[1:])
    if len(kinds) > MOST_ROWS:
        say(console, f"and {len(kinds) - MOST_ROWS} more kinds of runs, which count below")
    seconds, hours, flops = (sum(column) for column in zip(*(kind.total() for kind in kinds), strict=True))
    count = sum(kind.count for kind in kinds)
    devices = max(world_size(kind.spec) for kind in kinds)
    at_once = max(1, runs_at_once(kinds[0].spec.config.launch) // devices)
    longest = max(cost.seconds for kind in kinds for cost, _ in kind.runs)
    wall = max(seconds / min(at_once, count), longest)
    also = f" ({finished} are over and not counted)" if finished else ""
    each = f" of {devices} devices each" if devices > 1 else ""
    takes = f"up to {duration(wall)} with {_count(at_once, 'run')} at once{each}"
    costs_all = f"{_hours(hours)}, {with_prefix(flops)}FLOPs ({ASIDE})"
    say(console, (f"{_count(count, 'run')} to train{also}: ", "bold"), f"{takes}, {costs_all}")
    say(console, _basis(kinds))


def _basis(kinds: Sequence[_Kind]) -> str:
    paces = [kind.pace for kind in kinds if not isinstance(kind.pace, Rate)]
    if not paces:
        return f"at {kinds[0].pace}, as stated; FLOPs: {COUNTED}"
    low, high = min(pace.spread[0] for pace in paces), max(pace.spread[1] for pace in paces)
    steps, warm_up = min(pace.steps for pace in paces), min(pace.warm_up for pace in paces)
    return (
        f"each kind measured alone on {_device(paces[0])}: {steps} steps or more after {warm_up} of warm-up, from "
        f"{low:.2f} to {high:.2f} of their median; runs at once may slow each other down; FLOPs: {COUNTED}"
    )


def _hours(hours: float) -> str:
    return f"{_short_hours(hours)} device-hours"


def _short_hours(hours: float) -> str:
    return "under 0.01" if hours < 0.01 else f"{hours:,.3g}" if hours < 1000 else f"{hours:,.0f}"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _count(count: float, noun: str) -> str:
    return f"{count:,.4g} {noun}{'' if count == 1 else 's'}"
