"""Check that over all ranks each example of an epoch's whole batches is trained on once.

Before the first step the ranks compare their number, signatures and shards. Then every example that is trained on is
counted, and at the end of each epoch the distinct ones over all ranks must be as many as the epoch has. At every
evaluation and checkpoint the weights of all ranks must be the same bits, since rank 0's weights are recorded for all.
The examples of an evaluation are counted in `neumann.training.evaluation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neumann.config import RunSpec
from neumann.data.batches import Batches
from neumann.processes.ranks import world_size
from neumann.training.distributed import RankGroup, WrongShards
from neumann.training.evaluation import TrainingProgress

CHUNK = 2**22  # elements of a tensor whose bits are summed at once


def check_group(
    group: RankGroup, trainer: pl.Trainer, spec: RunSpec, batches: Mapping[str, Batches], epoch: int
) -> None:
    """Compare the process group with Lightning's trainer and the configuration, and the shards of all ranks.

    Args:
        group: the real process group.
        trainer: Lightning's, with its rank and size.
        spec: the run that this rank trains.
        batches: this rank's batches of each split, by the split's name.
        epoch: the epoch that training goes on in, counted from 0.

    Raises:
        WrongShards: they differ; the message says in what.
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


def check_weights(group: RankGroup, module: nn.Module, optimizer: Optimizer, step: int) -> None:
    """Raise WrongShards where the weights or the optimizer's state differ between ranks, in any bit.

    DDP shares gradients alone; from equal gradients every rank makes its own step. Where an optimizer draws random
    numbers of its own or looks at the rank, the replicas drift apart, and nothing else notices.
    """
    if group.world_size == 1:
        return
    named: dict[str, Tensor] = dict(module.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                named[f"{names.get(id(parameter), 'a parameter')}, the optimizer's {key}"] = value
    first, *others = group.gather(torch.stack([_digest(value) for value in named.values()]).tolist())
    for rank, other in enumerate(others, start=1):
        for name, one, two in zip(named, first, other, strict=True):
            if one != two:
                raise WrongShards(
                    f"after step {step} the weights of rank {rank} are not those of rank 0, first in {name}: an "
                    "optimizer must make the same step on every rank, and draw the same random numbers if it draws any"
                )


def _digest(value: Tensor) -> Tensor:
    """Return two checksums over the bits of ``value``, int64 [2]; they are exact in any order of summation."""
    value = value.detach().contiguous().reshape(-1)
    if value.is_complex():
        value = torch.view_as_real(value).reshape(-1)
    bits = value.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=value.device)
    for begin in range(0, len(bits), CHUNK):
        part = bits[begin : begin + CHUNK].long()
        places = torch.arange(begin + 1, begin + 1 + len(part), device=part.device)
        sums += torch.stack([part.sum(), (part * places).sum()])
    return sums.cpu()


class Census(pl.Callback):
    """Checks the group before the first step, then counts the examples of every epoch over all ranks.

    ``distinct`` is the number of distinct training examples in the last whole epoch, or in all of a shorter run.

    Args:
        spec: the run.
        group: the ranks that train it.
        batches: this rank's batches of each split, by the split's name.
        progress: the steps so far, which `neumann.training.evaluation.Evaluation` counts after this callback.
    """

    def __init__(
        self, spec: RunSpec, group: RankGroup, batches: Mapping[str, Batches], progress: TrainingProgress
    ) -> None:
        self._spec, self._group, self._all, self._progress = spec, group, batches, progress
        self._batches = batches["training"]
        self._steps_per_epoch = len(self._batches) // self._batches.plan.accumulation
        self._counts = np.zeros(len(self._batches.plan.indices), dtype=np.int32)
        self.distinct: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the group before the first step. Raises WrongShards."""
        epoch = self._progress.step // self._steps_per_epoch
        check_group(self._group, trainer, self._spec, self._all, epoch)

    def count(self, batch: Any) -> None:
        """Count the examples of a micro-batch. Raises WrongShards where they are not as many as were loaded."""
        taken = self._batches.taken
        if len(batch[1]) != len(taken):
            raise WrongShards(f"a batch has {len(batch[1])} examples where {len(taken)} were loaded")
        self._counts[taken] += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the weights of all ranks before an evaluation, and what they have counted, at the end of an epoch.

        It is called after an optimizer step, before the step is counted.
        """
        step, steps = self._progress.step + 1, self._steps_per_epoch
        derived = self._spec.config.derived
        if step % derived.eval_every_steps == 0 or step == derived.total_steps:  # an evaluation is due
            check_weights(self._group, pl_module, trainer.optimizers[0], step)
        if step % steps == 0 or step == derived.total_steps:
            self._close(step, (step - 1) % steps + 1)

    def _close(self, step: int, steps: int) -> None:
        counts = self._group.counts(self._counts)
        plan = self._batches.plan
        distinct, expected = int((counts > 0).sum()), steps * plan.accumulation * plan.span
        if distinct != expected or counts.sum() != expected:
            raise WrongShards(
                f"the epoch that ended at step {step} trained on {distinct} distinct examples, {counts.sum()} in all, "
                f"where {expected} were due, each once"
            )
        if steps == self._steps_per_epoch or self.distinct is None:
            self.distinct = distinct
        self._counts[:] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what all ranks together have counted in this epoch. Every rank must call this."""
        counts = self._group.counts(self._counts)
        return {"counted": torch.from_numpy(np.packbits(counts > 0)), "distinct": self.distinct}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; rank 0 keeps the counts of all."""
        self.distinct = state["distinct"]
        if self._group.is_main:
            self._counts[:] = np.unpackbits(state["counted"].numpy(), count=len(self._counts))
