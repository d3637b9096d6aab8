"""A trial takes the steps of a run at a constant rate, and leaves its start as it found it, to the bit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import neumann
from neumann.config import RunSpec, make_spec
from neumann.optim import Neumann
from neumann.training.checkpoints import Randomness
from neumann.training.rate_trials import SeedTrials, cut_short

YAMLS = sorted(path.stem for path in Path(neumann.__file__).parent.joinpath("conf", "optimizer").glob("*.yaml"))
NAMED = {"timm": ["optimizer.name=lookahead_adamw"], "torch": ["optimizer.name=Adagrad"]}
QUICK = ["model=mlp", "+model.kwargs.width=4", "batch.size=256", "trainer.max_epochs=4"]
DROPPING = ["model=small_cnn", "+model.kwargs.width=4", "batch.size=256", "batch.max_per_device=64"]


def _spec(*words: str) -> RunSpec:
    return make_spec([*QUICK, *words])


def _bits(trials: SeedTrials) -> list[Tensor]:
    model = trials._parts.module.model
    return [value.detach().clone() for value in (*model.parameters(), *model.buffers())]


@pytest.mark.medium
@pytest.mark.parametrize("optimizer", YAMLS)
def test_a_start_is_the_same_bits_after_a_trial_and_a_trial_the_same_numbers_again(optimizer: str) -> None:
    words = [f"optimizer={optimizer}", *NAMED.get(optimizer, [])]
    trials = SeedTrials(_spec(*words), steps=3, images=100)
    before = _bits(trials)
    first = trials.train(_spec(*words, "optimizer.lr=0.001"))
    trials.train(_spec(*words, "optimizer.lr=1e30"))
    again = trials.train(_spec(*words, "optimizer.lr=0.001"))
    assert first == again
    assert first[2] == 3
    assert all(torch.equal(*pair) for pair in zip(before, _bits(trials), strict=True))


def test_it_is_the_run_by_hand_at_that_rate() -> None:
    spec = _spec("optimizer=neumann", "trainer.precision=64-true", "seed=5", "schedule=cosine")
    trials = SeedTrials(spec, steps=4, images=10_000)
    start, end, steps, gradients = trials.train(cut_short(spec)[0])
    model: nn.Module = trials._parts.module.model
    optimizer = Neumann(
        model.parameters(), **{k: v for k, v in cut_short(spec)[0].config.optimizer.items() if k != "_target_"}
    )
    batches = iter(trials._parts.data.train_dataloader())
    images, labels = (torch.cat(each) for each in zip(*trials._images, strict=True))
    assert len(labels) == spec.facts.train_count  # all, where there are fewer than asked for
    at_start = functional.cross_entropy(model(images.double()), labels).item()
    for _ in range(4):
        seen, wanted = next(batches)
        optimizer.zero_grad()
        functional.cross_entropy(model(seen.double()), wanted).backward()
        optimizer.step()
    optimizer.eval()
    at_end = functional.cross_entropy(model(images.double()), labels).item()
    assert (steps, gradients) == (4, 4)
    assert start == pytest.approx(at_start, rel=1e-6)  # losses are summed in float32
    assert end == pytest.approx(at_end, rel=1e-6)  # losses are summed in float32


def test_micro_batches_dropout_and_batch_norm_come_again_too() -> None:
    spec = make_spec([*DROPPING, "optimizer=sgd", "optimizer.lr=0.01", "+model.kwargs.drop_rate=0.5"])
    trials = SeedTrials(spec, steps=2, images=64)
    before = _bits(trials)
    first = trials.train(spec)
    Randomness.seed(99, 0)
    assert trials.train(spec) == first
    assert first[2:] == (2, 2)
    assert all(torch.equal(*pair) for pair in zip(before, _bits(trials), strict=True))


def test_a_trial_ends_at_the_first_loss_that_is_not_finite() -> None:
    spec = _spec("optimizer=sgd", "optimizer.lr=1e30")
    start, end, steps, _ = SeedTrials(spec, steps=50, images=100).train(spec)
    assert math.isfinite(start)
    assert end is None
    assert steps < 10


def test_seeds_start_from_other_weights_and_other_batches() -> None:
    spec = _spec("optimizer=sgd", "optimizer.lr=0.01")
    found = {
        SeedTrials(replace(spec, config=replace(spec.config, seed=seed)), 2, 100).train(spec)[:2] for seed in range(3)
    }
    assert len(found) == 3


def test_slow_beginnings_are_cut_short_and_told() -> None:
    spec = _spec("optimizer=neumann", "timing.burn_in=1", "timing.momentum_unit=1")
    short, said = cut_short(spec)
    assert spec.config.optimizer["burn_in_steps"] > 0
    assert spec.config.optimizer["momentum_unit"] > 1
    assert (short.config.optimizer["burn_in_steps"], short.config.optimizer["momentum_unit"]) == (0, 1)
    assert len(said) == 2
    assert cut_short(_spec("optimizer=sgd")) == (_spec("optimizer=sgd"), [])
