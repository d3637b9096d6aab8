"""The steps of a run: those of Lightning's automatic optimization, without what its loop does around each.

The Trainer gives the device, the strategy and the precision, and every step asks these, so that one under DDP or in
mixed precision is the same bits as in the Trainer's own loop. To the Trainer the whole run is one batch. Around every
batch of its own it calls 22 hooks, moves it to the device, gathers results for loggers and counts its progress; a run
needs none of it, and it took most of the time that a step had above one by hand (docs/LOG.md).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from neumann.config.surroundings import TRAINER_VARIABLES
from neumann.errors import UserError
from neumann.optim.two_loop import TwoLoopNeumann, inner_loop_of
from neumann.training.classifier import Batch, ImageClassifier

# called with the trainer, the module, the losses, the micro-batch and its number in this attempt, from 0
AfterBatch = Callable[[pl.Trainer, pl.LightningModule, dict[str, Tensor], Batch, int], None]
# called with the trainer, the module and the optimizer when a step's gradients are whole
BeforeStep = Callable[[pl.Trainer, pl.LightningModule, Optimizer], None]
# called with the trainer, the module, the micro-batch and its number in this attempt, before it is trained on
BeforeBatch = Callable[[pl.Trainer, pl.LightningModule, Batch, int], None]


class SteppingClassifier(ImageClassifier):
    """The classifier of a run, trained by `fit`; the arguments are those of `ImageClassifier`."""

    after_batch: AfterBatch
    before_step: BeforeStep | None = None
    before_batch: Sequence[BeforeBatch] = ()
    gradients = 0  # that the optimizer asked for in the last step; one, but for those that call their closure again
    closure_has_the_step = True
    _kept: list[Batch]  # micro-batches of the step under way, for an inner loop

    def on_train_batch_start(self, batch: Iterator[Batch], batch_idx: int) -> int:
        """Take the steps of the whole run, until one of them stops the trainer.

        Args:
            batch: the micro-batches of the run.
            batch_idx: 0.

        Returns:
            -1, by which Lightning takes no step of its own.
        """
        trainer = self.trainer
        loop, self._kept = inner_loop_of(trainer.optimizers[0]), []
        for index, each in enumerate(batch):
            try:
                if loop is None:
                    self._train_on(trainer, each, index)
                else:
                    self._keep_for(loop, trainer, each, index)
            except StopIteration as error:  # by which the Trainer would take the run to be over
                raise RuntimeError("a step has raised StopIteration") from error
            if trainer.should_stop:
                break
        return -1

    def _train_on(self, trainer: pl.Trainer, batch: Batch, index: int) -> None:
        """Train on micro-batch number ``index``; the last one of a step moves the weights.

        The order is Lightning's: the gradients of the step before are dropped after the forward pass, and the optimizer
        is given a closure, which some call twice.
        """
        strategy, accumulation, optimizer = trainer.strategy, trainer.accumulate_grad_batches, trainer.optimizers[0]
        precision = trainer.precision_plugin
        is_last = (index + 1) % accumulation == 0
        is_scaled = getattr(precision, "scaler", None) is not None  # else Lightning adds nothing but its hooks
        batch = precision.convert_input(batch)
        for look in self.before_batch:
            look(trainer, self, batch, index)
        losses: dict[str, Tensor] = {}
        self.gradients = 0

        def closure() -> Any:  # the loss, which torch takes for a float
            self.gradients += 1
            with torch.enable_grad():
                heads = _heads(strategy.training_step(batch, index))
                loss = heads["loss"] if accumulation == 1 else heads["loss"] / accumulation
                if index % accumulation == 0:
                    optimizer.zero_grad()
                if is_scaled:
                    strategy.backward(loss, optimizer)
                else:
                    loss.backward()
            if is_last and not is_scaled and self.before_step is not None:  # with a scaler Lightning calls it
                self.before_step(trainer, self, optimizer)
            losses.update(loss=loss.detach())
            losses.update({key: each / accumulation for key, each in heads.items() if key != "loss"})
            return losses["loss"]

        if not is_last:
            with _not_shared(strategy):
                closure()
        elif is_scaled:
            strategy.optimizer_step(optimizer, closure)
        else:
            optimizer.step(closure)
        _require_called(optimizer, losses)
        self.after_batch(trainer, self, losses, batch, index)

    def _keep_for(self, loop: TwoLoopNeumann, trainer: pl.Trainer, batch: Batch, index: int) -> None:
        """Keep micro-batch ``index``; at the last one of a step, take the step with a closure over all of them.

        The loop asks for the gradient of the global batch several times, at other weights, so each time all of its
        micro-batches are gone through again, and ranks share the gradient of the last one; or it asks for the gradient
        of each of their parts in turn. The losses are those at the weights that the step begins with.
        """
        self._kept.append(trainer.precision_plugin.convert_input(batch))
        for look in self.before_batch:
            look(trainer, self, self._kept[-1], index)
        losses: dict[str, Tensor] = {}
        if (index + 1) % trainer.accumulate_grad_batches == 0:
            batches, self._kept = self._kept, []
            losses = self._step_in(loop, trainer, batches, index + 1 - len(batches))
        self.after_batch(trainer, self, losses, batch, index)

    def _step_in(
        self, loop: TwoLoopNeumann, trainer: pl.Trainer, batches: list[Batch], first: int
    ) -> dict[str, Tensor]:
        """Take a step on ``batches``, numbered from ``first`` on; return the mean losses of its first gradient."""
        strategy, optimizer = trainer.strategy, trainer.optimizers[0]
        data, count = (loop.param_groups[0][key] for key in ("inner_data", "inner_steps"))
        parts = [batches] if data == "same" else parts_of(batches, count + 1)
        found: dict[str, Tensor] = {}

        def closure(k: int = 0) -> Any:
            losses: dict[str, Tensor] = {}
            with torch.enable_grad():
                optimizer.zero_grad()
                for place, batch in enumerate(parts[k]):
                    with nullcontext() if place + 1 == len(parts[k]) else _not_shared(strategy):
                        heads = _heads(strategy.training_step(batch, first + place))
                        means = {key: value / len(parts[k]) for key, value in heads.items()}
                        _backward(means["loss"], create_graph=loop.needs_graph)
                    for key, value in means.items():
                        losses[key] = losses[key] + value.detach() if key in losses else value.detach()
            if not found:
                found.update(losses)
                if self.before_step is not None:
                    self.before_step(trainer, self, optimizer)
            return losses["loss"]

        optimizer.step(closure)
        _require_called(optimizer, found)
        self.gradients = 1 if data == "chunks" else loop.gradient_evaluations  # of a global batch
        return found


def _require_called(optimizer: Optimizer, losses: Mapping[str, Tensor]) -> None:
    """Raise UserError where a step has left no ``losses``."""
    if not losses:
        raise UserError(
            f"{type(optimizer).__name__}.step does not call the closure that it is given, so the gradients of its "
            "step were never computed: torch.optim.Optimizer says how a step takes a closure"
        )


def parts_of(batches: list[Batch], count: int) -> list[list[Batch]]:
    """Return ``batches`` in their order as ``count`` parts of as many examples: whole ones where they suffice.

    Else each is cut. `neumann.config.inner_loop` refuses what comes out even in neither way.
    """
    if len(batches) % count == 0:
        each = len(batches) // count
        return [batches[at : at + each] for at in range(0, len(batches), each)]
    pieces = count // len(batches)
    return [[piece] for batch in batches for piece in zip(*(tensor.chunk(pieces) for tensor in batch), strict=True)]


def _heads(out: Any) -> dict[str, Tensor]:
    """Return the losses of a training step by key, ``loss`` first."""
    return out if isinstance(out, dict) else {"loss": out}


def _backward(loss: Tensor, *, create_graph: bool) -> None:
    """Call ``loss.backward``; of the graph that is kept, torch would warn, though the inner loop lets it go."""
    if not create_graph:
        loss.backward()
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
        loss.backward(create_graph=True)


def _not_shared(strategy: Any) -> AbstractContextManager[None]:
    """Return a block whose gradients the ranks keep to themselves."""
    return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()


class _OneBatch:
    """A loader whose one batch is an iterator over ``batches``."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Iterator[Batch]]:
        yield iter(self._batches)


