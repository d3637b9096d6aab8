"""Base class of optimizers that train at a displaced point: the moves to the points of evaluation and back.

An optimizer of the Nesterov family holds and trains a DISPLACED point w; its answer is the base point w − μm ("return
w_T − μ(T) m_T", Algorithm 2 of Krishnan et al., ICLR 2018).
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT
from torch.utils.hooks import RemovableHandle

from neumann.optim import argument_checks
from neumann.optim.group_checks import GroupChecks
from neumann.optim.private_names import CALLER_OF_MODULE, DEFAULT_OF_LOADING, write_count
from neumann.optim.sharding import all_zero, sharded_as
from neumann.optim.tensors import local, local_gradient, name_of


class DisplacedOptimizer(Optimizer):
    """An optimizer whose parameters are at one of :attr:`points`, and can be moved to the others and back.

    A subclass keeps ``state[p]["m"]``, the displacement's direction, and ``state[p]["coefficient"]``, the factor on it
    in the last step that moved p (a float, or a 0-dim tensor). The base point is p − coefficient·m, also when a
    scheduler has rewritten ``momentum`` since, or p has missed the last step.

    The held weights are stashed, not recomputed: w − μm + μm differs from w in 1.5 % of all fp32 values, so that
    validating more often would change training. Stash and mode live in ``state`` and ``param_groups``, where
    ``state_dict()``, ``deepcopy`` and ``pickle`` find them; attributes of an instance do not survive those.
    """

    points: ClassVar[tuple[str, ...]] = ("held", "base")
    tensors: ClassVar[tuple[str, ...]] = ("m",)  # of a parameter's state, shaped as the parameter
    wide_state: ClassVar[tuple[str, ...]] = ()  # those that are float32 for float16 and bfloat16 parameters
    saved_keys: ClassVar[tuple[str, ...]] = ()  # of every group that an optimizer of this class has ever saved
    never_saved: ClassVar[tuple[str, ...]] = ()  # keys by which another class's groups are told that have all of those
    _group_checks: GroupChecks  # a copy begins with new ones
    _asked_by_name = False  # within a block that has asked for a point by name, so that the watcher need not warn
    _written: list[tuple[Tensor, int]] | None = None  # how often torch had written to each parameter that was moved

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._group_checks = GroupChecks()
        super().__init__(params, self._validated(defaults))

    @property
    def point(self) -> str:
        """The point that the parameters are at now, one of :attr:`points`; ``"held"`` is the one that is trained."""
        return self.param_groups[0]["point"]

    def eval(self) -> None:
        """Move the parameters to the answer w − μm, for evaluating and for saving final weights. Idempotent."""
        self.move_to("base")

    def train(self) -> None:
        """Move the parameters back to the held weights, bit for bit. Idempotent."""
        self.move_to("held")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Hold the parameters at the answer w − μm within the block, and put them back bit for bit after it.

        They come back on exceptions too, to the point they were at, so blocks nest. The model's mode is the caller's
        to set: ``model.eval()``, as always. :func:`neumann.optim.evaluating` does it for any optimizer.
        """
        with self._at("base"):
            yield

    def watch(self, model: nn.Module) -> RemovableHandle:
        """Warn, once, when ``model`` runs in eval mode while its parameters are still at the displaced point.

        An optimizer knows tensors, not the module that they are in, so it has to be told; a hook on every module of the
        process would cost each of them time. This is one hook, on ``model`` (4 µs a call, as measured on a CPU). It
        keeps neither the model nor the optimizer alive, and copies and pickles of the model leave it out. It does not
        warn where both points are the same (before the first step, in burn-in, after a reset), within
        :meth:`evaluating` or :func:`neumann.optim.at`, nor inside a compiled graph: watch what
        ``torch.compile(model)`` returns instead.

        Args:
            model: the module whose parameters this optimizer trains.

        Returns:
            A handle whose ``remove()`` ends the watch; call it before ``torch.jit.script``, which cannot compile hooks.
        """
        return model.register_forward_pre_hook(Watcher(self))

    @torch.no_grad()
    def move_to(self, point: str) -> None:
        """Move the parameters to one of :attr:`points`; changes made to them anywhere but at ``"held"`` are dropped.

        A warning says so where something else, such as ``model.load_state_dict()``, has put other weights there.

        Raises:
            ValueError: ``point`` is not one of :attr:`points`.
        """
        if point not in self.points:
            raise ValueError(f"{type(self).__name__} has the points {', '.join(self.points)}; got {point!r}")
        if point == self.point:
            return
        if self.point != "held":
            self._warn_of_dropped()
            for p, state in self._with_state():
                p.copy_(state.pop("held"))
            self._set_point("held")
        if point != "held":
            for p, state in self._with_state():  # all are stashed before the first one moves, since memory may run out
                state["held"] = p.clone()
            self._set_point(point)
            for p, state in self._with_state():
                p.copy_(self._weights_at(point, p, state))
            self._written = [(p, write_count(p)) for p, _ in self._with_state() if not p.is_inference()]

    def _warn_of_dropped(self) -> None:
        """Warn where a parameter is not where :meth:`move_to` has left it, since what is there now is dropped."""
        written, self._written = self._written, None
        for p, count in written or ():
            state = self.state.get(p, {})
            if write_count(p) == count or "held" not in state:
                continue
            there = self._weights_at(self.point, state["held"], state)
            if not torch.allclose(local(p), local(there), rtol=0, atol=0, equal_nan=True):
                name = type(self).__name__
                warnings.warn(
                    f"other weights were put into the model while {name} held it at the point {self.point!r}: they are "
                    "dropped, and training goes on from the held weights. To train on from the others, put them there "
                    f"after optimizer.train(), with a new {name} for a fresh start",
                    stacklevel=4,
                )
                return

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in :class:`torch.optim.Optimizer`; hyperparameters that it does not name are the defaults.

        Raises:
            ValueError: a hyperparameter is not valid or its name is misspelt, or a parameter is not a real
                floating-point tensor.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")  # as torch does
        given = {name: param_group.get(name, default) for name, default in self.defaults.items()}
        valid = self._validated(given)
        argument_checks.known_keys(param_group, valid, type(self).__name__)
        param_group.update(valid, point=self.point if self.param_groups else "held")
        super().add_param_group(param_group)
        unfit = next((each for each in enumerate(param_group["params"]) if not each[1].is_floating_point()), None)
        if unfit is not None:
            self.param_groups.pop()
            place, p = unfit
            name = f"{name_of(param_group, place)} " if "param_names" in param_group else "one "
            raise ValueError(f"{type(self).__name__} trains real floating-point parameters, got {name}of {p.dtype}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._group_checks, self._written = GroupChecks(), None
        for group in self.param_groups:
            group.setdefault("point", "held")
            for name, default in self.defaults.items():
                if name != DEFAULT_OF_LOADING:
                    group.setdefault(name, default)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as :class:`torch.optim.Optimizer` does, but keep m and r float32 for float16 and bfloat16.

        Hyperparameters are loaded too, ``foreach`` and the like among them; keys that are missing get the defaults.

        Raises:
            ValueError: the state was saved by another optimizer or for other parameters, something in it is missing or
                not valid, or it was saved at another point than the held one without the held weights; nothing has
                been changed then.
        """
        seen: list[dict[str, Any]] = []

        def last_before(_: Optimizer, loaded: dict[str, Any]) -> None:
            seen.append(loaded)  # as users' hooks have left it
            self._require_fitting(loaded)

        hooks = [
            self.register_load_state_dict_pre_hook(last_before),
            self.register_load_state_dict_post_hook(lambda _: self._take_wide(seen[0]), prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _require_fitting(self, loaded: dict[str, Any]) -> None:
        """Refuse a state that is not one of this class, for these parameters, as a whole.

        Raises:
            ValueError: see :meth:`load_state_dict`.
        """
        name = type(self).__name__
        argument_checks.state_dict(loaded, name, self.saved_keys)
        self._require_saved_groups(loaded["param_groups"])
        points = {group.get("point", "held") for group in loaded["param_groups"]}
        if len(points) > 1 or not points <= {*self.points}:
            told = ", ".join(map(repr, sorted(map(str, points))))
            raise ValueError(f"{name} saves one of the points {', '.join(self.points)}, the state has {told}")
        (point,) = points or {"held"}
        for parameter, p, state in self._loaded(loaded):
            self._require_saved_state(parameter, p, state)
            if point != "held" and state and "held" not in state:
                raise ValueError(
                    f"the state was saved at the point {point!r}, and the held weights of {parameter} are not in it: "
                    "save after optimizer.train(), or call optimizer.eval() on the new optimizer before "
                    "torch.distributed.checkpoint asks it for its state to load into"
                )

    def _require_saved_groups(self, groups: list[dict[str, Any]]) -> None:
        name = type(self).__name__
        for number, group in enumerate(groups):
            for key in self.never_saved:
                if key in group:
                    raise ValueError(f"the state was not saved by {name}: its parameter group {number} has a {key!r}")
            with argument_checks.of_saved_group(name, number):
                valid = self._validated({**self.defaults, **group}, set_later=True)
                argument_checks.known_keys(group, valid, name)

    def _require_saved_state(self, parameter: str, p: Tensor, state: dict[str, Any]) -> None:
        """Refuse a parameter's saved state that lacks a part or has one that cannot be; without any it is fine."""
        if not state:
            return
        for key in (*self.tensors, "coefficient"):
            if key not in state:
                raise ValueError(f"the state of {parameter} has no {key!r}, so it is not all that was saved")
        for key, value in state.items():
            if key not in (*self.tensors, "held") and not (isinstance(value, Tensor) and value.dim()):
                continue  # a number, or somebody's note
            wrong = argument_checks.saved_tensor(value, p)
            if wrong is not None:
                raise ValueError(f"the state {key!r} of {parameter} {wrong}")
        coefficient = state["coefficient"]
        if isinstance(coefficient, Tensor) and coefficient.numel() == 1:
            coefficient = coefficient.item()
        try:
            argument_checks.momentum(coefficient, set_later=True)
        except ValueError as error:
            told = str(error).removeprefix("momentum ")
            raise ValueError(f"the state 'coefficient' of {parameter} {told}") from error

    def _take_wide(self, loaded: dict[str, Any]) -> None:
        for _, p, state in self._loaded(loaded):
            for key, value in state.items():
                if key in self.wide_state:
                    self.state[p][key] = sharded_as(value.to(p.device, torch.promote_types(p.dtype, torch.float32)), p)
                elif key == "held":
                    self.state[p][key] = sharded_as(self.state[p][key], p)  # whole in a full state of a sharded model
                elif key == "coefficient" and isinstance(value, Tensor):
                    self.state[p][key] = value.to(p.device)

    def _loaded(self, loaded: dict[str, Any]) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """Yield each parameter's name for errors, the parameter, and its state in ``loaded``, {} without one."""
        for group, saved in zip(self.param_groups, loaded["param_groups"], strict=False):  # torch refuses other numbers
            for place, (p, index) in enumerate(zip(group["params"], saved["params"], strict=False)):
                yield name_of(group, place, index), p, loaded["state"].get(index, {})

    def _validated(self, hyperparameters: dict[str, Any], *, set_later: bool = False) -> dict[str, Any]:
        """Return a group's hyperparameters as plain, valid values.

        Args:
            hyperparameters: by name; other keys are left out.
            set_later: they were set after construction, perhaps by a scheduler, some of which raise the momentum to 1.

        Raises:
            ValueError: one of them is not valid.
        """
        raise NotImplementedError

    def _weights_at(self, point: str, p: Tensor, state: dict[str, Any]) -> Tensor:
        """Return the weights at ``point``, given the held ones ``p``."""
        coefficient = state["coefficient"]
        if isinstance(coefficient, Tensor):  # kept on the device
            return p.sub(state["m"] * coefficient.to(p.device))
        return p.sub(state["m"], alpha=coefficient)

    def _with_state(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yield every parameter that has a state, with it; for the others all points are the same."""
        for group in self.param_groups:
            for p in group["params"]:
                if "m" in self.state.get(p, ()):
                    yield p, self.state[p]

    def _is_displaced(self) -> bool:
        """Return whether the parameters are away from the base point, and no block has asked for that by name."""
        if self.point != "held" or self._asked_by_name:
            return False
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return False  # what is on the device cannot be read while a CUDA graph is captured
        return any(state["coefficient"] for _, state in self._with_state())

    @contextmanager
    def _at(self, point: str) -> Iterator[None]:
        """Hold the parameters at ``point`` within the block, in which the watcher does not warn."""
        before, asked = self.point, self._asked_by_name
        self.move_to(point)
        self._asked_by_name = True
        try:
            yield
        finally:
            self._asked_by_name = asked
            self.move_to(before)

    def _set_point(self, point: str) -> None:
        for group in self.param_groups:
            group["point"] = point

    def _require_valid_groups(self) -> None:
        """Refuse hyperparameters that were set in the groups after construction and are not valid.

        Raises:
            ValueError: one of them is not valid or its key is misspelt; the message names the group.
        """
        self._group_checks.require_valid(self.param_groups, type(self).__name__, self._validated)

    def _may_be_asked_for_state_only(self, hidden: Any = None) -> bool:
        """Return whether every rate is 0 before the first step, and no parameter has a state (or ranks must agree)."""
        if self.state and hidden is None:
            return False
        return all(group.get("step", 0) == 0 and group["lr"] == 0 for group in self.param_groups)

    def _is_asked_for_state_only(self, moved: list[tuple[list[Tensor], list[Tensor]]], hidden: Any = None) -> bool:
        """Return whether this step only makes the state, which ``torch.distributed.checkpoint`` then saves or loads.

        It takes a step before the first one, of rate 0 with gradients that are all 0; counted, it would be saved.

        Args:
            moved: the parameters of each group that have a gradient, and the gradients.
            hidden: the ranks that hold shards as plain tensors, or None.
        """
        if not self._may_be_asked_for_state_only(hidden):
            return False
        pieces = [(p, local_gradient(g, p)) for params, grads in moved for p, g in zip(params, grads, strict=True)]
        return all_zero(pieces, hidden)

    def _stash_held(self) -> None:
        """Stash the held weights of parameters that got their first state, all zeros, at another point: all are one."""
        if self.point != "held":
            for p, state in self._with_state():
                state.setdefault("held", p.clone())

    def _require_held(self) -> None:
        points = [group["point"] for group in self.param_groups]
        name = type(self).__name__
        if points.count(points[0]) != len(points):
            told = ", ".join(map(repr, points))
            raise RuntimeError(f"the groups of {name} are at one point, and theirs were set to {told}: use move_to()")
        if points[0] != "held":
            raise RuntimeError(
                f"{name}.step() was called while the parameters are at the point {self.point!r}, where they are "
                "evaluated, not trained: call optimizer.train() before training goes on"
            )
        if "held" in next(iter(self.state.values()), ()):
            raise RuntimeError(
                f"the point of {name}'s groups was set to 'held' while the parameters are at another one: use train() "
                "or move_to(), which move them"
            )


class Watcher:
    """A forward pre-hook that warns once when its module is in eval mode and ``optimizer`` is displaced."""

    def __init__(self, optimizer: DisplacedOptimizer) -> None:
        self._optimizer: weakref.ref[DisplacedOptimizer] | None = weakref.ref(optimizer)

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Warn where it is due; not inside a compiled graph, where asking would be a guard on every step."""
        if module.training or torch.compiler.is_compiling() or self._optimizer is None:
            return
        optimizer = self._optimizer()
        if optimizer is None or not optimizer._is_displaced():
            return
        self._optimizer = None
        name = type(optimizer).__name__
        warnings.warn(
            f"the model runs in eval mode while {name} holds its parameters at the displaced point it trains at, not "
            "at its answer w − μm: evaluate within `with optimizer.evaluating():`, or between optimizer.eval() and "
            "optimizer.train() (this is said once)",
            stacklevel=CALLER_OF_MODULE,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the model is not this optimizer's, and where a pickle is loaded this package may be missing. A hook
        # must be callable: {}.get(module, args) is args, which leaves the input as it is.
        return getattr, ({}, "get")
