"""Plain SGD first, then momentum SGD as if it began there; and whatever happens in between, the steps are counted once."""

import copy
import io
import pickle

import pytest
import torch

from neumann.optim import BurnInSGD, Neumann, points
from tests.support.optimizer_problems import copies, gradient, new_params, relative, same_bits, set_gradients, train

SGD = torch.optim.SGD


def steps_of(optimizer):
    return [group["step"] for group in optimizer.param_groups]


def twin(params, steps, *, lr, momentum, burn_in_steps, weight_decay=0.0):
    """The algorithm in float64, one scalar loop; ``lr`` is a function of the step. Weights after ``steps`` of them."""
    weights, buffers = copies(params), [None] * len(params)
    for step in range(steps):
        for i, w in enumerate(weights):
            g = gradient(w, i, step) + weight_decay * w
            if step < burn_in_steps:
                d = g
            else:
                buffers[i] = g if buffers[i] is None else momentum * buffers[i] + g
                d = buffers[i]
            weights[i] = w - lr(step) * d
    return weights


@pytest.mark.parametrize("burn_in_steps", [0, 1, 7, 30, 100])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_its_twin(burn_in_steps, weight_decay, momentum):
    params = new_params()
    setting = {"momentum": momentum, "burn_in_steps": burn_in_steps, "weight_decay": weight_decay}
    optimizer = BurnInSGD(params, 0.05, **setting)
    expected = twin(params, 30, lr=lambda step: 0.05, **setting)
    train(optimizer, params, range(30))
    assert relative(params, expected) < 1e-14
    assert steps_of(optimizer) == [30]


@pytest.mark.parametrize("moves", ["in place", "LambdaLR"])
def test_a_schedule_moves_the_rate_in_both_phases(moves):
    def factor(step):
        return 1 / (1 + step) + (step % 3)

    params = new_params()
    setting = {"momentum": 0.9, "burn_in_steps": 8}
    expected = twin(params, 20, lr=lambda step: 0.02 * factor(step), **setting)
    optimizer = BurnInSGD(params, 0.02, **setting)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor) if moves == "LambdaLR" else None
    for step in range(20):
        if schedule is None:
            optimizer.param_groups[0]["lr"] = 0.02 * factor(step)
        train(optimizer, params, [step])
        if schedule is not None:
            schedule.step()
    assert relative(params, expected) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("foreach", [False, True])
def test_each_phase_is_torchs_sgd_to_the_last_bit(dtype, foreach):
    params = new_params(dtype)
    optimizer = BurnInSGD([{"params": params, "foreach": foreach}], 0.05, burn_in_steps=10, weight_decay=0.01)
    plain = [p.detach().clone().requires_grad_() for p in params]
    train(optimizer, params, range(10))
    train(SGD(plain, 0.05, weight_decay=0.01, foreach=foreach), plain, range(10))
    assert same_bits(params, plain)
    assert not any("momentum_buffer" in state for state in optimizer.state.values())
    train(optimizer, params, range(10, 40))
    train(SGD(plain, 0.05, momentum=0.9, weight_decay=0.01, foreach=foreach), plain, range(10, 40))
    assert same_bits(params, plain)


def test_the_burn_in_is_neumanns():
    params, others = new_params(), new_params()
    train(BurnInSGD(params, 0.05, burn_in_steps=10, weight_decay=0.1), params, range(10))
    train(Neumann(others, lr=0.05, burn_in_steps=10, weight_decay=0.1), others, range(10))
    assert relative(params, others) < 1e-15


