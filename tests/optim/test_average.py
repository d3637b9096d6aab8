"""Tests of the average of any optimizer's weights: its values, its reachability, and that it does not affect training."""

import copy
import io
import pickle

import pytest
import timm.optim
import torch

from neumann.optim import BurnInSGD, NesterovInner, Neumann, WeightAverage, at, eval_point, points
from tests.support.optimizer_problems import copies, gradient, new_params, relative, same_bits, set_gradients, train

SGD = torch.optim.SGD


class ScheduleFree(SGD):
    """A swap by arithmetic, and the mode in the groups."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.param_groups[0]["train_mode"] = True

    def _swap(self, scale, mode):
        if self.param_groups[0]["train_mode"] != mode:
            self.param_groups[0]["train_mode"] = mode
            for p in self.param_groups[0]["params"]:
                p.data.mul_(scale)

    def train(self):
        self._swap(1 / 0.7, True)

    def eval(self):
        self._swap(0.7, False)


KINDS = {
    "sgd": (lambda params: SGD(params, lr=0.05), ("held",)),
    "momentum": (lambda params: SGD(params, lr=0.05, momentum=0.9), ("held",)),
    "foreach": (lambda params: SGD(params, lr=0.05, foreach=True), ("held",)),
    "adam": (lambda params: torch.optim.Adam(params, lr=0.05), ("held",)),
    "burn-in": (lambda params: BurnInSGD(params, lr=0.05, burn_in_steps=5), ("held",)),
    "nesterov": (lambda params: SGD(params, lr=0.05, momentum=0.9, nesterov=True), ("held", "base")),
    "nesterov_inner": (lambda params: NesterovInner(params, lr=0.05), ("held", "base")),
    "schedule-free": (lambda params: ScheduleFree(params, lr=0.05), ("held", "base")),
}
EVERY = pytest.mark.parametrize(("make", "own"), KINDS.values(), ids=KINDS.keys())


def naive(params, gamma, averages=None):
    """v ← w + γ (v − w) in float64, as it is printed."""
    if averages is None:
        return [p.detach().double().clone() for p in params]
    return [p.detach().double() + gamma * (v - p.detach().double()) for p, v in zip(params, averages, strict=True)]


def at_average(optimizer, params):
    with at(optimizer, "average"):
        return copies(params)


def through_a_file(content):
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@EVERY
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.99])
def test_it_is_the_naive_average_of_the_held_weights(make, own, gamma):
    params = new_params()
    optimizer = make(params)
    WeightAverage(optimizer, gamma)
    expected = naive(params, gamma)
    assert same_bits(at_average(optimizer, params), params)
    for step in range(40):
        train(optimizer, params, [step])
        expected = naive(params, gamma, expected)
        assert relative(at_average(optimizer, params), expected) < 1e-14
    assert same_bits(at_average(optimizer, params), params) == (gamma == 0)


def test_it_is_neumanns_average_on_the_same_trajectory():
    """With α = β = 0 and no burn-in; a reset moves neither w nor Neumann's v, and is no step of the average."""
    params = new_params()
    neumann = Neumann(params, lr=0.05, alpha=0, beta=0, gamma=0.9, reset_period=10)
    shadow = new_params()
    follower = SGD(shadow, lr=0.0)
    WeightAverage(follower, 0.9)
    for step in range(40):
        before = copies(params)
        train(neumann, params, [step])
        reset = same_bits(params, before)
        assert reset == (step in (0, 10, 30))
        if not reset:
            for p, w in zip(shadow, params, strict=True):
                p.data.copy_(w.data)
                p.grad = torch.zeros_like(p)
            follower.step()
        assert relative(at_average(follower, shadow), at_average(neumann, params)) < 1e-14


@EVERY
def test_points_come_last_and_the_eval_point_is_the_same(make, own):
    optimizer = make(new_params())
    assert (points(optimizer), WeightAverage.of(optimizer)) == (own, None)
    before = eval_point(optimizer)
    average = WeightAverage(optimizer, 0.9)
    assert WeightAverage.of(optimizer) is average
    assert points(optimizer) == (*own, "average")
    assert eval_point(optimizer) == before
    with (
        pytest.raises(ValueError, match=f"has the points {', '.join((*own, 'average'))}; got 'bse'"),
        at(optimizer, "bse"),
    ):
        pass


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_point_is_left_bit_for_bit_and_training_does_not_notice(make, own, dtype):
    params, undisturbed = new_params(dtype), new_params(dtype)
    optimizer, other = make(params), make(undisturbed)
    WeightAverage(optimizer, 0.9)
    for step in range(30):
        train(optimizer, params, [step])
        held = copies(params)
        for point in points(optimizer):
            with at(optimizer, point):
                if point == "average":
                    assert not same_bits(params, held)
                    params[0].data.zero_()  # what the block does is dropped
            assert same_bits(params, held)
            with pytest.raises(KeyError), at(optimizer, point):
                raise KeyError
            assert same_bits(params, held)
    train(other, undisturbed, range(30))
    assert same_bits(params, undisturbed)


