"""Sharded parameters: which ranks hold the other parts of a tensor, and sums that are all-reduced over those ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


def shards_of(tensor: Tensor, hidden: Any = None) -> tuple[Any, ...]:
    """Return the process groups over which ``tensor`` is sharded, none where this rank holds all of it.

    Args:
        tensor: a ``DTensor`` knows its groups; any other tensor is taken to be sharded over ``hidden``.
        hidden: the ranks that hold shards as plain tensors (FSDP1, ZeRO), or None.
    """
    if type(tensor) is not Parameter and hasattr(tensor, "placements"):
        mesh = tensor.device_mesh  # type: ignore[attr-defined]
        return tuple(
            mesh.get_group(dim)
            for dim, where in enumerate(tensor.placements)
            # not `is_shard()`, which is False for the strided shards of FSDP2 over tensor parallel
            if not where.is_replicate() and mesh.size(dim) > 1
        )
    return () if hidden is None else (hidden,)


def sharded_as(value: Tensor, like: Tensor) -> Tensor:
    """Return ``value``, a shard or a whole tensor, sharded as ``like`` is; all its ranks must call."""
    if not hasattr(like, "placements") or hasattr(value, "placements") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor  # takes a while to import

    return distribute_tensor(value, like.device_mesh, like.placements)  # type: ignore[attr-defined]


def sum_over_shards(shares: Sequence[tuple[tuple[Any, ...], Tensor]]) -> Tensor:
    """Return the sum of all shares over all ranks that hold one, 0-dim on the first share's device.

    Values with the same groups are added first, so each set costs one all-reduce. A sum over several groups is reduced
    over the last, then joins the sum over the rest.

    Args:
        shares: the groups over which a value must be summed, as :func:`shards_of` returns them, and this rank's value,
            0-dim. All ranks must name the sets of groups in the same order.
    """
    together: dict[tuple[Any, ...], Tensor] = {}

    def join(groups: tuple[Any, ...], share: Tensor) -> None:
        own = together.get(groups)
        together[groups] = share if own is None else own + share.to(own.device)

    for groups, share in shares:
        join(groups, share)
    while cut := [groups for groups in together if groups]:
        *others, last = widest = max(cut, key=len)
        share = together.pop(widest)
        torch.distributed.all_reduce(share, group=last)
        join(tuple(others), share)
    return together[()]


def all_zero(pieces: Sequence[tuple[Tensor, Tensor]], hidden: Any = None) -> bool:
    """Return whether tensors are 0 on all ranks that hold shards of them; this waits for the device.

    Args:
        pieces: for each tensor, the parameter that is sharded as it is, and this rank's shard of the tensor.
        hidden: see :func:`shards_of`; all its ranks must call, also those without pieces.
    """
    shares = [(shards_of(p, hidden), piece.count_nonzero().float()) for p, piece in pieces]
    if hidden is not None:
        shares.append(((hidden,), torch.zeros(())))
    return not shares or not sum_over_shards(shares)
