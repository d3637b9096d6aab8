"""Step of an optimizer whose scalars are a :class:`Phase`: count it, take ‖r‖, move each parameter on its path.

`paths.py` plans each parameter's path, `phased_state.py` keeps and saves the state, `global_norm.py` sums ‖r‖².
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from neumann.optim import argument_checks
from neumann.optim.displaced import DisplacedOptimizer
from neumann.optim.foreach import move
from neumann.optim.fused import FusedPass, require_fusable
from neumann.optim.global_norm import squared_norm_over_shards
from neumann.optim.kernels import state_type
from neumann.optim.paths import PathPlan, plan_of, takes_fused_path
from neumann.optim.phased_state import (
    carried_squares,
    counters_are_placed,
    defaults_of_today,
    make_missing_states,
    note_coefficient,
    place_counters,
    state_dict_with_squares,
    with_squares,
)
from neumann.optim.phases import Phase
from neumann.optim.private_names import found_inf, gradient_scale, outside_compiled_graphs
from neumann.optim.tensors import Scalar, local, local_gradient, use_foreach, with_gradient


class PhasedOptimizer(DisplacedOptimizer):
    """Base class of optimizers that keep m and r = w − v and move by the formula of :class:`Phase`.

    A subclass returns the scalars of each step from :meth:`_phases`.
    """

    points: ClassVar[tuple[str, ...]] = ("held", "base", "average")
    tensors: ClassVar[tuple[str, ...]] = ("m", "r")
    wide_state: ClassVar[tuple[str, ...]] = ("m", "r")
    process_group: Any = None
    _plan: PathPlan | None  # of the last step; a copy starts with None

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
                require_fusable(group["params"])
        except ValueError:
            self.param_groups.pop()
            raise
        place_counters(self.param_groups, self._with_state())

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "defaults" in state:  # load_state_dict() passes states and groups alone
            given = {**defaults_of_today(type(self)), **state["defaults"]}
            known = self._validated(given, set_later=True)
            # what a subclass takes beside the hyperparameters is none of a group's
            state = {**state, "defaults": {k: v for k, v in given.items() if k in known or k in state["defaults"]}}
        super().__setstate__(state)
        self._plan = None
        self.__dict__.setdefault("process_group", None)
        for group in self.param_groups:
            group.setdefault("step", 0)
        place_counters(self.param_groups, self._with_state())

    def _require_fitting(self, loaded: dict[str, Any]) -> None:
        super()._require_fitting(loaded)
        step = argument_checks.saved_steps(loaded["param_groups"], type(self).__name__)
        # a step is counted where a parameter has moved; with a process_group, that may be on another rank
        if step and self.process_group is None and not any(state for _, _, state in self._loaded(loaded)):
            raise ValueError(f"the state was saved after {step} steps, and no parameter's m and r are in it")

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group is not None:
            raise TypeError("an optimizer with a process_group cannot be copied or pickled; save its state_dict()")
        return {**super().__getstate__(), "state": with_squares(self.state, self._carried_squares())}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as :class:`torch.optim.Optimizer` does, with the squares that the fused passes carry."""
        hook = self.register_state_dict_post_hook(  # users' hooks shall find the squares in it
            lambda _, packed: state_dict_with_squares(packed, self.param_groups, self._carried_squares()), prepend=True
        )
        try:
            return super().state_dict()
        finally:
            hook.remove()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step at the held point; where no parameter has a gradient, nothing changes and nothing is counted.

        Args:
            closure: reevaluates the model, with gradients enabled, and returns the loss.

        Returns:
            What the closure returned, else None.

        Raises:
            RuntimeError: the parameters are not at the held point (after ``eval()``), or a gradient is sparse.
            ValueError: a hyperparameter that was set in a group is not valid.
        """
        if torch.compiler.is_compiling() and not isinstance(self.param_groups[0]["step"], Tensor):
            return self._step_outside_graph(closure)
        return self._take_step(closure)

    def _take_step(self, closure: Callable[[], Any] | None) -> Any:
        if closure is not None or not self._may_be_asked_for_state_only(self.process_group):
            self._require_held()
        self._require_valid_groups()
        self._require_capturable()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [with_gradient(group) for group in self.param_groups]
        params = [with_grad for with_grad, _ in moved]
        if not any(params) and self.process_group is None:
            return loss
        if self._is_asked_for_state_only(moved, self.process_group):
            self._make_missing_states(params)
            self._stash_held()
            return loss
        self._require_held()

        active = self._active()
        phases = self._phases(self._count_step(active))
        plan = self._planned(params)
        squares: Tensor | None = None
        if any(phase.pushes for phase in phases) and not plan.kernel_sums_norm(self.process_group):
            squares = self._squared_norm(plan)  # before any parameter moves: the norm is that of r_{t−1}

        if plan.fused:
            self._move_fused(plan, phases, squares, active)
        for group, unfused, phase in zip(self.param_groups, plan.unfused, phases, strict=True):
            self._move_unfused(group, [p for p in unfused if p.grad is not None], phase, squares)
        for with_grad, phase in zip(params, phases, strict=True):
            note_coefficient(map(self.state.__getitem__, with_grad), phase.mu_u, active)
        return loss

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Return ‖w − v‖ over all parameters of all groups, 0-dim in float64 on their device, in the unit of ‖w‖.

        Where the parameters are sharded, every rank must call this.
        """
        return self._squared_norm(self._planned([])).sqrt()

    def _phases(self, step: int | Tensor) -> list[Phase]:
        """Return each group's scalars for step number ``step``, which is a tensor where the optimizer is capturable."""
        raise NotImplementedError

    def _planned(self, with_gradient: list[list[Tensor]]) -> PathPlan:
        """Return the paths of all parameters, those of the last step where nothing has changed, which is the rule.

        A parameter that has a gradient and no state gets one.
        """
        plan = self._plan
        if plan is not None and not plan.holds(self.param_groups, self.state):
            plan = None
        if plan is not None and plan.complete:
            return plan
        made = self._make_missing_states(with_gradient)
        if plan is None or made:
            plan = plan_of(self.param_groups, self.state, self.process_group)
            self._plan = plan
        return plan

    def _make_missing_states(self, params: list[list[Tensor]]) -> bool:
        capturable = self.param_groups[0]["capturable"]
        return make_missing_states(itertools.chain.from_iterable(params), self.state, capturable=capturable)

    def _squared_norm(self, plan: PathPlan) -> Tensor:
        return squared_norm_over_shards(plan, self.param_groups, self.state, self.process_group)

    def _move_fused(self, plan: PathPlan, phases: list[Phase], squares: Tensor | None, active: Scalar) -> None:
        """Move the parameters of the fused path; ``squares`` is ‖r‖², or None where the kernel sums it by itself."""
        scale = gradient_scale(self)
        rows = [
            phase.scalar_row(group["weight_decay"], group["maximize"], 1.0 if scale is None else scale, active)
            for group, phase in zip(self.param_groups, phases, strict=True)
        ]
        for each in plan.fused:
            total = None if squares is None else squares.to(each.device, torch.float64).reshape(1)
            each.step(rows, total, in_place=self.param_groups[0]["capturable"])

    def _move_unfused(self, group: dict[str, Any], params: list[Tensor], phase: Phase, squares: Tensor | None) -> None:
        """Move ``params`` of ``group``, all of which have a gradient, on lists of tensors or one after the other."""
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            for name in self.wide_state:  # the parameter may have been moved, or cast to another type
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

    def _count_step(self, active: Scalar) -> int | Tensor:
        """Count the step in every group, unless ``active`` is 0, and return its number."""
        if not torch.compiler.is_compiling() and not counters_are_placed(self.param_groups):
            place_counters(self.param_groups, self._with_state())
        for group in self.param_groups:
            group["step"] += active.to(group["step"].device, torch.int64) if isinstance(active, Tensor) else 1
        return self.param_groups[0]["step"]

    @property
    def _fused_passes(self) -> tuple[FusedPass, ...]:
        return self._plan.fused if self._plan else ()

    def _carried_squares(self) -> dict[Tensor, dict[int, float]]:
        return carried_squares(self._fused_passes, self.process_group)

    def _weights_at(self, point: str, p: Tensor, state: dict[str, Any]) -> Tensor:
        return p.sub(state["r"]) if point == "average" else super()._weights_at(point, p, state)

    # What torch.compile, CUDA graphs, GradScaler and torch.distributed.checkpoint ask of a step

    @outside_compiled_graphs
    @torch.no_grad()
    def _step_outside_graph(self, closure: Callable[[], Any] | None) -> Any:
        """Take a step outside the graph that is being compiled, where every phase would compile another one.

        The fused kernels take it in one pass over memory, which no compiler does better. It is not ``self.step``, which
        may be the compiled one and would run hooks a second time.
        """
        return self._take_step(closure)

    def _require_valid_groups(self) -> None:
        super()._require_valid_groups()
        if not torch.compiler.is_compiling():
            argument_checks.require_one_step(self.param_groups)

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
        """True where ``GradScaler`` may leave unscaling and skipping to the step."""
        return all(
            group["capturable"] and all(takes_fused_path(group, p) for p in group["params"])
            for group in self.param_groups
        )

    def _active(self) -> Scalar:
        """Return 0 where ``GradScaler`` leaves it to the step to skip gradients that are not finite, else 1."""
        found = found_inf(self)
        return (found == 0).double().reshape(()) if isinstance(found, Tensor) else 1.0
