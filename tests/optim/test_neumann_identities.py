"""Properties of the algorithm, independent of its code: identities, the pole, the reset epochs of the paper."""

import math
import warnings

import pytest
import torch

from neumann.optim import NesterovInner, Neumann, at
from neumann.optim.momentum_and_resets import is_reset
from neumann.optim.phases import Phase
from tests.support.optimizer_problems import copies, gradient, new_params, relative, same_bits, set_gradients, train

BOTH = pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])


def drop(optimizer, step):
    for group in optimizer.param_groups:
        group["lr"] = 0.05 / (1 + step / 20)


@BOTH
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("maximize", [False, True])
def test_without_regularizers_it_is_torchs_nesterov(foreach, weight_decay, maximize):
    shared = {"lr": 0.02, "momentum": 0.9, "weight_decay": weight_decay, "maximize": maximize}
    params, rivals = new_params(), new_params()
    ours = Neumann(params, alpha=0, beta=0, foreach=foreach, **shared)
    sgd = torch.optim.SGD(rivals, nesterov=True, **shared)
    set_gradients(rivals, 1)
    for p in rivals:  # started from buf = g_1, which the reset at t = 1 makes m_1 = −η g_1
        sign = -1 if maximize else 1
        sgd.state[p]["momentum_buffer"] = sign * p.grad + weight_decay * p.detach()
    train(ours, params, [1])
    assert same_bits(params, rivals)
    for step in range(2, 201 if not maximize else 40):
        train(ours, params, [step])
        train(sgd, rivals, [step])
        assert relative(params, rivals) < 2e-14
        with at(ours, "base"), at(sgd, "base"):
            assert relative(params, rivals) < 2e-14


@BOTH
def test_under_a_changing_rate_it_is_nesterov_with_the_rate_inside(foreach):
    params, rivals, apart = new_params(), new_params(), new_params()
    ours = Neumann(params, lr=0.05, alpha=0, beta=0, momentum=0.9, foreach=foreach)
    inner = NesterovInner(rivals, lr=0.05, momentum=0.9, foreach=foreach)
    torchs = torch.optim.SGD(apart, lr=0.05, momentum=0.9, nesterov=True)
    drop(ours, 1)
    for index, (p, q) in enumerate(zip(rivals, apart, strict=True)):
        g = gradient(p, index, 1)
        inner.state[p].update(m=-ours.param_groups[0]["lr"] * g, coefficient=0.0)
        torchs.state[q]["momentum_buffer"] = g
    train(ours, params, [1])
    for step in range(2, 200):
        for optimizer, members in ((ours, params), (inner, rivals), (torchs, apart)):
            drop(optimizer, step)
            train(optimizer, members, [step])
        assert relative(params, rivals) < 1e-14
        with at(ours, "base"), at(inner, "base"):
            assert relative(params, rivals) < 1e-14
    assert relative(apart, params) > 1e-3  # torch's form is another method here


@BOTH
def test_burn_in_is_plain_sgd_and_leaves_v_at_the_start(foreach):
    params, rivals, start = new_params(), new_params(), new_params()
    ours = Neumann(params, lr=0.05, burn_in_steps=30, alpha=1.0, beta=1.0, weight_decay=0.1, foreach=foreach)
    sgd = torch.optim.SGD(rivals, lr=0.05, weight_decay=0.1)
    train(ours, params, range(30))
    train(sgd, rivals, range(30))
    assert relative(params, rivals) < 1e-14
    with at(ours, "average"):
        assert relative(params, start) < 1e-14
    before = copies(params)
    ours.eval()
    assert same_bits(params, before)  # nothing is displaced yet
    ours.train()
    train(ours, params, [30])
    assert same_bits(params, before)  # the first step after it is a reset


