"""`schedule=spectral`: η and μ follow the spectrum of the batch's Hessian, measured as the run trains.

Section 3.1 of the paper takes μ = λ_max/(|λ_min| + λ_max) and η = 1/λ_max, by which its inner iteration converges. Here
both ends of the spectrum are measured every few steps by a fixed number of Lanczos iterations, as for its figure 4, on
the batch that is trained on next, at the weights that are held. The products are part of the method: they are on the
run's clock and in its count of gradient evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from neumann.curvature import extreme_eigenvalues
from neumann.curvature.lanczos import EVALUATIONS
from neumann.errors import UserError
from neumann.optim import Neumann, NeumannReference, TwoLoopNeumann, at
from neumann.training.batch_curvature import batch_curvature
from neumann.training.classifier import Batch, ImageClassifier
from neumann.training.rate_schedules import Factor, RateSchedule
from neumann.training.stepping import BeforeBatch

if TYPE_CHECKING:
    from neumann.training.distributed import RankGroup
    from neumann.training.evaluation import TrainingProgress
    from neumann.training.measured_terms import TermsMeasuring

TARGET = "neumann.schedules.spectral"
FOLLOWS = (Neumann, NeumannReference, TwoLoopNeumann, torch.optim.SGD)  # whose η and μ mean what those of §3.1 mean


@dataclass
class Spectrum:
    """Both ends of the spectrum, smoothed over measurements, and the η and μ that follow.

    Args:
        smoothing: share of ln λ_max and of |λ_min|/λ_max that their moving averages keep at a measurement, in [0, 1).
        scale: c in η = c/λ_max.
        growth: the largest factor by which η grows from one measurement to the next.
        most_momentum: the largest μ.
        log_largest: the average of ln λ_max; None before the first measurement.
        ratio: the average of |λ_min|/λ_max.
        eta: the rate of today.
    """

    smoothing: float
    scale: float
    growth: float
    most_momentum: float
    log_largest: float | None = None
    ratio: float = 0.0
    eta: float = 0.0

    def observe(self, largest: float, smallest: float) -> None:
        """Take a measurement of λ_max and λ_min. One that is no curvature (λ_max ≤ 0, or not finite) changes nothing.

        η is c over the larger of the average and the measurement, so that it follows a curvature that grows at once and
        one that falls slowly.
        """
        if not (math.isfinite(largest) and math.isfinite(smallest) and largest > 0):
            return
        ratio, before = abs(min(smallest, 0.0)) / largest, self.log_largest
        if before is None:
            self.log_largest, self.ratio = math.log(largest), ratio
        else:
            self.log_largest = self.smoothing * before + (1 - self.smoothing) * math.log(largest)
            self.ratio = self.smoothing * self.ratio + (1 - self.smoothing) * ratio
        eta = self.scale / max(largest, math.exp(self.log_largest))
        self.eta = eta if before is None else min(eta, self.growth * self.eta)

    @property
    def mu(self) -> float:
        """μ = λ_max/(|λ_min| + λ_max), at most ``most_momentum``."""
        return min(self.most_momentum, 1 / (1 + self.ratio))


class SpectralSchedule(RateSchedule):
    """Sets η and μ of every parameter group before each step: η times the schedule's factor, and μ.

    μ is the momentum of Neumann and of torch's SGD. Of TwoLoopNeumann it is the μ of the inner series, whose rate is η
    without the factor: the series has no horizon.

    Args:
        optimizer: one of `FOLLOWS`, or it is refused.
        factor: the fall of the rate over the run, as a function of the step.
        settings: those of the schedule, without its target.
    """

    def __init__(self, optimizer: Optimizer, factor: Factor, settings: Mapping[str, Any]) -> None:
        if not isinstance(optimizer, FOLLOWS):
            raise UserError(
                f"schedule=spectral sets η = 1/λ_max and μ, which mean nothing for {type(optimizer).__name__}: choose "
                "optimizer=neumann, two_loop_neumann, sgd or nesterov, or another schedule"
            )
        super().__init__(optimizer, factor)
        self.spectrum = Spectrum(
            *(float(settings[key]) for key in ("smoothing", "scale", "growth", "most_momentum")),
        )
        self.every, self.iterations = int(settings["every_steps"]), int(settings["iterations"])

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        factor, spectrum = self._factor(self.count), self.spectrum
        for group in optimizer.param_groups:
            group["lr"] = spectrum.eta * factor
            if isinstance(optimizer, TwoLoopNeumann):
                group["mu"], group["lr_in"] = spectrum.mu, spectrum.eta
            else:
                group["momentum"] = spectrum.mu

    def state_dict(self) -> dict[str, Any]:
        """Return the count of steps taken and the spectrum."""
        return {"count": self.count, "spectrum": asdict(self.spectrum)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from those of a checkpoint."""
        self.count, self.spectrum = state["count"], Spectrum(**state["spectrum"])


