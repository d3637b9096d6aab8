"""A run's cost is its counted steps and images at a pace, over its devices."""

from __future__ import annotations

import pytest

from neumann.config import make_spec
from neumann.estimates.cost import MOST_CALIBRATION_IMAGES, cost_of, counts_of, images_per_second
from neumann.estimates.rate import Rate
from neumann.training.step_cost import ModelCost, StepTimes

MODEL = ModelCost(parameters=10, points=3, training=3e6, forward=1e6)
PACE = StepTimes(
    micro_batch=0.1, update=0.05, spread=(1, 1), evaluation=0.001, steps=20, warm_up=3, device="cpu", threads=1
)
RUN = ["batch.size=64", "batch.max_per_device=16", "trainer.max_epochs=10", "trainer.check_val_every_n_epoch=4"]


def test_steps_examples_and_evaluated_images_are_counted() -> None:
    counts = counts_of(make_spec(RUN), points=3)
    assert (counts.steps, counts.examples) == (180, 180 * 64)  # 18 whole batches of 64 in 1,197 images
    assert counts.evaluations == 3  # after epochs 4 and 8, and after the last step
    assert counts.forwards == 3 * (3 * 300 + 300)
    again = counts_of(make_spec([*RUN, "recipe.recalibrate_batch_norm=2"]), points=3)
    assert again.forwards == 3 * (2 * (3 * 300 + 300) + 4 * 2 * 64)


def test_the_bound_on_calibration_batches_is_the_one_of_training() -> None:
    from neumann.data.module import CALIBRATION_IMAGES

    assert MOST_CALIBRATION_IMAGES == CALIBRATION_IMAGES


def test_a_measured_step_is_its_micro_batches_and_one_update() -> None:
    spec = make_spec(RUN)
    cost = cost_of(spec, MODEL, PACE)
    assert cost.training_seconds == pytest.approx(180 * (4 * 0.1 + 0.05))
    assert cost.evaluation_seconds == pytest.approx(3600 * 0.001)
    assert cost.device_hours == pytest.approx(cost.seconds / 3600)
    assert images_per_second(spec, PACE) == pytest.approx(64 / 0.45)
    assert cost.flops == pytest.approx(180 * 64 * 3e6 + 3600 * 1e6)


def test_several_devices_share_a_step_and_the_images_of_an_evaluation() -> None:
    cost = cost_of(make_spec([*RUN, "trainer.devices=2"]), MODEL, PACE)
    assert cost.devices == 2
    assert cost.training_seconds == pytest.approx(180 * (2 * 0.1 + 0.05))
    assert cost.evaluation_seconds == pytest.approx(1800 * 0.001)
    assert cost.device_hours == pytest.approx(2 * cost.seconds / 3600)


@pytest.mark.parametrize("rate", [Rate(images=1000), Rate(flops=3e9)])
def test_a_stated_rate_is_that_of_training_and_evaluation_costs_its_share_of_the_flops(rate: Rate) -> None:
    cost = cost_of(make_spec([*RUN, "trainer.devices=2"]), MODEL, rate)
    assert cost.training_seconds == pytest.approx(180 * 64 / 1000 / 2)
    assert cost.evaluation_seconds == pytest.approx(3600 / 3 / 1000 / 2)
