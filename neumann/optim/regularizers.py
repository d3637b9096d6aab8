"""Norms of the two regularizers of the paper's section 3.1, as an optimizer applies them in its next step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from neumann.optim.neumann import Neumann
from neumann.optim.phases import Phase, total_beta
from neumann.optim.tensors import total_square
from neumann.optim.two_loop import TwoLoopNeumann
from neumann.optim.wrappers import wrapped


@dataclass(frozen=True)
class RegularizerNorms:
    """Norms over all parameters that the optimizer has a state of, in the units of the weights and of the gradient.

    Args:
        distance: ‖r‖ = ‖w − v‖.
        attraction: ‖α‖r‖ r‖, the cubic term's; None where α is 0, or does not act in the next step (in a burn-in, and
            at a reset).
        repulsion: ‖β/max(‖r‖, δ)³ r‖, the repulsive term's; None likewise.
    """

    distance: float
    attraction: float | None
    repulsion: float | None


@torch.no_grad()
def regularizer_norms(optimizer: Optimizer) -> RegularizerNorms | None:
    """Return the norms of the terms that the next step of ``optimizer`` adds to the gradient (§3.1 of the paper).

    Args:
        optimizer: a :class:`Neumann` or a :class:`TwoLoopNeumann`, or a wrapper around one, whose tensors are whole on
            this process.

    Returns:
        None for any other, and before the first step, when there is no state.
    """
    inside = wrapped(optimizer)[-1]
    if not isinstance(inside, Neumann | TwoLoopNeumann):
        return None
    states = [[inside.state.get(p, {}) for p in group["params"]] for group in inside.param_groups]
    rs = [[state["r"] for state in own if "r" in state] for own in states]
    if not any(rs):
        return None
    squares = [float(total_square(own)) if own else 0.0 for own in rs]
    distance = math.sqrt(sum(squares))
    attraction, repulsion, acts = 0.0, 0.0, [False, False]
    for group, square in zip(inside.param_groups, squares, strict=True):
        alpha, beta, least = _coefficients(inside, group)
        acts = [acts[0] or alpha > 0, acts[1] or beta > 0]
        attraction += (alpha * distance) ** 2 * square
        if distance > 0:
            repulsion += (beta / max(distance, least) ** 3) ** 2 * square
    return RegularizerNorms(
        distance=distance,
        attraction=math.sqrt(attraction) if acts[0] else None,
        repulsion=math.sqrt(repulsion) if acts[1] else None,
    )


def _coefficients(optimizer: Neumann | TwoLoopNeumann, group: dict[str, Any]) -> tuple[float, float, float]:
    """Return α, β in total and δ of a group in the next step."""
    if isinstance(optimizer, Neumann):
        phase = Phase.of_step(int(group["step"]) + 1, group, optimizer.beta_total(group))
        return float(phase.alpha), float(phase.beta), phase.min_distance
    beta = total_beta(group, optimizer.param_groups)
    return group["alpha"], beta, math.sqrt(beta) if group["min_distance"] is None else group["min_distance"]
