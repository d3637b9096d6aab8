"""FLOPs are those counted by hand, and the measured steps are real ones past the burn-in."""

from __future__ import annotations

import time

import pytest
import torch

from neumann.config import make_spec
from neumann.training import step_cost
from neumann.training.classifier import ImageClassifier

CONVOLUTIONS = 2 * 9 * (1 * 32 * 64 + 32 * 64 * 64 + 64 * 64 * 16)  # of small_cnn on 8×8 pixels
FORWARD = CONVOLUTIONS + 2 * 64 * 10


@pytest.mark.parametrize("words", [[], ["batch.norm_size=16"]])
def test_flops_are_those_counted_by_hand(words: list[str]) -> None:
    cost = step_cost.model_cost(make_spec(words))
    assert cost.parameters == 56_554
    assert cost.forward == FORWARD
    assert cost.training == 3 * FORWARD - 2 * 9 * 32 * 64  # nothing needs the gradient by the pixels
    assert cost.points == 3


def test_a_model_without_the_meta_device_is_counted_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    build = step_cost.build_model_of

    def refuses(spec: object) -> torch.nn.Module:
        if torch.get_default_device().type == "meta":
            raise NotImplementedError
        return build(spec)  # type: ignore[arg-type]

    monkeypatch.setattr(step_cost, "build_model_of", refuses)
    assert step_cost.model_cost(make_spec()).forward == FORWARD


@pytest.mark.medium
def test_the_seconds_of_a_step_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    step = ImageClassifier.training_step

    def slow(self: ImageClassifier, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> object:
        time.sleep(0.03)
        taken.append((len(batch[0]), self.trainer.optimizers[0].param_groups[0]["burn_in_steps"]))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", slow)
    words = ["+model.kwargs.width=8", "trainer.devices=2", "batch.size=64", "batch.max_per_device=8"]
    times = step_cost.step_times(make_spec(words), threads=1, seconds=1.0)
    assert set(taken) == {(8, 0)}  # a device's own micro-batch, and no burn-in, whose steps are cheaper
    assert len(taken) == times.steps + times.warm_up
    assert times.steps >= step_cost.LEAST_STEPS
    assert times.warm_up >= 1
    assert 0.025 < times.micro_batch < 1
    assert times.update > 0
    assert times.spread[0] <= 1 <= times.spread[1]
    assert 0 < times.evaluation < 0.1
    assert (times.device, times.threads) == ("cpu", 1)


@pytest.mark.medium
def test_the_measurement_is_no_longer_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    step = ImageClassifier.training_step

    def slow(self: ImageClassifier, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> object:
        time.sleep(0.1)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", slow)
    times = step_cost.step_times(make_spec(["+model.kwargs.width=8"]), threads=1, seconds=0.1)
    assert (times.warm_up, times.steps) == (1, step_cost.LEAST_STEPS)
