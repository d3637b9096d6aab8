"""What are the scalars of one step of Neumann? Burn-in, reset and the ordinary step differ in nothing else."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Phase(NamedTuple):
    """The scalars of one step, in the one formula that covers every phase, so that one kernel does:

    d = g + push·r;  m ← carry·m − eta_m·d;  u = mu_u·m − eta_u·d;  w ← w + u;  r ← gamma·(r + u).
    """

    carry: float
    push: float | Tensor
    eta_m: float | Tensor
    mu_u: float
    eta_u: float | Tensor
    gamma: float

    @classmethod
    def burn_in(cls, lr: float | Tensor) -> Phase:
        """SGD without momentum; v stays at w_0, so r takes up the whole way (γ' = 1), and m stays 0."""
        return cls(carry=0.0, push=0.0, eta_m=0.0, mu_u=0.0, eta_u=lr, gamma=1.0)

    @classmethod
    def reset(cls, lr: float | Tensor) -> Phase:
        """m_t = −η ∇f̂ and nothing else: Algorithm 2, as printed, moves w and v only in its else-branch."""
        return cls(carry=0.0, push=0.0, eta_m=lr, mu_u=0.0, eta_u=0.0, gamma=1.0)


def push_coefficient(distance: Tensor, alpha: float, beta: float, min_distance: float | None) -> Tensor:
    """Return c, 0-dim, such that the gradient of the two regularizers is c·r, with r = w − v (section 3.1).

    ∇ĝ − ∇f̂ = (α‖r‖² − β/‖r‖²) r/‖r‖ = (α‖r‖ − β/‖r‖³) r,   guarded: c = α‖r‖ − β/max(‖r‖, δ)³;
    0 where r = 0. Nothing here waits for the device.

    Args:
        distance: ‖r‖, a 0-dim tensor.
        alpha: α, the cubic coefficient.
        beta: β in total, after counting.
        min_distance: δ, in the unit of ‖w‖; None is √β, which bounds the repulsion by β/δ² = 1.
    """
    delta = math.sqrt(beta) if min_distance is None else min_distance
    repulsion = beta / distance.clamp(min=delta) ** 3 if beta else torch.zeros_like(distance)
    return torch.where(distance == 0, 0.0, alpha * distance - repulsion)  # β/0³: a push has no direction at w = v
