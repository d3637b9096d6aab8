"""Moving average of the weights for any optimizer.

Neumann keeps an average v of its weights as part of the algorithm. To compare it at v with rivals that have none is a
confound, so a rival can be given one of the same γ, by the same formula (Algorithm 2 of Krishnan et al., ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from neumann.optim.argument_checks import number
from neumann.optim.displaced import DisplacedOptimizer
from neumann.optim.private_names import found_inf, runs_step_hooks
from neumann.optim.tensors import by_device_and_dtype

_ATTRIBUTE = "_weight_average"  # of an optimizer: the average that is attached to it


class WeightAverage:
    """A moving average v of the weights that ``optimizer`` holds: v_0 = w_0, then v ← w + γ (v − w) after every step.

    w_0 are the weights when it is made. From then on it follows the optimizer by its step hooks and is one of its
    points::

        WeightAverage(optimizer, gamma=0.99)
        ...
        with at(optimizer, "average"):
            validate(model)

    A step that ``GradScaler`` skips moves nothing. v has the shape, device and type of its parameter, but float16 and
    bfloat16 parameters are averaged in float32, because those types would round the small moves of an average away. A
    parameter that was added by ``add_param_group`` joins at the weights it has then. Batch-norm statistics are not
    averaged.

    The average is an attribute of the optimizer's instance, so ``deepcopy`` and ``pickle`` drop it, as they drop hooks,
    and the optimizer's ``state_dict()`` does not hold it: save :meth:`state_dict` beside that.

    Args:
        optimizer: any optimizer that runs step hooks and has no average.
        gamma: γ, the share of v that a step keeps, in [0, 1).

    Raises:
        ValueError: γ is not in [0, 1), or ``optimizer`` cannot be given an average; the message says why.
    """

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = number("gamma", gamma, below=1)
        name = type(optimizer).__name__
        if isinstance(optimizer, DisplacedOptimizer) and "average" in optimizer.points:
            raise ValueError(f"{name} keeps an average of its own, so it cannot be given another")
        if WeightAverage.of(optimizer) is not None:
            raise ValueError(f"this {name} has an average already, so it cannot be given another")
        # such is timm's Lookahead, which moves the weights after the optimizer inside has run its hooks
        if not runs_step_hooks(optimizer):
            raise ValueError(f"{name} runs no step hooks of its own, so no average can follow its weights")
        self._optimizer = optimizer
        self._averages: dict[Tensor, Tensor] = {}
        self._held: list[tuple[Tensor, Tensor]] | None = None  # the held weights, while the parameters are at v
        self._stepping = False
        self._join()
        setattr(optimizer, _ATTRIBUTE, self)
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @staticmethod
    def of(optimizer: Optimizer) -> WeightAverage | None:
        """Return the average that was attached to ``optimizer``, if there is one."""
        found = getattr(optimizer, _ATTRIBUTE, None)
        return found if isinstance(found, WeightAverage) else None

    def state_dict(self) -> dict[str, Any]:
        """Return γ and v as plain data (loads with ``weights_only=True``); the tensors are not copied.

        ``averages`` is a list for each group, in the order of the optimizer's ``param_groups``.
        """
        self._join()
        groups = self._optimizer.param_groups
        return {"gamma": self.gamma, "averages": [[self._averages[p] for p in group["params"]] for group in groups]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state, γ included, as an optimizer loads its hyperparameters.

        Raises:
            ValueError: the state does not fit the optimizer's groups and shapes; nothing has been loaded then.
        """
        if not isinstance(state, dict) or not {"gamma", "averages"} <= state.keys():
            raise ValueError("the state of an average has the keys 'gamma' and 'averages', as state_dict() returns it")
        gamma = number("gamma", state["gamma"], below=1)
        shapes = [[p.shape for p in group["params"]] for group in self._optimizer.param_groups]
        if [[v.shape for v in group] for group in state["averages"]] != shapes:
            raise ValueError("the state of the average does not fit the optimizer's parameter groups and their shapes")
        self.gamma = gamma
        self._join()
        for group, averages in zip(self._optimizer.param_groups, state["averages"], strict=True):
            for p, average in zip(group["params"], averages, strict=True):
                self._averages[p].copy_(average)

    @contextmanager
    def at_average(self) -> Iterator[None]:
        """Hold the parameters at v within the block and put back what they were, bit for bit, after it."""
        if self._held is not None:
            yield
            return
        self._join()
        self._held = [(p, p.detach().clone()) for p in self._params()]  # all of them before the first one moves
        try:
            self._move_to_average()
            yield
        finally:
            _put(self._held)
            self._held = None

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Undo :meth:`at_average` within the block, so that another point can be reached from inside it."""
        if self._held is None:
            yield
            return
        held, self._held = self._held, None
        _put(held)
        try:
            yield
        finally:
            self._held = held
            self._move_to_average()

    def _params(self) -> Iterator[Tensor]:
        for group in self._optimizer.param_groups:
            yield from group["params"]

    @torch.no_grad()
    def _join(self) -> None:
        """Give an average to every parameter that has none yet: its weights."""
        for p in self._params():
            if p not in self._averages:
                wide = torch.promote_types(p.dtype, torch.float32)
                self._averages[p] = p.detach().to(wide, copy=True)

    def _move_to_average(self) -> None:
        _put([(p, self._averages[p]) for p, _ in self._held or ()])

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._held is not None:
            raise RuntimeError(
                f"{type(optimizer).__name__}.step() was called while the parameters are at the point 'average', where "
                "they are evaluated, not trained"
            )
        self._join()
        self._stepping = True

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._stepping:
            raise RuntimeError(
                f"{type(optimizer).__name__} ran its step hooks twice in one step, because its step() calls that of a "
                "class which torch gave hooks too: its average would move twice, and once in mid-step"
            )
        self._stepping = False
        infinite = found_inf(optimizer)  # GradScaler leaves it to fused kernels to skip the step
        if infinite is not None and bool(infinite):
            return
        averages = [self._averages[p] for p in self._params()]
        weights = [p.detach().to(v.dtype) for p, v in zip(self._params(), averages, strict=True)]
        for vs, ws in by_device_and_dtype(averages, weights):
            torch._foreach_lerp_(vs, ws, 1 - self.gamma)


@torch.no_grad()
def _put(values: list[tuple[Tensor, Tensor]]) -> None:
    for p, value in values:
        p.copy_(value)
