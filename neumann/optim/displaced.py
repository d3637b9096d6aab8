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
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from neumann.optim.private_names import CALLER_OF_MODULE, DEFAULT_OF_LOADING
from neumann.optim.sharding import sharded_as
from neumann.optim.tensors import name_of


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
    wide_state: ClassVar[tuple[str, ...]] = ()  # tensors of the state, float32 for float16 and bfloat16 parameters
    _asked_by_name = False  # within a block that has asked for a point by name, so that the watcher need not warn

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

        Raises:
            ValueError: ``point`` is not one of :attr:`points`.
        """
        if point not in self.points:
            raise ValueError(f"{type(self).__name__} has the points {', '.join(self.points)}; got {point!r}")
        if point == self.point:
            return
        if self.point != "held":
            for p, state in self._with_state():
                p.copy_(state.pop("held"))
            self._set_point("held")
        if point != "held":
            for p, state in self._with_state():  # all are stashed before the first one moves, since memory may run out
                state["held"] = p.clone()
            self._set_point(point)
            for p, state in self._with_state():
                p.copy_(self._weights_at(point, p, state))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in :class:`torch.optim.Optimizer`; hyperparameters that it does not name are the defaults.

        Raises:
            ValueError: a hyperparameter is not valid, or a parameter is not a real floating-point tensor.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")  # as torch does
        given = {name: param_group.get(name, default) for name, default in self.defaults.items()}
        param_group.update(self._validated(given), point=self.point if self.param_groups else "held")
        super().add_param_group(param_group)
        unfit = next((each for each in enumerate(param_group["params"]) if not each[1].is_floating_point()), None)
        if unfit is not None:
            self.param_groups.pop()
            place, p = unfit
            name = f"{name_of(param_group, place)} " if "param_names" in param_group else "one "
            raise ValueError(f"{type(self).__name__} trains real floating-point parameters, got {name}of {p.dtype}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("point", "held")
            for name, default in self.defaults.items():
                if name != DEFAULT_OF_LOADING:
                    group.setdefault(name, default)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as :class:`torch.optim.Optimizer` does, but keep m and r float32 for float16 and bfloat16.

        Hyperparameters are loaded too, ``foreach`` and the like among them; keys that are missing get the defaults.

        Raises:
            ValueError: the state is not one of parameters of these shapes, or it was saved at another point than the
                held one and the held weights are not in it; nothing has been changed then.
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
        for name, p, state in self._loaded(loaded):
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != p.shape:
                    raise ValueError(
                        f"the state {key!r} of {name} has the shape {tuple(value.shape)}, but the parameter has "
                        f"{tuple(p.shape)}: it was saved for another model"
                    )
            point = loaded["param_groups"][0].get("point", "held")
            if point != "held" and "m" in state and "held" not in state:
                raise ValueError(
                    f"the state was saved at the point {point!r}, and the held weights of {name} are not in it: save "
                    "after optimizer.train(), or call optimizer.eval() before torch.distributed.checkpoint loads it"
                )

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

    def _validated(self, hyperparameters: dict[str, Any]) -> dict[str, Any]:
        """Return a group's hyperparameters as plain, valid values.

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

    def _require_held(self) -> None:
        if self.point != "held":
            raise RuntimeError(
                f"{type(self).__name__}.step() was called while the parameters are at the point {self.point!r}, where "
                "they are evaluated, not trained: call optimizer.train() before training goes on"
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
