"""The global norm ‖r‖ of the regularizers, reduced over all parameters, all groups and the ranks that hold shards."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neumann.optim.paths import PathPlan
from neumann.optim.sharding import shards_of, sum_over_shards
from neumann.optim.tensors import local, total_square


def squared_norm_over_shards(
    plan: PathPlan, groups: list[dict[str, Any]], states: Mapping[Tensor, dict[str, Any]], process_group: Any
) -> Tensor:
    """Return ‖r‖² of the whole model, 0-dim in float64 on the parameters' device; all ranks of shards must call.

    Args:
        plan: the paths of all parameters; its fused passes have summed their squares in the step before.
        groups: the optimizer's parameter groups.
        states: the optimizer's state of each parameter.
        process_group: the ranks that hold shards as plain tensors (FSDP1, ZeRO), or None.
    """
    shares = [(shards_of(each.first, process_group), each.squares.sum()) for each in plan.fused]
    unfused: dict[tuple[Any, ...], list[Tensor]] = {}
    for p in itertools.chain.from_iterable(plan.unfused):
        unfused.setdefault(shards_of(p, process_group), []).append(local(states[p]["r"]))
    shares += [(shards, total_square(rs)) for shards, rs in unfused.items()]
    params = list(itertools.chain.from_iterable(group["params"] for group in groups))
    if process_group is not None:  # the other ranks wait for this one, also where it has no state yet
        shares.append(((process_group,), _zero(params)))
    # Ranks may take different paths with their shards, but all have the parameters in one order
    order = list(dict.fromkeys(shards_of(p, process_group) for p in params))
    shares.sort(key=lambda share: order.index(share[0]) if share[0] in order else len(order))
    return sum_over_shards(shares) if shares else _zero(params)


def _zero(params: list[Tensor]) -> Tensor:
    return torch.zeros((), dtype=torch.float64, device=params[0].device if params else None)
