"""A global batch that is accumulated over micro-batches and ranks is trained on as the one batch that it is."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from neumann.config import RunSpec, make_spec
from neumann.errors import Interrupted
from neumann.store import RunFolder, find
from neumann.training import run as run_module
from neumann.training.census import Census
from neumann.training.classifier import ImageClassifier
from neumann.training.distributed import RankGroup
from neumann.training.run import run
from tests.support.quick_runs import Train, quick
from tests.support.rank_groups import together

CONF = Path(__file__).resolve().parents[2] / "conf"
OPTIMIZERS = sorted(p.stem for p in (CONF / "optimizer").glob("*.yaml"))
NAMED = {
    "torch": ("optimizer.name=Adagrad", "optimizer.lr=0.05"),
    "timm": ("optimizer.name=lookahead_radam", "optimizer.lr=0.01"),
}
# 7 steps of 64 examples in ghost batches of 8, in float64, where all that is left is rounding
SHORT = (
    "trainer.precision=64-true",
    "batch.norm_size=8",
    "trainer.max_epochs=0.4",
    "trainer.check_val_every_n_epoch=0.2",
)
RECIPE = ("recipe.label_smoothing=0.1", "data.augmentation=crop", "timing.reset_period=0.2")
CLOCKS = (
    "train_seconds",
    "eval_seconds",
    "time",
    "first_step_at",
    "attempts",
    "study",
    "digest",
    "measurements_digest",
    "steps_digest",
)


def words(optimizer: str) -> tuple[str, ...]:
    return (f"optimizer={optimizer}", *NAMED.get(optimizer, ()), *SHORT, *RECIPE)


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder.eval_weights, weights_only=True)["state_dict"]
    return state


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], *, buffers: bool) -> None:
    """Hold two states against each other to 1e-12 of the size of each tensor."""
    assert a.keys() == b.keys()
    for key in a:
        if buffers or not key.rpartition(".")[2].startswith(("running_", "num_batches")):
            one, other = a[key].double(), b[key].double()
            assert float((one - other).abs().max()) <= 1e-12 * max(1.0, float(other.abs().max())), key


def assert_same_run(one: dict[str, Any], other: dict[str, Any], *, but: tuple[str, ...]) -> None:
    differing = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert differing <= {*CLOCKS, *but}


def one_big_batch(optimizer: str, train: Train) -> tuple[dict[str, Any], dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return the result, the weights and the measurements of a run without accumulation, which trains once."""
    if optimizer not in WHOLE:
        result, folder = train(*words(optimizer))
        WHOLE[optimizer] = (result, weights(folder), folder.read_measurements())
    return WHOLE[optimizer]


WHOLE: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], list[dict[str, Any]]]] = {}


@pytest.mark.medium
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_accumulated_steps_are_those_of_one_big_batch(optimizer: str, train: Train) -> None:
    whole, expected, measured = one_big_batch(optimizer, train)
    accumulated, beside = train(*words(optimizer), "batch.max_per_device=16")
    assert whole["batch"] == {
        "asked": 64, "size": 64, "micro_batch": 64, "accumulation": 1, "devices": 1, "norm_size": 8,
    }  # fmt: skip
    assert accumulated["batch"] == {**whole["batch"], "micro_batch": 16, "accumulation": 4}
    assert_equal(expected, weights(beside), buffers=True)
    for one, other in zip(measured, beside.read_measurements(), strict=True):
        assert (one["step"], one["epoch"], one["examples"], one["optimizer_step"], one["lr"]) == (
            other["step"], other["epoch"], other["examples"], other["optimizer_step"], other["lr"],
        )  # fmt: skip
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-12)
    assert whole["distinct_examples"] == accumulated["distinct_examples"]
    assert whole["step"] == 7


