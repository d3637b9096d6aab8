"""The Neumann optimizer as the paper prints it; read it beside the paper: Algorithm 2, ICLR 2018, arXiv 1712.03298.

It is slow and obvious: in float64, with v instead of r = w − v, branches instead of scalars and counters instead of
closed forms. The tests compare every fast path with it, and it shares no code with them. What the paper leaves open is
decided as in `neumann.py`, and marked "decision" here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT


class NeumannReference(Optimizer):
    """Algorithm 2 in the paper's letters.

    The arguments are as in :class:`neumann.optim.Neumann`, without ``foreach``, ``fused``, ``capturable`` and
    ``process_group``; they are not checked. Its parameters should be float64: m and v are kept in float64 whatever the
    parameters are. :meth:`answer` returns what the algorithm returns.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        *,
        alpha: float = 1e-7,
        beta: float = 1e-5,
        beta_count: str = "tensors",
        gamma: float = 0.99,
        momentum: float | tuple[float, float] = (0.5, 0.9),
        momentum_unit: float = 1,
        burn_in_steps: int = 0,
        reset_period: int | None = None,
        reset_growth: float = 2.0,
        reset_rule: str = "countdown",
        weight_decay: float = 0.0,
        min_distance: float | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {name: value for name, value in locals().items() if name not in ("self", "params", "__class__")}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with v_0 = w_0; it joins at the other groups' t and K."""
        step = self.param_groups[0]["step"] if self.param_groups else 0
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.update(step=step, t_last_reset=0, resets=0, K=group["reset_period"])
        for t in range(1, step - group["burn_in_steps"] + 1):
            self._is_reset(group, t)
        for w in group["params"]:
            self.state[w]["v"] = w.detach().double().clone()  # v_0 = w_0
            self.state[w]["m"] = torch.zeros_like(w, dtype=torch.float64)  # m_0 = 0
            self.state[w]["displacement"] = torch.zeros_like(w, dtype=torch.float64)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the loop: burn-in, then t = 1, 2, …"""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if all(w.grad is None for group in self.param_groups for w in group["params"]):
            return loss

        norm = self.distance()  # ‖w_t − v_t‖, over all parameters together, before any of them moves
        for group in self.param_groups:
            group["step"] += 1
            eta = float(group["lr"])
            t = group["step"] - group["burn_in_steps"]

            burn_in = t <= 0  # "run vanilla SGD for a small number of iterations"
            reset = not burn_in and self._is_reset(group, t)
            mu = self._mu(group, t)

            for w in group["params"]:
                if w.grad is None:
                    continue
                state = self.state[w]
                m, v = state["m"], state["v"]
                grad_f = self._gradient(group, w)
                if burn_in:
                    w.copy_(w.double() - eta * grad_f)
                    state["displacement"] = torch.zeros_like(m)
                elif reset:  # m_t = −η ∇f̂, and nothing else moves
                    state["m"] = -eta * grad_f
                    state["displacement"] = torch.zeros_like(m)  # the μm of this step was never added to w
                else:
                    # d_t = ∇f̂ + (α‖w_t − v_t‖² − β/‖w_t − v_t‖²) (w_t − v_t)/‖w_t − v_t‖
                    d = grad_f + self._regularizers(group, w, v, norm)
                    # m_t = μ(t) m_{t−1} − η(t) d_t
                    m = mu * m - eta * d
                    # w_t = w_{t−1} + μ(t) m_t − η(t) d_t
                    w_t = w.double() + mu * m - eta * d
                    # v_t = w_t + γ (v_{t−1} − w_t)
                    v = w_t + group["gamma"] * (v - w_t)
                    w.copy_(w_t)
                    state["m"], state["v"], state["displacement"] = m, v, mu * m
        return loss

    def answer(self) -> list[Tensor]:
        """Return w_T − μ(T) m_T of every parameter in float64 ("return w_T − μ(T) m_T")."""
        return [w.detach().double() - self.state[w]["displacement"] for g in self.param_groups for w in g["params"]]

    def distance(self) -> float:
        """Return ‖w − v‖ over all parameters of all groups."""
        squares = 0.0
        for group in self.param_groups:
            for w in group["params"]:
                squares += float(((w.detach().double() - self.state[w]["v"]) ** 2).sum())
        return math.sqrt(squares)

    def _gradient(self, group: dict[str, Any], w: Tensor) -> Tensor:
        """Return ∇f̂; decision: weight decay is the L2 term inside it."""
        assert w.grad is not None
        grad_f = -w.grad.double() if group["maximize"] else w.grad.double()
        return grad_f + group["weight_decay"] * w.double()

    def _regularizers(self, group: dict[str, Any], w: Tensor, v: Tensor, norm: float) -> Tensor:
        """Return (α‖w − v‖² − β/‖w − v‖²) (w − v)/‖w − v‖, section 3.1.

        Decision: closer than δ the repulsive term falls off linearly, β/‖w − v‖² · 1/‖w − v‖ becoming β/δ³, and where
        w = v there is no push. The default δ = √β bounds the repulsion by 1.
        """
        difference = w.double() - v
        if norm == 0:
            return torch.zeros_like(difference)
        alpha, beta = group["alpha"], self._beta(group)
        delta = math.sqrt(beta) if group["min_distance"] is None else group["min_distance"]
        attraction = alpha * norm**2 * difference / norm
        if norm >= delta:
            return attraction - beta / norm**2 * difference / norm
        return attraction - beta / delta**2 * difference / delta

    def _beta(self, group: dict[str, Any]) -> float:
        """Return β, "1e-5 × number of variables"; decision: a count mode, over all parameters of the model."""
        beta: float = group["beta"]
        if group["beta_count"] == "absolute":
            return beta
        variables = 0
        for each in self.param_groups:
            for w in each["params"]:
                variables += w.numel() if group["beta_count"] == "scalars" else 1
        return beta * variables

    def _mu(self, group: dict[str, Any], t: int) -> float:
        """Return μ(t) ∝ 1 − 1/(1+t), "starting at 0.5, peaking at 0.9"; decision: clipped, t in a unit."""
        momentum = group["momentum"]
        if isinstance(momentum, (int, float)):
            return momentum
        start, peak = momentum
        mu = 1 - 1 / (1 + max(t, 0) / group["momentum_unit"])
        if mu < start:
            return start
        if mu > peak:
            return peak
        return mu

    def _is_reset(self, group: dict[str, Any], t: int) -> bool:
        """Return whether t ≡ 1 (mod K), and let K grow if so; decision: two readings of a K that grows."""
        K = group["K"]  # the K of the moment
        if t == 1:
            reset = True
        elif K is None:
            reset = False
        elif group["reset_rule"] == "countdown":
            reset = t - group["t_last_reset"] == K  # K steps after the last one
        else:
            reset = (t - 1) % K == 0  # literally
        if reset:
            group["t_last_reset"] = t
            if K is not None:
                # K_j = ceil(K g^j), g as the decimal number it is written as, j growths so far. The countdown's first
                # reset, at t = 1, starts the first K.
                group["resets"] += 1
                growths = group["resets"] - (1 if group["reset_rule"] == "countdown" else 0)
                group["K"] = math.ceil(group["reset_period"] * Fraction(str(group["reset_growth"])) ** growths)
        return reset
