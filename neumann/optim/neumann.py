"""How does one step of the Neumann optimizer go? A Neumann series for the Newton direction, unrolled over the steps.

Krishnan, Xiao, Saurous: "Neumann Optimizer: A Practical Optimization Algorithm for Deep Neural Networks", ICLR 2018,
arXiv 1712.03298, Algorithm 2. `neumann_reference.py` is the same algorithm as the paper prints it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from neumann.optim import schedules, validation
from neumann.optim.displaced import DisplacedOptimizer
from neumann.optim.phases import Phase, push_coefficient
from neumann.optim.tensors import (
    by_device_and_dtype,
    fitted,
    foreach_subtract_scaled_,
    global_norm,
    subtract_scaled_,
    use_foreach,
    with_gradient,
)


class Neumann(DisplacedOptimizer):
    r"""The Neumann optimizer (Algorithm 2 of Krishnan, Xiao and Saurous, ICLR 2018, arXiv 1712.03298).

    .. math::
       \begin{aligned}
        &\rule{110mm}{0.4pt} \\
        &\textbf{input}: \eta \text{ (lr)}, \: \alpha, \: \beta, \: \gamma, \: \mu(t) \text{ (momentum)}, \:
            K \text{ (reset period)}, \: \lambda \text{ (weight decay)}, \: \delta \text{ (min distance)} \\
        &\textbf{initialize}: m_0 = 0, \: v_0 = w_0; \: \text{kept as } r = w - v \\
        &\textbf{burn-in}: w \leftarrow w - \eta g, \: v \text{ stays} \\
        &\textbf{for} \: t = 1 \: \textbf{to} \: \ldots \: \textbf{do} \\
        &\hspace{5mm} g_t = \nabla \hat f(w_{t-1}) + \lambda w_{t-1}
            \hspace{5mm} (-\nabla \hat f \text{ if maximize}) \\
        &\hspace{5mm} \textbf{if reset}(t)\textbf{:} \hspace{5mm} m_t = -\eta g_t
            \hspace{5mm} (w \text{ and } v \text{ stay}) \\
        &\hspace{5mm} \textbf{else:} \\
        &\hspace{10mm} d_t = g_t + \left( \alpha \lVert r \rVert - \beta / \max(\lVert r \rVert, \delta)^3
            \right) r, \hspace{5mm} \lVert r \rVert \text{ over all parameters} \\
        &\hspace{10mm} m_t = \mu(t) m_{t-1} - \eta d_t \\
        &\hspace{10mm} w_t = w_{t-1} + \mu(t) m_t - \eta d_t \\
        &\hspace{10mm} r_t = \gamma (r_{t-1} + w_t - w_{t-1}) \\
        &\textbf{return} \: w_T - \mu(T) m_T \\
        &\rule{110mm}{0.4pt}
       \end{aligned}

    The parameters hold the DISPLACED point w; the answer is w − μm. Evaluate and save final weights at the answer::

        optimizer = Neumann(model.parameters(), lr=0.1)
        for epoch in range(epochs):
            for inputs, targets in batches:
                optimizer.zero_grad()
                loss_fn(model(inputs), targets).backward()
                optimizer.step()
            optimizer.eval()   # the parameters are at w − μm: validate, export
            validate(model)
            optimizer.train()  # they are back, bit for bit; step() is refused before this

    Every hyperparameter can be set per parameter group. The counters (``step``) and the mode are in ``param_groups``,
    so ``state_dict()``, ``deepcopy`` and ``pickle`` keep them.

    ================= ======== ============ ===========================================================================
    argument          paper    default      meaning and unit
    ================= ======== ============ ===========================================================================
    ``lr``            η        1e-2         learning rate, a number or a 0-dim tensor; its schedule is the caller's
    ``alpha``         α        1e-7         cubic term (attraction to v); gradient per squared weight norm
    ``beta``          β        1e-5         repulsive term (push away from v) per counted variable; gradient times
                                            squared weight norm
    ``beta_count``             "tensors"    the "variables" β counts, over all groups, frozen or not: "tensors",
                                            "scalars", or "absolute" (β is ``beta`` itself)
    ``gamma``         γ        0.99         share of v that its moving average keeps in a step, in [0, 1)
    ``momentum``      μ(t)     (0.5, 0.9)   (start, peak) of min(peak, max(start, 1 − 1/(1 + t/unit))), or a number for
                                            a constant μ; in [0, 1)
    ``momentum_unit``          1            steps in one unit of that t
    ``burn_in_steps``          0            steps of SGD without momentum first (paper: 5 epochs)
    ``reset_period``  K        None         steps (paper: 10 epochs); None resets once, at the first step after burn-in
    ``reset_growth``           2.0          factor on K at every reset, >= 1; 1 keeps K
    ``reset_rule``             "countdown"  "countdown": K steps after the last reset; "absolute": t ≡ 1 modulo the K of
                                            the moment (resets at t − 1 = 0, 2K, 4K, 8K, … with growth 2)
    ``weight_decay``           0.0          coefficient of the L2 term inside the gradient, in every phase
    ``min_distance``           None         δ, in the unit of ‖w‖; None is √β, 0.0 is the paper's unguarded pole
    ``maximize``               False        climb instead of descend
    ``foreach``                None         on lists of tensors at once; None does on CUDA, where it saves launches
    ``fused``                  None         not available in this version
    ``capturable``             False        not available in this version
    ================= ======== ============ ===========================================================================

    **The pole.** β/‖w − v‖² has no bound: v started next to w, a push of norm 853 against gradients of norm 1 was
    measured, and training diverged. Closer than δ the push falls off linearly, so that its norm is β/δ² at most; the
    default δ = √β makes that 1 (β in total, after counting). Where w = v there is no push, whatever δ is.

    **What the paper leaves open** and is chosen here: a reset moves neither w nor v, as printed; v stays at w_0 during
    burn-in; after a reset the answer is w itself, since m was not added to it. A parameter without a gradient is
    skipped whole, though its w − v counts in the norm; one added later joins at the current step with m = 0, v = w.

    Two habits do not carry over: groups are not independent of each other (the norm is global), and lr = 0 does not
    freeze the weights (the rate lives inside m).

    Raises:
        ValueError: an argument is not valid, or a parameter is not a real floating-point tensor.
    """

    points: ClassVar[tuple[str, ...]] = ("held", "base", "average")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
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
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "beta": beta,
            "beta_count": beta_count,
            "gamma": gamma,
            "momentum": momentum,
            "momentum_unit": momentum_unit,
            "burn_in_steps": burn_in_steps,
            "reset_period": reset_period,
            "reset_growth": reset_growth,
            "reset_rule": reset_rule,
            "weight_decay": weight_decay,
            "min_distance": min_distance,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
        }
        super().__init__(params, self._validated(defaults))

    @classmethod
    def paper(cls, params: ParamsT, lr: float | Tensor, *, steps_per_epoch: float, **overrides: Any) -> Neumann:
        """Return the paper's whole recipe (section 4): 5 epochs of SGD, the first K 10 epochs, doubled at every reset.

        Args:
            params: as in the constructor.
            lr: η, the only hyperparameter the paper tunes.
            steps_per_epoch: optimizer steps in one epoch, not always whole (batch 32k on CIFAR-10: 1.6).
            overrides: any other keyword of the constructor, which then replaces the recipe's.

        Raises:
            ValueError: ``steps_per_epoch`` is not a number > 0, or as in the constructor.
        """
        epoch = validation.number("steps_per_epoch", steps_per_epoch, above=0)
        recipe: dict[str, Any] = {
            "alpha": 1e-7,
            "beta": 1e-5,
            "gamma": 0.99,
            "momentum": (0.5, 0.9),
            "burn_in_steps": round(5 * epoch),
            "reset_period": max(1, round(10 * epoch)),
            "reset_growth": 2.0,
        }
        return cls(params, lr, **{**recipe, **overrides})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, which joins at the optimizer's current step; hyperparameters it does not name are the defaults.

        Raises:
            ValueError: a hyperparameter is not valid, or a parameter is not a real floating-point tensor.
        """
        param_group["step"] = self.param_groups[0]["step"] if self.param_groups else 0
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("step", 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step at the held point; where no parameter has a gradient, nothing changes and nothing is counted.

        Args:
            closure: reevaluates the model, with gradients enabled, and returns the loss.

        Returns:
            What the closure returned, else None.

        Raises:
            RuntimeError: the parameters are not at the held point (after ``eval()``), or a gradient is sparse.
        """
        self._require_held()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [with_gradient(group) for group in self.param_groups]
        if not any(params for params, _ in moved):
            return loss

        step = self.param_groups[0]["step"] + 1
        phases = self._phases(step)  # for all groups before any is moved: the norm in them is that of r_{t-1}
        for group, (params, grads), phase in zip(self.param_groups, moved, phases, strict=True):
            group["step"] = step
            states = [self._initialized(p) for p in params]
            neumann(
                params,
                grads,
                [state["m"] for state in states],
                [state["r"] for state in states],
                phase,
                weight_decay=group["weight_decay"],
                maximize=group["maximize"],
                foreach=use_foreach(group["foreach"], params),
            )
            for state in states:
                state["coefficient"] = phase.mu_u
        return loss

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Return ‖w − v‖ over all parameters of all groups, a 0-dim tensor on their device, in the unit of ‖w‖."""
        return global_norm([state["r"] for _, state in self._moved()])

    def beta_total(self, group: dict[str, Any]) -> float:
        """Return β, the coefficient of the repulsive term in ``group``: its ``beta`` times what ``beta_count`` counts.

        All parameters of all groups are counted, frozen or not: the paper's "1e-5 × number of variables" is a
        property of the model.
        """
        params = [p for each in self.param_groups for p in each["params"]]
        counts = {"tensors": len(params), "scalars": sum(p.numel() for p in params), "absolute": 1}
        return group["beta"] * counts[group["beta_count"]]

    def _phases(self, step: int) -> list[Phase]:
        """Return the scalars of step number ``step`` for each group; the norm is taken only where one needs it."""
        distance: Tensor | None = None
        phases = []
        for group in self.param_groups:
            lr, t = group["lr"], step - group["burn_in_steps"]
            if t < 1:
                phases.append(Phase.burn_in(lr))
            elif schedules.is_reset(t, group["reset_period"], group["reset_growth"], group["reset_rule"]):
                phases.append(Phase.reset(lr))
            else:
                push: float | Tensor = 0.0
                alpha, beta = group["alpha"], self.beta_total(group)
                if alpha or beta:
                    distance = self.distance() if distance is None else distance
                    push = push_coefficient(distance, alpha, beta, group["min_distance"])
                mu = schedules.momentum(t, group["momentum"], group["momentum_unit"])
                phases.append(Phase(carry=mu, push=push, eta_m=lr, mu_u=mu, eta_u=lr, gamma=group["gamma"]))
        return phases

    def _validated(self, hyperparameters: dict[str, Any]) -> dict[str, Any]:
        return validation.neumann_hyperparameters(hyperparameters)

    def _initialized(self, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        if "m" not in state:
            state["m"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["r"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["coefficient"] = 0.0
        return state

    def _weights_at(self, point: str, p: Tensor, state: dict[str, Any]) -> Tensor:
        return p.sub(state["r"]) if point == "average" else super()._weights_at(point, p, state)


def neumann(
    params: list[Tensor],
    grads: list[Tensor],
    ms: list[Tensor],
    rs: list[Tensor],
    phase: Phase,
    *,
    weight_decay: float,
    maximize: bool,
    foreach: bool,
) -> None:
    """Functional form of one step: ``params``, ``ms`` and ``rs`` change in place. See :class:`Phase` for the formula.

    Args:
        params: w.
        grads: ∇f̂ at w.
        ms: m, as params in shape, type and device; likewise:
        rs: r = w − v.
        phase: the step's scalars; tensors among them are 0-dim.
        weight_decay: the L2 term inside the gradient, in every phase.
        maximize: turns the gradient's sign, not the decay's.
        foreach: on lists of tensors at once instead of one tensor after the other.
    """
    run = _multi_tensor if foreach else _single_tensor
    for w, g, m, r in by_device_and_dtype(params, grads, ms, rs):
        push, eta_m, eta_u = (fitted(scalar, w[0]) for scalar in (phase.push, phase.eta_m, phase.eta_u))
        scalars = phase._replace(push=push, eta_m=eta_m, eta_u=eta_u)
        run(w, g, m, r, scalars, weight_decay=weight_decay, maximize=maximize)


def _single_tensor(
    params: list[Tensor],
    grads: list[Tensor],
    ms: list[Tensor],
    rs: list[Tensor],
    phase: Phase,
    *,
    weight_decay: float,
    maximize: bool,
) -> None:
    for w, g, m, r in zip(params, grads, ms, rs, strict=True):
        d = -g if maximize else g
        if weight_decay:
            d = d.add(w, alpha=weight_decay)
        if isinstance(phase.push, Tensor):  # else it is 0.0: burn-in, reset, or α = β = 0; spare the pass over r
            d = d + phase.push * r
        subtract_scaled_(m.mul_(phase.carry), phase.eta_m, d)
        u = subtract_scaled_(m * phase.mu_u, phase.eta_u, d)
        w.add_(u)
        r.add_(u).mul_(phase.gamma)


def _multi_tensor(
    params: list[Tensor],
    grads: list[Tensor],
    ms: list[Tensor],
    rs: list[Tensor],
    phase: Phase,
    *,
    weight_decay: float,
    maximize: bool,
) -> None:
    w, m, r = params, ms, rs  # lists of one device and type, named as the tensors above
    d = torch._foreach_neg(grads) if maximize else grads
    if weight_decay:
        d = torch._foreach_add(d, w, alpha=weight_decay)
    if isinstance(phase.push, Tensor):
        pushed = torch._foreach_mul(r, phase.push)
        torch._foreach_add_(pushed, d)
        d = pushed
    torch._foreach_mul_(m, phase.carry)
    foreach_subtract_scaled_(m, phase.eta_m, d)
    u = torch._foreach_mul(m, phase.mu_u)
    foreach_subtract_scaled_(u, phase.eta_u, d)
    torch._foreach_add_(w, u)
    torch._foreach_add_(r, u)
    torch._foreach_mul_(r, phase.gamma)
