"""Optimizers that wrap another one: the way to the one inside, and the states that a wrapper's own leaves out."""

from __future__ import annotations

import itertools
from typing import Any

from torch.optim.optimizer import Optimizer

from neumann.optim.private_names import base_optimizer, is_sharding_wrapper


def wrapped(optimizer: Optimizer) -> list[Optimizer]:
    """Return ``optimizer``, the one that it wraps, the one that this one wraps, and so on, to the innermost."""
    chain = [optimizer]
    while (inside := base_optimizer(chain[-1])) is not None and all(inside is not each for each in chain):
        chain.append(inside)
    return chain


def states_inside(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the states of the optimizers that ``optimizer`` wraps, from the outermost inwards.

    The state of a wrapper (SAM) may leave them out; where it has them, the tensors are the same. Of wrappers that shard
    there are none, since each rank has another.
    """
    _, *inside = chain = wrapped(optimizer)
    return [] if any(map(is_sharding_wrapper, chain)) else [each.state_dict() for each in inside]


def shares_groups(optimizer: Optimizer) -> list[bool]:
    """Return for each wrapper of the chain, from the outermost inwards, whether its groups are those that it wraps."""
    return [outer.param_groups is inner.param_groups for outer, inner in itertools.pairwise(wrapped(optimizer))]


def load_states(
    optimizer: Optimizer, state: dict[str, Any], inside: list[dict[str, Any]], shared: list[bool] | None = None
) -> None:
    """Load the states of ``optimizer`` and of those that it wraps, from the innermost outwards.

    torch makes new groups when it loads. Wrappers that share theirs with the optimizer inside (SAM) seldom share the
    new ones, and a rate that is set in one of them would not reach the other: they share them again.

    Args:
        optimizer: an optimizer, or a wrapper around one.
        state: what its own ``state_dict()`` was.
        inside: what :func:`states_inside` was.
        shared: what :func:`shares_groups` was, where ``optimizer`` has loaded a state since it was made.
    """
    chain = wrapped(optimizer)
    shared = shares_groups(optimizer) if shared is None else shared
    for each, own in reversed([*zip(chain, [state, *inside], strict=False)]):
        each.load_state_dict(own)
    for (outer, inner), together in reversed([*zip(itertools.pairwise(chain), shared, strict=False)]):
        if together and outer.param_groups is not inner.param_groups:
            outer.param_groups = inner.param_groups
