"""Momentum SGD whose first steps are plain SGD, as Neumann's are: a rival that shows what the burn-in alone does.

Algorithm 2 of Krishnan et al. (ICLR 2018) begins with "vanilla SGD for a small number of iterations".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from neumann.optim import argument_checks
from neumann.optim.private_names import step_post_hooks
from neumann.optim.tensors import name_of

_VALID: dict[str, Callable[[Any], Any]] = {
    "lr": argument_checks.learning_rate,
    "momentum": lambda value: argument_checks.number("momentum", value, below=1),
    "weight_decay": lambda value: argument_checks.number("weight_decay", value),
    "burn_in_steps": lambda value: argument_checks.whole("burn_in_steps", value, least=0),
}


_OF_SGD = ("dampening", "nesterov", "maximize", "foreach", "differentiable", "fused")  # further keys of torch's groups


def _require_valid(group: dict[str, Any]) -> None:
    """Refuse hyperparameters that are not valid; a scheduler may have raised the momentum to 1."""
    for name, check in _VALID.items():
        if name == "momentum":
            if group[name] is True or group[name] != 1:
                check(group[name])
        elif not isinstance(group[name], Tensor) or group[name].device.type == "cpu":  # reading others would wait
            check(group[name])


class BurnInSGD(torch.optim.SGD):
    r"""SGD with heavy-ball momentum, after a burn-in of plain SGD.

    .. math::
        \text{burn-in: } w \leftarrow w - \eta_t g_t, \qquad
        \text{then: } b \leftarrow \mu b + g_t, \quad w \leftarrow w - \eta_t b
        \quad (b = g_t \text{ in its first step})

    After the burn-in it is, bit for bit, a :class:`torch.optim.SGD` made at that moment. A step in which no parameter
    has a gradient is not counted, as in :class:`~neumann.optim.Neumann`.

    The count of steps is in ``param_groups``, so ``state_dict()``, ``deepcopy`` and ``pickle`` keep it; a group that is
    added later joins at the optimizer's current step. Every hyperparameter can be set per group.

    Args:
        params: parameters, or dicts of parameter groups.
        lr: η, a number or a 0-dim tensor; its schedule is the caller's.
        momentum: μ, in [0, 1).
        burn_in_steps: optimizer steps of plain SGD (paper: 5 epochs).
        weight_decay: coefficient of the L2 term inside the gradient, in every step.

    Raises:
        ValueError: an argument is not valid, or a group asks for Nesterov momentum.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        momentum: float = 0.9,
        burn_in_steps: int = 0,
        weight_decay: float = 0.0,
    ) -> None:
        given = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "burn_in_steps": burn_in_steps}
        valid = {name: _VALID[name](value) for name, value in given.items()}
        steps = valid.pop("burn_in_steps")
        super().__init__(params, **valid)
        self.defaults["burn_in_steps"] = steps
        for group in self.param_groups:
            group.setdefault("burn_in_steps", steps)
        self._watch_steps()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in :class:`torch.optim.Optimizer`, at the optimizer's current step.

        Raises:
            ValueError: a hyperparameter is not valid or its name is misspelt.
        """
        if isinstance(param_group, dict):  # torch says so otherwise
            argument_checks.known_keys(param_group, (*_VALID, *_OF_SGD), type(self).__name__)
        if param_group.get("nesterov"):
            raise ValueError("BurnInSGD has no Nesterov momentum: its first step would not be plain SGD")
        param_group.update({name: check(param_group[name]) for name, check in _VALID.items() if name in param_group})
        param_group["step"] = self.param_groups[0]["step"] if self.param_groups else 0
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("step", 0)
            group.setdefault("burn_in_steps", self.defaults.get("burn_in_steps", 0))
        self._watch_steps()  # a copy has no hooks

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as :class:`torch.optim.Optimizer` does.

        Raises:
            ValueError: the state was saved by another optimizer or for other parameters, or something in it is missing
                or not valid; nothing has been changed then.
        """
        hook = self.register_load_state_dict_pre_hook(lambda _, loaded: self._require_fitting(loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()

    def _require_fitting(self, loaded: dict[str, Any]) -> None:
        name = type(self).__name__
        argument_checks.state_dict(loaded, name, ("burn_in_steps", "step", *_OF_SGD[:2]))
        groups = loaded["param_groups"]
        for index, group in enumerate(groups):
            with argument_checks.of_saved_group(name, index):
                _require_valid(group)
                argument_checks.known_keys(group, (*_VALID, *_OF_SGD), name)
        step = argument_checks.saved_steps(groups, name)
        buffers: list[Any] = []
        for own, group in zip(self.param_groups, groups, strict=False):  # torch refuses other numbers
            for place, (p, index) in enumerate(zip(own["params"], group["params"], strict=False)):
                buffer = loaded["state"].get(index, {}).get("momentum_buffer")
                wrong = None if buffer is None else argument_checks.saved_tensor(buffer, p)
                if wrong is not None:
                    raise ValueError(f"the state 'momentum_buffer' of {name_of(own, place, index)} {wrong}")
                if group["momentum"] and step > group["burn_in_steps"]:
                    buffers.append(buffer)
        if buffers and all(buffer is None for buffer in buffers):
            raise ValueError(f"the state was saved after {step} steps, and no parameter's momentum_buffer is in it")

    def _watch_steps(self) -> None:
        # A hook, because a step() that calls super().step() would run users' hooks a second time in a process that has
        # made a plain SGD before: torch gives hooks to the step() of each class that it makes.
        if _after_step not in step_post_hooks(self):
            self.register_step_pre_hook(_before_step)
            self.register_step_post_hook(_after_step)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Refuse hyperparameters that were set in the groups after construction and are not valid."""
    for index, group in enumerate(optimizer.param_groups):
        try:
            _require_valid(group)
        except ValueError as error:
            raise ValueError(f"param_groups[{index}]: {error}") from error
    argument_checks.require_one_step(optimizer.param_groups)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Count the step and, in burn-in, drop the buffers: each step is then a first one, where b = g, so plain SGD."""
    if all(p.grad is None for group in optimizer.param_groups for p in group["params"]):
        return
    step = optimizer.param_groups[0]["step"] + 1
    for group in optimizer.param_groups:
        group["step"] = step
        if step <= group["burn_in_steps"]:
            for p in group["params"]:
                optimizer.state.get(p, {}).pop("momentum_buffer", None)
