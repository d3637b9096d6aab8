"""How does one step of the Neumann optimizer go? A Neumann series for the Newton direction, unrolled over the steps.

Krishnan, Xiao, Saurous: "Neumann Optimizer: A Practical Optimization Algorithm for Deep Neural Networks", ICLR 2018,
arXiv 1712.03298, Algorithm 2. `neumann_reference.py` is the same algorithm as the paper prints it.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from neumann.optim import validation
from neumann.optim.displaced import DisplacedOptimizer
from neumann.optim.kernels import kernel_for, state_type, why_none
from neumann.optim.one_pass import SQUARES, Entry, OnePass, memory_format
from neumann.optim.phases import Phase, Scalar
from neumann.optim.plain import move
from neumann.optim.sharding import all_zero, shards_of, sum_over_shards
from neumann.optim.tensors import local, local_gradient, total_square, use_foreach, with_gradient


class _Plan(NamedTuple):
    """Which parameters take which path, for as long as ``key`` holds; ``complete`` if every parameter has its state."""

    key: tuple[Any, ...]
    params: list[Tensor]
    passes: tuple[OnePass, ...]
    rest: list[list[Tensor]]
    complete: bool


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
    ``foreach``                None         True: on lists of tensors at once; False: one tensor after the other
    ``fused``                  None         True: in one pass over memory; see below
    ``capturable``             False        keep ``step`` and the phases on the parameters' device, for CUDA graphs
    ``process_group``          None         the ranks that hold shards which cannot be seen, see below
    ================= ======== ============ ===========================================================================

    **Which path.** ``fused`` reads and writes each of w, m, r once and g once, 28 bytes for a float32 parameter, which
    is what fused Adam moves; ‖r‖ of the next step is summed on the way. On a CPU it is C++, compiled at the first use
    (a second or two, kept in ``$NEUMANN_CACHE`` or ``~/.cache/neumann``), on CUDA Triton. With ``fused`` and
    ``foreach`` both None it is taken wherever it can be, since it is the fastest for small and for large models. It
    needs a C++ compiler, or Triton, and dense tensors; otherwise, and within ``torch.compile``, lists of tensors are
    used on CUDA (80 bytes, but few launches) and a loop over the tensors on a CPU, whose temporaries stay in the cache.
    ``fused=True`` warns once where there is no compiler, and is an error for a type or device that it cannot do.

    **Types.** m and r have the parameter's type, but float32 for halves; loading keeps that.

    **Shards.** ‖r‖ runs over the whole model. Parameters that are ``DTensor`` (FSDP2, tensor parallel) are seen to be
    sharded, and one scalar is all-reduced in a step. Sharding that cannot be seen (FSDP1, ZeRO) needs
    ``process_group``, and β as a total, ``beta_count="absolute"``, since the variables cannot be counted; all its ranks
    must then step together.

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
    wide_state: ClassVar[tuple[str, ...]] = ("m", "r")
    process_group: Any = None
    _plan: _Plan | None  # what :meth:`_split` found; a copy looks anew

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
        first = self.param_groups[0] if self.param_groups else None
        step = first["step"] if first else 0
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["step"] = step.clone() if isinstance(step, Tensor) else step
        try:
            if first and group["capturable"] != first["capturable"]:
                raise ValueError(f"capturable must be the same in all groups, here it is {first['capturable']}")
            if group["fused"]:
                _require_fusable(group["params"])
        except ValueError:
            self.param_groups.pop()
            raise
        self._place()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "defaults" in state:  # a whole optimizer, pickled perhaps when it had fewer arguments
            today = {name: argument.default for name, argument in inspect.signature(Neumann).parameters.items()}
            known = {name: today[name] for name in today if name not in ("params", "process_group")}
            state = {**state, "defaults": {**known, **state["defaults"]}}
        super().__setstate__(state)
        self._plan = None
        self.__dict__.setdefault("process_group", None)
        for group in self.param_groups:
            group.setdefault("step", 0)
            self._require_countable(group)
        self._place()

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group is not None:
            raise TypeError("an optimizer with a process_group cannot be copied or pickled; save its state_dict()")
        return {**super().__getstate__(), "state": self._with_squares(self.state)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as :class:`torch.optim.Optimizer` does, with what the fused path carries over."""
        hook = self.register_state_dict_post_hook(lambda _, packed: self._add_carried(packed), prepend=True)
        try:
            return super().state_dict()
        finally:
            hook.remove()

    def _add_carried(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        order = [p for group in self.param_groups for p in group["params"]]
        ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        named = dict(zip(order, ids, strict=True))
        carried = {named[p]: squares for p, squares in self._carried().items()}
        state = {
            key: {**value, SQUARES: carried[key]} if key in carried else value
            for key, value in state_dict["state"].items()
        }
        return {**state_dict, "state": state}

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
        if torch.compiler.is_compiling() and not isinstance(self.param_groups[0]["step"], Tensor):
            return self._uncompiled(closure)
        self._require_held()
        self._require_capturable()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [with_gradient(group) for group in self.param_groups]
        if not any(params for params, _ in moved) and self.process_group is None:
            return loss

        if self._only_makes_state(moved):
            self._initialize([params for params, _ in moved])
            return loss
        scale, active = getattr(self, "grad_scale", None), self._active()
        phases = self._phases(self._advanced(active))
        passes, rest = self._split([params for params, _ in moved])
        squares: Tensor | None = None
        if any(phase.pushes for phase in phases) and not self._is_whole(passes, rest):
            squares = self._square(passes, rest)  # before any of them moves: the norm is that of r_{t-1}

        rows = [
            phase.row(group["weight_decay"], group["maximize"], 1.0 if scale is None else scale, active)
            for group, phase in zip(self.param_groups, phases, strict=True)
        ]
        for each in passes:
            total = None if squares is None else squares.to(each.device, torch.float64).reshape(1)
            each.step(rows, total, in_place=self.param_groups[0]["capturable"])
        for group, plain, phase in zip(self.param_groups, rest, phases, strict=True):
            self._step_plainly(group, [p for p in plain if p.grad is not None], phase, squares)
        for (params, _), phase in zip(moved, phases, strict=True):
            self._note_coefficient(params, phase.mu_u, active)
        return loss

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Return ‖w − v‖ over all parameters of all groups, 0-dim in float64 on their device, in the unit of ‖w‖.

        Where the parameters are sharded, every rank must ask.
        """
        return self._square(*self._split([])).sqrt()

    def beta_total(self, group: dict[str, Any]) -> float:
        """Return β, the coefficient of the repulsive term in ``group``: its ``beta`` times what ``beta_count`` counts.

        All parameters of all groups are counted, frozen or not: the paper's "1e-5 × number of variables" is a
        property of the model.
        """
        if group["beta_count"] == "absolute":
            return group["beta"]
        every = [each["params"] for each in self.param_groups]
        if group["beta_count"] == "tensors":
            return group["beta"] * sum(map(len, every))
        return group["beta"] * sum(p.numel() for params in every for p in params)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _uncompiled(self, closure: Callable[[], Any] | None) -> Any:
        """Take a step outside the graph that is being compiled, where every phase would compile another one.

        There the kernel takes it in one pass, which no compiler does better.
        """
        return self.step(closure)

    def _require_capturable(self) -> None:
        if self.param_groups[0]["capturable"] or not torch.cuda.is_initialized():
            return
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{type(self).__name__}.step() is being captured in a CUDA graph, which would repeat the phase of this "
                "one step for ever: construct the optimizer with capturable=True"
            )

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether ``GradScaler`` may leave it to the step to divide the gradients, and to skip itself on the device."""
        return all(
            group["capturable"] and all(self._takes_one_pass(group, p) for p in group["params"])
            for group in self.param_groups
        )

    def _only_makes_state(self, moved: list[tuple[list[Tensor], list[Tensor]]]) -> bool:
        """Return whether ``torch.distributed.checkpoint`` only has the state made, in order to save it or to load it.

        It takes a step before the first one, with the rate 0 and gradients that are all 0; the count would be saved.
        """
        if self.state and self.process_group is None:
            return False
        if any(group["step"] != 0 or group["lr"] != 0 for group in self.param_groups):
            return False
        return all_zero(
            [(p, local_gradient(g, p)) for params, grads in moved for p, g in zip(params, grads, strict=True)],
            self.process_group,
        )

    def _active(self) -> Scalar:
        """Return 0 where ``GradScaler`` has found gradients that are not finite and leaves it to us to skip them."""
        found = getattr(self, "found_inf", None)
        return (found == 0).double().reshape(()) if isinstance(found, Tensor) else 1.0

    def _advanced(self, active: Scalar) -> int | Tensor:
        """Count the step and return its number."""
        if not torch.compiler.is_compiling():
            on_device = [isinstance(group["step"], Tensor) for group in self.param_groups]
            if on_device != [group["capturable"] for group in self.param_groups]:
                self._place()  # somebody has set the flag by hand
        for group in self.param_groups:
            group["step"] += active.to(group["step"].device, torch.int64) if isinstance(active, Tensor) else 1
        return self.param_groups[0]["step"]

    def _place(self) -> None:
        """Have step and coefficients be tensors on the parameters' device where they are ``capturable``, else numbers.

        The first group says which.
        """
        capturable = self.param_groups[0]["capturable"]
        device = next((p.device for group in self.param_groups for p in group["params"]), torch.device("cpu"))
        for group in self.param_groups:
            step, group["capturable"] = group["step"], capturable
            group["step"] = _on_device(step, torch.int64, device) if capturable else int(step)
        for p, state in self._moved():
            kept = state["coefficient"]
            state["coefficient"] = _on_device(kept, torch.float64, p.device) if capturable else float(kept)

    def _phases(self, step: int | Tensor) -> list[Phase]:
        return [Phase.of_step(step, group, self.beta_total(group)) for group in self.param_groups]

    def _takes_one_pass(self, group: dict[str, Any], p: Tensor) -> bool:
        wanted = group["fused"] if group["fused"] is not None else group["foreach"] is None
        return wanted and not torch.compiler.is_compiling() and _unfusable(p) is None

    def _split(self, moved: list[list[Tensor]]) -> tuple[tuple[OnePass, ...], list[list[Tensor]]]:
        """Return what moves in one pass, by device, type and sharding, and each group's parameters that do not.

        A parameter in ``moved`` that has no state gets one. Between two steps nothing changes as a rule: then what was
        found before is returned.
        """
        paths = [(len(group["params"]), group["fused"], group["foreach"]) for group in self.param_groups]
        key = len(self.state), paths, torch.compiler.is_compiling()
        params = list(itertools.chain.from_iterable(group["params"] for group in self.param_groups))
        plan = self._plan
        if plan is not None and (plan.key != key or not all(map(operator.is_, plan.params, params))):
            plan = None
        if plan is not None and not all(each.fits(self.state) for each in plan.passes):
            plan = None
        if plan is not None and (plan.complete or not self._initialize(moved)):
            return plan.passes, plan.rest
        if plan is None:
            self._initialize(moved)

        fused: dict[tuple[Any, ...], list[Entry]] = {}
        rest: list[list[Tensor]] = [[] for _ in self.param_groups]
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                state = self.state.get(p, {})
                if "m" not in state:
                    continue
                if self._takes_one_pass(group, p):
                    parts = p.device, p.dtype, shards_of(p, self.process_group)
                    fused.setdefault(parts, []).append(Entry(p, state, index))
                else:
                    state.pop(SQUARES, None)
                    rest[index].append(p)
        passes = tuple(map(_one_pass, fused.values()))
        planned = sum(map(len, rest)) + sum(map(len, fused.values()))
        self._plan = _Plan((len(self.state), *key[1:]), params, passes, rest, planned == len(params))
        return passes, rest

    @property
    def _passes(self) -> tuple[OnePass, ...]:
        return self._plan.passes if self._plan else ()

    def _is_whole(self, passes: tuple[OnePass, ...], rest: list[list[Tensor]]) -> bool:
        """Return whether one pass carries all of ‖r‖², so that its kernel can add it up by itself."""
        return len(passes) == 1 and not any(rest) and not shards_of(passes[0].first, self.process_group)

    def _square(self, passes: tuple[OnePass, ...], rest: list[list[Tensor]]) -> Tensor:
        """Return ‖r‖² over all parameters of all groups and all ranks that share them."""
        shares = [(shards_of(each.first, self.process_group), each.squares.sum()) for each in passes]
        by_shards: dict[Any, list[Tensor]] = {}
        for p in (p for plain in rest for p in plain):
            by_shards.setdefault(shards_of(p, self.process_group), []).append(local(self.state[p]["r"]))
        shares += [(shards, total_square(rs)) for shards, rs in by_shards.items()]
        if self.process_group is not None:  # also where this rank has nothing yet, for the others wait
            shares.append(((self.process_group,), self._nothing()))
        # Ranks may take different paths with their shards, but they have the parameters in one order
        params = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        order = list(dict.fromkeys(shards_of(p, self.process_group) for p in params))
        shares.sort(key=lambda share: order.index(share[0]) if share[0] in order else len(order))
        return sum_over_shards(shares) if shares else self._nothing()

    def _nothing(self) -> Tensor:
        params = [p for group in self.param_groups for p in group["params"]]
        return torch.zeros((), dtype=torch.float64, device=params[0].device if params else None)

    def _step_plainly(self, group: dict[str, Any], params: list[Tensor], phase: Phase, squares: Tensor | None) -> None:
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            for name in self.wide_state:  # where the parameter has been moved, or has got another type
                state[name] = state[name].to(p.device, state_type(p.dtype))
        move(
            [local(p) for p in params],
            [local_gradient(p.grad, p) for p in params if p.grad is not None],
            [local(state["m"]) for state in states],
            [local(state["r"]) for state in states],
            phase,
            None if squares is None else squares.sqrt(),
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            foreach=use_foreach(group["foreach"], params),
        )

    def _note_coefficient(self, params: list[Tensor], coefficient: Scalar, active: Scalar) -> None:
        """Keep μ_u of the last step that moved each parameter, which the way to the answer needs."""
        for p in params:
            if isinstance(coefficient, Tensor):  # in place, as the replay of a CUDA graph needs it
                kept = self.state[p]["coefficient"]
                kept.copy_(torch.where(active != 0, coefficient, kept) if isinstance(active, Tensor) else coefficient)
            else:
                self.state[p]["coefficient"] = coefficient

    def _carried(self) -> dict[Tensor, dict[int, float]]:
        """Return each parameter's carried squares; none where they are of one rank's shard, which may be cut anew."""
        return {
            p: squares
            for each in self._passes
            if not shards_of(each.first, self.process_group)
            for p, squares in each.saved().items()
        }

    def _with_squares(self, state: dict[Tensor, dict[str, Any]]) -> dict[Tensor, dict[str, Any]]:
        carried = self._carried()
        found = {p: {**own, SQUARES: carried[p]} if p in carried else own for p, own in state.items()}
        return defaultdict(dict, found)

    def _validated(self, hyperparameters: dict[str, Any]) -> dict[str, Any]:
        valid = validation.neumann_hyperparameters(hyperparameters)
        self._require_countable(valid)
        return valid

    def _require_countable(self, group: dict[str, Any]) -> None:
        if self.process_group is not None and group["beta"] and group["beta_count"] != "absolute":
            raise ValueError(
                "with process_group the variables cannot be counted: beta_count must be 'absolute', "
                f"got {group['beta_count']!r}"
            )

    def _initialize(self, moved: list[list[Tensor]]) -> bool:
        """Give a state to the parameters that have none; return whether there was one."""
        found = False
        for p in itertools.chain.from_iterable(moved):
            state = self.state[p]
            if "m" not in state:
                found = True
                wide, on_device = state_type(p.dtype), self.param_groups[0]["capturable"]
                with torch.inference_mode(False):  # else it could be written to nowhere else
                    state["m"] = torch.zeros_like(p, dtype=wide, memory_format=torch.preserve_format)
                    state["r"] = torch.zeros_like(p, dtype=wide, memory_format=torch.preserve_format)
                    state["coefficient"] = torch.zeros((), dtype=torch.float64, device=p.device) if on_device else 0.0
        return found

    def _weights_at(self, point: str, p: Tensor, state: dict[str, Any]) -> Tensor:
        return p.sub(state["r"]) if point == "average" else super()._weights_at(point, p, state)


def _on_device(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return value.to(device, dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype, device=device)


def _one_pass(entries: list[Entry]) -> OnePass:
    kernel = kernel_for(entries[0].p.device)
    assert kernel is not None  # _unfusable has asked
    with torch.inference_mode(False), torch.no_grad():
        return OnePass(entries, kernel)


def _unfusable(p: Tensor) -> str | None:
    """Return why the one-pass kernel cannot take ``p``, in half a sentence, else None."""
    kernel = kernel_for(p.device)
    if kernel is None:
        return why_none(p.device)
    if p.dtype not in kernel.types:
        return f"there is none for {p.dtype} on {p.device.type}"
    return None if memory_format(local(p)) else f"a parameter of strides {tuple(p.stride())} is not dense"


def _require_fusable(params: list[Tensor]) -> None:
    """Raise ValueError where ``fused=True`` cannot be done; where only the compiler is missing, warn instead."""
    for p in params:
        reason = _unfusable(p)
        if reason is None:
            continue
        if p.device.type not in ("cpu", "cuda") or kernel_for(p.device) is not None:
            raise ValueError(f"fused=True needs a kernel, and {reason}: leave fused at None")
        _warn_once(f"fused=True: the slower path is taken, because {reason}")


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
