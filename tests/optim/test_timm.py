"""timm's factory makes our optimizers by name, by its own conventions."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import pytest
import timm
import timm.optim
import torch
from timm.models import resume_checkpoint
from timm.scheduler import CosineLRScheduler
from timm.task import ClassificationTask, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import nn

import neumann.optim.timm
from neumann.optim import BurnInSGD, NesterovInner, Neumann, eval_point, evaluating, points, private_names

OURS = {"neumann": Neumann, "nesterovinner": NesterovInner, "burninsgd": BurnInSGD}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 12) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images, labels = torch.randn(8, 1, 8, 8, generator=generator), torch.arange(8) % 3
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", OURS)
def test_the_registry_knows_each(name: str) -> None:
    assert name in timm.optim.list_optimizers()
    info = timm.optim.get_optimizer_info(name)
    assert (info.name, info.has_momentum, info.has_eps, info.has_betas, info.second_order) == (
        name,
        True,
        False,
        False,
        False,
    )
    assert info.description
    assert dict(timm.optim.list_optimizers("*n*", with_description=True))[name] == info.description
    for kind in (timm.optim.get_optimizer_class(name), timm.optim.get_optimizer_class(name, bind_defaults=False)):
        assert isinstance(kind, type)
        assert issubclass(kind, OURS[name])
        assert type(kind(network().parameters(), lr=0.1)) is OURS[name]


@pytest.mark.parametrize("name", OURS)
def test_what_timm_makes_trains_as_what_we_make(name: str) -> None:
    theirs, ours = network(), network()
    made = timm.optim.create_optimizer_v2(
        theirs, opt=name, lr=0.05, weight_decay=1e-3, momentum=0.9, eps=1e-3, betas=(0.1, 0.2)
    )
    decayed = [p for p in ours.parameters() if p.ndim > 1]
    others = [p for p in ours.parameters() if p.ndim <= 1]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 1e-3}]
    settings = {} if name == "neumann" else {"momentum": 0.9}  # the paper's ramp, (0.5, 0.9)
    fit(theirs, made)
    fit(ours, OURS[name](groups, lr=0.05, **settings))
    assert same(theirs, ours)


def test_neumann_without_a_word_on_momentum_or_rate_is_neumann_by_default() -> None:
    made = timm.optim.create_optimizer_v2(network(), opt="neumann")
    default = Neumann(network().parameters())
    keys = set(default.param_groups[0]) - {"params"}
    assert {k: made.param_groups[0][k] for k in keys} == {k: default.param_groups[0][k] for k in keys}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (0.9, (0.5, 0.9)),
        (0.95, (0.5, 0.95)),
        (0.3, (0.3, 0.3)),
        (0, (0.0, 0.0)),
        ((0.9, 0.9), (0.9, 0.9)),
        ([0.6, 0.8], (0.6, 0.8)),
    ],
)
def test_a_number_for_momentum_is_the_peak_of_the_ramp(given: object, taken: tuple[float, float]) -> None:
    made = timm.optim.create_optimizer_v2(network(), opt="neumann", momentum=given)
    assert made.param_groups[0]["momentum"] == taken


@pytest.mark.parametrize("given", [1.0, -0.1, True, None, "0.9"])
def test_a_momentum_that_cannot_be_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="momentum"):
        timm.optim.create_optimizer_v2(network(), opt="neumann", momentum=given)


def test_further_settings_reach_the_optimizer_and_unknown_ones_are_refused() -> None:
    made = timm.optim.create_optimizer_v2(network(), opt="neumann", burn_in_steps=7, reset_period=20, foreach=True)
    group = made.param_groups[0]
    assert (group["burn_in_steps"], group["reset_period"], group["foreach"]) == (7, 20, True)
    for wrong in ("burnin_steps", "caution"):
        with pytest.raises(TypeError, match=wrong):
            timm.optim.create_optimizer_v2(network(), opt="neumann", **{wrong: 1})


def test_the_arguments_of_timms_train_script() -> None:
    args = argparse.Namespace(
        opt="neumann", lr=0.05, weight_decay=2e-5, momentum=0.8, opt_eps=1e-8, opt_betas=[0.9, 0.999],
        layer_decay=None, opt_args={"burn_in_steps": 3, "momentum_unit": 10}, opt_foreach=False,
    )  # fmt: skip
    made = timm.optim.create_optimizer(args, network())
    assert type(made) is Neumann
    for group, decay in zip(made.param_groups, (0.0, 2e-5), strict=True):
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.05, (0.5, 0.8), decay)
        assert (group["burn_in_steps"], group["momentum_unit"], group["foreach"]) == (3, 10, False)


def test_the_filter_can_be_left_off() -> None:
    made = timm.optim.create_optimizer_v2(network(), opt="neumann", weight_decay=1e-3, filter_bias_and_bn=False)
    assert [group["weight_decay"] for group in made.param_groups] == [1e-3]


def test_layer_decay_scales_the_rates_of_timms_schedulers_and_trains() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", in_chans=1, num_classes=3)
    made = timm.optim.create_optimizer_v2(model, opt="neumann", lr=0.1, weight_decay=1e-3, layer_decay=0.5)
    scales = [group["lr_scale"] for group in made.param_groups]
    assert len(set(scales)) > 2
    CosineLRScheduler(made, t_initial=10).step(5)
    assert [group["lr"] for group in made.param_groups] == pytest.approx([0.05 * scale for scale in scales])
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        loss = model(torch.randn(4, 1, 32, 32, generator=generator)).square().mean()
        made.zero_grad()
        loss.backward()
        before = {p: p.detach().clone() for group in made.param_groups for p in group["params"]}
        made.step()
    lower, upper = (min, max)
    moved = {
        which: next(
            float((p.detach() - before[p]).norm() / p.grad.norm())
            for group in made.param_groups
            if group["lr_scale"] == which(scales) and group["weight_decay"]
            for p in group["params"]
        )
        for which in (lower, upper)
    }
    assert moved[lower] < moved[upper]
    state = made.state_dict()
    again = timm.optim.create_optimizer_v2(model, opt="neumann", lr=0.1, weight_decay=1e-3, layer_decay=0.5)
    again.load_state_dict(state)
    assert [group["lr_scale"] for group in again.param_groups] == scales


def test_layers_that_timm_freezes_do_not_count_in_beta() -> None:
    model = timm.create_model("resnet10t", in_chans=1, num_classes=3)
    made = timm.optim.create_optimizer_v2(
        model, opt="neumann", weight_decay=1e-3, layer_decay=0.5, layer_decay_no_opt_scale=0.4
    )
    kept = sum(len(group["params"]) for group in made.param_groups)
    assert kept == sum(p.requires_grad for p in model.parameters()) < len(list(model.parameters()))
    assert made.beta_total(made.param_groups[0]) == pytest.approx(1e-5 * kept)


@pytest.mark.parametrize("name", ["neumann", "sgd"])
def test_lookahead_is_evaluated_at_the_base_point_of_what_it_wraps(name: str) -> None:
    model = network()
    made = timm.optim.create_optimizer_v2(model, opt=f"lookahead_{name}", lr=0.05)
    plain = network()
    fit(plain, timm.optim.create_optimizer_v2(plain, opt=name, lr=0.05))
    fit(model, made, steps=15)
    assert not same(model, plain)
    assert points(made) == points(made._base_optimizer)
    assert eval_point(made) == "base"
    held = copy.deepcopy(model)
    inside = made._base_optimizer
    expected = {
        p: p - inside.state[p]["coefficient"] * inside.state[p]["m"]
        if name == "neumann"
        else p + 0.05 * 0.9 * inside.state[p]["momentum_buffer"]
        for p in model.parameters()
    }
    with evaluating(made):
        assert not same(model, held)
        for p, weight in expected.items():
            torch.testing.assert_close(p, weight)
        if name == "neumann":
            with pytest.raises(RuntimeError, match="evaluated, not trained"):
                made.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), held.parameters(), strict=True))


@pytest.mark.parametrize("script", ["of tasks", "older"])
def test_what_timms_train_script_saves_is_the_answer_and_goes_on_to_the_same_bits(script: str, tmp_path: Path) -> None:
    whole, model, resumed = network(), network(), network()
    tasks = [ClassificationTask(net) if script == "of tasks" else None for net in (model, resumed)]
    optimizers = [timm.optim.create_optimizer_v2(net, opt="neumann", lr=0.1) for net in (whole, model, resumed)]
    fit(whole, optimizers[0])
    fit(model, optimizers[1])
    with evaluating(optimizers[1]):
        answer = copy.deepcopy(model)
        folder = str(tmp_path)
        saver = CheckpointSaver(model, optimizers[1], task=tasks[0], checkpoint_dir=folder, recovery_dir=folder)
        saver.save_checkpoint(0, 1.0)
    if script == "of tasks":
        resume_task_checkpoint(tasks[1], str(tmp_path / "last.pth.tar"), optimizers[2])
    else:
        resume_checkpoint(resumed, str(tmp_path / "last.pth.tar"), optimizers[2])
    assert same(resumed, answer)
    optimizers[2].train()
    assert same(resumed, whole)
    for net, optimizer in zip((whole, resumed), optimizers[::2], strict=True):
        fit(net, optimizer)
    assert same(resumed, whole)


def test_our_module_does_not_stand_in_for_timm() -> None:
    assert timm.__name__ == "timm"
    assert neumann.optim.timm is not timm
    assert private_names.timm_registry() is timm.optim._optim_factory.default_registry
