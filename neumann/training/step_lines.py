"""What is logged by optimizer step: rate, momentum, loss, speed and norms, a line every `trainer.log_every_n_steps`.

A line's loss is the mean over the steps since the line before it, of all ranks. The losses stay on the device until a
line, an evaluation or a look for divergence fetches them together (`neumann.training.evaluation`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from neumann import compat
from neumann.optim.momentum_and_resets import momentum
from neumann.optim.tensors import total_square

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from neumann.training.evaluation import TrainingProgress


class StepLogging:
    """Makes the lines of a run: at every step that ``every`` divides, and at the last one.

    Args:
        progress: the run's; what the next line averages is kept in it, so that a checkpoint holds it.
        every: steps between two lines.
        total_steps: the run's.
        steps_per_epoch: the run's.
        batch_size: examples a step, over all ranks.
        norms: the norms that are asked for; None on ranks that write nothing.
        report: takes each line.
    """

    def __init__(
        self,
        progress: TrainingProgress,
        *,
        every: int,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        norms: StepNorms | None,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._progress, self._every, self._total = progress, every, total_steps
        self._steps_per_epoch, self._batch_size = steps_per_epoch, batch_size
        self._norms, self._report = norms, report

    def is_due(self, step: int) -> bool:
        """Return whether there is a line at ``step``, counted from 1."""
        return step % self._every == 0 or step == self._total

    def begin(self) -> None:
        """Begin an attempt: steps of earlier ones that were not logged are none of the next line's."""
        if self._progress.line_steps == 0:
            self._progress.line_seconds = self._progress.train_seconds

    def add(self, losses: Mapping[str, float]) -> None:
        """Take the losses of one step, the mean over all ranks, by their keys in a line."""
        self._progress.line_steps += 1
        sums = self._progress.line_loss_sums
        for key, loss in losses.items():
            sums[key] = sums.get(key, 0.0) + loss

    def before_step(self, trainer: pl.Trainer, optimizer: Optimizer) -> None:
        """Look at the gradients of the step that is about to be taken, where its line asks for norms."""
        if self._norms is not None and self.is_due(self._progress.step + 1):
            self._norms.before_step(optimizer, compat.loss_scale_left(trainer, optimizer))

    def after_step(self) -> None:
        """Look at the weights after the step, before anything else moves them."""
        if self._norms is not None:
            self._norms.after_step()

    def write(self, group: Mapping[str, Any], optimizer_step: int) -> None:
        """Report the line of the step that was taken just now.

        Args:
            group: the optimizer's first group.
            optimizer_step: steps that the optimizer took.
        """
        progress = self._progress
        steps = progress.line_steps
        seconds = progress.train_seconds - progress.line_seconds
        mu = momentum_of(group)
        line = {
            "step": progress.step,
            "epoch": progress.step / self._steps_per_epoch,
            "examples": progress.examples,
            "optimizer_step": optimizer_step,
            "lr": float(group["lr"]),
            **({} if mu is None else {"momentum": mu}),
            **{key: total / steps for key, total in progress.line_loss_sums.items()},
            "train_seconds": round(progress.train_seconds, 4),
            "examples_per_second": round(steps * self._batch_size / seconds, 2) if seconds > 0 else None,
            **(self._norms.taken() if self._norms is not None else {}),
        }
        progress.line_steps, progress.line_seconds, progress.line_loss_sums = 0, progress.train_seconds, {}
        self._report(line)


def momentum_of(group: Mapping[str, Any]) -> float | None:
    """Return μ of the last step of a group where the optimizer moves it itself (Neumann, BurnInSGD), else None.

    In a burn-in it is 0. At a reset the optimizer takes no move by it, and the ramp goes on.
    """
    if not {"momentum", "burn_in_steps", "step"} <= group.keys():
        return None
    t = int(group["step"]) - group["burn_in_steps"]
    return momentum(t, group["momentum"], group.get("momentum_unit", 1.0)) if t > 0 else 0.0


class StepNorms:
    """Norms of the gradient and of the update of single steps, over all parameters of the optimizer.

    The gradient is that of the whole step, over all micro-batches and ranks, before the optimizer adds weight decay to
    it; the update is how far the step moved the weights. Both stay on the device until they are taken.

    Args:
        gradient: whether the gradient's is asked for.
        update: whether the update's is.
    """

    def __init__(self, *, gradient: bool, update: bool) -> None:
        self._asked = {"grad_norm": gradient, "update_norm": update}
        self._params: list[Tensor] = []
        self._before: list[Tensor] = []
        self._norms: dict[str, Tensor] = {}

    @property
    def asked(self) -> bool:
        """Return whether any is asked for."""
        return any(self._asked.values())

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, scale: float) -> None:
        """Take the norm of the gradients, which are multiplied by ``scale``, and keep the weights."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if self._asked["grad_norm"]:
            grads = [p.grad for p in params if p.grad is not None]
            self._norms["grad_norm"] = total_square(grads).sqrt() / scale
        if self._asked["update_norm"] and not self._params:  # an optimizer may ask for the gradients several times
            self._params, self._before = params, [p.detach().clone() for p in params]

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the norm of the difference to the weights that were kept, and drop those."""
        if self._params:
            moves = [p.detach() - before for p, before in zip(self._params, self._before, strict=True)]
            self._norms["update_norm"] = total_square(moves).sqrt()
            self._params, self._before = [], []

    def taken(self) -> dict[str, float | None]:
        """Return the norms that are asked for, by their keys in a line; None of a step that was not looked at."""
        found = {key: float(norm) for key, norm in self._norms.items()}
        self._norms = {}
        return {key: found.get(key) for key, asked in self._asked.items() if asked}