def on_two_ranks(group: RankGroup, specs: list[RunSpec]) -> list[tuple[int, int]]:
    """Train ``specs`` one after the other in one group; return (steps, all-reduces of gradients) of each."""
    found: list[tuple[int, int]] = []
    reduced: list[int] = []
    start = Census.on_train_start

    def hook(_, bucket):  # type: ignore[no-untyped-def] # torch refuses an annotation as text
        reduced.append(bucket.index())
        return allreduce_hook(None, bucket)

    def begin(self: Census, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.strategy.model.register_comm_hook(None, hook)
        start(self, trainer, module)

    Census.on_train_start = begin  # type: ignore[method-assign] # in this process, which ends with the test
    run_module.joined = lambda *_, **__: contextlib.nullcontext(group)  # type: ignore[assignment]
    for spec in specs:
        reduced.clear()
        result = run(spec, Console(quiet=True), threads=1, ranks=group.ranks)
        assert group.gather(result["step"]) == [result["step"]] * 2
        found.append((result["step"], len(reduced)))
    return found


@pytest.mark.medium
def test_two_ranks_that_accumulate_take_the_same_steps_and_share_each_gradient_once(train: Train) -> None:
    """Running statistics are rank 0's, which sees half of the ghost batches, so these alone are another run's."""
    split = ("trainer.devices=2", "batch.max_per_device=16")
    specs = [quick(*words(optimizer), *split) for optimizer in OPTIMIZERS]
    assert {spec.config.derived.accumulation for spec in specs} == {2}
    answers = together(on_two_ranks, 2, specs)
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    for optimizer, spec, (steps, reduced) in zip(OPTIMIZERS, specs, answers[0], strict=True):
        _, expected, _ = one_big_batch(optimizer, train)
        gradients = 5 if optimizer == "two_loop_neumann" else 1  # K + 1 in a step
        assert (steps, reduced) == (7, 7 * gradients), optimizer  # the network has one bucket of gradients
        assert_equal(expected, weights(find(spec)), buffers=False)


def test_a_whole_batch_without_ghosts_has_other_statistics_than_micro_batches(train: Train) -> None:
    """So the micro-batch is signed where batch norm follows it, and recorded as its batch."""
    choice = ("optimizer=sgd", "trainer.precision=64-true", "trainer.max_epochs=0.4")
    whole, folder = train(*choice)
    cut, beside = train(*choice, "batch.max_per_device=16")
    assert (whole["batch"]["norm_size"], cut["batch"]["norm_size"]) == (64, 16)
    assert whole["signature"] != cut["signature"]
    with pytest.raises(AssertionError):
        assert_equal(weights(folder), weights(beside), buffers=False)
    _, ghosts = train(*choice, "batch.norm_size=16")
    assert_equal(weights(ghosts), weights(beside), buffers=True)


def test_an_epoch_has_whole_global_batches_only() -> None:
    words = (
        "batch.size=500",
        "batch.max_per_device=100",
        "trainer.max_epochs=3",
        "trainer.check_val_every_n_epoch=0.5",
    )
    spec = make_spec(["optimizer=sgd", *words, "+model.kwargs.width=8", "logger=none"])
    result, folder = run(spec, Console(quiet=True)), find(spec)
    assert result["batch"]["accumulation"] == 5
    assert (result["step"], result["examples"], result["epoch"]) == (6, 3000, 3.0)
    assert result["distinct_examples"]["training"] == 1000  # 197 of 1,197 are left out, others in each epoch
    assert [m["step"] for m in folder.read_measurements()] == [1, 2, 3, 4, 5, 6]


def test_the_rate_is_scaled_before_the_schedule(train: Train) -> None:
    scaled, one = train(
        "optimizer=nesterov", "optimizer.lr=0.025", "recipe.lr_scaling=linear", "recipe.lr_base_size=32"
    )
    plain, other = train("optimizer=nesterov", "optimizer.lr=0.05")
    assert scaled["lr"] == {"given": 0.025, "factor": 2.0, "scaled": 0.05}
    assert plain["lr"] == {"given": 0.05, "factor": 1.0, "scaled": 0.05}
    assert all(torch.equal(value, weights(other)[key]) for key, value in weights(one).items())
    assert_same_run(scaled, plain, but=("signature", "lr"))


RESUMED = ("optimizer=neumann", "timing.reset_period=0.5", "+model.kwargs.drop_rate=0.2", "data.augmentation=crop", "batch.max_per_device=16", "batch.norm_size=8")  # fmt: skip


UNTOUCHED: list[tuple[dict[str, Any], dict[str, torch.Tensor], list[dict[str, Any]]]] = []


@pytest.mark.medium
@pytest.mark.parametrize(("how", "micro_batch"), [("signal", 1), ("signal", 86), ("killed", 1), ("killed", 86)])
def test_stopped_within_an_accumulation_it_goes_on_to_the_same_bits(
    how: str, micro_batch: int, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal waits for the end of the step; what dies within one goes on from the last checkpoint."""
    if not UNTOUCHED:
        result, folder = train(*RESUMED, "study=untouched")
        UNTOUCHED.append((result, weights(folder), folder.read_measurements()))
    whole, other, measured = UNTOUCHED[0]
    count, seen = Census.count, 0

    def stop_once(self: Census, batch: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == micro_batch:
            if how == "killed":
                raise RuntimeError("the cat pulled the plug")
            signal.raise_signal(signal.SIGTERM)
        count(self, batch)

    monkeypatch.setattr(Census, "count", stop_once)
    step = -(-micro_batch // 4)
    kind, sentence = (RuntimeError, "the cat") if how == "killed" else (Interrupted, f"stopped at step {step}")
    with pytest.raises(kind, match=sentence):
        train(*RESUMED)
    monkeypatch.setattr(Census, "count", count)
    folder = find(quick(*RESUMED))
    if how == "signal":
        assert torch.load(folder.last, weights_only=True)["global_step"] == step
    result, _ = train(*RESUMED)
    one = weights(folder)
    assert all(torch.equal(one[key], other[key]) for key in other)
    assert_same_run(result, whole, but=("code",))
    for a, b in zip(folder.read_measurements(), measured, strict=True):
        assert_same_run(a, b, but=())


def test_no_device_takes_more_at_once_than_its_bound(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and the batches that recalibrate batch norm; evaluation keeps no activations."""
    sizes: list[int] = []
    forward = ImageClassifier.training_step

    def seen(self: ImageClassifier, batch: Any, batch_idx: int) -> torch.Tensor:
        sizes.append(len(batch[0]))
        return forward(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", seen)
    choice = ("optimizer=sgd", "recipe.recalibrate_batch_norm=3", "batch.max_per_device=20", "batch.norm_size=8")
    result, _ = train(*choice, "trainer.max_epochs=0.2")
    assert (result["batch"]["micro_batch"], result["batch"]["accumulation"]) == (16, 4)
    assert sizes == [16] * 4 * result["step"]
    assert set(result["validation_recalibrated"]) == {"held"}


# VmHWM, since ru_maxrss begins at the peak of the process that started this one
PEAK = """
import io, sys
from rich.console import Console
from neumann.config import make_spec
from neumann.training.run import run
words = ["optimizer=sgd", "model=small_cnn", "+model.kwargs.width=64", "logger=none", "checkpoint=none",
         "trainer.max_epochs=1", "launch.threads=1", *sys.argv[1:]]
run(make_spec(words), Console(file=io.StringIO()), threads=1)
print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024)
"""


def peak(*overrides: str) -> float:
    """Return the largest resident memory of a run in a process of its own, in MiB."""
    done = subprocess.run([sys.executable, "-c", PEAK, *overrides], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
def test_memory_does_not_grow_with_an_accumulated_batch() -> None:
    small = peak("batch.size=32", "batch.max_per_device=32")
    large = peak("batch.size=1184", "batch.max_per_device=32")
    unbounded = peak("batch.size=1184")
    assert large < small + 20
    assert unbounded > small + 100