@EVERY
def test_it_can_be_nested_with_the_other_points(make, own):
    params = new_params()
    optimizer = make(params)
    WeightAverage(optimizer, 0.9)
    train(optimizer, params, range(20))
    held = copies(params)
    there = {}
    for point in points(optimizer):
        with at(optimizer, point):
            there[point] = copies(params)
    with at(optimizer, "average"):
        for point in points(optimizer):
            with at(optimizer, point):
                assert same_bits(params, there[point])
            assert same_bits(params, there["average"])
    assert same_bits(params, held)
    for point in own:
        with at(optimizer, point):
            with at(optimizer, "average"):
                assert same_bits(params, there["average"])
            assert same_bits(params, there[point])
        assert same_bits(params, held)


def test_from_eval_mode_the_average_is_that_of_the_held_weights():
    params = new_params()
    optimizer = NesterovInner(params, lr=0.05)
    WeightAverage(optimizer, 0.9)
    train(optimizer, params, range(20))
    held, average = copies(params), at_average(optimizer, params)
    optimizer.eval()
    base = copies(params)
    assert same_bits(at_average(optimizer, params), average)
    assert same_bits(params, base)
    optimizer.train()
    assert same_bits(params, held)


def test_step_is_refused_at_the_average():
    params = new_params()
    optimizer = SGD(params, lr=0.05)
    WeightAverage(optimizer, 0.9)
    train(optimizer, params, range(3))
    with at(optimizer, "average"), pytest.raises(RuntimeError, match="at the point 'average'"):
        optimizer.step()
    before = at_average(optimizer, params)
    train(optimizer, params, [3])
    assert not same_bits(at_average(optimizer, params), before)


@EVERY
@pytest.mark.parametrize("steps", [0, 3, 20])
def test_going_on_from_a_state_is_bitwise_the_uninterrupted_run(make, own, steps):
    params = new_params(torch.float32)
    optimizer = make(params)
    average = WeightAverage(optimizer, 0.9)
    train(optimizer, params, range(steps))
    saved = through_a_file(
        {"params": copies(params), "optimizer": optimizer.state_dict(), "average": average.state_dict()}
    )
    members = new_params(torch.float32, start=7)
    other = make(members)
    follower = WeightAverage(other, 0.5)
    for p, w in zip(members, saved["params"], strict=True):
        p.data.copy_(w)
    other.load_state_dict(saved["optimizer"])
    follower.load_state_dict(saved["average"])
    assert follower.gamma == 0.9
    train(optimizer, params, range(steps, 40))
    train(other, members, range(steps, 40))
    assert same_bits(members, params)
    assert same_bits(at_average(other, members), at_average(optimizer, params))


