"""Expectations of PyTorch's and timm's own test suites of any optimizer, rewritten, and those that cannot hold.

Their suites: torch's test/test_optim.py over torch/testing/_internal/common_optimizers.py, and timm's
tests/test_optim.py, which was made from it. Errors, hooks and checkpoints, which they test too, are in test_*.py,
GPUs in test_neumann_cuda.py.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, PolynomialLR, ReduceLROnPlateau, StepLR

from neumann.optim import BurnInSGD, NesterovInner, Neumann, TwoLoopNeumann
from tests.support.optimizer_problems import copies, gradient, new_params, relative, same_bits, train

DECLARED = {
    "groups are independent of each other": "the norm ‖w − v‖ in the regularizers runs over all parameters (section 3.1)",
    "a rate of 0 freezes the weights": "the rate lives inside m, so that m goes on moving them (Algorithm 2)",
    "every step moves the weights": "a reset sets m and moves nothing, as printed; the first step after burn-in is one",
    "every loss of a run is below the one before": "resets repeat a loss, and momentum overshoots",
    "complex parameters": "curvature, norm and displacement are those of real weights; train view_as_real",
    "sparse gradients": "m and r move every weight in every step, with a gradient or without",
    "differentiable=True": "the step is in place and in one pass, so that no graph can lead through it",
    "parameters of several optimizers, one for each layer": "each of them would know the norm of its own layer only",
}


@dataclass(frozen=True)
class Kind:
    """An optimizer and the arguments to try it with, as torch's OptimizerInfo."""

    make: Callable[..., Any]
    settings: list[dict[str, Any]]
    paths: list[dict[str, Any]] = field(default_factory=lambda: [{"foreach": False}, {"foreach": True}])


def two_loop(params, lr=1e-3, **settings):
    return TwoLoopNeumann(params, 1e-2, lr, 2, **settings)


KINDS = {
    "Neumann": Kind(
        Neumann,
        [
            {},
            {"lr": 3e-3},
            {"lr": torch.tensor(1e-3)},
            {"lr": 1e-3, "weight_decay": 0.5},
            {"lr": 1e-3, "momentum": 0.9},
            {"lr": 1e-3, "weight_decay": 0.1, "maximize": True},
            {"lr": 1e-3, "alpha": 1e-3, "beta": 1e-3, "gamma": 0.9, "reset_period": 7},
            {"lr": 1e-3, "capturable": True, "burn_in_steps": 4, "reset_period": 5, "reset_rule": "absolute"},
        ],
        [{"foreach": False}, {"foreach": True}, {"fused": True}, {}],
    ),
    "NesterovInner": Kind(
        NesterovInner, [{"lr": 1e-3}, {"lr": torch.tensor(1e-3), "momentum": 0.5}, {"lr": 1e-3, "maximize": True}]
    ),
    "BurnInSGD": Kind(BurnInSGD, [{"lr": 1e-3}, {"lr": 1e-3, "burn_in_steps": 4, "weight_decay": 0.1}], [{}]),
    "TwoLoopNeumann": Kind(
        two_loop,
        [
            {},
            {"lr": torch.tensor(1e-3), "weight_decay": 0.1},
            {"mu": 0.9, "alpha": 1e-3, "beta": 1e-3, "gamma": 0.9},
        ],
        [{}],
    ),
}
INPUTS = [
    pytest.param(kind, {**copy.deepcopy(setting), **path}, id=f"{name} {setting} {path}")
    for name, kind in KINDS.items()
    for setting in kind.settings
    for path in kind.paths
]
EVERY = pytest.mark.parametrize(("kind", "setting"), INPUTS)
SOME = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def problem(*, contiguous=True):
    torch.manual_seed(0)
    if contiguous:
        weight, bias = Parameter(torch.randn(10, 5)), Parameter(torch.randn(10))
    else:
        weight, bias = Parameter(torch.randn(10, 5, 2)[..., 0]), Parameter(torch.randn(10, 2)[..., 0])
    inputs = torch.randn(5)
    return weight, bias, lambda: (weight.mv(inputs) + bias).square().sum()


