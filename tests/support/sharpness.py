"""Sharpness-aware minimization around an optimizer, as users write it (Foret et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from neumann.optim import Neumann

KINDS = {"sgd": torch.optim.SGD, "neumann": Neumann}


class SAM(torch.optim.Optimizer):
    """Takes the gradient at the worst point within ``rho``; its ``state_dict`` leaves out the optimizer inside.

    Lightning's closure takes a gradient, so it is called twice: for the direction, and at the point there.
    """

    def __init__(self, params: Any, base: str = "sgd", rho: float = 0.05, **settings: Any) -> None:
        super().__init__(params, {})
        self.rho = rho
        self.base_optimizer = KINDS[base](self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def _params(self) -> list[torch.Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self) -> None:
        """Climb to the worst point."""
        norm = torch.stack([p.grad.norm() for p in self._params()]).norm()
        for p in self._params():
            self.state[p]["before"] = p.detach().clone()
            p.add_(p.grad * (self.rho / norm))

    @torch.no_grad()
    def second_step(self) -> None:
        """Step from where the weights were."""
        for p in self._params():
            p.copy_(self.state[p]["before"])
        self.base_optimizer.step()

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        closure()
        self.first_step()
        loss = closure()
        self.second_step()
        return loss
