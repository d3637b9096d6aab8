"""The fast optimizer and the one written as the paper prints it stay together in every setting, step by step."""

import math
from functools import cache

import pytest
import torch
from optim_problems import copies, new_params, relative, same_bits, set_gradients, train

from neumann.optim import Neumann, NeumannReference

STRONG = {"alpha": 3e-2, "beta": 1e-2}  # regularizers as large as the gradients, so that an error in them shows
STEPS = 200


def subset(index: int, step: int) -> bool:
    """Each parameter misses a third of the steps, at step 20 all do, and parameter 1 is frozen from step 100 on."""
    generator = torch.Generator().manual_seed(7919 * step + index)
    present = torch.rand((), generator=generator).item() < 2 / 3
    return present and step != 20 and not (index == 1 and step >= 100)


def warm_up_and_drop(step: int) -> float:
    return 0.05 * min(1.0, step / 50) * 0.3 ** (step // 120)


CASES = {
    "defaults": {},
    "strong regularizers": STRONG,
    "burn-in": {**STRONG, "burn_in_steps": 40},
    "resets by countdown": {**STRONG, "burn_in_steps": 5, "reset_period": 20},
    "resets by absolute steps": {**STRONG, "burn_in_steps": 5, "reset_period": 20, "reset_rule": "absolute"},
    "countdown, growth 1.5": {**STRONG, "reset_period": 7, "reset_growth": 1.5},
    "absolute, growth 1.5": {**STRONG, "reset_period": 7, "reset_growth": 1.5, "reset_rule": "absolute"},
    "countdown, growth 1.1": {**STRONG, "reset_period": 10, "reset_growth": 1.1},
    "absolute, growth 1.1": {**STRONG, "reset_period": 10, "reset_growth": 1.1, "reset_rule": "absolute"},
    "fixed period": {**STRONG, "reset_period": 9, "reset_growth": 1},
    "period 1 that grows": {**STRONG, "reset_period": 1},
    "weight decay, through burn-in and resets": {
        **STRONG,
        "weight_decay": 0.1,
        "burn_in_steps": 5,
        "reset_period": 10,
    },
    "scalars counted": {**STRONG, "beta_count": "scalars"},
    "absolute count": {"alpha": 3e-2, "beta": 0.05, "beta_count": "absolute"},
    "constant momentum": {**STRONG, "momentum": 0.8},
    "slow ramp of momentum": {**STRONG, "momentum": (0.1, 0.95), "momentum_unit": 10},
    "short memory": {**STRONG, "gamma": 0.5},
    "attraction only": {"alpha": 0.1, "beta": 0.0},
    "wide guard": {**STRONG, "min_distance": 5.0},
    "no guard": {**STRONG, "min_distance": 0.0},
}


@cache
def literal_run(case):
    """The twin's weights every 10 steps, its ‖w − v‖ at the end and its answer, run once for both paths."""
    params, trajectory = new_params(), {}
    literal = NeumannReference(params, lr=0.05, **CASES[case])
    for step in range(1, STEPS + 1):
        train(literal, params, [step])
        if step % 10 == 0:
            trajectory[step] = copies(params)
    return trajectory, literal.distance(), literal.answer()


@pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])
@pytest.mark.parametrize("case", CASES)
def test_every_setting(case, foreach):
    trajectory, distance, answer = literal_run(case)
    params = new_params()
    ours = Neumann(params, lr=0.05, foreach=foreach, **CASES[case])
    for step in range(1, STEPS + 1):
        train(ours, params, [step])
        assert step not in trajectory or relative(params, trajectory[step]) < 1e-12, f"apart after step {step}"
    assert float(ours.distance()) == pytest.approx(distance, rel=1e-12)
    ours.eval()
    assert relative(params, answer) < 1e-12


@pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])
@pytest.mark.parametrize("rule", ["countdown", "absolute"])
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_changing_rate(foreach, rule, as_tensor):
    setting = {**STRONG, "burn_in_steps": 10, "reset_period": 25, "reset_rule": rule, "weight_decay": 1e-2}
    params, literal_params = new_params(), new_params()
    rate = torch.tensor(0.0, dtype=torch.float64) if as_tensor else 0.0
    ours = Neumann(params, lr=rate, foreach=foreach, **setting)
    literal = NeumannReference(literal_params, lr=0.0, **setting)
    for step in range(1, STEPS + 1):
        for optimizer in (ours, literal):
            rate = optimizer.param_groups[0]["lr"]
            if isinstance(rate, torch.Tensor):
                rate.fill_(warm_up_and_drop(step))
            else:
                optimizer.param_groups[0]["lr"] = warm_up_and_drop(step)
        train(ours, params, [step])
        train(literal, literal_params, [step])
    assert relative(params, literal_params) < 1e-12
    assert isinstance(ours.param_groups[0]["lr"], torch.Tensor) == as_tensor


@pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])
@pytest.mark.parametrize("count", ["tensors", "scalars", "absolute"])
@pytest.mark.parametrize("rule", ["countdown", "absolute"])
def test_two_groups_with_missing_gradients(foreach, count, rule):
    params, literal_params = new_params(), new_params()

    def groups(params):
        other = {"lr": 0.02, "alpha": 1e-3, "beta": 3e-2, "momentum": 0.7, "weight_decay": 0.2, "gamma": 0.9}
        return [{"params": params[:1]}, {"params": params[1:], "burn_in_steps": 12, "reset_period": 11, **other}]

    setting = {"lr": 0.05, "burn_in_steps": 5, "reset_period": 20, "reset_rule": rule, "beta_count": count, **STRONG}
    ours = Neumann(groups(params), foreach=foreach, **setting)
    literal = NeumannReference(groups(literal_params), **setting)
    for step in range(1, STEPS + 1):
        train(ours, params, [step], has=subset)
        train(literal, literal_params, [step], has=subset)
        assert relative(params, literal_params) < 1e-12, f"apart after step {step}"
        assert float(ours.distance()) == pytest.approx(literal.distance(), rel=1e-11, abs=1e-14)
    ours.eval()
    assert relative(params, literal.answer()) < 1e-12


@pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])
def test_maximize_climbs_as_the_twin_does(foreach):
    params, literal_params = new_params(), new_params()
    setting = {**STRONG, "lr": 0.01, "weight_decay": 3.0, "burn_in_steps": 5, "reset_period": 20, "maximize": True}
    train(Neumann(params, foreach=foreach, **setting), params, range(STEPS))
    train(NeumannReference(literal_params, **setting), literal_params, range(STEPS))
    assert relative(params, literal_params) < 1e-12

    climbing, descending = new_params(), new_params()
    climb = Neumann(climbing, lr=0.05, foreach=foreach, maximize=True)
    descend = Neumann(descending, lr=0.05, foreach=foreach)
    for step in range(20):
        set_gradients(descending, step)
        for p, q in zip(climbing, descending, strict=True):
            p.grad = -q.grad
        climb.step()
        descend.step()
    assert same_bits(climbing, descending)


@pytest.mark.parametrize("rule", ["countdown", "absolute"])
def test_parameters_added_later(rule):
    params, literal_params = new_params(), new_params()
    setting = {**STRONG, "lr": 0.05, "burn_in_steps": 5, "reset_period": 20, "reset_rule": rule}
    ours, literal = Neumann(params, **setting), NeumannReference(literal_params, **setting)
    train(ours, params, range(50))
    train(literal, literal_params, range(50))
    for optimizer, members in ((ours, params), (literal, literal_params)):
        late = new_params(start=3)
        members += late
        optimizer.add_param_group({"params": late})
    assert ours.param_groups[1]["step"] == 50
    train(ours, params, range(50, STEPS))
    train(literal, literal_params, range(50, STEPS))
    assert relative(params, literal_params) < 1e-12


def test_foreach_equals_the_loop_in_fp32_to_rounding():
    setting = {**STRONG, "lr": 0.05, "burn_in_steps": 5, "reset_period": 20, "weight_decay": 1e-2}
    looped, listed = new_params(torch.float32), new_params(torch.float32)
    train(Neumann(looped, foreach=False, **setting), looped, range(STEPS), has=subset)
    train(Neumann(listed, foreach=True, **setting), listed, range(STEPS), has=subset)
    assert relative(listed, looped) < 1e-6


@pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])
def test_several_dtypes_in_one_optimizer(foreach):
    def mixed():
        return [p.detach().to(dtype).requires_grad_() for p, dtype in zip(new_params(), dtypes, strict=True)]

    dtypes = [torch.float64, torch.bfloat16, torch.float32]
    params, literal_params = mixed(), new_params()
    setting = {**STRONG, "lr": torch.tensor(0.05) if foreach else 0.05, "reset_period": 20}
    train(Neumann(params, foreach=foreach, **setting), params, range(100))
    train(NeumannReference(literal_params, **setting), literal_params, range(100))
    assert [p.dtype for p in params] == dtypes
    assert relative(params, literal_params) < 0.05  # bfloat16 has 8 bits


def test_the_twin_steps_aside_from_the_package():
    """An oracle that shares code with what it judges would agree with its mistakes."""
    import inspect

    import neumann.optim.neumann_reference as reference

    source = inspect.getsource(reference)
    assert "from neumann" not in source
    assert "import neumann" not in source


def test_the_settings_reach_what_they_are_about():
    """The comparison would pass with both sides wrong about nothing happening: the push must matter here."""
    with_push, without = new_params(), new_params()
    train(Neumann(with_push, lr=0.05, **STRONG), with_push, range(STEPS))
    train(Neumann(without, lr=0.05, alpha=0, beta=0), without, range(STEPS))
    assert relative(with_push, without) > 1e-2
    assert math.isfinite(relative(with_push, without))