def test_the_answer_takes_a_gradient_step_from_the_held_point():
    """w_t − μ_t m_t = w_{t−1} − η d_t, where d is the gradient with the regularizers' (step 5's reset aside)."""
    params = new_params()
    ours = Neumann(params, lr=0.05, alpha=0.02, beta=0.01, reset_period=4, reset_rule="absolute")
    beta = ours.beta_total(ours.param_groups[0])
    assert beta == pytest.approx(0.03)
    for t in range(1, 60):
        set_gradients(params, t)
        held, grads = copies(params), [p.grad.clone() for p in params]
        with at(ours, "average"):
            rs = [w - v.detach() for w, v in zip(held, params, strict=True)]
        norm = math.sqrt(sum(float((r**2).sum()) for r in rs))
        ours.step()
        with at(ours, "base"):
            answer = copies(params)
        if is_reset(t, 4, 2.0, "absolute"):
            assert same_bits(params, held)
            assert same_bits(answer, held)
        else:
            c = (0.02 * norm**2 - beta / norm**2) / norm if norm >= math.sqrt(beta) else 0.02 * norm - beta**-0.5
            c = c if norm else 0.0
            expected = [w - 0.05 * (g + c * r) for w, g, r in zip(held, grads, rs, strict=True)]
            assert relative(answer, expected) < 1e-13, f"step {t}"


def test_the_average_is_the_moving_average_of_the_weights():
    params = new_params()
    ours = Neumann(params, lr=0.05, gamma=0.9, reset_period=10)
    average = copies(params)
    for t in range(1, 50):
        train(ours, params, [t])
        if not is_reset(t, 10):
            average = [0.9 * v + 0.1 * w.detach() for v, w in zip(average, params, strict=True)]
        with at(ours, "average"):
            assert relative(params, average) < 1e-13


def test_the_repulsion_drifts_at_its_steady_distance():
    """Zero gradients after a nudge: r³ = γ/(1−γ) · η/(1−μ) · β."""
    params = new_params()
    ours = Neumann(params, lr=0.1, alpha=0, beta=1e-2, beta_count="absolute", gamma=0.9, momentum=0.5)
    for step in range(400):
        for p in params:
            p.grad = torch.randn_like(p) * 1e-3 if step < 3 else torch.zeros_like(p)
        ours.step()
    assert float(ours.distance()) ** 3 == pytest.approx(0.9 / 0.1 * 0.1 / 0.5 * 1e-2, rel=1e-6)


def push_norm(distance: float, *, dtype=torch.float64, foreach=False, **setting) -> float:
    """The norm of the regularizers' gradient at ‖w − v‖ = ``distance``, measured by a step without momentum."""
    p = torch.zeros(50, dtype=dtype, requires_grad=True)
    ours = Neumann([p], lr=1.0, momentum=0.0, alpha=0, foreach=foreach, **setting)
    p.grad = torch.zeros_like(p)
    ours.step()
    ours.state[p]["r"][:25] = distance / 5  # the other half is exactly at v
    ours.step()
    assert torch.isfinite(p).all()
    assert torch.isfinite(ours.state[p]["r"]).all()
    return float(p.detach().double().norm())


@BOTH
@pytest.mark.parametrize("count", ["tensors", "scalars"])
def test_the_default_guard_bounds_the_push_by_one(foreach, count):
    beta = 1e-5 * (50 if count == "scalars" else 1)
    setting = {"beta_count": count, "foreach": foreach}
    edge = math.sqrt(beta)
    assert push_norm(edge, **setting) == pytest.approx(1)
    assert push_norm(2 * edge, **setting) == pytest.approx(1 / 4)  # outside it, the paper's β/‖r‖²
    assert push_norm(edge / 10, **setting) == pytest.approx(1 / 10)
    for tiny in (1e-6, 1e-12, 1e-30, 1e-150):
        assert push_norm(tiny, **setting) <= 1


