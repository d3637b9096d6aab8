"""Learning-rate schedules: pure functions of the optimizer's own step count, and the hook that applies them.

Each function returns the factor on the optimizer's rate at a step counted from 0. Times are in steps: the YAMLs of
conf/schedule turn epochs into steps (``${steps:...}``), by ``timing=paper`` or ``timing=relative``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from neumann.optim.private_names import runs_step_hooks
from neumann.optim.wrappers import wrapped

Factor = Callable[[int], float]


def _ramp(step: int, ramp_steps: int) -> float:
    """Return the factor of a linear ramp, which is 1 from step ``ramp_steps`` on (Goyal et al. 2017)."""
    return (step + 1) / (ramp_steps + 1) if step < ramp_steps else 1.0


def constant(step: int, *, ramp_steps: int = 0) -> float:
    """Return 1, after a linear ramp of ``ramp_steps`` steps."""
    return _ramp(step, ramp_steps)


def cosine(step: int, *, total_steps: int, ramp_steps: int = 0) -> float:
    """Return half a cosine from 1 at the end of the ramp to 0 at ``total_steps`` (Loshchilov and Hutter 2017)."""
    if step < ramp_steps:
        return _ramp(step, ramp_steps)
    done = min(1.0, (step - ramp_steps) / max(1, total_steps - ramp_steps))
    return 0.5 * (1.0 + math.cos(math.pi * done))


def exponential(step: int, *, factor: float, every_steps: int, ramp_steps: int = 0) -> float:
    """Return ``factor`` to the power of the periods passed since step 0 (baselines of section 4: 0.94, 2 epochs)."""
    return _ramp(step, ramp_steps) * factor ** (step // every_steps)


def synchronous(step: int, *, factor: float, every_steps: int, ramp_steps: int) -> float:
    """Return the paper's schedule for synchronous training (section 4.2): a ramp, then × ``factor`` in each period.

    Periods count from the end of the ramp, so with a ramp of 5 epochs and a period of 40 the drops fall at epochs 45,
    85, 125 and 165.
    """
    return _ramp(step, ramp_steps) * factor ** (max(0, step - ramp_steps) // every_steps)


class RateSchedule:
    """Sets the rate of every parameter group before each step of ``optimizer``, by that optimizer's count of steps.

    torch's LambdaLR moves the rate after the step instead, and Lightning moves it also when mixed precision has skipped
    the step. Here ``group["lr"]`` after a step is the rate that the step used, which the base point of torch's Nesterov
    needs (`neumann.optim.points`), and a skipped step moves nothing.
    """

    def __init__(self, optimizer: Optimizer, factor: Factor) -> None:
        self.count = 0
        self._depth = 0  # a step() that calls its parent's runs the hooks again where torch has made that parent before
        self._factor = factor
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        # a wrapper like timm's Lookahead is not a full Optimizer and runs no hooks, but the one inside does
        stepped = next(filter(runs_step_hooks, wrapped(optimizer)), optimizer)
        stepped.register_step_pre_hook(self._before)
        stepped.register_step_post_hook(self._after)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        factor = self._factor(self.count)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.count += 1

    def state_dict(self) -> dict[str, int]:
        """Return the count of steps taken."""
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from the count of a checkpoint."""
        self.count = state["count"]
