"""Checks of what PyTorch's users expect of any optimizer: save and load, groups, schedules, closures and so on.

Each check trains a small problem and compares bits. They are expectations and no laws: an optimizer may have a reason
to break one, and then its author should know and say so.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from neumann.errors import UserError
from neumann.refusals import as_raised

Make = Callable[..., Optimizer]  # makes the optimizer over parameters or groups of them, with settings changed by name
KEPT = "kept"
TRAINS = "moves every tensor"  # the contract without which there is nothing to compare
STEPS = 6


class Problem:
    """A regression with two tensors of weights, the same at every making."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.matrix = Parameter(torch.randn(8, 5, generator=draw))
        self.bias = Parameter(torch.randn(8, generator=draw))
        self.inputs = torch.randn(16, 5, generator=draw)
        self.targets = torch.randn(16, 8, generator=draw)

    @property
    def params(self) -> list[Parameter]:
        """The weights."""
        return [self.matrix, self.bias]

    def loss(self) -> Tensor:
        """Return the mean squared error."""
        return (self.inputs @ self.matrix.T + self.bias - self.targets).square().mean()

    def train(self, optimizer: Optimizer, steps: int = STEPS, schedule: Any = None) -> None:
        """Take ``steps`` steps, each followed by one of the ``schedule``."""

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        for _ in range(steps):
            optimizer.step(closure)  # type: ignore[arg-type]
            if schedule is not None:
                schedule.step()

    def bits(self) -> list[Tensor]:
        """Return copies of the weights."""
        return [p.detach().clone() for p in self.params]


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _trained(make: Make, steps: int = STEPS) -> tuple[Problem, Optimizer]:
    problem = Problem()
    optimizer = make(problem.params)
    problem.train(optimizer, steps)
    return problem, optimizer


def _moves(make: Make) -> str | None:
    problem, _ = _trained(make)
    still = [a for a, b in zip(problem.bits(), Problem().bits(), strict=True) if torch.equal(a, b)]
    if still:
        return f"{len(still)} of 2 tensors are where they were after {STEPS} steps"
    return None if all(torch.isfinite(p).all() for p in problem.params) else "weights are no longer finite"


def _repeats(make: Make) -> str | None:
    same = _same(_trained(make)[0].bits(), _trained(make)[0].bits())
    return None if same else "two runs from the same weights end at other bits"


def _saves_and_loads(make: Make) -> str | None:
    whole, _ = _trained(make, 2 * STEPS)
    problem, optimizer = _trained(make)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = make(problem.params)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    problem.train(fresh)
    if _same(problem.bits(), whole.bits()):
        return None
    return "a fresh optimizer that loads the state goes on to other weights than one that was not stopped"


def _copies(make: Make) -> str | None:
    problem, optimizer = _trained(make)
    other, again = copy.deepcopy((problem, optimizer))
    problem.train(optimizer)
    other.train(again)
    return None if _same(problem.bits(), other.bits()) else "a deep copy goes on to other weights"


def _has_groups(make: Make) -> str | None:
    ends = []
    for factor in (1.0, 0.5):
        problem = Problem()
        optimizer = make([{"params": [problem.matrix]}, {"params": [problem.bias]}])
        optimizer.param_groups[1]["lr"] = factor * optimizer.param_groups[1]["lr"]
        problem.train(optimizer)
        ends.append(problem.bits())
    return "the rate of a group of its own changes nothing" if torch.equal(ends[0][1], ends[1][1]) else None


def _takes_a_group_later(make: Make) -> str | None:
    problem = Problem()
    optimizer = make([problem.matrix])
    problem.train(optimizer, 2)
    optimizer.add_param_group({"params": [problem.bias]})
    problem.train(optimizer)
    return "a group that is added later is not trained" if torch.equal(problem.bias, Problem().bias) else None


def _follows_a_schedule(make: Make) -> str | None:
    problem = Problem()
    optimizer = make(problem.params)
    problem.train(optimizer, schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step))
    same = _same(problem.bits(), _trained(make)[0].bits())
    return "a rate that falls at every step changes nothing" if same else None


def _calls_the_closure(make: Make) -> str | None:
    problem = Problem()
    optimizer = make(problem.params)
    seen: list[tuple[bool, float]] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss()
        if torch.is_grad_enabled():
            loss.backward()
        seen.append((torch.is_grad_enabled(), loss.item()))
        return loss

    with torch.no_grad():  # as some loops call it
        returned = optimizer.step(closure)  # type: ignore[arg-type]
    if not seen:
        return "step(closure) does not call it"
    if not all(enabled for enabled, _ in seen):
        return "step(closure) calls it without gradients"
    value = returned.item() if isinstance(returned, Tensor) else returned
    return None if value in [loss for _, loss in seen] else "step(closure) does not return its loss"


def _steps_without_a_closure(make: Make) -> str | None:
    problem = Problem()
    optimizer = make(problem.params)
    problem.loss().backward()
    returned = optimizer.step()
    return None if returned is None else "step() returns something, and there is no loss to return"


def _passes_by_what_has_no_gradient(make: Make) -> str | None:
    problem, idle = Problem(), Parameter(torch.ones(3))
    problem.train(make([*problem.params, idle]))
    return None if torch.equal(idle, torch.ones(3)) else "it moves a tensor that never had a gradient"


def _refuses_a_rate_below_zero(make: Make) -> str | None:
    try:
        make(Problem().params, lr=-1.0)
    except (ValueError, AssertionError):
        return None
    return "a rate of -1 is accepted"


CHECKS: dict[str, Callable[[Make], str | None]] = {
    TRAINS: _moves,
    "repeats to the bit": _repeats,
    "saves and loads": _saves_and_loads,
    "can be copied": _copies,
    "takes groups with rates of their own": _has_groups,
    "takes a group later": _takes_a_group_later,
    "follows a schedule": _follows_a_schedule,
    "calls the closure and returns its loss": _calls_the_closure,
    "steps without a closure": _steps_without_a_closure,
    "passes by tensors without a gradient": _passes_by_what_has_no_gradient,
    "refuses a rate below zero": _refuses_a_rate_below_zero,
}


def contracts(make: Make) -> dict[str, str]:
    """Return {contract: "kept", or a sentence on how it is broken} for the optimizer that ``make`` makes."""
    found = {}
    for name, check in CHECKS.items():
        try:
            found[name] = check(make) or KEPT
        except UserError as error:
            found[name] = str(error)
        except Exception as error:  # noqa: BLE001 - the user's own optimizer may raise anything
            found[name] = as_raised(error)
    return found