def test_a_state_that_does_not_fit_is_refused_whole():
    def average_of(groups):
        return WeightAverage(SGD(groups, lr=0.1), 0.9)

    average = average_of(new_params())
    before = copies(average.state_dict()["averages"][0])
    three = new_params(start=5)
    for other in (
        average_of(three[:2]),
        average_of([{"params": three[:1]}, {"params": three[1:]}]),
        average_of(new_params(start=5, shapes=((3, 4), (6,), ()))),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            average.load_state_dict({**other.state_dict(), "gamma": 0.5})
    with pytest.raises(ValueError, match="gamma must be"):
        average.load_state_dict({**average_of(three).state_dict(), "gamma": 1.5})
    assert average.gamma == 0.9
    assert same_bits(average.state_dict()["averages"][0], before)


def test_a_group_added_later_joins_at_its_current_weights():
    params = new_params()
    optimizer = SGD(params, lr=0.05)
    average = WeightAverage(optimizer, 0.9)
    train(optimizer, params, range(10))
    late = new_params(start=3)
    optimizer.add_param_group({"params": late})
    expected = naive(late, 0.9)
    for step in range(10, 20):
        train(optimizer, params + late, [step])
        expected = naive(late, 0.9, expected)
    assert relative(at_average(optimizer, late), expected) < 1e-14
    later = new_params(start=6)
    optimizer.add_param_group({"params": later})
    assert same_bits(average.state_dict()["averages"][2], later)
    assert same_bits(at_average(optimizer, later), later)
    assert [len(group) for group in through_a_file(average.state_dict())["averages"]] == [3, 3, 3]


@pytest.mark.parametrize("gamma", [-0.1, 1, 1.0, float("nan"), float("inf"), True, "0.9", None])
def test_gamma_lies_in_0_to_1(gamma):
    optimizer = SGD(new_params(), lr=0.1)
    with pytest.raises(ValueError, match="gamma must be a finite number >= 0 and < 1"):
        WeightAverage(optimizer, gamma)
    assert points(optimizer) == ("held",)


def test_what_cannot_have_one_is_refused():
    with pytest.raises(ValueError, match="Neumann keeps an average of its own"):
        WeightAverage(Neumann(new_params(), lr=0.1), 0.9)
    optimizer = SGD(new_params(), lr=0.1)
    WeightAverage(optimizer, 0.9)
    with pytest.raises(ValueError, match="this SGD has an average already"):
        WeightAverage(optimizer, 0.9)
    wrapper = timm.optim.Lookahead(SGD(new_params(), lr=0.1))
    with pytest.raises(ValueError, match="Lookahead runs no step hooks of its own"):
        WeightAverage(wrapper, 0.9)
    assert points(wrapper) == ("held",)


def test_a_step_that_runs_its_hooks_twice_is_an_error_and_no_silent_second_move():
    class Sub(SGD):
        def step(self, closure=None):
            return super().step(closure)

    SGD(new_params(), lr=0.1)  # from here on SGD.step has hooks, in this process
    params = new_params()
    optimizer = Sub(params, lr=0.1)
    WeightAverage(optimizer, 0.9)
    with pytest.raises(RuntimeError, match="Sub ran its step hooks twice in one step"):
        train(optimizer, params, [0])


def test_a_step_that_failed_is_none_and_the_next_one_counts():
    def failing():
        raise KeyError

    params = new_params()
    optimizer = SGD(params, lr=0.05)
    WeightAverage(optimizer, 0.9)
    expected = naive(params, 0.9)
    with pytest.raises(KeyError):
        optimizer.step(failing)
    train(optimizer, params, [0])
    expected = naive(params, 0.9, expected)
    assert relative(at_average(optimizer, params), expected) < 1e-14


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_mixed_precision_skips_moves_nothing(fused):
    params = new_params(torch.float32)
    optimizer = SGD(params, lr=0.05, fused=fused)
    WeightAverage(optimizer, 0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    expected = naive(params, 0.9)
    for step in range(12):
        scaler.scale(torch.zeros(()))  # makes the scale
        set_gradients(params, step)
        for p in params:
            p.grad.mul_(scaler.get_scale())
        if step % 3 == 1:
            params[0].grad.view(-1)[0] = torch.inf
        before = copies(params)
        scaler.step(optimizer)
        scaler.update()
        assert same_bits(params, before) == (step % 3 == 1)
        if step % 3 != 1:
            expected = naive(params, 0.9, expected)
    assert relative(at_average(optimizer, params), expected) < 1e-6


def test_halves_are_averaged_in_float32():
    """In bfloat16 a move by 1 % of a difference of 1 % is rounded away, and the average would never arrive."""
    p = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    optimizer = SGD([p], lr=0.0)
    average = WeightAverage(optimizer, 0.99)
    p.data.fill_(1.0078125)
    p.grad = torch.zeros_like(p)
    for _ in range(500):
        optimizer.step()
    v = average.state_dict()["averages"][0][0]
    assert v.dtype == torch.float32
    assert float(v[0]) == pytest.approx(1.0078125 - 0.0078125 * 0.99**500, abs=1e-5)
    with at(optimizer, "average"):
        assert p.dtype == torch.bfloat16
        assert float(p.detach()[0]) == 1.0078125


def test_types_may_be_mixed_and_memory_formats_are_kept():
    image = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    params = [image, *new_params(torch.float64), *new_params(torch.bfloat16)]
    optimizer = SGD(params, lr=0.05)
    average = WeightAverage(optimizer, 0.9)
    expected = naive(params, 0.9)
    for step in range(10):
        for index, p in enumerate(params):
            p.grad = gradient(p, index, step) if p is not image else torch.ones_like(p)
        optimizer.step()
        expected = naive(params, 0.9, expected)
    averages = average.state_dict()["averages"][0]
    assert averages[0].is_contiguous(memory_format=torch.channels_last)
    assert relative(averages, expected) < 1e-6
    assert relative(averages[1:4], expected[1:4]) < 1e-14


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_come_without_it_and_can_be_given_their_own(duplicate):
    params = new_params()
    optimizer = NesterovInner(params, lr=0.05)
    average = WeightAverage(optimizer, 0.9)
    train(optimizer, params, range(5))
    other, members = duplicate((optimizer, params))
    assert points(other) == ("held", "base")
    WeightAverage(other, 0.5).load_state_dict(average.state_dict())
    train(optimizer, params, range(5, 10))
    train(other, members, range(5, 10))
    assert same_bits(at_average(other, members), at_average(optimizer, params))
