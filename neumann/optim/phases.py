"""The scalars of one step of Neumann: burn-in, reset and ordinary step are one formula and differ only in these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neumann.optim import momentum_and_resets
from neumann.optim.kernels.layout import ScalarRow
from neumann.optim.tensors import Scalar


class Phase(NamedTuple):
    """Scalars of one step. One formula covers every phase, so one kernel serves all:

    d = g + c·r;  m ← carry·m − eta_m·d;  u = mu_u·m − eta_u·d;  w ← w + u;  r ← gamma·(r + u),

    with c = :func:`push_coefficient` of ‖r‖, ``alpha``, ``beta`` and ``min_distance``.
    """

    carry: Scalar  # share of m that is kept: μ(t), or 0 in burn-in and at a reset
    alpha: Scalar  # α, the cubic coefficient; 0 outside ordinary steps
    beta: Scalar  # β in total, after counting; 0 outside ordinary steps
    min_distance: float  # δ, in the unit of ‖w‖
    eta_m: Scalar  # rate of d in m: η, or 0 in burn-in
    mu_u: Scalar  # share of m in the move u: μ(t), or 0 in burn-in and at a reset
    eta_u: Scalar  # rate of d in the move u: η, or 0 at a reset
    gamma: Scalar  # share of v that its average keeps: γ, or 1 (v stays) in burn-in and at a reset

    @classmethod
    def of_step(cls, step: int | Tensor, group: Mapping[str, Any], beta: float) -> Phase:
        """Return the scalars of step number ``step``, which counts from 1.

        Args:
            step: an int; or a 0-dim tensor, then the scalars are tensors too and nothing waits for the device.
            group: the hyperparameters.
            beta: β in total, after counting.
        """
        lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
        min_distance = math.sqrt(beta) if group["min_distance"] is None else group["min_distance"]
        t = step - group["burn_in_steps"]
        resets = group["reset_period"], group["reset_growth"], group["reset_rule"]
        if isinstance(t, Tensor):
            burn_in = t < 1
            ordinary = ~burn_in & ~momentum_and_resets.is_reset_tensor(t, *resets)
            on = ordinary.double()
            lr = torch.ones_like(on) * lr
            mu = momentum_and_resets.momentum_tensor(t, group["momentum"], group["momentum_unit"]) * ordinary
            return cls(
                carry=mu,
                alpha=group["alpha"] * on,
                beta=beta * on,
                min_distance=min_distance,
                eta_m=torch.where(burn_in, 0.0, lr),
                mu_u=mu,
                eta_u=torch.where(burn_in | ordinary, lr, 0.0),
                gamma=torch.where(ordinary, torch.full_like(on, group["gamma"]), 1.0),
            )
        if t < 1:
            return cls.burn_in(lr)
        if momentum_and_resets.is_reset(t, *resets):
            return cls.reset(lr)
        mu_t = momentum_and_resets.momentum(t, group["momentum"], group["momentum_unit"])
        return cls.ordinary(lr, mu_t, group["alpha"], beta, min_distance, group["gamma"])

    @classmethod
    def burn_in(cls, lr: Scalar) -> Phase:
        """SGD without momentum. v stays at w_0, so r accumulates the whole displacement (gamma = 1), and m stays 0."""
        return cls(carry=0.0, alpha=0.0, beta=0.0, min_distance=0.0, eta_m=0.0, mu_u=0.0, eta_u=lr, gamma=1.0)

    @classmethod
    def reset(cls, lr: Scalar) -> Phase:
        """m_t = −η ∇f̂ and nothing else: Algorithm 2, as printed, moves w and v only in its else-branch."""
        return cls(carry=0.0, alpha=0.0, beta=0.0, min_distance=0.0, eta_m=lr, mu_u=0.0, eta_u=0.0, gamma=1.0)

    @classmethod
    def ordinary(cls, lr: Scalar, mu: Scalar, alpha: Scalar, beta: Scalar, min_distance: float, gamma: Scalar) -> Phase:
        """The else-branch of Algorithm 2.

        Args:
            lr: η.
            mu: μ(t), in [0, 1).
            alpha: α, the cubic coefficient.
            beta: β in total, after counting.
            min_distance: δ, in the unit of ‖w‖.
            gamma: γ, the share of v that a step keeps.
        """
        return cls(
            carry=mu,
            alpha=alpha,
            beta=beta,
            min_distance=min_distance,
            eta_m=lr,
            mu_u=mu,
            eta_u=lr,
            gamma=gamma,
        )

    @property
    def pushes(self) -> bool:
        """True where α or β may act, so that ‖r‖ is needed; device scalars count as "may"."""
        return any(isinstance(term, Tensor) or term != 0 for term in (self.alpha, self.beta))

    def push(self, distance: Tensor) -> Scalar:
        """Return c for ‖r‖ = ``distance``; the plain number 0 where no regularizer acts, which spares a pass over r."""
        return push_coefficient(distance, self.alpha, self.beta, self.min_distance) if self.pushes else 0.0

    def scalar_row(self, weight_decay: float, maximize: bool, scale: Scalar = 1.0, active: Scalar = 1.0) -> ScalarRow:
        """Return the row of the fused kernels' table of scalars.

        Args:
            weight_decay: the coefficient of the L2 term inside the gradient, in every phase.
            maximize: turn the gradient's sign.
            scale: what the gradients have been multiplied with.
            active: 0 skips the step.
        """
        return ScalarRow(
            carry=self.carry,
            alpha=self.alpha,
            beta=self.beta,
            min_distance=self.min_distance,
            eta_m=self.eta_m,
            mu_u=self.mu_u,
            eta_u=self.eta_u,
            gamma=self.gamma,
            weight_decay=weight_decay,
            sign=(-1.0 if maximize else 1.0) / scale,
            active=active,
        )


def total_beta(group: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> float:
    """Return β of ``group``: its ``beta`` times the variables that its ``beta_count`` counts over all ``groups``."""
    beta: float = group["beta"]
    if group["beta_count"] == "absolute":
        return beta
    every = [each["params"] for each in groups]
    if group["beta_count"] == "tensors":
        return beta * sum(map(len, every))
    return beta * sum(p.numel() for params in every for p in params)


def push_coefficient(distance: Tensor, alpha: Scalar, beta: Scalar, min_distance: float) -> Tensor:
    """Return c, 0-dim, such that the gradient of the two regularizers is c·r, with r = w − v (section 3.1).

    ∇ĝ − ∇f̂ = (α‖r‖² − β/‖r‖²) r/‖r‖ = (α‖r‖ − β/‖r‖³) r,   guarded: c = α‖r‖ − β/max(‖r‖, δ)³;
    0 where r = 0. Nothing here waits for the device.

    Args:
        distance: ‖r‖, a 0-dim tensor.
        alpha: α, the cubic coefficient.
        beta: β in total, after counting.
        min_distance: δ, in the unit of ‖w‖; δ = √β bounds the repulsion by β/δ² = 1.
    """
    none = distance == 0  # β/0³: a push has no direction at w = v
    guarded = torch.where(none, 1.0, distance.clamp(min=min_distance))
    return torch.where(none, 0.0, alpha * distance - beta / guarded**3)
