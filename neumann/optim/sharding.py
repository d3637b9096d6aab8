"""Over which ranks must a norm be added up? The parameters of a sharded model are only partly here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


def shards_of(tensor: Tensor, hidden: Any = None) -> tuple[Any, ...]:
    """Return the process groups over which ``tensor`` is cut into pieces, none where it is whole here.

    Args:
        tensor: a ``DTensor`` knows; of any other ``hidden`` is believed.
        hidden: the group of ranks that hold pieces which cannot be seen to be pieces (FSDP1, ZeRO).
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


def cut_as(value: Tensor, like: Tensor) -> Tensor:
    """Return ``value``, which may be whole, cut over the ranks as ``like`` is; all ranks must ask where it is."""
    if not hasattr(like, "placements") or hasattr(value, "placements") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor  # costs time to import, and is imported where it is needed

    return distribute_tensor(value, like.device_mesh, like.placements)  # type: ignore[attr-defined]


def sum_over_shards(shares: Sequence[tuple[tuple[Any, ...], Tensor]]) -> Tensor:
    """Return the sum of all shares, 0-dim on the first one's device, each also summed over the groups it names.

    One scalar is all-reduced for each set of groups, whatever the number of shares, and shares that are cut over some
    groups join those that are cut over fewer. All ranks must name the sets of groups in the same order.
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
    """Return whether tensors are 0 on all ranks that share them; waits for the device.

    Args:
        pieces: a parameter and this rank's part of the tensor that is cut as it is, for each.
        hidden: see :func:`shards_of`; its ranks take part also with no pieces.
    """
    shares = [(shards_of(p, hidden), piece.count_nonzero().float()) for p, piece in pieces]
    if hidden is not None:
        shares.append(((hidden,), torch.zeros(())))
    return not shares or not sum_over_shards(shares)
