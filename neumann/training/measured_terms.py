"""The optimizer's terms measured while a run trains, every `terms.every` steps and off its clock.

Nothing of the run is changed: the weights are put back bit for bit, no random number is drawn, and the time is counted
apart from the training's. The lines go to terms.jsonl (`neumann.store.steps`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer

from neumann.config import RunConfig
from neumann.curvature.frozen import FrozenNetwork
from neumann.errors import UserError
from neumann.optim.private_names import is_sharding_wrapper
from neumann.optim.sharding import shards_of
from neumann.optim.wrappers import wrapped
from neumann.training.classifier import Batch, ImageClassifier
from neumann.training.terms import EXACT, StepTerms

if TYPE_CHECKING:
    from neumann.training.distributed import RankGroup
    from neumann.training.evaluation import Evaluation
    from neumann.training.rate_schedules import RateSchedule


class TermsMeasuring(pl.Callback):
    """Measures the terms of every step that ``every`` divides; called after the evaluation of the step.

    Args:
        evaluation: whose progress tells the step, and whose clock is stopped meanwhile.
        schedule: counts the optimizer's steps.
        group: the ranks that train the run.
        every: steps between two lines.
        iterations: of Lanczos.
        newton: whether directions are held against Newton's.
        steps_per_epoch: the run's.
        report: takes each line.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        schedule: RateSchedule,
        group: RankGroup,
        *,
        every: int,
        iterations: int,
        newton: bool,
        steps_per_epoch: int,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._evaluation, self._schedule, self._group = evaluation, schedule, group
        self._every, self._iterations, self._steps_per_epoch = every, iterations, steps_per_epoch
        self._newton, self._report = newton, report
        self._batches: list[Batch] = []  # of the step under way, where it is to be measured
        self._looked: StepTerms | None = None

    def before_batch(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, index: int) -> None:
        """Take micro-batch ``index`` of this attempt; with the last one of a step, look before the step."""
        if (self._evaluation.progress.step + 1) % self._every:
            return
        self._batches.append(batch)
        if (index + 1) % trainer.accumulate_grad_batches:
            return
        assert isinstance(module, ImageClassifier)
        batches, self._batches = self._batches, []
        with self._off_the_clock(module):
            try:
                self._looked = StepTerms(module, trainer.optimizers[0], batches, self._group)
            except ValueError as error:
                raise UserError(f"terms.every={self._every}: {error}") from error

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the step that was looked at; not one whose loss is no longer finite."""
        looked, self._looked = self._looked, None
        progress = self._evaluation.progress
        if looked is None or progress.diverged_at is not None:
            return
        with self._off_the_clock(pl_module):
            found = looked.measured(self._iterations, newton=self._newton)
        self._report(
            {
                "step": progress.step,
                "epoch": progress.step / self._steps_per_epoch,
                "examples": progress.examples,
                "optimizer_step": self._schedule.count,
                **found,
            }
        )

    def _off_the_clock(self, module: pl.LightningModule) -> Any:
        if module.device.type == "cuda":  # what training has asked for is training's time
            torch.cuda.synchronize(module.device)
        return self._evaluation.off_the_clock()


def terms_measuring(
    config: RunConfig,
    evaluation: Evaluation,
    schedule: RateSchedule,
    group: RankGroup,
    report: Callable[[dict[str, Any]], None],
) -> TermsMeasuring | None:
    """Return what measures the terms of a run of ``config``, None where that is not asked for; on every rank alike."""
    terms, epoch = config.terms, config.derived.steps_per_epoch
    if terms.every is None:
        return None
    return TermsMeasuring(
        evaluation,
        schedule,
        group,
        every=terms.every,
        iterations=terms.lanczos_steps,
        newton=terms.newton,
        steps_per_epoch=epoch,
        report=report,
    )


def check_whole(config: RunConfig, optimizer: Optimizer) -> None:
    """Raise UserError where ``terms.every`` is given and this process holds a part of the weights or of their state."""
    chain = wrapped(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    hidden = any(is_sharding_wrapper(each) or getattr(each, "process_group", None) is not None for each in chain)
    if config.terms.every is not None and (hidden or any(map(shards_of, parameters))):
        raise UserError(
            f"terms.every={config.terms.every} measures weights that every process holds whole, and "
            f"{type(optimizer).__name__} is given shards of them: leave it at null, or train without shards"
        )


def check_terms(config: RunConfig, model: nn.Module) -> None:
    """Raise UserError where ``terms.every`` asks for what cannot be measured, at any step or of this network."""
    every, total = config.terms.every, config.derived.total_steps
    if every is None:
        return
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if config.terms.newton and parameters > EXACT:
        raise UserError(
            f"terms.newton=true takes the whole Hessian, which is made of networks of up to {EXACT:,} parameters, and "
            f"this one has {parameters:,}: leave it at false, or train a smaller one, as +model.kwargs.width=4 is"
        )
    if every > total:
        raise UserError(
            f"terms.every={every} is more than the {total} steps of the run, so nothing would be measured: give a "
            f"number up to {total}, or null"
        )
    try:
        FrozenNetwork(model, torch.float32)
    except ValueError as error:
        raise UserError(f"terms.every={every}: {error}") from error
