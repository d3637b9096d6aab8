"""What a run's steps cost: FLOPs per example from the model, seconds from a few steps taken on this machine.

The steps are those of a run: its model, loader, precision and optimizer under `pl.Trainer`, on one device with that
device's share of the batch. Nothing is recorded, and the weights are thrown away.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neumann import compat
from neumann.config import RunSpec
from neumann.config.inner_loop import InnerLoop
from neumann.config.schema import batch_split
from neumann.data.batches import Batches
from neumann.errors import UserError
from neumann.freed_memory import keep_freed_memory
from neumann.optim import points
from neumann.optim.lightning import eval_mode
from neumann.optim.two_loop import TwoLoopNeumann, inner_loop_of
from neumann.training import stepping
from neumann.training.checkpoints import Stream
from neumann.training.classifier import ImageClassifier
from neumann.training.distributed import joined
from neumann.training.parts import Parts, accelerator_of, build_model_of, build_optimizer_of, build_parts
from neumann.training.run import quieten
from neumann.training.spectral import SpectralSchedule, gradients_a_step
from neumann.training.tally import Tally

WARM_UP = 3  # steps before the clock runs: the first ones compile kernels and allocate memory
MOST_STEPS = 20  # measured
LEAST_STEPS = 2
PREFETCHED = 2  # batches that torch's DataLoader decodes ahead for each worker
GPU_WINDOW = 5  # steps between two looks at the clock, each of which waits for the GPU


@dataclass(frozen=True)
class ModelCost:
    """What follows from the model alone.

    ``training`` and ``forward`` are FLOPs for one example, of the loss with its gradient, as often as a step takes it,
    and of the logits. ``points`` are the points of the run's optimizer, at each of which it is evaluated.
    """

    parameters: int
    points: int
    training: float
    forward: float


@dataclass(frozen=True)
class StepTimes:
    """Seconds measured on one device of this machine.

    micro_batch   of forward and backward over one micro-batch, its loading included; the median. With
                  schedule=spectral also the step's share of the spectra, as gradients
    update        of the optimizer's step
    spread        the fastest and the slowest step measured, over the median
    evaluation    of one image in an evaluation at one point
    steps         of one micro-batch each that were measured, after ``warm_up`` that were not
    device        as torch names it
    threads       torch's on the CPU
    """

    micro_batch: float
    update: float
    spread: tuple[float, float]
    evaluation: float
    steps: int
    warm_up: int
    device: str
    threads: int


def model_cost(spec: RunSpec) -> ModelCost:
    """Return the parameters and FLOPs of the model of ``spec``, counted on the meta device without computing.

    A model that does not know the meta device is counted on the CPU. FLOPs are those of convolutions, matrix products
    and attention, a multiplication and an addition counting two. Raises UserError where the model cannot be built.
    """
    with contextlib.suppress(UserError, NotImplementedError, RuntimeError), torch.device("meta"):
        return _counted(spec, build_model_of(spec), "meta")
    return _counted(spec, build_model_of(spec), "cpu")


def _counted(spec: RunSpec, model: nn.Module, device: str) -> ModelCost:
    facts = spec.facts
    count = spec.config.batch.norm_size or 2  # batch norm over one image has no variance in some networks
    images = torch.zeros(count, facts.channels, *facts.image_size, device=device)
    labels = torch.zeros(count, dtype=torch.long, device=device)
    module = ImageClassifier(
        model,
        lambda _: _no_optimizer(),
        label_smoothing=spec.config.recipe.label_smoothing,
        auxiliary_weight=spec.config.model.auxiliary_weight,
    )
    with FlopCounterMode(display=False) as counter:
        loss = module.training_step((images, labels), 0)
        (loss["loss"] if isinstance(loss, dict) else loss).backward()
    training = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad(), eval_mode(module):
        module(images)
    optimizer = build_optimizer_of(spec, model)
    loop = inner_loop_of(optimizer)
    return ModelCost(
        parameters=sum(weight.numel() for weight in model.parameters()),
        points=len(points(optimizer)),
        training=(_gradients(loop) + gradients_a_step(spec.config)) * training / count,
        forward=counter.get_total_flops() / count,
    )


def _gradients(loop: TwoLoopNeumann | None) -> int:
    """Return the gradients that a step takes of each example."""
    return 1 if loop is None else loop.gradients_an_example


def _no_optimizer() -> Any:
    raise AssertionError("FLOPs are counted without a step")


def step_times(spec: RunSpec, *, threads: int | None = None, seconds: float = 20.0) -> StepTimes:
    """Take a few steps of ``spec`` on one device of this machine and return what they took.

    Args:
        spec: the run. One device is measured, with steps of one micro-batch.
        threads: torch's on the CPU; left out, torch's own number.
        seconds: after which no further step is measured, beyond `LEAST_STEPS`. The warm-up and evaluation take half
            as long at most, or one step and two batches where these take longer.

    Raises UserError where the run cannot be built on this machine.
    """
    quieten()
    keep_freed_memory()  # as the run does
    if threads is not None:
        torch.set_num_threads(threads)
    one = _on_one_device(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a run says at its start, it says when it is trained
        with joined(None, cuda=accelerator_of(one) == "gpu") as group:
            return _measured(one, build_parts(one, group), seconds)


def _on_one_device(spec: RunSpec) -> RunSpec:
    """Return ``spec`` for one device and one micro-batch a step, past the burn-in, whose steps are cheaper."""
    config, micro_batch = spec.config, batch_split(spec.config).micro_batch
    optimizer = dict(config.optimizer)
    if "burn_in_steps" in optimizer:
        optimizer["burn_in_steps"] = 0
    loop = InnerLoop.of(optimizer)
    if loop is not None and loop.data != "same":  # as many gradients of one micro-batch, whose parts may not be even
        optimizer |= {"inner_data": "same", "inner_steps": loop.batches - 1}
    return replace(
        spec,
        config=replace(
            config,
            optimizer=optimizer,
            trainer=replace(config.trainer, devices=1, num_nodes=1),
            batch=replace(config.batch, size=micro_batch, max_per_device=micro_batch),
        ),
    )


def _measured(spec: RunSpec, parts: Parts, seconds: float) -> StepTimes:
    workers = spec.config.data.get("workers", 0) if not spec.facts.in_memory else 0
    found: list[StepTimes] = []

    def finish(trainer: pl.Trainer) -> None:
        step = median(clock.steps)
        optimizer = trainer.optimizers[0]  # an inner loop moves the weights between gradients, within its micro-batch
        loop = inner_loop_of(optimizer)
        update = 0.0 if loop is not None else min(_seconds_of(optimizer.step), step)
        spectra = gradients_a_step(spec.config) / _gradients(loop)
        found.append(
            StepTimes(
                micro_batch=(step - update) * (1 + spectra),
                update=update,
                spread=(min(clock.steps) / step, max(clock.steps) / step),
                evaluation=_evaluation_seconds(parts.module, trainer, parts.data.val_dataloader(), seconds / 2),
                steps=len(clock.steps) * clock.window,
                warm_up=clock.warm_up,
                device=torch.cuda.get_device_name() if parts.module.device.type == "cuda" else "cpu",
                threads=torch.get_num_threads(),
            )
        )

    if isinstance(parts.schedule, SpectralSchedule):  # spectra are not measured here, but counted as gradients
        parts.schedule.follower.take(1.0, 0.0)
    clock = _Clock(max(WARM_UP, PREFETCHED * workers), seconds, finish)
    trainer = stepping.make_trainer(parts.trainer_options, [clock])
    compat.leave_signals_to_us(trainer)
    stream = Stream(parts.data.train_dataloader(), 0, MOST_STEPS * GPU_WINDOW + clock.most_warm_up)
    try:
        stepping.fit(trainer, parts.module, stream, after_batch=clock.on_train_batch_end)
    except SystemExit as error:  # Lightning's for a KeyboardInterrupt
        raise KeyboardInterrupt from error
    return found[0]


class _Clock(pl.Callback):
    """Measures the seconds of a step, from the end of the one before, and stops the trainer when it has enough.

    most_warm_up   steps that are taken first and not measured, while they take less than half of ``seconds``
    seconds        after which nothing more is measured, but for `LEAST_STEPS`
    finish         is called at the end, while everything is on the device and the weights are those that are trained
    """

    def __init__(self, most_warm_up: int, seconds: float, finish: Callable[[pl.Trainer], None]) -> None:
        self.steps: list[float] = []  # seconds a step, each the mean of ``window`` steps
        self.window = 1
        self.warm_up = 0
        self.most_warm_up = most_warm_up
        self._seconds, self._finish = seconds, finish
        self._began = self._last = 0.0
        self._in_window = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.window = GPU_WINDOW if pl_module.device.type == "cuda" else 1
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._last:
            self.warm_up += 1
            spent = time.perf_counter() - self._began
            if self.warm_up >= self.most_warm_up or spent > self._seconds / 2:
                self._last = self._began = self._now(pl_module)
            return
        self._in_window += 1
        if self._in_window < self.window:
            return
        now = self._now(pl_module)
        self.steps.append((now - self._last) / self.window)
        self._last, self._in_window = now, 0
        enough = len(self.steps) >= LEAST_STEPS and now - self._began > self._seconds
        if enough or len(self.steps) * self.window >= MOST_STEPS:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish(trainer)

    @staticmethod
    def _now(module: pl.LightningModule) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _seconds_of(work: Callable[[], Any]) -> float:
    """Return the median of a few calls of ``work``."""
    found = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return median(found)


def _evaluation_seconds(module: ImageClassifier, trainer: pl.Trainer, batches: Batches, seconds: float) -> float:
    """Return the seconds that an image takes in an evaluation; the first batch, which starts the loader, is left out.

    A split of one batch is measured by that one. An empty one costs nothing.
    """
    precision = trainer.precision_plugin
    tally, marks, counts = Tally(module.device), [time.perf_counter()], [0]
    with torch.no_grad(), eval_mode(module):
        for batch in batches:
            images, labels = precision.convert_input(batch)
            with precision.val_step_context():
                tally.add(module(images), labels)
            if module.device.type == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            counts.append(tally.n)
            if len(marks) > 2 and marks[-1] - marks[0] > seconds:
                break
    first = 1 if len(marks) > 2 else 0
    images_counted = counts[-1] - counts[first]
    return (marks[-1] - marks[first]) / images_counted if images_counted else math.nan