def closure_of(optimizer, loss_of):
    def closure():
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    return closure


def moved_as_asked(first, last, setting):
    return last > first if setting.get("maximize") else last < first


@EVERY
@pytest.mark.parametrize("contiguous", [True, False], ids=["", "with gaps"])
def test_it_goes_in_the_right_direction(kind, setting, contiguous):
    weight, bias, loss_of = problem(contiguous=contiguous)
    if setting.get("fused") and not contiguous:
        setting = {**setting, "fused": None}  # says that it cannot: test_fused.py
    optimizer = kind.make([weight, bias], **copy.deepcopy(setting))
    first = loss_of().item()
    for _ in range(12):
        optimizer.step(closure_of(optimizer, loss_of))
    assert moved_as_asked(first, loss_of().item(), setting)


@SOME
@pytest.mark.parametrize(
    "schedules",
    [
        [lambda o: StepLR(o, gamma=0.9, step_size=10)],
        [lambda o: StepLR(o, gamma=0.9, step_size=10), ReduceLROnPlateau],
        [lambda o: StepLR(o, gamma=0.99, step_size=10), lambda o: ExponentialLR(o, gamma=0.99), ReduceLROnPlateau],
        [lambda o: LinearLR(o, start_factor=0.4, end_factor=0.8, total_iters=4)],
        [lambda o: PolynomialLR(o, power=0.9, total_iters=30)],
    ],
)
def test_with_schedulers_and_a_rate_for_a_group_too(kind, schedules):
    weight, bias, loss_of = problem()
    optimizer = kind.make([{"params": [weight]}, {"params": [bias], "lr": 1e-2}], lr=1e-3)
    schedulers = [make(optimizer) for make in schedules]
    first = loss_of().item()
    for _ in range(20):
        loss = optimizer.step(closure_of(optimizer, loss_of))
        for each in schedulers:
            each.step(*([loss.item()] if isinstance(each, ReduceLROnPlateau) else []))
    assert loss_of().item() < first


@pytest.mark.medium
@EVERY
def test_groups_with_a_decay_and_a_rate_of_their_own(kind, setting):
    weight, bias, loss_of = problem()
    still = Parameter(torch.randn(2))
    before = still.detach().clone()
    own = {"lr": 1e-3, **copy.deepcopy(setting)}
    shared = {key: own[key] for key in ("capturable",) if key in own}
    groups = [
        {"params": [weight], **own},
        {"params": [bias], **own, "weight_decay": 0.0},
        {"params": [still], **shared},
    ]
    optimizer = kind.make(groups, lr=1e-28)
    first = loss_of().item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of().backward()
        still.grad = torch.rand_like(still)
        optimizer.step(lambda: None)  # the gradients are there
    assert moved_as_asked(first, loss_of().item(), own)
    torch.testing.assert_close(still.detach(), before)  # a rate of almost nothing, from the start


@EVERY
def test_nothing_happens_without_gradients_or_with_zeros(kind, setting):
    without = [Parameter(torch.randn(2, 3), requires_grad=False) for _ in range(2)]
    before = copies(without)
    optimizer = kind.make(without, **copy.deepcopy(setting))
    assert optimizer.step(lambda: torch.tensor([1.0])) == torch.tensor([1.0])
    assert same_bits(copies(without), before)
    if setting.get("weight_decay"):
        return
    zero = Parameter(torch.randn(5, 1))
    start = zero.detach().clone()
    optimizer = kind.make([zero], **copy.deepcopy(setting))
    for _ in range(3):
        zero.grad = torch.zeros_like(zero)
        optimizer.step(lambda: torch.tensor([1.0]))
    assert torch.equal(zero, start)


