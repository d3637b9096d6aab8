"""Rate and momentum that follow the measured spectrum of the training loss: schedule=spectral.

§3.1 of the paper sets η = 1/λ_max and μ = λ_max / (|λ_min| + λ_max), and its experiments tune η and fix μ all the same.
Here both are measured as the run trains, by a fixed number of Lanczos iterations on the batch of the step, as the
paper's figure 4 has them. The products are part of the method: they are on the run's clock and among its gradient
evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer

from neumann.config import RunConfig
from neumann.config.inner_loop import batches_a_step
from neumann.config.spectral import followed, follows_spectrum
from neumann.curvature import extreme_eigenvalues
from neumann.curvature.frozen import FrozenNetwork
from neumann.curvature.lanczos import EVALUATIONS, Counted
from neumann.errors import UserError
from neumann.optim import at
from neumann.training.batch_curvature import batch_curvature
from neumann.training.classifier import Batch, ImageClassifier
from neumann.training.rate_schedules import Factor, RateSchedule

if TYPE_CHECKING:
    from neumann.training.distributed import RankGroup
    from neumann.training.evaluation import TrainingProgress


class SpectrumFollower:
    """η and μ of the spectra that were measured so far.

    λ_max is averaged as its logarithm, log λ̄ ← θ log λ̄ + (1 − θ) log λ_max, and |λ_min|/λ_max as it is; the first
    measurement is taken as it is. Four safeguards:

    - A measurement with a λ_max that is not above 0, or with an end that is not finite, changes nothing.
    - λ_max is taken as λ̄/``growth`` where it is less, so that a measurement raises η by growth^(1 − θ) at most. It may
      lower η by any factor, which is the safe side.
    - μ is at most ``peak``: where the loss is convex the formula would give 1.
    - η is 1/λ̄, half of what plain gradient descent is stable with on a quadratic.

    Args:
        smoothing: θ, in [0, 1).
        growth: above 1.
        peak: in [0, 1).
    """

    def __init__(self, *, smoothing: float, growth: float, peak: float) -> None:
        self._smoothing, self._growth, self._peak = smoothing, growth, peak
        self._log_largest: float | None = None  # log λ̄
        self._ratio = 0.0  # |λ_min|/λ_max, averaged
        self.measured = 0  # spectra taken in
        self.dropped = 0  # spectra that changed nothing
        self.gradient_evaluations = 0  # of a global batch, that the products have cost

    def take(self, largest: float, smallest: float) -> bool:
        """Take in λ_max and λ_min. Return whether they changed anything."""
        if not (math.isfinite(largest) and math.isfinite(smallest) and largest > 0):
            self.dropped += 1
            return False
        ratio, log_largest = abs(smallest) / largest, math.log(largest)
        if self._log_largest is None:
            self._log_largest, self._ratio = log_largest, ratio
        else:
            log_largest = max(log_largest, self._log_largest - math.log(self._growth))
            self._log_largest += (1 - self._smoothing) * (log_largest - self._log_largest)
            self._ratio += (1 - self._smoothing) * (ratio - self._ratio)
        self.measured += 1
        return True

    @property
    def is_ready(self) -> bool:
        """Whether a spectrum has been taken in, so that there is a rate."""
        return self._log_largest is not None

    @property
    def eta(self) -> float:
        """η = 1/λ̄. Raises RuntimeError before the first measurement."""
        if self._log_largest is None:
            raise RuntimeError("no spectrum has been measured yet, so there is no rate")
        return math.exp(-self._log_largest)

    @property
    def mu(self) -> float:
        """μ = 1/(1 + |λ_min|/λ_max), at most ``peak``."""
        return min(self._peak, 1 / (1 + self._ratio))

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and counts as plain numbers."""
        return {
            "log_lambda_max": self._log_largest,
            "lambda_ratio": self._ratio,
            "measured": self.measured,
            "dropped": self.dropped,
            "gradient_evaluations": self.gradient_evaluations,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the numbers of a checkpoint."""
        self._log_largest, self._ratio = state["log_lambda_max"], state["lambda_ratio"]
        self.measured, self.dropped = state["measured"], state["dropped"]
        self.gradient_evaluations = state["gradient_evaluations"]


class SpectralSchedule(RateSchedule):
    """Sets rate and momentum of every parameter group before each step: η × the schedule's decay, and μ.

    The burn-in of Neumann is plain SGD at the same rate, and a reset changes neither η nor μ. A group keeps its share
    of the rate, as under any schedule.

    Args:
        optimizer: built with the values of `neumann.config.spectral.FOLLOWING`.
        factor: the decay.
        follower: gives η and μ.
        settings: the optimizer's, that follow the spectrum.
    """

    def __init__(
        self, optimizer: Optimizer, factor: Factor, follower: SpectrumFollower, settings: Sequence[str]
    ) -> None:
        super().__init__(optimizer, factor)
        self.follower, self._settings = follower, tuple(settings)

    def _set(self, group: dict[str, Any], factor: float) -> None:
        super()._set(group, factor * self.follower.eta)
        if "lr_in" in self._settings:  # the series within a step converges by λ_max, however far the decay has come
            group["lr_in"] = self.follower.eta
        for key in ("momentum", "mu"):
            if key in self._settings:
                group[key] = self.follower.mu

    def state_dict(self) -> dict[str, Any]:
        """Return the count of steps taken, and the follower's numbers."""
        return {**super().state_dict(), "spectrum": self.follower.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.follower.load_state_dict(state["spectrum"])
        super().load_state_dict(state)


def is_measured_before(step: int, every: int) -> bool:
    """Return whether the spectrum is measured before step ``step``, counted from 0: at 0, 1, 2, 4, 8, …, then each
    multiple of ``every``.

    λ_max moves most in the first steps.
    """
    return step % every == 0 or (step < every and step & (step - 1) == 0)


def gradients_a_step(config: RunConfig) -> float:
    """Return the gradient evaluations that a run's spectra take, as a mean over its steps; 0 without them."""
    if not follows_spectrum(config.schedule):
        return 0.0
    total, every = config.derived.total_steps, config.schedule["every_steps"]
    early = (min(every, total) - 1).bit_length()  # 1, 2, 4, 8, … below the first multiple
    count = math.ceil(total / every) + early
    return EVALUATIONS * config.schedule["lanczos_steps"] * count / total


class SpectrumMeasuring:
    """Measures the spectrum on the batch of a step before the step is taken, at the held weights, for a schedule.

    Args:
        schedule: whose follower takes the measurements.
        progress: tells the step, and counts the gradient evaluations.
        group: the ranks that train the run, all of which measure alike.
        every: steps between two measurements.
        iterations: of Lanczos, for both ends.
        batches: global batches that a step takes from the data.
    """

    def __init__(
        self,
        schedule: SpectralSchedule,
        progress: TrainingProgress,
        group: RankGroup,
        *,
        every: int,
        iterations: int,
        batches: int,
    ) -> None:
        self._follower, self._progress, self._group = schedule.follower, progress, group
        self._every, self._iterations, self._batches_a_step = every, iterations, batches
        self._batches: list[Batch] = []  # of the step under way, where it is measured

    def before_batch(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, index: int) -> None:
        """Take micro-batch ``index`` of this attempt; with the last one of a step, measure.

        Raises UserError where the first batch gives no rate.
        """
        if not is_measured_before(self._progress.step, self._every):
            return
        self._batches.append(batch)
        if (index + 1) % trainer.accumulate_grad_batches:
            return
        assert isinstance(module, ImageClassifier)
        batches, self._batches = self._batches, []
        largest, smallest = self._ends(module, trainer.optimizers[0], batches)
        self._follower.take(largest, smallest)
        if not self._follower.is_ready:
            raise UserError(
                f"schedule=spectral: λ_max of the first batch is {largest:.3g}, of which no rate can be made: choose "
                "another schedule, or a larger batch.size"
            )

    def record(self) -> dict[str, Any]:
        """Return what a run's result says of the measurements: how many, what they cost, and the η and μ at the end."""
        follower = self._follower
        return {
            "measured": follower.measured,
            "dropped": follower.dropped,
            "gradient_evaluations": follower.gradient_evaluations,
            "eta": follower.eta,
            "mu": follower.mu,
        }

    def _ends(self, module: ImageClassifier, optimizer: Optimizer, batches: list[Batch]) -> tuple[float, float]:
        """Return λ_max and λ_min, nan where a product is not finite, and count what they cost."""
        with at(optimizer, "held"):
            counted = Counted(batch_curvature(module, batches, self._group), None, self._iterations)
            try:
                ends = extreme_eigenvalues(
                    counted, iterations=self._iterations, tolerance=None, seed=self._progress.step
                )
            except ValueError:
                ends = None
        cost = EVALUATIONS * counted.products * self._batches_a_step
        self._follower.gradient_evaluations += cost
        self._progress.gradient_evaluations += cost
        return (math.nan, math.nan) if ends is None else (ends.largest, ends.smallest)


def spectral_schedule(config: RunConfig, optimizer: Optimizer, factor: Factor) -> RateSchedule:
    """Return what moves the rate of a run of ``config``: by the spectrum with schedule=spectral, else by the factor."""
    if not follows_spectrum(config.schedule):
        return RateSchedule(optimizer, factor)
    given = {key: float(config.schedule[key]) for key in ("smoothing", "growth", "peak")}
    return SpectralSchedule(optimizer, factor, SpectrumFollower(**given), tuple(followed(config.optimizer)))


def spectrum_measuring(
    config: RunConfig, schedule: RateSchedule, progress: TrainingProgress, group: RankGroup
) -> SpectrumMeasuring | None:
    """Return what measures for a run's schedule, None where that does not follow the spectrum."""
    if not isinstance(schedule, SpectralSchedule):
        return None
    return SpectrumMeasuring(
        schedule,
        progress,
        group,
        every=config.schedule["every_steps"],
        iterations=config.schedule["lanczos_steps"],
        batches=batches_a_step(config),
    )


def check_spectral(config: RunConfig, model: nn.Module) -> None:
    """Raise UserError where schedule=spectral cannot measure ``model``."""
    if follows_spectrum(config.schedule):
        try:
            FrozenNetwork(model, torch.float32)
        except ValueError as error:
            raise UserError(f"schedule=spectral: {error}") from error
