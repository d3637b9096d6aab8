"""The inner loop of `neumann.optim.TwoLoopNeumann` as a run's configuration has it: what a step takes of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neumann.config.global_batch import BatchSplit
from neumann.config.schema import RunConfig, batch_split
from neumann.errors import UserError

TARGETS = ("neumann.optimizers.two_loop_neumann", "neumann.optim.TwoLoopNeumann")
DIFFERENTIATE = ("series_exact", "cg")  # solvers that differentiate the gradient
LEAST_PART = 2  # images, since batch norm has no statistics over one


@dataclass(frozen=True)
class InnerLoop:
    """An inner loop that takes ``gradients`` gradients a step, the K further ones included, on ``data``."""

    gradients: int
    data: str

    @classmethod
    def of(cls, optimizer: Mapping[str, Any]) -> InnerLoop | None:
        """Return the loop of an optimizer's section; None where it has none, or one that its constructor refuses."""
        steps, data = optimizer.get("inner_steps"), optimizer.get("inner_data", "same")
        if optimizer.get("_target_") not in TARGETS or isinstance(steps, bool):
            return None
        if not isinstance(steps, int | float) or steps < 0 or not float(steps).is_integer():
            return None
        return cls(int(steps) + 1, str(data))

    @property
    def batches(self) -> int:
        """Global batches that a step takes from the data."""
        return self.gradients if self.data == "fresh" else 1

    def at_once(self, split: BatchSplit, norm_size: int | None) -> int | None:
        """Return the images that a device takes at once; None where its share cannot be cut into the loop's parts."""
        if self.data != "chunks" or split.accumulation % self.gradients == 0:
            return split.micro_batch
        pieces, left = divmod(self.gradients, split.accumulation)  # of a micro-batch
        if left or split.micro_batch % pieces or (split.micro_batch // pieces) % (norm_size or 1):
            return None
        part = split.micro_batch // pieces
        return part if part >= LEAST_PART else None


def batches_a_step(config: RunConfig) -> int:
    """Return the global batches that a step of a run takes from the data: one, but for an inner loop on fresh ones."""
    loop = InnerLoop.of(config.optimizer)
    return 1 if loop is None else loop.batches


def images_at_once(config: RunConfig) -> int:
    """Return the images that a device passes through the network at once in training."""
    loop, split = InnerLoop.of(config.optimizer), batch_split(config)
    return (loop and loop.at_once(split, config.batch.norm_size)) or split.micro_batch


def check_scaling(config: RunConfig) -> None:
    """Refuse float16, whose scaling of the loss is for one gradient a step. Raises UserError."""
    if config.trainer.precision == "16-mixed":
        raise UserError(
            "trainer.precision=16-mixed scales the loss for one gradient a step, and TwoLoopNeumann takes "
            "optimizer.inner_steps more: choose bf16-mixed or 32-true"
        )


def check_inner_loop(config: RunConfig, training_images: int) -> None:
    """Refuse an inner loop that the run's batch, precision or devices cannot feed. Raises UserError."""
    loop = InnerLoop.of(config.optimizer)
    if loop is None:
        return
    check_scaling(config)
    split, norm_size = batch_split(config), config.batch.norm_size
    solver = config.optimizer.get("solver", "series")
    if split.devices > 1 and solver in DIFFERENTIATE:
        raise UserError(
            f"optimizer.solver={solver} differentiates the gradient, which ranks cannot share: choose "
            "optimizer.solver=series, or trainer.devices=1 and trainer.num_nodes=1"
        )
    if loop.at_once(split, norm_size) is None:
        share = split.micro_batch * split.accumulation
        in_parts = f" in {split.accumulation} micro-batches" if split.accumulation > 1 else ""
        ghosts = "" if norm_size is None else f" and whole ghost batches of batch.norm_size={norm_size}"
        near = " or ".join(str(steps) for steps in _nearest(loop, split, norm_size))
        raise UserError(
            f"optimizer.inner_data=chunks cuts a device's {share} images of a step{in_parts} into inner_steps + 1 = "
            f"{loop.gradients} equal parts of at least {LEAST_PART} images{ghosts}, which they do not have: choose "
            f"optimizer.inner_steps={near}"
        )
    if loop.batches * split.size > training_images:
        raise UserError(
            f"optimizer.inner_data=fresh takes inner_steps + 1 = {loop.batches} batches of batch.size={split.size} a "
            f"step, and the training split has {training_images} images: choose batch.size="
            f"{training_images // loop.batches} or less, or fewer inner steps"
        )


def _nearest(loop: InnerLoop, split: BatchSplit, norm_size: int | None) -> list[int]:
    """Return the next smaller and the next larger number of inner steps whose parts a device's share has."""
    most = split.micro_batch * split.accumulation
    fits = [n for n in range(1, most + 1) if InnerLoop(n, loop.data).at_once(split, norm_size) is not None]
    below, above = [n for n in fits if n < loop.gradients], [n for n in fits if n > loop.gradients]
    return [gradients - 1 for gradients in (*below[-1:], *above[:1])]
