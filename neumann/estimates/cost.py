"""The cost of a run: what it counts (steps, examples, images evaluated), and its seconds at a pace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neumann.config import RunSpec
from neumann.config.inner_loop import batches_a_step
from neumann.config.schema import batch_split
from neumann.estimates.rate import Rate
from neumann.processes.ranks import world_size

if TYPE_CHECKING:
    from neumann.training.step_cost import ModelCost, StepTimes


@dataclass(frozen=True)
class Counts:
    """What a run does, counted over all its devices.

    steps         optimizer steps
    examples      trained on
    evaluations   of the validation split; the test split is evaluated once
    forwards      images that evaluations pass through the model, at each point of the optimizer
    """

    steps: int
    examples: int
    evaluations: int
    forwards: int


@dataclass(frozen=True)
class Cost:
    """A run's cost. ``flops`` are those of training and evaluation together, over all devices."""

    counts: Counts
    training_seconds: float
    evaluation_seconds: float
    devices: int
    flops: float

    @property
    def seconds(self) -> float:
        """From the first step to the result."""
        return self.training_seconds + self.evaluation_seconds

    @property
    def device_hours(self) -> float:
        """Hours times devices."""
        return self.seconds * self.devices / 3600


def counts_of(spec: RunSpec, points: int) -> Counts:
    """Return what ``spec`` does from its first step to its result, evaluated at ``points`` points.

    Recalibrating batch norm passes its batches through the model and then evaluates a second time.
    """
    derived, facts, recipe = spec.config.derived, spec.facts, spec.config.recipe
    evaluations = math.ceil(derived.total_steps / derived.eval_every_steps)
    images = evaluations * facts.validation_count + facts.test_count
    if recipe.recalibrate_batch_norm:
        calibration = recipe.recalibrate_batch_norm * min(spec.config.batch.size, MOST_CALIBRATION_IMAGES)
        images = 2 * images + (evaluations + 1) * calibration
    return Counts(
        steps=derived.total_steps,
        examples=derived.total_steps * spec.config.batch.size * batches_a_step(spec.config),
        evaluations=evaluations,
        forwards=points * images,
    )


MOST_CALIBRATION_IMAGES = 512  # in one batch, `neumann.data.module.CALIBRATION_IMAGES`, which torch comes with


def cost_of(spec: RunSpec, model: ModelCost, pace: Rate | StepTimes) -> Cost:
    """Return the cost of ``spec`` with ``model`` at a stated or measured ``pace`` of each of its devices."""
    counts, devices = counts_of(spec, model.points), world_size(spec)
    if isinstance(pace, Rate):
        share = model.forward / model.training if model.training else 1 / 3
        images = pace.images if pace.images is not None else _images(pace, model)
        training, evaluation = counts.examples / images, counts.forwards * share / images
    else:
        split = batch_split(spec.config)
        training = counts.steps * (split.accumulation * pace.micro_batch + pace.update) * devices
        evaluation = counts.forwards * pace.evaluation if counts.forwards else 0.0
    return Cost(
        counts=counts,
        training_seconds=training / devices,
        evaluation_seconds=evaluation / devices,
        devices=devices,
        flops=counts.examples * model.training + counts.forwards * model.forward,
    )


def images_per_second(spec: RunSpec, pace: StepTimes) -> float:
    """Return the images that one device trains on in a second."""
    split = batch_split(spec.config)
    images = split.micro_batch * split.accumulation * batches_a_step(spec.config)
    return images / (split.accumulation * pace.micro_batch + pace.update)


def _images(pace: Rate, model: ModelCost) -> float:
    assert pace.flops is not None
    return pace.flops / max(model.training, 1.0)
