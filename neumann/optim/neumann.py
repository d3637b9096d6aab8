"""The Neumann optimizer: a Neumann series for the Newton direction, unrolled over the steps.

Krishnan, Xiao, Saurous: "Neumann Optimizer: A Practical Optimization Algorithm for Deep Neural Networks", ICLR 2018,
arXiv 1712.03298, Algorithm 2. This file has the hyperparameters and β's count. The algorithm is in `phases.py`
(burn-in, reset and ordinary step), `momentum_and_resets.py` (μ(t) and the reset rule) and `foreach.py` (the formula on
tensors); `phased.py` takes the step, and `reference.py` is the same algorithm as the paper prints it.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from neumann.optim import argument_checks
from neumann.optim.phased import PhasedOptimizer
from neumann.optim.phases import Phase, total_beta


class Neumann(PhasedOptimizer):
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

    Every hyperparameter can be set per parameter group, except ``capturable`` and ``process_group``. The counters
    (``step``) and the point (``point``) are in ``param_groups``, so ``state_dict()``, ``deepcopy`` and ``pickle`` keep
    them.

    ================= ======== ============ ===========================================================================
    argument          paper    default      meaning and unit
    ================= ======== ============ ===========================================================================
    ``params``                              parameters, or dicts of parameter groups
    ``lr``            η        1e-2         learning rate, a number or a tensor of one; its schedule is the caller's
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
    ``foreach``                None         True: multi-tensor, on lists at once; False: single-tensor, one by one
    ``fused``                  None         True: in one pass over memory; see below
    ``capturable``             False        keep ``step`` and the phases on the parameters' device, for CUDA graphs
    ``process_group``          None         the ranks that hold shards as plain tensors (FSDP1, ZeRO), or None
    ================= ======== ============ ===========================================================================

    **Which path.** ``fused`` reads and writes each of w, m, r once and g once, 28 bytes for a float32 parameter, which
    is what fused Adam moves; ‖r‖ of the next step is summed on the way. On a CPU it is C++, compiled at the first use
    (a second or two, kept in ``$NEUMANN_CACHE`` or the user's cache folder), on CUDA Triton. With ``fused`` and
    ``foreach`` both None it is taken wherever it can be, since it is the fastest for small and for large models. It
    needs a C++ compiler, or Triton, and dense tensors; otherwise a step is multi-tensor on CUDA (80 bytes, but few
    launches) and single-tensor on a CPU, where the temporaries then stay in the cache. Where there is no compiler, a
    warning says so once, unless ``fused=False`` or ``foreach`` is given; for a type or device without a kernel,
    ``fused=True`` is an error. ``torch.compile`` makes two graphs of a ``capturable`` unfused step, and leaves any
    other step as it is. Code that writes to r without torch's counting it (by ``.data``, NumPy, ``broadcast`` and other
    collectives) must call ``optimizer.load_state_dict(optimizer.state_dict())`` afterwards, else the next step still
    takes the norm that was carried.

    **Types.** m and r have the parameter's type, but float32 for float16 and bfloat16 parameters; loading keeps that.

    **Shards.** ‖r‖ runs over the whole model. A ``DTensor`` (FSDP2, tensor parallel) shows how it is sharded, and one
    scalar is all-reduced in a step. Tensors that do not show it (FSDP1, ZeRO) need ``process_group``, and β as a total,
    ``beta_count="absolute"``, since the variables cannot be counted; all ranks of the group must then step together.

    **The pole.** β/‖w − v‖² has no bound: v started next to w, a push of norm 853 against gradients of norm 1 was
    measured, and training diverged. Closer than δ the push falls off linearly, so that its norm is β/δ² at most; the
    default δ = √β makes that 1 (β in total, after counting). Where w = v there is no push, whatever δ is.

    **What the paper leaves open** and is chosen here: a reset moves neither w nor v, as printed; v stays at w_0 during
    burn-in; after a reset the answer is w itself, since m was not added to it. A parameter without a gradient is
    skipped whole, though its w − v counts in the norm; one added later joins at the current step with m = 0, v = w.

    Two habits do not carry over: groups are not independent of each other (the norm is global), and lr = 0 does not
    freeze the weights: the rate lives inside m, so they coast by μ²/(1 − μ)·m in all. A first step of rate 0 with
    gradients that are all 0 only makes the state and is not counted: that is how ``torch.distributed.checkpoint`` asks
    for it.

    Raises:
        ValueError: an argument is not valid, or a parameter is not a real floating-point tensor.
    """

    saved_keys: ClassVar[tuple[str, ...]] = ("alpha", "beta", "step")
    _said_cycled = False  # that a scheduler has replaced the ramp of the momentum
    _warns_of_burn_in = False  # True where `paper` chose the burn-in; a copy no longer warns

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
        process_group: Any = None,
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
        self.process_group = process_group
        self._plan = None
        super().__init__(params, defaults)

    @classmethod
    def paper(cls, params: ParamsT, lr: float | Tensor, *, steps_per_epoch: float, **overrides: Any) -> Neumann:
        """Return the optimizer with the paper's recipe (section 4): 5 epochs of SGD, K from 10 epochs on, doubling.

        It is made for about 250 epochs. A run of 5 or fewer is plain SGD to its end: evaluated during the burn-in, the
        optimizer warns of that once.

        Args:
            params: as in the constructor.
            lr: η, the only hyperparameter the paper tunes.
            steps_per_epoch: optimizer steps in one epoch, a number > 0 (batch 32k on CIFAR-10: 1.6).
            overrides: further keywords of the constructor; they replace the recipe's.

        Raises:
            ValueError: ``steps_per_epoch`` is not a number > 0, or as in the constructor.
        """
        epoch = argument_checks.number("steps_per_epoch", steps_per_epoch, above=0)
        recipe: dict[str, Any] = {
            "alpha": 1e-7,
            "beta": 1e-5,
            "gamma": 0.99,
            "momentum": (0.5, 0.9),
            "burn_in_steps": round(5 * epoch),
            "reset_period": max(1, round(10 * epoch)),
            "reset_growth": 2.0,
        }
        optimizer = cls(params, lr, **{**recipe, **overrides})
        optimizer._warns_of_burn_in = True
        return optimizer

    def move_to(self, point: str) -> None:
        """Move the parameters to ``point``, one of :attr:`points`, as `DisplacedOptimizer.move_to` does."""
        if self._warns_of_burn_in and point != "held":
            last = max(group["burn_in_steps"] for group in self.param_groups)
            step = int(self.param_groups[0]["step"])
            if 0 < step <= last:
                self._warns_of_burn_in = False
                warnings.warn(
                    f"Neumann is evaluated at step {step}, within its burn-in of {last} steps, which is plain SGD: a "
                    "run that ends there never is anything else. The paper's recipe is for about 250 epochs; for a "
                    "shorter run give burn_in_steps and reset_period, such as 2 % and 4 % of its steps",
                    stacklevel=3,
                )
        super().move_to(point)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            self._require_countable(group)

    def beta_total(self, group: dict[str, Any]) -> float:
        """Return β, the coefficient of the repulsive term in ``group``: its ``beta`` times what ``beta_count`` counts.

        All parameters of all groups are counted, frozen or not: the paper's "1e-5 × number of variables" is a
        property of the model.
        """
        return total_beta(group, self.param_groups)

    def _phases(self, step: int | Tensor) -> list[Phase]:
        if not self._said_cycled and any("max_momentum" in group for group in self.param_groups):
            self._say_cycled()
        return [Phase.of_step(step, group, self.beta_total(group)) for group in self.param_groups]

    def _say_cycled(self) -> None:
        """Warn, once, where a scheduler that cycles the momentum has replaced the ramp."""
        self._said_cycled = True
        if isinstance(self.defaults["momentum"], tuple):
            warnings.warn(
                f"a scheduler has replaced Neumann's momentum ramp {self.defaults['momentum']} by numbers of its own, "
                "as OneCycleLR and CyclicLR do by default: pass cycle_momentum=False to them to keep the ramp, or a "
                "number as Neumann's momentum to have that cycled (this is said once)",
                stacklevel=2,
            )

    def _validated(self, hyperparameters: dict[str, Any], *, set_later: bool = False) -> dict[str, Any]:
        valid = argument_checks.neumann_hyperparameters(hyperparameters, set_later=set_later)
        self._require_countable(valid)
        return valid

    def _require_countable(self, group: dict[str, Any]) -> None:
        if self.process_group is not None and group["beta"] and group["beta_count"] != "absolute":
            raise ValueError(
                "with process_group the variables cannot be counted: beta_count must be 'absolute', "
                f"got {group['beta_count']!r}"
            )
