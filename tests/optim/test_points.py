"""Tests of evaluation points: every optimizer moves to each of its points and comes back bit for bit."""

import pytest
import torch

from neumann.optim import NesterovInner, Neumann, at, eval_point, points
from tests.support.optimizer_problems import copies, gradient, new_params, relative, same_bits, set_gradients, train


class ScheduleFree(torch.optim.Optimizer):
    """The habits of schedule-free optimizers: a swap by arithmetic, and the mode in the groups."""

    def __init__(self, params, train_mode=True):
        super().__init__(params, {"lr": 0.1, "train_mode": train_mode})

    def _swap(self, scale, mode):
        for group in self.param_groups:
            if group["train_mode"] != mode:
                group["train_mode"] = mode
                for p in group["params"]:
                    p.data.mul_(scale)

    def train(self):
        self._swap(1 / 0.7, True)

    def eval(self):
        self._swap(0.7, False)

    def step(self, closure=None):
        assert self.param_groups[0]["train_mode"]
        for p in self.param_groups[0]["params"]:
            p.data.sub_(0.1 * p.grad)


SGD = torch.optim.SGD
KINDS = {
    "neumann": (lambda params: Neumann(params, lr=0.05, reset_period=10), ("held", "base", "average")),
    "nesterov_inner": (lambda params: NesterovInner(params, lr=0.05), ("held", "base")),
    "nesterov": (lambda params: SGD(params, lr=0.05, momentum=0.9, nesterov=True), ("held", "base")),
    "schedule-free": (ScheduleFree, ("held", "base")),
    "momentum": (lambda params: SGD(params, lr=0.05, momentum=0.9), ("held",)),
    "sgd": (lambda params: SGD(params, lr=0.05), ("held",)),
    "adam": (lambda params: torch.optim.Adam(params, lr=0.05), ("held",)),
}
EVERY = pytest.mark.parametrize(("make", "expected"), KINDS.values(), ids=KINDS.keys())
STILL = {
    "base": (0, 10, 30),
    "average": (0,),
}  # steps after which a point of Neumann is the held one: resets, and v = w


@EVERY
def test_points_and_eval_point(make, expected):
    optimizer = make(new_params())
    assert points(optimizer) == expected
    assert eval_point(optimizer) == ("base" if "base" in expected else "held")


@EVERY
def test_every_point_is_left_bit_for_bit(make, expected):
    params, undisturbed = new_params(torch.float32), new_params(torch.float32)
    optimizer, other = make(params), make(undisturbed)
    for step in range(40):
        set_gradients(params, step)
        optimizer.step()
        held = copies(params)
        for point in expected:
            with at(optimizer, point):
                stays = point == "held" or (isinstance(optimizer, Neumann) and step in STILL[point])
                assert same_bits(params, held) == stays
            assert same_bits(params, held)
            with pytest.raises(KeyError), at(optimizer, point):
                raise KeyError
            assert same_bits(params, held)
    train(other, undisturbed, range(40))
    assert same_bits(params, undisturbed)


@EVERY
def test_an_unknown_point_names_those_there_are(make, expected):
    params = new_params()
    optimizer = make(params)
    for unknown in {"base", "average", "bse"} - set(expected):
        with (
            pytest.raises(ValueError, match=f"has the points {', '.join(expected)}; got '{unknown}'"),
            at(optimizer, unknown),
        ):
            pass


@EVERY
def test_every_point_can_be_asked_before_the_first_step(make, expected):
    params = new_params()
    optimizer = make(params)
    for point in expected:
        with at(optimizer, point):
            moved = point == "base" and isinstance(optimizer, ScheduleFree)  # whose swap takes no notice of steps
            assert same_bits(params, new_params()) == (not moved)
        assert same_bits(params, new_params())


