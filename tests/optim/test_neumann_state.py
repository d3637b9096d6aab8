"""Stopping and going on, copying, evaluating in between: none of it may change one bit of what training computes."""

import copy
import io
import pickle

import pytest
import torch

from neumann.optim import NesterovInner, Neumann, at
from tests.support.optimizer_problems import copies, new_params, relative, same_bits, set_gradients, train

# burn-in 5, K = 10: resets at the steps 6, 16 and 36
SETTING = {"lr": 0.05, "alpha": 3e-2, "beta": 1e-2, "burn_in_steps": 5, "reset_period": 10}
MAKERS = {
    "neumann": lambda params: Neumann(params, foreach=False, **SETTING),
    "neumann foreach": lambda params: Neumann(params, foreach=True, **SETTING),
    "nesterov_inner": lambda params: NesterovInner(params, lr=0.05),
    "nesterov_inner foreach": lambda params: NesterovInner(params, lr=0.05, foreach=True),
}
EVERY = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def trained(make, steps, dtype=torch.float32):
    params = new_params(dtype)
    optimizer = make(params)
    train(optimizer, params, range(steps))
    return optimizer, params


def through_a_file(content):
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def restored(make, optimizer, params):
    """A new optimizer on new parameters, from a file that holds both."""
    saved = through_a_file({"params": copies(params), "optimizer": optimizer.state_dict()})
    members = [p.clone().requires_grad_() for p in saved["params"]]
    other = make(members)
    other.load_state_dict(saved["optimizer"])
    return other, members


@pytest.mark.medium
@EVERY
@DTYPES
@pytest.mark.parametrize("steps", [0, 3, 5, 6, 7, 15, 16, 17, 36])
def test_resuming_is_bitwise_the_uninterrupted_run(make, steps, dtype):
    _, uninterrupted = trained(make, 60, dtype)
    optimizer, params = restored(make, *trained(make, steps, dtype))
    train(optimizer, params, range(steps, 60))
    assert same_bits(params, uninterrupted)


@EVERY
@pytest.mark.parametrize("steps", [3, 15, 16, 17])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_alike(make, steps, duplicate):
    optimizer, params = trained(make, steps)
    other, members = duplicate((optimizer, params))
    assert members[0] is not params[0]
    train(optimizer, params, range(steps, 60))
    train(other, members, range(steps, 60))
    assert same_bits(members, params)
    assert other.state[members[0]]["m"] is not optimizer.state[params[0]]["m"]


@EVERY
@DTYPES
def test_evaluating_in_between_changes_nothing(make, dtype):
    _, undisturbed = trained(make, 60, dtype)
    optimizer, params = trained(make, 0, dtype)
    for step in range(60):
        set_gradients(params, step)
        optimizer.eval()
        optimizer.eval()
        for point in optimizer.points:
            with at(optimizer, point):
                pass
        optimizer.train()
        optimizer.train()
        optimizer.step()
    assert same_bits(params, undisturbed)


@EVERY
def test_eval_and_train_do_what_they_say_once(make):
    optimizer, params = trained(make, 30)
    held = copies(params)
    answer = [p.detach() - optimizer.state[p]["coefficient"] * optimizer.state[p]["m"] for p in params]
    optimizer.eval()
    assert not same_bits(params, held)
    for p, expected in zip(params, answer, strict=True):
        torch.testing.assert_close(p.detach(), expected)
    moved = copies(params)
    optimizer.eval()
    assert same_bits(params, moved)
    optimizer.train()
    assert same_bits(params, held)
    optimizer.train()
    assert same_bits(params, held)


@EVERY
def test_step_is_refused_at_the_eval_point(make):
    optimizer, params = trained(make, 20)
    optimizer.eval()
    before, state = copies(params), copy.deepcopy(optimizer.state_dict())
    calls = []
    with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\)"):
        optimizer.step(lambda: calls.append(1))
    assert calls == []
    assert same_bits(params, before)
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]
    optimizer.train()
    train(optimizer, params, [20])
    assert not same_bits(params, before)


@EVERY
@pytest.mark.parametrize("steps", [3, 16, 20])
def test_state_saved_at_the_eval_point_knows_the_held_weights(make, steps):
    optimizer, params = trained(make, steps)
    held = copies(params)
    optimizer.eval()
    other, members = restored(make, optimizer, params)
    with pytest.raises(RuntimeError, match="eval"):
        other.step()
    other.train()
    assert same_bits(members, held)
    optimizer.train()
    train(optimizer, params, range(steps, 40))
    train(other, members, range(steps, 40))
    assert same_bits(members, params)

    optimizer.eval()
    forgetful = new_params(torch.float32)  # no weights are loaded into these
    other = make(forgetful)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    other.train()
    optimizer.train()
    assert same_bits(forgetful, params)


@EVERY
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_made_at_the_eval_point(make, duplicate):
    optimizer, params = trained(make, 20)
    held = copies(params)
    optimizer.eval()
    other, members = duplicate((optimizer, params))
    other.train()
    assert same_bits(members, held)
    assert not same_bits(params, held)


def test_the_mode_leaves_no_stash_behind():
    optimizer, params = trained(MAKERS["neumann"], 20)
    keys = set(optimizer.state[params[0]])
    optimizer.eval()
    optimizer.train()
    assert set(optimizer.state[params[0]]) == keys == {"m", "r", "coefficient"}