@BOTH
def test_the_literal_pole_follows_the_formula(foreach):
    for distance in (1.0, 1e-2, 1e-4):
        measured = push_norm(distance, min_distance=0.0, foreach=foreach)
        assert measured == pytest.approx(1e-5 / distance**2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("min_distance", [None, 0.0, 1e-3])
@pytest.mark.parametrize("distance", [0.0, 1e-45, 1e-20, 1e-7, 1e-3])
def test_no_distance_gives_inf_or_nan(dtype, min_distance, distance):
    literal_half = dtype == torch.float16 and min_distance == 0.0  # its own largest number is 65504
    measured = push_norm(distance, dtype=dtype, min_distance=min_distance) if not literal_half else 0.0
    assert math.isfinite(measured)
    if distance == 0:
        assert measured == 0


@pytest.mark.parametrize("min_distance", [None, 0.0, 0.5])
def test_the_coefficient_of_the_push(min_distance):
    group = {"lr": 0.1, "alpha": 0.2, "min_distance": min_distance, "gamma": 0.99, "momentum": 0.9, "momentum_unit": 1}
    group |= {"burn_in_steps": 0, "reset_period": None, "reset_growth": 2.0, "reset_rule": "countdown"}
    phase = Phase.of_step(2, group, 0.09)

    def c(distance):
        return float(phase.push(torch.tensor(distance, dtype=torch.float64)))

    assert c(0.0) == 0
    assert c(2.0) == pytest.approx(0.2 * 2 - 0.09 / 2**3)
    delta = 0.3 if min_distance is None else min_distance
    assert c(0.01) == pytest.approx(0.2 * 0.01 - 0.09 / max(0.01, delta) ** 3)


@BOTH
@pytest.mark.parametrize("min_distance", [None, 0.0])
def test_at_the_average_there_is_no_push(foreach, min_distance):
    params = new_params()
    ours = Neumann(params, lr=0.1, beta=1.0, alpha=1.0, min_distance=min_distance, foreach=foreach)
    start = copies(params)
    for _ in range(5):
        for p in params:
            p.grad = torch.zeros_like(p)
        ours.step()
    assert same_bits(params, start)


@pytest.mark.parametrize(("rule", "epochs"), [("absolute", [5, 25, 45, 85, 165]), ("countdown", [5, 15, 35, 75, 155])])
def test_the_papers_recipe_resets_at_the_papers_epochs(rule, epochs):
    p = torch.zeros(2, requires_grad=True)
    ours = Neumann.paper([p], 0.1, steps_per_epoch=4, reset_rule=rule, beta=0.0)
    moved = []
    for _ in range(4 * 250):
        before = p.detach().clone()
        p.grad = torch.ones_like(p)
        ours.step()
        moved.append(not torch.equal(p, before))
    assert [step for step, did in enumerate(moved) if not did] == [4 * epoch for epoch in epochs]


def test_the_papers_recipe():
    group = Neumann.paper([torch.zeros(1)], 0.3, steps_per_epoch=100, gamma=0.9).param_groups[0]
    assert (group["lr"], group["alpha"], group["beta"], group["beta_count"]) == (0.3, 1e-7, 1e-5, "tensors")
    assert (group["momentum"], group["momentum_unit"], group["reset_rule"]) == ((0.5, 0.9), 1, "countdown")
    assert (group["burn_in_steps"], group["reset_period"], group["reset_growth"]) == (500, 1000, 2.0)
    assert group["gamma"] == 0.9  # an override
    few = Neumann.paper([torch.zeros(1)], 0.3, steps_per_epoch=1.6).param_groups[0]  # batch 32k on CIFAR-10
    assert (few["burn_in_steps"], few["reset_period"]) == (8, 16)


def test_frozen_parameters_count_for_beta_and_in_the_norm():
    params = new_params()
    params[0].requires_grad_(False)
    ours = Neumann([{"params": params[:1]}, {"params": params[1:], "beta_count": "scalars"}], beta=0.5)
    assert ours.beta_total(ours.param_groups[0]) == 0.5 * 3
    assert ours.beta_total(ours.param_groups[1]) == 0.5 * (12 + 5 + 1)

    params = new_params()
    ours = Neumann(params, lr=0.05, burn_in_steps=5)
    train(ours, params, range(20))
    share = ours.state[params[0]]["r"].norm()
    train(ours, params, range(20, 30), has=lambda index, step: index > 0)
    assert ours.state[params[0]]["r"].norm() == share
    assert float(ours.distance()) > float(share)


def test_the_papers_recipe_on_a_run_that_never_leaves_its_burn_in_says_so_once() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = Neumann.paper([p], 0.1, steps_per_epoch=2)
    optimizer.eval()  # before the first step there is nothing to say
    optimizer.train()
    p.grad = torch.ones(3)
    for _ in range(3):
        optimizer.step()
    with pytest.warns(UserWarning, match=r"at step 3, within its burn-in of 10 steps, which is plain SGD"):
        optimizer.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.train()
        optimizer.eval()
        optimizer.train()
        other = Neumann.paper([p], 0.1, steps_per_epoch=2)
        for _ in range(11):
            other.step()
        other.eval()  # it has begun by now
        own = Neumann([p], 0.1, burn_in_steps=100)  # the caller's own number
        own.step()
        own.eval()
