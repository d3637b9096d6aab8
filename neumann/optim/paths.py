"""Plan of each parameter's path: fused, multi-tensor or single-tensor. It serves for many steps.

Fused parameters of one device, type and sharding move in one pass over memory (`fused.py`); the others move group by
group (`foreach.py`).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neumann.optim.fused import SQUARES, Entry, FusedPass, fused_pass, warn_of_slower_path, why_not_fused
from neumann.optim.sharding import shards_of

Groups = list[dict[str, Any]]
States = Mapping[Tensor, dict[str, Any]]


class PathPlan(NamedTuple):
    """Path of every parameter with a state, and the settings it was planned from.

    Args:
        fused: the passes of the fused path, one for each device, type and sharding.
        unfused: the other parameters, a list for each group.
        complete: True where every parameter has a state.
        params: the parameters of all groups, in their order.
        settings: the number of states, each group's size and path options, and whether torch.compile traces.
    """

    fused: tuple[FusedPass, ...]
    unfused: list[list[Tensor]]
    complete: bool
    params: list[Tensor]
    settings: tuple[Any, ...]

    def holds(self, groups: Groups, states: States) -> bool:
        """Return whether groups, settings and states are those that the plan was made of; this runs in every step."""
        return (
            self.settings == _settings(groups, states)
            and all(map(operator.is_, self.params, _params_of(groups)))
            and all(each.fits(states) for each in self.fused)
        )

    def kernel_sums_norm(self, process_group: Any) -> bool:
        """Return whether one fused pass carries all of ‖r‖², so that its kernel can add it up by itself."""
        return len(self.fused) == 1 and not any(self.unfused) and not shards_of(self.fused[0].first, process_group)


def plan_of(groups: Groups, states: States, process_group: Any) -> PathPlan:
    """Return the plan for the parameters of ``groups`` that have a state; a first look at r is part of it.

    Args:
        groups: the optimizer's parameter groups.
        states: the optimizer's state of each parameter; squares of a loaded one are taken out of it.
        process_group: the ranks that hold shards as plain tensors (FSDP1, ZeRO), or None.
    """
    fused: dict[tuple[Any, ...], list[Entry]] = {}
    unfused: list[list[Tensor]] = [[] for _ in groups]
    for index, group in enumerate(groups):
        for p in group["params"]:
            state = states.get(p, {})
            if "m" not in state:
                continue
            if takes_fused_path(group, p):
                alike = p.device, p.dtype, shards_of(p, process_group)
                fused.setdefault(alike, []).append(Entry(p, state, index))
            else:
                state.pop(SQUARES, None)
                unfused[index].append(p)
                if not torch.compiler.is_compiling() and group["fused"] is None and group["foreach"] is None:
                    warn_of_slower_path(p)
    passes = tuple(map(fused_pass, fused.values()))
    params = _params_of(groups)
    planned = sum(map(len, unfused)) + sum(map(len, fused.values()))
    return PathPlan(passes, unfused, planned == len(params), params, _settings(groups, states))


def takes_fused_path(group: dict[str, Any], p: Tensor) -> bool:
    """Return whether ``p`` moves in a fused pass: where ``group`` asks for it or leaves the choice, and it can be."""
    wanted = group["fused"] if group["fused"] is not None else group["foreach"] is None
    return wanted and not torch.compiler.is_compiling() and why_not_fused(p) is None


def _settings(groups: Groups, states: States) -> tuple[Any, ...]:
    by_group = [(len(group["params"]), group["fused"], group["foreach"]) for group in groups]
    return len(states), by_group, torch.compiler.is_compiling()


def _params_of(groups: Groups) -> list[Tensor]:
    return list(itertools.chain.from_iterable(group["params"] for group in groups))
