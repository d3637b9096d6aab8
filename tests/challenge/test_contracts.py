"""What `neumann challenge` finds of an optimizer: nothing of sound ones, and of broken ones the contract they break."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neumann.challenge.contracts import CHECKS, KEPT, STEPS, contracts
from neumann.challenge.cost import cost
from neumann.optim import Neumann


class Momentum(torch.optim.Optimizer):
    """A sound optimizer, of which each class below breaks one part."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        if lr < 0:
            raise ValueError(f"lr={lr}")
        super().__init__(params, {"lr": lr})

    def buffer(self, p: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.state[p].setdefault("m", torch.zeros_like(p))
        return found

    def rate(self, group: dict[str, Any]) -> float:
        return float(group["lr"])

    def idle(self, p: torch.Tensor) -> None:
        """A tensor without a gradient."""

    def loss_of(self, closure: Any) -> Any:
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = self.loss_of(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    self.idle(p)
                    continue
                p.sub_(self.buffer(p).mul_(0.9).add_(p.grad), alpha=self.rate(group))
        return loss


class HidesItsState(Momentum):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.hidden: dict[int, torch.Tensor] = {}

    def buffer(self, p: torch.Tensor) -> torch.Tensor:
        return self.hidden.setdefault(id(p), torch.zeros_like(p))


class KeepsItsRate(Momentum):
    def rate(self, group: dict[str, Any]) -> float:
        return float(self.defaults["lr"])


class DecaysTheIdle(Momentum):
    def idle(self, p: torch.Tensor) -> None:
        p.mul_(0.99)


class IgnoresTheClosure(Momentum):
    def loss_of(self, closure: Any) -> Any:
        if closure is not None:
            super().loss_of(closure)


class NeedsNoGradients(Momentum):
    def loss_of(self, closure: Any) -> Any:
        return None if closure is None else closure()


class Draws(Momentum):
    def rate(self, group: dict[str, Any]) -> float:
        return float(group["lr"]) * (1 + 0.1 * torch.rand(()).item())


class TakesAnyRate(Momentum):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        torch.optim.Optimizer.__init__(self, params, {"lr": lr})


class ForgetsTheBias(Momentum):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        biases = [(p, p.clone()) for group in self.param_groups for p in group["params"] if p.dim() == 1]
        loss = super().step(closure)
        for p, before in biases:
            p.copy_(before)
        return loss


class ReturnsItsRate(Momentum):
    def loss_of(self, closure: Any) -> Any:
        return self.defaults["lr"] if closure is None else super().loss_of(closure)


class TakesOneGroup(Momentum):
    def add_param_group(self, group: dict[str, Any]) -> None:
        if self.param_groups:
            raise NotImplementedError("one group alone")
        super().add_param_group(group)


@pytest.mark.parametrize(
    "kind", [Momentum, torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, Neumann]
)
def test_a_sound_one_keeps_them_all(kind: Any) -> None:
    assert set(contracts(kind).values()) == {KEPT}


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (HidesItsState, {"saves and loads": "goes on to other weights", "can be copied": "no attribute 'hidden'"}),
        (
            KeepsItsRate,
            {"takes groups with rates of their own": "changes nothing", "follows a schedule": "changes nothing"},
        ),
        (DecaysTheIdle, {"passes by tensors without a gradient": "moves a tensor that never had a gradient"}),
        (IgnoresTheClosure, {"calls the closure and returns its loss": "does not return its loss"}),
        (ReturnsItsRate, {"steps without a closure": "returns something"}),
        (TakesAnyRate, {"refuses a rate below zero": "-1 is accepted"}),
        (
            TakesOneGroup,
            {
                "takes groups with rates of their own": "NotImplementedError in",
                "takes a group later": "one group alone",
            },
        ),
    ],
)
def test_what_is_broken_is_told(kind: Any, broken: dict[str, str]) -> None:
    found = {name: finding for name, finding in contracts(kind).items() if finding != KEPT}
    assert found.keys() == broken.keys()
    for name, part in broken.items():
        assert part in found[name]


def test_one_that_takes_no_gradient_of_its_closure_trains_nothing() -> None:
    found = contracts(NeedsNoGradients)
    assert "calls it without gradients" in found["calls the closure and returns its loss"]


def test_one_that_forgets_a_tensor_is_told() -> None:
    assert contracts(ForgetsTheBias)["moves every tensor"] == f"1 of 2 tensors are where they were after {STEPS} steps"


def test_one_that_draws_repeats_nothing() -> None:
    found = contracts(Draws)
    assert "end at other bits" in found["repeats to the bit"]
    assert found["moves every tensor"] == KEPT


def test_what_cannot_be_made_keeps_nothing() -> None:
    def nothing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no optimizer")

    found = contracts(nothing)
    assert found.keys() == CHECKS.keys()
    assert [finding for finding in found.values() if "no optimizer" not in finding] == []


def test_a_steps_cost_has_its_state_and_its_gradients() -> None:
    class Sharp(Momentum):
        def loss_of(self, closure: Any) -> Any:
            super().loss_of(closure)
            return super().loss_of(closure)

    assert cost(Momentum)["state"] == "4.0 bytes a weight (Adam: 8.0)"
    assert cost(torch.optim.Adam)["state"] == "8.0 bytes a weight (Adam: 8.0)"
    assert cost(torch.optim.Adam)["gradients a step"] == "1"
    assert cost(Sharp)["gradients a step"] == "2"