@EVERY
def test_it_can_be_printed_and_copied_with_all_public_attributes(kind, setting):
    params = [Parameter(torch.randn(2, 3)) for _ in range(2)]
    optimizer = kind.make(params, **copy.deepcopy(setting))
    for p in params:
        p.grad = torch.rand_like(p)
    for _ in range(3):
        optimizer.step(lambda: None)
    assert repr(optimizer).startswith(type(optimizer).__name__)

    def public(each):
        return {name for name in vars(each) if not name.startswith("_")}

    assert public(copy.deepcopy(optimizer)) == public(optimizer)
    # plain SGD keeps none, nor does the inner loop without regularizers
    stateless = {BurnInSGD: "burn_in_steps" in setting, two_loop: "beta" not in setting}
    has_state = not stateless.get(kind.make, False)
    assert [bool(optimizer.state[p]) for p in params] == [has_state, has_state]


def equal(one, other):
    """As TestCase.assertEqual compares state dicts: tensors by value, numbers and the rest as they are."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.medium
@EVERY
def test_state_dicts_are_the_same_for_equal_parameters(kind, setting):
    weight, bias, loss_of = problem()
    optimizer = kind.make([weight, bias], **copy.deepcopy(setting))
    for _ in range(6):
        optimizer.step(closure_of(optimizer, loss_of))
    weight_c, bias_c = Parameter(weight.detach().clone()), Parameter(bias.detach().clone())
    torch.manual_seed(0)
    torch.randn(10, 5), torch.randn(10)
    inputs = torch.randn(5)
    optimizer_c = kind.make([weight_c, bias_c], **copy.deepcopy(setting))
    optimizer_c.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(6):
        optimizer.step(closure_of(optimizer, loss_of))
        optimizer_c.step(closure_of(optimizer_c, lambda: (weight_c.mv(inputs) + bias_c).square().sum()))
        assert torch.equal(weight, weight_c)
        assert torch.equal(bias, bias_c)
    assert equal(optimizer.state_dict(), optimizer_c.state_dict())
    optimizer_c.param_groups.extend(optimizer_c.param_groups)  # a group that repeats, pytorch#36831
    assert optimizer_c.state_dict()["param_groups"][-1]["params"] == [0, 1]


@EVERY
def test_an_older_state_without_the_newer_flags_loads(kind, setting):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 2, 1, stride=2), torch.nn.BatchNorm2d(2))
    inputs = torch.rand(1, 4, 16, 16)
    optimizer = kind.make(model.parameters(), **copy.deepcopy(setting))
    for _ in range(3):
        optimizer.step(closure_of(optimizer, lambda: model(inputs).sum()))
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        for flag in ("maximize", "foreach", "fused", "differentiable", "capturable"):
            group.pop(flag, None)
    optimizer.load_state_dict(old)
    optimizer.step(closure_of(optimizer, lambda: model(inputs).sum()))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("setting", KINDS["Neumann"].settings, ids=str)
@pytest.mark.parametrize("how", [{"foreach": True}, {"fused": True}], ids=str)
def test_every_implementation_matches_the_loop(setting, how):
    """With a 0-dim parameter last, and a step in the middle in which only that one has a gradient."""

    def run(**how):
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid()
        ).double()
        inputs = torch.linspace(0.1, 0.6, 6, dtype=torch.float64).reshape(3, 2)
        alone = torch.ones((), dtype=torch.float64, requires_grad=True)
        optimizer = Neumann([*model.parameters(), alone], **{**copy.deepcopy(setting), **how})
        for step in range(7):
            optimizer.zero_grad()
            if step != 3:
                model(inputs).sum().backward()
            alone.grad = torch.full_like(alone, 0.5)
            optimizer.step()
        return [*model.parameters(), alone], [optimizer.state[p] for p in model.parameters()]

    (params, states), (looped, expected) = run(**how), run(foreach=False)
    assert relative(params, looped) < 1e-12
    for state, other in zip(states, expected, strict=True):
        torch.testing.assert_close(state["m"], other["m"], rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(state["r"], other["r"], rtol=1e-9, atol=1e-15)


@SOME
def test_the_right_way_on_rosenbrocks_function(kind):
    """Cyclic coordinate descent on it, from (1.5, 1.5), must not lead away from the minimum at (1, 1)."""
    p = Parameter(torch.tensor([1.5, 1.5], dtype=torch.float64))
    optimizer = kind.make([p], lr=1e-4)
    for step in range(200):
        x, y = p.detach()
        gradient = torch.stack([-400 * x * (y - x**2) - 2 * (1 - x), 200 * (y - x**2)])
        gradient[step % 2] = 0
        p.grad = gradient
        optimizer.step(lambda: None)
    assert p.detach().dist(torch.ones(2, dtype=torch.float64)) <= 0.5**0.5


# What is declared not to hold, each shown not to.

SHOWN = set()


def shows(declared):
    def take(test):
        SHOWN.add(declared)
        return test

    assert declared in DECLARED
    return take


@shows("groups are independent of each other")
def test_declared_groups_are_not_independent():
    def first_group(scale):
        params = new_params()
        optimizer = Neumann([{"params": params[:1]}, {"params": params[1:], "lr": 0.05 * scale}], lr=0.05, alpha=0.03)
        train(optimizer, params, range(6))
        return params[:1]

    assert relative(first_group(1), first_group(2)) > 1e-6
    independent = [new_params(), new_params()]
    for params, rate in zip(independent, (0.05, 0.1), strict=True):
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": rate}]
        train(Neumann(groups, lr=0.05, alpha=0, beta=0), params, range(6))
    assert same_bits(independent[0][:1], independent[1][:1])  # it is the norm alone


@shows("a rate of 0 freezes the weights")
@pytest.mark.parametrize("make", [Neumann, NesterovInner])
def test_declared_a_rate_of_zero_does_not_freeze(make):
    params = new_params()
    optimizer = make(params, lr=0.05)
    train(optimizer, params, range(6))
    before = copies(params)
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, params, [6])
    assert not same_bits(params, before)
    optimizer = make(params, lr=0.0)  # from the start it does
    before = copies(params)
    train(optimizer, params, range(5))
    assert same_bits(params, before)


@shows("every step moves the weights")
def test_declared_a_reset_moves_nothing():
    params = new_params()
    before = copies(params)
    train(Neumann(params, lr=0.05), params, [0])
    assert same_bits(params, before)


@shows("every loss of a run is below the one before")
def test_declared_losses_do_not_always_fall():
    weight, bias, loss_of = problem()
    optimizer = Neumann([weight, bias], lr=1e-3)
    losses = [optimizer.step(closure_of(optimizer, loss_of)).item() for _ in range(3)]
    assert losses[0] == losses[1] > losses[2]


@shows("complex parameters")
def test_declared_complex_parameters():
    with pytest.raises(ValueError, match="real floating-point"):
        Neumann([torch.zeros(2, dtype=torch.complex64)])
    parts = torch.view_as_real(torch.zeros(2, dtype=torch.complex64)).clone().requires_grad_()
    train(Neumann([parts], lr=0.05), [parts], range(3))
    assert parts.any()


@shows("differentiable=True")
def test_declared_no_graph_leads_through_the_step():
    with pytest.raises(TypeError, match="differentiable"):
        Neumann([torch.zeros(2)], differentiable=True)
    with pytest.raises(ValueError, match="non-leaf"):
        Neumann([torch.zeros(2, requires_grad=True).clone()])


@shows("sparse gradients")
def test_declared_sparse_gradients():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        Neumann(embedding.parameters()).step()


@shows("parameters of several optimizers, one for each layer")
def test_declared_an_optimizer_for_each_layer_is_another_method():
    together, apart = new_params(), new_params()
    setting = {"lr": 0.05, "alpha": 0.03, "beta": 0.05, "beta_count": "absolute"}
    train(Neumann(together, **setting), together, range(6))
    for index, p in enumerate(apart):
        optimizer = Neumann([p], **setting)
        for step in range(6):
            p.grad = gradient(p, index, step)
            optimizer.step()
    assert relative(together, apart) > 1e-4


def test_all_that_is_declared_is_shown_and_what_changes_habits_is_documented():
    assert set(DECLARED) == SHOWN
    assert "groups are not independent of each other" in Neumann.__doc__
    assert "lr = 0 does not\n    freeze the weights" in Neumann.__doc__
