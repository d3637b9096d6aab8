"""Every optimizer's YAML trains, under one filter of weight decay, at the rate that the schedule says."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import timm.optim
import torch
from torch import nn
from torch.nn import functional

from neumann.data.module import build as build_data
from neumann.models.classifiers import SmallCNN
from neumann.optim import at, eval_point
from neumann.training.distributed import RankGroup
from neumann.training.instantiate import build_schedule
from neumann.training.optimizers import build_optimizer, param_groups
from neumann.training.parts import build_parts, coarse_scores
from neumann.training.rate_schedules import RateSchedule, constant, cosine, exponential, odd_rates, synchronous
from tests.support.quick_runs import quick

CONF = Path(__file__).resolve().parents[2] / "conf"
NAMED = {
    "torch": ["optimizer.name=Adagrad", "optimizer.lr=0.05"],
    "timm": ["optimizer.name=adopt", "optimizer.lr=0.01"],
}


@pytest.mark.medium
@pytest.mark.parametrize("option", sorted(p.stem for p in (CONF / "optimizer").glob("*.yaml")))
def test_every_optimizer_learns_the_digits(option: str) -> None:
    spec = quick(f"optimizer={option}", "schedule=constant", "trainer.max_epochs=4", *NAMED.get(option, []))
    data = build_data(spec.config.data, spec.facts, batch_size=64, seed=0)
    torch.manual_seed(0)
    model = SmallCNN(width=8)
    optimizer = build_optimizer(model, spec.config.optimizer, "norm_and_bias")
    RateSchedule(optimizer, build_schedule(spec.config.schedule))
    batches = data.train_dataloader()
    for epoch in range(4):
        batches.set_epoch(epoch)
        for images, labels in batches:

            def closure(images: torch.Tensor = images, labels: torch.Tensor = labels) -> torch.Tensor:
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(images), labels)
                loss.backward()
                return loss

            optimizer.step(closure)  # type: ignore[arg-type]
    model.eval()
    with torch.no_grad(), at(optimizer, eval_point(optimizer)):
        loss = (
            sum(float(functional.cross_entropy(model(x), y, reduction="sum")) for x, y in data.val_dataloader()) / 300
        )
    assert loss < 1.8  # ln 10 = 2.303 is chance


@pytest.mark.parametrize("option", sorted(p.stem for p in (CONF / "schedule").glob("*.yaml")))
def test_every_schedule_runs_from_first_to_last_step(option: str) -> None:
    spec = quick(f"schedule={option}", "trainer.max_epochs=50")
    factor = build_schedule(spec.config.schedule)
    values = [factor(step) for step in range(spec.config.derived.total_steps)]
    assert all(0 < v <= 1 for v in values)


@pytest.mark.medium
def test_weight_decay_is_filtered_alike_for_all() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    groups = param_groups(model, 0.1, "norm_and_bias")
    decayed = {id(p) for g in groups if g["weight_decay"] == 0.1 for p in g["params"]}
    assert decayed == {id(model[0].weight), id(model[3].weight)}
    assert sum(len(g["params"]) for g in groups) == 6
    assert [g["weight_decay"] for g in param_groups(model, 0.1, "none")] == [0.1]
    for name in ("sgd", "neumann", "adamw", "lars"):
        spec = quick(f"optimizer={name}", "optimizer.weight_decay=0.1")
        optimizer = build_optimizer(SmallCNN(width=8), spec.config.optimizer, "norm_and_bias")
        assert sorted(g["weight_decay"] for g in optimizer.param_groups) == [0.0, 0.1]


def test_lars_and_lamb_adapt_without_weight_decay() -> None:
    """timm's default adapts only tensors that are decayed: at weight decay 0 they would be SGD and Adam under another name."""
    for name, relative in (
        ("lars", 0.001),
        ("lamb", 1.0),
    ):  # ‖Δw‖ / (lr ‖w‖) at the first step: LARS has its trust_coeff
        section = quick(f"optimizer={name}", "optimizer.lr=0.5").config.optimizer
        model = nn.Linear(4, 4, bias=False)
        optimizer = build_optimizer(model, section, "none")
        before = model.weight.detach().clone()
        model(torch.ones(1, 4)).square().sum().backward()
        optimizer.step()
        moved = float((model.weight.detach() - before).norm() / before.norm())
        assert moved == pytest.approx(0.5 * relative, rel=1e-3)