def through_a_file(optimizer, params):
    file = io.BytesIO()
    torch.save({"params": copies(params), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    members = [p.requires_grad_() for p in saved["params"]]
    other = BurnInSGD(members, 0.3)
    other.load_state_dict(saved["optimizer"])
    return other, members


COPIES = {
    "state_dict": through_a_file,
    "deepcopy": lambda *pair: copy.deepcopy(pair),
    "pickle": lambda *pair: pickle.loads(pickle.dumps(pair)),
    "twice": lambda *pair: through_a_file(*copy.deepcopy(pair)),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize("steps", [0, 4, 9, 10, 11, 20])
def test_copies_go_on_alike(duplicate, steps):
    params = new_params(torch.float32)
    optimizer = BurnInSGD(params, 0.05, burn_in_steps=10)
    train(optimizer, params, range(steps))
    other, members = duplicate(optimizer, params)
    assert members[0] is not params[0]
    train(optimizer, params, range(steps, 40))
    train(other, members, range(steps, 40))
    assert same_bits(members, params)
    assert steps_of(other) == steps_of(optimizer) == [40]
    assert len(other._optimizer_step_post_hooks) == 1


def test_loading_into_an_optimizer_in_use_counts_every_step_once():
    params = new_params()
    optimizer = BurnInSGD(params, 0.05, burn_in_steps=10)
    for _ in range(3):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, params, range(5))
    assert steps_of(optimizer) == [5]


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["a plain SGD was made before", "none was"])
def test_hooks_run_once_a_step(first, python):
    """torch gives hooks to the step() of each class when it is first made, so what was made before may matter."""
    out = python(f"""
import copy, torch
from neumann.optim import BurnInSGD
p = torch.ones(2, requires_grad=True)
if {first}:
    torch.optim.SGD([p], 0.1)
optimizer = BurnInSGD([p], 0.1, burn_in_steps=2)
torch.optim.SGD([p], 0.1)
before, after = [], []
def count(optimizer):
    optimizer.register_step_pre_hook(lambda *_: before.append(optimizer.param_groups[0]["step"]))
    optimizer.register_step_post_hook(lambda *_: after.append(optimizer.param_groups[0]["step"]))
count(optimizer)
for _ in range(4):
    p.grad = torch.ones(2)
    optimizer.step()
other = copy.deepcopy(optimizer)
count(other)
other.param_groups[0]["params"][0].grad = torch.ones(2)
other.step(lambda: 0.5)
print(before, after)
""")
    assert out.strip() == "[0, 1, 2, 3, 4] [1, 2, 3, 4, 5]"


def test_a_group_added_later_joins_at_the_current_step():
    params = new_params()
    optimizer = BurnInSGD(params, 0.05, burn_in_steps=5)
    train(optimizer, params, range(3))
    late = new_params(start=3)
    optimizer.add_param_group({"params": late, "burn_in_steps": 4})
    assert steps_of(optimizer) == [3, 3]
    train(optimizer, params + late, [3])
    assert not any("momentum_buffer" in state for state in optimizer.state.values())
    train(optimizer, params + late, [4])
    assert [["momentum_buffer" in optimizer.state[p] for p in ps] for ps in (params, late)] == [[False] * 3, [True] * 3]
    train(optimizer, params + late, [5])
    assert all("momentum_buffer" in optimizer.state[p] for p in params)
    last = new_params(start=6)
    optimizer.add_param_group({"params": last})
    assert optimizer.param_groups[2]["burn_in_steps"] == 5
    train(optimizer, params + late + last, [6])
    assert all("momentum_buffer" in optimizer.state[p] for p in last)  # its burn-in is over too
    assert steps_of(optimizer) == [7, 7, 7]


def test_a_step_without_any_gradient_is_not_counted():
    params = new_params()
    optimizer = BurnInSGD(params, 0.05, burn_in_steps=2)
    before = copies(params)
    assert optimizer.step(lambda: 0.5) == 0.5
    assert (steps_of(optimizer), same_bits(params, before)) == ([0], True)
    train(optimizer, params, range(3), has=lambda index, step: index == 1)
    assert steps_of(optimizer) == [3]
    assert [p in optimizer.state and "momentum_buffer" in optimizer.state[p] for p in params] == [False, True, False]


def test_a_closure_gives_the_gradients():
    params, others = new_params(), new_params()
    by_closure, by_hand = (BurnInSGD(ps, 0.05, burn_in_steps=3) for ps in (params, others))
    for step in range(6):

        def closure(step=step):
            set_gradients(params, step)
            return step

        assert by_closure.step(closure) == step
        train(by_hand, others, [step])
    assert same_bits(params, others)
    assert steps_of(by_closure) == [6]


def test_its_only_point_is_the_held_one():
    assert points(BurnInSGD(new_params(), 0.1)) == ("held",)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr": -1}, "lr must be a finite number >= 0"),
        ({"lr": float("nan")}, "lr must be"),
        ({"momentum": 1.0}, "momentum must be a finite number >= 0 and < 1"),
        ({"momentum": -0.1}, "momentum must be"),
        ({"weight_decay": -1}, "weight_decay must be"),
        ({"burn_in_steps": -1}, "burn_in_steps must be a whole number >= 0"),
        ({"burn_in_steps": 1.5}, "burn_in_steps must be a whole number"),
        ({"burn_in_steps": True}, "burn_in_steps must be a whole number"),
    ],
)
def test_what_is_not_valid_is_refused_for_all_and_for_a_group(setting, message):
    with pytest.raises(ValueError, match=message):
        BurnInSGD(new_params(), **{"lr": 0.1, **setting})
    with pytest.raises(ValueError, match=message):
        BurnInSGD([{"params": new_params(), **setting}], lr=0.1)
    optimizer = BurnInSGD(new_params(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": new_params(), **setting})
    assert len(optimizer.param_groups) == 1


def test_nesterov_is_refused():
    with pytest.raises(ValueError, match="no Nesterov momentum"):
        BurnInSGD([{"params": new_params(), "nesterov": True}], lr=0.1)


def test_values_are_plain_in_a_checkpoint():
    numpy = pytest.importorskip("numpy")
    optimizer = BurnInSGD(new_params(), numpy.float64(0.1), momentum=numpy.float32(0.5), burn_in_steps=10.0)
    other, _ = through_a_file(optimizer, new_params())
    group = other.param_groups[0]
    assert [type(group[name]) for name in ("lr", "momentum", "burn_in_steps", "step")] == [float, float, int, int]
    assert group["burn_in_steps"] == 10