def make_trainer(options: Mapping[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
    """Return the Trainer of ``options``, whatever ``$PL_TRAINER_...`` says of those that they leave out.

    Lightning reads a default of every argument from the surroundings, where one may stand for another project.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(TRAINER_VARIABLES)}
    try:
        return pl.Trainer(**options, callbacks=callbacks)
    finally:
        os.environ.update(hidden)


def fit(
    trainer: pl.Trainer,
    module: SteppingClassifier,
    batches: Iterable[Batch],
    *,
    after_batch: AfterBatch,
    before_step: BeforeStep | None = None,
    before_batch: Sequence[BeforeBatch] = (),
) -> None:
    """Train ``module`` on ``batches``, micro-batches on its device.

    Args:
        trainer: gives the device, the strategy, the precision and the accumulation.
        module: has one optimizer.
        batches: the run's.
        after_batch: called after each of ``batches``.
        before_step: called before each step, as a callback's ``on_before_optimizer_step``; by Lightning itself where
            gradients are scaled, so there it is to be that of one of the trainer's callbacks.
        before_batch: each called with each of ``batches`` before it is trained on.

    Raises what is raised within, as ``trainer.fit`` does: SystemExit for a KeyboardInterrupt.
    """
    module.after_batch, module.before_step, module.before_batch = after_batch, before_step, before_batch
    trainer.fit(module, train_dataloaders=_OneBatch(batches))