def test_state_is_two_tensors_and_a_plain_float():
    optimizer, params = trained(MAKERS["neumann"], 20)
    state = optimizer.state[params[0]]
    assert type(state["coefficient"]) is float
    assert {type(group["step"]) for group in optimizer.param_groups} == {int}
    assert vars(optimizer).keys() == vars(Neumann([torch.zeros(1)])).keys()


@pytest.mark.parametrize("last", [1, 15, 16, 17, 25])
def test_the_answer_survives_a_scheduler_that_is_ahead(last):
    """OneCycleLR writes the next step's momentum right after the step; the answer is the last step's."""
    params = new_params()
    optimizer = Neumann(params, reset_period=15, lr=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=100)
    for step in range(last):
        train(optimizer, params, [step])
        mu = optimizer.param_groups[0]["momentum"]
        cycle.step()
        assert optimizer.param_groups[0]["momentum"] != mu
    expected = [p.detach() - (0 if last in (1, 16) else mu) * optimizer.state[p]["m"] for p in params]
    optimizer.eval()
    assert relative(params, expected) < 1e-15


def test_a_parameter_that_missed_the_last_step_keeps_its_own_displacement():
    params = new_params()
    optimizer = Neumann(params, lr=0.05, reset_period=10)
    train(optimizer, params, range(10))
    with at(optimizer, "base"):
        answer = params[0].detach().clone()
    held = params[0].detach().clone()
    train(optimizer, params, range(10, 12), has=lambda index, step: index > 0)  # the first of these is a reset
    assert torch.equal(params[0], held)
    optimizer.eval()
    assert torch.equal(params[0], answer)
    assert not torch.equal(answer, held)


def test_parameters_added_later_join_at_the_current_step():
    params = new_params()
    optimizer = Neumann(params, lr=0.05, reset_period=10, burn_in_steps=3)
    train(optimizer, params, range(8))
    optimizer.eval()
    late = new_params(start=3)
    optimizer.add_param_group({"params": late, "lr": 0.1})
    assert [group["point"] for group in optimizer.param_groups] == ["base", "base"]
    assert [group["step"] for group in optimizer.param_groups] == [8, 8]
    optimizer.train()
    before = copies(late)
    with at(optimizer, "base"):
        assert same_bits(late, before)
    train(optimizer, params + late, [8])
    assert not same_bits(late, before)  # neither burn-in's nor the first reset's business any more
    assert [group["step"] for group in optimizer.param_groups] == [9, 9]
    mu = optimizer.state[params[0]]["coefficient"]
    assert optimizer.state[late[0]]["coefficient"] == mu > 0.5


def test_nothing_counts_without_any_gradient():
    optimizer, params = trained(MAKERS["neumann"], 12)
    before, state = copies(params), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    assert optimizer.step(lambda: 0.5) == 0.5
    assert same_bits(params, before)
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]


@EVERY
def test_a_closure_is_run_with_gradients_and_does_the_same(make):
    def closure():
        optimizer.zero_grad()
        loss = sum((p.square() + p.sin()).sum() for p in params)
        loss.backward()
        return loss

    by_closure, by_hand = new_params(torch.float32), new_params(torch.float32)
    params, optimizer = by_closure, make(by_closure)
    losses = [float(optimizer.step(closure).detach()) for _ in range(20)]
    params, optimizer = by_hand, make(by_hand)
    for loss in losses:
        assert float(closure().detach()) == loss
        assert optimizer.step() is None
    assert same_bits(by_closure, by_hand)


@EVERY
def test_step_hooks_run_and_set_rates_in_time(make):
    scheduled, params = trained(make, 0)
    by_hand, members = trained(make, 0)
    after = []

    def set_rate(optimizer, args, kwargs):
        optimizer.param_groups[0]["lr"] = 0.05 / (1 + len(after))

    scheduled.register_step_pre_hook(set_rate)
    scheduled.register_step_post_hook(lambda optimizer, args, kwargs: after.append(1))
    for step in range(30):
        by_hand.param_groups[0]["lr"] = 0.05 / (1 + step)
        train(by_hand, members, [step])
        train(scheduled, params, [step])
    assert len(after) == 30
    assert same_bits(params, members)


def test_an_older_state_dict_gets_todays_defaults():
    optimizer, params = trained(MAKERS["neumann"], 20)
    saved = optimizer.state_dict()
    saved["param_groups"] = [{k: v for k, v in saved["param_groups"][0].items() if k not in ("reset_rule", "point")}]
    other = MAKERS["neumann"]([p.detach().clone().requires_grad_() for p in params])
    other.load_state_dict(saved)
    assert other.param_groups[0]["reset_rule"] == "countdown"
    assert other.point == "held"


def test_hyperparameters_are_plain_values_in_a_checkpoint():
    numpy = pytest.importorskip("numpy")
    given = {
        "lr": numpy.float64(0.1),
        "burn_in_steps": numpy.int64(3),
        "gamma": numpy.float32(0.5),
        "momentum": [0.5, 1e-9 + 0.5],
    }
    optimizer = Neumann(new_params(), reset_period=10.0, **given)
    group = through_a_file(optimizer.state_dict())["param_groups"][0]
    assert (type(group["lr"]), type(group["burn_in_steps"]), type(group["reset_period"])) == (float, int, int)
    assert type(group["momentum"]) is tuple


def test_a_parameter_may_be_edited_from_outside_without_moving_the_average_away():
    """r is kept, not v: pruning or loading weights does not become a huge w − v."""
    params = new_params()
    optimizer = Neumann(params, lr=0.05)
    train(optimizer, params, range(20))
    distance = float(optimizer.distance())
    with torch.no_grad():
        params[0].add_(100)
    assert float(optimizer.distance()) == distance