class SpectrumMeasuring:
    """Measures the spectrum before every step that the schedule names, the first one too.

    Args:
        schedule: takes the measurements.
        progress: tells the step, and counts the products.
        group: the ranks that train the run.
    """

    def __init__(self, schedule: SpectralSchedule, progress: TrainingProgress, group: RankGroup) -> None:
        self._schedule, self._progress, self._group = schedule, progress, group
        self._batches: list[Batch] = []  # of the step under way, where it is to be measured

    def before_batch(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, index: int) -> None:
        """Take micro-batch ``index`` of this attempt; with the last one of a step, measure before the step."""
        if self._progress.step % self._schedule.every:
            return
        self._batches.append(batch)
        if (index + 1) % trainer.accumulate_grad_batches:
            return
        assert isinstance(module, ImageClassifier)
        batches, self._batches = self._batches, []
        spectrum = self._schedule.spectrum
        with at(trainer.optimizers[0], "held"):  # asked for by name, so that no watcher warns of the mode
            try:
                operator = batch_curvature(module, batches, self._group)
                ends = extreme_eigenvalues(operator, iterations=self._schedule.iterations, tolerance=None)
            except ValueError as error:
                if spectrum.log_largest is None:
                    raise UserError(f"schedule=spectral: {error}") from error
                return  # weights that are no longer finite, which the loss tells
        self._progress.gradient_evaluations += ends.gradient_evaluations
        spectrum.observe(ends.largest, ends.smallest)
        if spectrum.log_largest is None:
            raise UserError(
                f"schedule=spectral: the Hessian of the first batch has no positive eigenvalue (λ_max = "
                f"{ends.largest:.3g}), so there is no rate to begin with: choose another schedule"
            )


def measurings(
    schedule: RateSchedule, terms: TermsMeasuring | None, progress: TrainingProgress, group: RankGroup
) -> list[BeforeBatch]:
    """Return what measures before steps: for ``schedule`` where it follows the spectrum, and for ``terms``."""
    found: list[BeforeBatch] = []
    if isinstance(schedule, SpectralSchedule):
        found.append(SpectrumMeasuring(schedule, progress, group).before_batch)
    return [*found, *([terms.before_batch] if terms is not None else [])]


def products_a_step(settings: Mapping[str, Any]) -> float:
    """Return the gradient evaluations that the schedule of ``settings`` adds to each step, 0 where it is another."""
    if settings.get("_target_") != TARGET:
        return 0.0
    return EVALUATIONS * float(settings["iterations"]) / float(settings["every_steps"])


def make_schedule(optimizer: Optimizer, factor: Callable[[int], float], section: Mapping[str, Any]) -> RateSchedule:
    """Return the schedule of ``section`` over ``optimizer``; ``factor`` is what was built of it. Raises UserError."""
    if section.get("_target_") == TARGET:
        return SpectralSchedule(optimizer, factor, section)
    return RateSchedule(optimizer, factor)
