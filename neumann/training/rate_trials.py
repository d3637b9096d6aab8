"""A few training steps at one learning rate after another, each from the same start, for a learning-rate range test.

The start is the run's own: its weights before the first step, its batches, its random streams, all of its seed. What a
trial changes is put back, so that the next one starts from the same bits; of the optimizer nothing is put back, since
each trial has a new one, made as a run makes it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from neumann import compat
from neumann.config import RunSpec
from neumann.cores import cores
from neumann.data.batches import Batches
from neumann.data.splits import order
from neumann.freed_memory import keep_freed_memory
from neumann.optim import evaluating
from neumann.optim.lightning import eval_mode
from neumann.seeds import derive
from neumann.training import stepping
from neumann.training.checkpoints import Randomness, Stream
from neumann.training.distributed import RankGroup
from neumann.training.parts import build_optimizer_of, build_parts
from neumann.training.run import quieten
from neumann.training.stepping import SteppingClassifier
from neumann.training.tally import Tally

# what a run spreads over its epochs would leave a short test in its first phase: it is cut short
CUT_SHORT = {"burn_in_steps": 0, "momentum_unit": 1}


def cut_short(spec: RunSpec) -> tuple[RunSpec, list[str]]:
    """Return ``spec`` with the slow beginnings of its optimizer cut short, and a sentence on each that was."""
    optimizer, said = dict(spec.config.optimizer), []
    if optimizer.get("burn_in_steps"):
        said.append("the burn-in, which is another method, is left out")
    if optimizer.get("momentum_unit", 1) != 1:
        said.append("the momentum is at its peak after a few steps (momentum_unit=1)")
    optimizer |= {key: value for key, value in CUT_SHORT.items() if key in optimizer}
    return replace(spec, config=replace(spec.config, optimizer=optimizer)), said


def prepare(threads: int | None) -> None:
    """Make this process what a run's is, with so many of torch's ``threads``; None: as many as it may use."""
    quieten()
    keep_freed_memory()
    torch.set_num_threads(threads if threads is not None else min(torch.get_num_threads(), cores()))


class SeedTrials:
    """Trials of one seed: its data, its network and the weights that it starts from.

    Args:
        spec: the run at any rate; a new one at each, with the same network and data, is given to `train`.
        steps: of the optimizer in a trial.
        images: of the training split on which the loss is measured, without augmentation; all where there are fewer.

    Raises UserError where the run cannot be built.
    """

    def __init__(self, spec: RunSpec, steps: int, images: int) -> None:
        self.seed, self.steps = spec.config.seed, steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a run says at its start, it says when it is trained
            self._parts = build_parts(spec, RankGroup())
        self._model = self._parts.module.model
        self._device = next(self._model.parameters()).device
        self._start = [value.detach().clone() for value in _tensors(self._model)]
        self._batches = self._parts.data.train_dataloader()
        train = self._parts.data.facts.examples.train
        chosen = train[order(len(train), (derive(self.seed, "evaluation"),))[:images]]
        self._images = self._parts.data.evaluation_batches(chosen)
        self._loss_at_start: float | None = None

    def train(self, spec: RunSpec) -> tuple[float, float | None, int, int]:
        """Train from the start as ``spec`` says, at a constant rate.

        Returns the loss before and after, in nats, the latter None where a training loss was not finite, the steps
        taken, and the gradient evaluations in them. The weights and buffers are the start's again afterwards.

        Raises UserError where the optimizer cannot be made, and KeyboardInterrupt.
        """
        self._model.to(self._device)
        self.put_back()
        optimizer = build_optimizer_of(spec, self._model)
        module = SteppingClassifier(
            self._model,
            lambda _: optimizer,
            label_smoothing=spec.config.recipe.label_smoothing,
            auxiliary_weight=spec.config.model.auxiliary_weight,
        )
        Randomness.seed(self.seed, 0)
        watch = _Watch(self._images, self._batches.plan.accumulation, self._loss_at_start)
        trainer = stepping.make_trainer(self._parts.trainer_options, [watch])
        compat.leave_signals_to_us(trainer)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                stepping.fit(
                    trainer,
                    module,
                    Stream(self._batches, 0, self.steps),
                    after_batch=watch.on_train_batch_end,
                )
        except SystemExit as error:  # Lightning's for a KeyboardInterrupt
            raise KeyboardInterrupt from error
        finally:
            self.put_back()
        assert watch.start is not None
        self._loss_at_start = watch.start
        return watch.start, watch.end, watch.steps, watch.gradients

    def put_back(self) -> None:
        """Give the network the weights and buffers of the start, to the bit."""
        with torch.no_grad():
            for value, kept in zip(_tensors(self._model), self._start, strict=True):
                value.copy_(kept)
        for parameter in self._model.parameters():
            parameter.grad = None


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


class _Watch(pl.Callback):
    """Measures the loss before the first and after the last step, and ends a trial whose training loss is not finite.

    ``start`` is the loss before, where it is known already.
    """

    def __init__(self, images: Batches, accumulation: int, start: float | None) -> None:
        self.start = start
        self.end: float | None = None
        self.steps = self.gradients = 0
        self._images, self._accumulation = images, accumulation
        self._finite = True
        self._losses: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.start is None:
            self.start = self._loss(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses += [outputs["loss"]] if outputs else []
        if (batch_idx + 1) % self._accumulation:
            return
        self.steps += 1
        self.gradients += int(getattr(pl_module, "gradients", 1))
        self._finite = _are_finite(self._losses)
        self._losses = []
        if not self._finite:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._finite:
            with evaluating(trainer.optimizers[0]):
                end = self._loss(trainer, pl_module)
            self.end = end if math.isfinite(end) else None

    def _loss(self, trainer: pl.Trainer, module: pl.LightningModule) -> float:
        """Return the mean cross-entropy of the images at the weights that the network holds, in eval mode."""
        precision, tally = trainer.precision_plugin, Tally(module.device)
        with torch.no_grad(), eval_mode(module):
            for batch in self._images:
                images, labels = precision.convert_input(batch)
                with precision.val_step_context():
                    tally.add(module(images), labels)
        return tally.scores()["loss"]


def _are_finite(losses: Sequence[Tensor]) -> bool:
    return bool(torch.stack([loss.detach().float() for loss in losses]).isfinite().all())
