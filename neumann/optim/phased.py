"""How is a step taken whose scalars are a :class:`Phase`? In one pass where there is a kernel, on every shard.

What is not the algorithm is here: which parameter takes which path, where counters live, what is saved and skipped.
"""

from __future__ import annotations

import inspect
import itertools
import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from neumann.optim.displaced import DisplacedOptimizer
from neumann.optim.foreach import move
from neumann.optim.fused import SQUARES, Entry, OnePass, one_pass, require_fusable, tell_of_slower_path, unfusable
from neumann.optim.kernels import state_type
from neumann.optim.phases import Phase, Scalar
from neumann.optim.sharding import all_zero, shards_of, sum_over_shards
from neumann.optim.tensors import local, local_gradient, total_square, use_foreach, with_gradient


class _Plan(NamedTuple):
    """Which parameters take which path, for as long as ``key`` holds; ``complete`` if every parameter has its state."""

    key: tuple[Any, ...]
    params: list[Tensor]
    passes: tuple[OnePass, ...]
    rest: list[list[Tensor]]
    complete: bool


class PhasedOptimizer(DisplacedOptimizer):
    """Base class of optimizers that keep m and r = w − v and move by a phase's formula; a subclass says by which."""

    points: ClassVar[tuple[str, ...]] = ("held", "base", "average")
    wide_state: ClassVar[tuple[str, ...]] = ("m", "r")
    process_group: Any = None
    _plan: _Plan | None  # what :meth:`_split` found; a copy looks anew

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
        self._place()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "defaults" in state:  # a whole optimizer, pickled perhaps when it had fewer arguments
            today = {name: argument.default for name, argument in inspect.signature(type(self)).parameters.items()}
            known = {name: today[name] for name in today if name not in ("params", "process_group")}
            state = {**state, "defaults": {**known, **state["defaults"]}}
        super().__setstate__(state)
        self._plan = None
        self.__dict__.setdefault("process_group", None)
        for group in self.param_groups:
            group.setdefault("step", 0)
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

    def _phases(self, step: int | Tensor) -> list[Phase]:
        """Return each group's scalars for step number ``step``, which is a tensor where the optimizer is capturable."""
        raise NotImplementedError

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

    def _takes_one_pass(self, group: dict[str, Any], p: Tensor) -> bool:
        wanted = group["fused"] if group["fused"] is not None else group["foreach"] is None
        return wanted and not torch.compiler.is_compiling() and unfusable(p) is None

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
                    if not torch.compiler.is_compiling() and group["fused"] is None and group["foreach"] is None:
                        tell_of_slower_path(p)
        passes = tuple(map(one_pass, fused.values()))
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
        for state in map(self.state.__getitem__, params):
            if isinstance(coefficient, Tensor):  # in place, as the replay of a CUDA graph needs it
                kept = state["coefficient"]
                kept.copy_(torch.where(active != 0, coefficient, kept) if isinstance(active, Tensor) else coefficient)
            else:
                state["coefficient"] = coefficient

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
