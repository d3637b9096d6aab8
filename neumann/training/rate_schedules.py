"""Learning-rate schedules: pure functions of the optimizer's own step count, and the hook that applies them.

Each function returns the factor on the optimizer's rate at a step counted from 0. Times are in steps: the YAMLs of
conf/schedule turn epochs into steps (``${steps:...}``), by ``timing=paper`` or ``timing=relative``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from neumann.optim.private_names import runs_step_hooks
from neumann.optim.wrappers import wrapped

Factor = Callable[[int], float]
MOST_LOOKED_AT = 10_000  # steps from the end of a run
FEW_STEPS = 50  # of a run: with 40, most optimizers here are near chance on ten classes


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


def spectral(
    step: int,
    *,
    total_steps: int,
    every_steps: int,
    lanczos_steps: int,
    smoothing: float,
    growth: float,
    peak: float,
) -> float:
    """Return the decay of a rate that follows the spectrum: half a cosine from 1 to 0 at ``total_steps``.

    The rest is for `neumann.training.spectral`, which measures and multiplies by 1/λ_max.
    """
    del every_steps, lanczos_steps, smoothing, growth, peak
    return cosine(step, total_steps=total_steps)


def odd_rates(factor: Factor, section: Mapping[str, Any], run_steps: int) -> list[str]:
    """Return sentences on a schedule of another length than the run of ``run_steps`` steps, and on a run of few steps.

    ``section`` is the schedule's configuration, and ``factor`` what was built of it.
    """
    told = []
    ramp = section.get("ramp_steps", 0)
    if isinstance(ramp, int) and run_steps <= ramp:
        told.append(
            f"the rate never reaches optimizer.lr: schedule.ramp_steps={ramp} and the run has {run_steps} steps; "
            "timing=relative makes the ramp 2 % of the run"
        )
    looked = min(run_steps, MOST_LOOKED_AT)
    idle = next((step for step in range(looked) if not _is_zero(factor, run_steps - 1 - step)), looked)
    if idle > 1:
        more = " and more" if looked == idle < run_steps else ""
        told.append(
            f"the schedule's rate is zero in the last {idle:,}{more} of the run's {run_steps:,} steps, which train "
            "nothing"
        )
    if run_steps < FEW_STEPS:
        told.append(
            f"the run has {run_steps} optimizer steps, in which little can be learnt: a smaller batch.size or a longer "
            "trainer.max_epochs gives it more"
        )
    return told


def _is_zero(factor: Factor, step: int) -> bool:
    try:
        return float(factor(step)) == 0
    except Exception:  # noqa: BLE001 - the user's own function may raise anything, and does so when the run gets there
        return False


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
            self._set(group, factor)

    def _set(self, group: dict[str, Any], factor: float) -> None:
        group["lr"] = group["initial_lr"] * factor

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the count of steps taken."""
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the count of a checkpoint."""
        self.count = state["count"]
