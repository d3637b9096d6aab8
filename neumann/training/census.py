"""Does everybody train on the examples that are theirs, and all together on each exactly once? Checked, then counted.

At the start of fit the ranks lay their shards side by side. Along the way every example that was trained on is counted,
and at the end of each epoch the distinct ones over all ranks must be as many as the epoch has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from neumann.config import RunSpec
from neumann.data.batches import Batches
from neumann.runs.ranks import world_size
from neumann.training.distributed import Group, WrongShards
from neumann.training.evaluation import Progress


def check_group(group: Group, trainer: pl.Trainer, spec: RunSpec, batches: Mapping[str, Batches], epoch: int) -> None:
    """Hold the real process group against the trainer and the configuration, and every rank against the others.

    ``batches`` are those of each split by name; ``epoch`` is the one that training goes on in. Raises WrongShards.
    """
    wanted = world_size(spec)
    if not group.world_size == trainer.world_size == wanted:
        raise WrongShards(
            f"the process group has {group.world_size} ranks, the trainer believes in {trainer.world_size}, and the "
            f"configuration asks for {wanted}"
        )
    if group.rank != trainer.global_rank:
        raise WrongShards(f"rank {group.rank} of the process group takes itself for rank {trainer.global_rank}")
    signatures = group.gather(spec.signature)
    if len(set(signatures)) > 1:
        raise WrongShards(f"the ranks train different runs: {', '.join(signatures)}")
    for split, those in batches.items():
        plans = group.gather((those.plan.rank, those.plan.world_size, len(those.plan)))
        if [rank for rank, _, _ in plans] != list(range(group.world_size)):
            raise WrongShards(f"the ranks load shards {[rank for rank, _, _ in plans]} of the {split} split")
        if len({plan[1:] for plan in plans}) > 1 or plans[0][1] != group.world_size:
            raise WrongShards(f"the ranks cut the {split} split differently: (rank, of, batches) = {plans}")
        counts = np.zeros(len(those.plan.indices), dtype=np.int32)
        for batch in those.plan.batches(epoch):
            counts[batch] += 1
        counts = group.counts(counts)
        expected = len(those.plan) * those.plan.span if those.plan.seed is not None else len(counts)
        if counts.max() > 1 or counts.sum() != expected:
            raise WrongShards(
                f"the shards of the {split} split hold {int((counts > 0).sum())} distinct examples, "
                f"{int((counts > 1).sum())} of them more than once, where {expected} are to be loaded once"
            )


class Census(pl.Callback):
    """Checks the group at the start, then counts the examples of every epoch over all ranks.

    ``distinct`` is the number of distinct training examples in the last whole epoch, or in all of a run that is
    shorter.
    """

    def __init__(self, spec: RunSpec, group: Group, batches: Mapping[str, Batches], progress: Progress) -> None:
        self._spec, self._group, self._all, self._progress = spec, group, batches, progress
        self._batches = batches["training"]
        self._counts = np.zeros(len(self._batches.plan.indices), dtype=np.int32)
        self.distinct: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check before the first step."""
        epoch = self._progress.step // len(self._batches)
        check_group(self._group, trainer, self._spec, self._all, epoch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, before anything else counts the step; close the epoch where it was the last."""
        if len(batch[1]) != len(self._batches.taken):
            raise WrongShards(f"a batch has {len(batch[1])} examples where {len(self._batches.taken)} were loaded")
        self._counts[self._batches.taken] += 1
        step, steps = self._progress.step + 1, len(self._batches)
        if step % steps == 0 or step == self._spec.config.derived.total_steps:
            self._close(step, (step - 1) % steps + 1)

    def _close(self, step: int, steps: int) -> None:
        counts = self._group.counts(self._counts)
        distinct, expected = int((counts > 0).sum()), steps * self._batches.plan.span
        if distinct != expected or counts.sum() != expected:
            raise WrongShards(
                f"the epoch that ended at step {step} trained on {distinct} distinct examples, {counts.sum()} in all, "
                f"where {expected} were due, each once"
            )
        if steps == len(self._batches) or self.distinct is None:
            self.distinct = distinct
        self._counts[:] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what all ranks have counted so far. Every rank must ask for it."""
        counts = self._group.counts(self._counts)
        return {"counted": torch.from_numpy(np.packbits(counts > 0)), "distinct": self.distinct}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, which rank 0 keeps for all."""
        self.distinct = state["distinct"]
        if self._group.is_main:
            self._counts[:] = np.unpackbits(state["counted"].numpy(), count=len(self._counts))