def test_rmsprop_is_tensorflows() -> None:
    """ε inside the root, the average started at one, the rate inside the momentum buffer (SPEC section 5)."""
    section = quick("optimizer=rmsprop").config.optimizer
    p = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = build_optimizer(nn.ParameterList([p]), {**section, "lr": 0.1}, "none")
    square, buf, w = 1.0, 0.0, 1.0
    for rate, g in ((0.1, 3.0), (0.1, -2.0), (0.05, 1.0)):
        optimizer.param_groups[0]["lr"] = rate
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        square = 0.9 * square + 0.1 * g * g
        buf = 0.9 * buf + rate * g / (square + 1.0) ** 0.5
        w -= buf
        assert float(p.detach()) == pytest.approx(w, rel=1e-12)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["adopt", "lion", "nadamw", "sgdw", "lookahead_adam"])
def test_timm_optimizers_come_by_name(name: str) -> None:
    section = quick("optimizer=timm", f"optimizer.name={name}", "optimizer.weight_decay=0.1").config.optimizer
    model = SmallCNN(width=4)
    optimizer = build_optimizer(model, section, "norm_and_bias")
    reference = timm.optim.create_optimizer_v2([nn.Parameter(torch.zeros(1))], opt=name, lr=0.1)
    assert type(optimizer) is type(reference)
    assert sorted({g["weight_decay"] for g in optimizer.param_groups}) == [0.0, 0.1]


def test_a_wrapper_follows_the_schedule_and_rprop_needs_no_weight_decay() -> None:
    for name, group in (("lookahead_sgd", "timm"), ("Rprop", "torch")):
        section = quick(f"optimizer={group}", f"optimizer.name={name}", "optimizer.lr=1.0").config.optimizer
        model = nn.Linear(2, 1)
        optimizer = build_optimizer(model, section, "none")
        schedule = RateSchedule(optimizer, lambda step: 0.5**step)
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        assert schedule.count == 3
        assert optimizer.param_groups[0]["lr"] == 0.25


def test_the_papers_schedules() -> None:
    epoch = 10  # steps
    rates = [synchronous(s, factor=0.3, every_steps=40 * epoch, ramp_steps=5 * epoch) for s in range(200 * epoch)]
    drops = [s / epoch for s in range(1, len(rates)) if rates[s] < rates[s - 1]]
    assert drops == [45, 85, 125, 165]
    assert rates[0] == pytest.approx(1 / 51)
    assert rates[49] < 1 == rates[50]
    assert rates[45 * epoch] == pytest.approx(0.3)
    assert rates[-1] == pytest.approx(0.3**4)
    assert exponential(40, factor=0.94, every_steps=20) == pytest.approx(0.94**2)
    assert exponential(39, factor=0.94, every_steps=20) == pytest.approx(0.94)
    assert [constant(s, ramp_steps=1) for s in range(3)] == [0.5, 1, 1]
    assert cosine(0, total_steps=100) == 1
    assert cosine(50, total_steps=100) == pytest.approx(0.5)
    assert cosine(100, total_steps=100) == pytest.approx(0, abs=1e-12)
    assert cosine(10, total_steps=110, ramp_steps=10) == 1