def test_from_eval_mode_the_held_point_is_reached_and_left():
    params = new_params(torch.float32)
    for make, _ in (KINDS["neumann"], KINDS["nesterov_inner"], KINDS["schedule-free"]):
        optimizer = make(params)
        train(optimizer, params, range(20))
        held = copies(params)
        optimizer.eval()
        base = copies(params)
        with at(optimizer, "held"):
            if not isinstance(optimizer, ScheduleFree):  # whose way back is arithmetic
                assert same_bits(params, held)
            assert relative(params, held) < 1e-6
        assert same_bits(params, base)
        with at(optimizer, "base"):
            assert same_bits(params, base)
        assert same_bits(params, base)
        optimizer.train()
        assert relative(params, held) < 1e-6


def test_a_schedule_free_optimizer_that_starts_in_eval_mode_stays_there():
    params = new_params()
    optimizer = ScheduleFree(params, train_mode=False)
    with at(optimizer, "base"):
        assert same_bits(params, new_params())
    with at(optimizer, "held"):
        assert relative(params, new_params()) > 0.1
    assert same_bits(params, new_params())
    assert optimizer.param_groups[0]["train_mode"] is False


def test_points_nest():
    params = new_params()
    optimizer, _ = KINDS["neumann"][0](params), None
    train(optimizer, params, range(20))
    held = copies(params)
    with at(optimizer, "base"):
        base = copies(params)
        with at(optimizer, "average"):
            average = copies(params)
            with at(optimizer, "held"):
                assert same_bits(params, held)
            assert same_bits(params, average)
        assert same_bits(params, base)
    assert same_bits(params, held)
    assert not same_bits(base, average)


def test_the_points_of_torchs_nesterov_nest():
    params = new_params()
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True)
    train(optimizer, params, range(20))
    held = copies(params)
    with at(optimizer, "base"):
        base = copies(params)
        assert not same_bits(base, held)
        with at(optimizer, "base"):
            assert same_bits(params, base)
            with at(optimizer, "held"):
                assert same_bits(params, held)
                with at(optimizer, "base"):
                    assert same_bits(params, base)
                assert same_bits(params, held)
            assert same_bits(params, base)
        assert same_bits(params, base)
    assert same_bits(params, held)
    with at(optimizer, "base"):
        assert same_bits(params, base)
    assert same_bits(params, held)


def test_step_is_refused_at_any_other_point():
    params = new_params()
    optimizer = KINDS["neumann"][0](params)
    train(optimizer, params, range(20))
    with at(optimizer, "average"), pytest.raises(RuntimeError, match="average"):
        optimizer.step()


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("rate", [0.05, torch.tensor(0.05, dtype=torch.float64)], ids=["number", "tensor"])
def test_torchs_nesterov_base_takes_a_gradient_step_from_the_last_base(maximize, foreach, rate):
    """At a constant rate the base point θ of Nesterov momentum follows θ_t = w_{t−1} − η g_t."""
    params = new_params()
    optimizer = SGD(params, lr=rate, momentum=0.9, nesterov=True, maximize=maximize, foreach=foreach)
    sign = 1 if maximize else -1
    for step in range(30):
        expected = [p.detach() + sign * 0.05 * gradient(p, index, step) for index, p in enumerate(params)]
        train(optimizer, params, [step])
        with at(optimizer, "base"):
            assert relative(params, expected) < 1e-14


def test_groups_differ_in_torchs_nesterov():
    params = new_params()
    groups = [{"params": params[:1]}, {"params": params[1:], "nesterov": False}]
    optimizer = SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    train(optimizer, params, range(5), has=lambda index, step: index != 2)
    held = copies(params)
    assert points(optimizer) == ("held", "base")
    with at(optimizer, "base"):
        assert [torch.equal(p, w) for p, w in zip(params, held, strict=True)] == [False, True, True]


def test_move_to_refuses_an_unknown_point():
    with pytest.raises(ValueError, match="held, base; got 'average'"):
        NesterovInner(new_params(), lr=0.1).move_to("average")
