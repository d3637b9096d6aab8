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
        return tuple(mesh.get_group(dim) for dim, where in enumerate(tensor.placements) if where.is_shard())
    return () if hidden is None else (hidden,)


def sum_over_shards(shares: Sequence[tuple[tuple[Any, ...], Tensor]]) -> Tensor:
    """Return the sum of all shares, 0-dim on the first one's device, each also summed over the groups it names.

    One scalar is all-reduced for each set of groups, whatever the number of shares.
    """
    together: dict[tuple[Any, ...], Tensor] = {}
    for groups, share in shares:
        own = together.get(groups)
        together[groups] = share if own is None else own + share.to(own.device)
    for groups, share in together.items():
        for group in groups:
            torch.distributed.all_reduce(share, group=group)
    first, *others = together.values()
    for each in others:
        first = first + each.to(first.device)
    return first