def test_the_rate_follows_the_optimizers_own_count() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([{"params": [p], "lr": 0.5}], lr=1.0)
    schedule = RateSchedule(optimizer, lambda step: 1 / (1 + step))
    used = []
    for step in range(4):
        p.grad = torch.ones(2)
        before = p.detach().clone()
        if step == 2:
            continue  # a step that mixed precision skips moves nothing
        optimizer.step()
        used.append(float((before - p).detach()[0]))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(used[-1])  # still the rate of the last step
    assert used == pytest.approx([0.5, 0.25, 0.5 / 3])
    assert schedule.state_dict() == {"count": 3}
    other = RateSchedule(torch.optim.SGD([p], lr=0.5), lambda step: 1 / (1 + step))
    other.load_state_dict({"count": 3})
    assert other.count == 3


def test_a_step_that_calls_its_parents_step_is_counted_once() -> None:
    """torch patches the class of every optimizer that is made, so the parent's step runs the child's hooks too."""

    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    p = torch.nn.Parameter(torch.zeros(1))
    torch.optim.SGD([p], lr=1.0)
    optimizer = Mine([p], lr=1.0)
    schedule = RateSchedule(optimizer, lambda step: 0.5**step)
    for step in range(3):
        p.grad = torch.ones(1)
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == 0.5**step
    assert schedule.count == 3


def test_a_run_that_never_leaves_its_burn_in_says_so() -> None:
    short = quick("optimizer=neumann", "timing=paper", "trainer.max_epochs=2")
    group = RankGroup(None)
    with pytest.warns(UserWarning, match=r"Neumann never leaves its burn-in, .* and the run has 36 steps"):
        build_parts(short, group)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_parts(quick("optimizer=neumann", "trainer.max_epochs=3"), group)


def test_a_ramp_that_outlasts_the_run_and_few_steps_and_few_images_are_told() -> None:
    short = quick("timing=paper", "trainer.max_epochs=2", "optimizer=sgd")
    short = replace(short, facts=replace(short.facts, validation_count=2))
    with pytest.warns(UserWarning, match="optimizer steps|never reaches|validation holds") as caught:
        build_parts(short, RankGroup(None))
    said = [str(one.message) for one in caught]
    ramp = short.config.schedule["ramp_steps"]
    assert f"the rate never reaches optimizer.lr: schedule.ramp_steps={ramp} and the run has 36 steps" in said[0]
    assert said[1].startswith("the run has 36 optimizer steps")
    assert said[2] == "validation holds 2 images, so one image is 50 percentage points of error"
    assert len(said) == 3


def test_a_schedule_of_another_length_than_the_run_is_told() -> None:
    ended = odd_rates(partial(cosine, total_steps=60), {"total_steps": 60}, 100)
    assert ended == ["the schedule's rate is zero in the last 40 of the run's 100 steps, which train nothing"]
    assert odd_rates(lambda step: 0.0, {}, 100)[0].startswith("the schedule's rate is zero in the last 100 of the")
    (long,) = odd_rates(partial(cosine, total_steps=1), {"total_steps": 1}, 10**12)
    assert "zero in the last 10,000 and more of the run's 1,000,000,000,000 steps" in long
    assert odd_rates(partial(cosine, total_steps=100), {"total_steps": 100}, 100) == []
    assert odd_rates(lambda step: 1 - step / 99, {}, 100) == []  # a user's own may end at zero
    assert odd_rates(partial(constant, ramp_steps=99), {"ramp_steps": 99}, 100) == []
    assert len(odd_rates(partial(constant, ramp_steps=100), {"ramp_steps": 100}, 100)) == 1
    assert [len(odd_rates(constant, {}, steps)) for steps in (49, 50)] == [1, 0]


def test_scores_on_a_hundred_images_need_no_word() -> None:
    facts = quick().facts
    assert coarse_scores(replace(facts, validation_count=100, test_count=0)) == []
    assert coarse_scores(replace(facts, validation_count=100, test_count=16)) == [
        "test holds 16 images, so one image is 6.25 percentage points of error"
    ]
