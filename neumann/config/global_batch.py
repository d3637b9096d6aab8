"""The split of the global batch: batch.size = micro-batch × accumulated micro-batches × devices, exactly or not at all.

A micro-batch is what one device takes at once. Each device accumulates the gradients of its micro-batches, and one
optimizer step follows. The ghost batch (``batch.norm_size``), over which batch norm takes its statistics, divides the
micro-batch and is a choice of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from neumann.errors import UserError


@dataclass(frozen=True)
class BatchSplit:
    """The factors of a global batch."""

    micro_batch: int  # examples that one device takes at once
    accumulation: int  # micro-batches of each device in one optimizer step
    devices: int  # of all machines

    @property
    def size(self) -> int:
        """The global batch size: examples in an optimizer step."""
        return self.micro_batch * self.accumulation * self.devices


@dataclass(frozen=True)
class BatchSolver:
    """Splits global batches over given devices.

    As few micro-batches as the bound allows are taken, and up to twice as many where these divide the batch: a prime
    batch size would otherwise be trained one example at a time without a word.

    Args:
        devices: that share the global batch, of all machines.
        max_per_device: the largest micro-batch; None: no bound, so nothing is accumulated.
        norm_size: the ghost batch, which must divide the micro-batch; None: any micro-batch will do.

    Raises UserError where the bound is below the ghost batch.
    """

    devices: int
    max_per_device: int | None = None
    norm_size: int | None = None

    def __post_init__(self) -> None:
        if self.max_per_device is not None and self.max_per_device < self._unit:
            raise UserError(
                f"batch.max_per_device={self.max_per_device} is below batch.norm_size={self.norm_size}, which a device "
                f"must take at once: choose batch.max_per_device={self.norm_size} or more"
            )

    @property
    def _unit(self) -> int:
        return self.norm_size or 1

    def split(self, size: int, largest: int | None = None) -> BatchSplit:
        """Return the split of a global batch of ``size`` examples.

        Raises UserError where there is no exact one; the sentence names the nearest sizes, up to ``largest``, that have
        one.
        """
        found = self._found(size)
        if found is not None:
            return found
        sizes = self._nearest(size, largest)
        near = " or ".join(str(each) for each in sorted(sizes)) if sizes else "fewer devices or a smaller norm_size"
        also = ", or batch.round=true for the nearest" if sizes else ""
        raise UserError(f"batch.size={size} is the global batch and {self._obstacle(size)}: choose {near}{also}")

    def rounded(self, size: int, largest: int) -> BatchSplit:
        """Return the split of the size nearest to ``size`` that has one, the smaller of two equally near.

        Raises UserError where none up to ``largest`` has one.
        """
        sizes = self._nearest(size, largest)
        return self.split(min(sizes, key=lambda each: (abs(each - size), each)) if sizes else size, largest)

    def _found(self, size: int) -> BatchSplit | None:
        ghosts, rest = divmod(size, self.devices * self._unit)  # ghost batches of each device in a step
        if rest or not ghosts:
            return None
        most = ghosts if self.max_per_device is None else self.max_per_device // self._unit  # in a micro-batch
        least = -(-ghosts // most)
        for accumulation in range(least, 2 * least + 1):
            if ghosts % accumulation == 0:
                return BatchSplit(ghosts // accumulation * self._unit, accumulation, self.devices)
        return None

    def _nearest(self, size: int, largest: int | None) -> list[int]:
        """Return the next smaller and the next larger size with a split, or ``size`` itself, as far as they exist."""
        step = self.devices * self._unit
        below, above = size // step * step, -(-size // step) * step
        while below and self._found(below) is None:
            below -= step
        while self._found(above) is None:
            above += step
        return [each for each in sorted({below, above}) if each and (largest is None or each <= largest)]

    def _obstacle(self, size: int) -> str:
        """Return what is in the way of a split of ``size``."""
        among = f"by {self.devices} devices" if self.devices > 1 else "on one device"
        if size % self.devices or size < self.devices:
            return f"cannot be shared evenly {among}"
        if size % (self.devices * self._unit):
            return f"cannot be cut {among} into ghost batches of batch.norm_size={self.norm_size}"
        ghosts = "" if self.norm_size is None else f", each whole ghost batches of batch.norm_size={self.norm_size}"
        return (
            f"cannot be cut {among} into even micro-batches of at most batch.max_per_device={self.max_per_device}"
            f"{ghosts}, without making them less than half as large"
        )


def rate_factor(rule: str, size: int, base_size: int | None) -> float:
    """Return the factor on the optimizer's rate at a global batch of ``size`` examples.

    Args:
        rule: of `recipe.lr_scaling`: none, linear (size / base_size) or sqrt, the root of that.
        size: the global batch size.
        base_size: the global batch size that the rate is meant for.

    Raises UserError for a rule without ``base_size``, and for ``base_size`` without a rule.
    """
    if rule == "none":
        if base_size is not None:
            raise UserError(
                f"recipe.lr_base_size={base_size} scales nothing under recipe.lr_scaling=none: choose "
                "recipe.lr_scaling=linear or sqrt, or leave recipe.lr_base_size at null"
            )
        return 1.0
    if base_size is None:
        raise UserError(
            f"recipe.lr_scaling={rule} needs recipe.lr_base_size, the batch size that optimizer.lr is meant for, such "
            "as recipe.lr_base_size=256"
        )
    return math.sqrt(size / base_size) if rule == "sqrt" else size / base_size
