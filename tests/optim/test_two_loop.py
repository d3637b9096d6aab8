"""Algorithm 1 is the truncated Neumann series of one function, whatever the network in it draws or counts."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from neumann.challenge.contracts import KEPT, contracts
from neumann.optim import TwoLoopNeumann, convexified, eval_point, points
from tests.support.optimizer_problems import copies, relative, same_bits

SIZE = 12


class Quadratic:
    """½ (w − c)ᵀ H (w − c) over two tensors of weights, with the eigenvalues of H given."""

    def __init__(self, *eigenvalues, at=1.0):
        draw = torch.Generator().manual_seed(0)
        basis, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=draw, dtype=torch.float64))
        self.hessian = basis @ torch.diag(torch.linspace(*eigenvalues, SIZE, dtype=torch.float64)) @ basis.T
        self.centre = torch.randn(SIZE, generator=draw, dtype=torch.float64)
        self.params = [nn.Parameter(torch.full((3, 2), at, dtype=torch.float64)), nn.Parameter(torch.zeros(6).double())]

    @property
    def w(self):
        return torch.cat([p.flatten() for p in self.params])

    def gradient(self):
        return (self.hessian @ (self.w - self.centre)).detach()

    def closure(self, optimizer):
        def evaluate():
            optimizer.zero_grad()
            loss = 0.5 * (self.w - self.centre) @ self.hessian @ (self.w - self.centre)
            loss.backward()
            return loss

        return evaluate

    def moved(self, optimizer):
        """Take a step; return how far it has moved the weights, and the gradient and the loss before it."""
        before, gradient = self.w.detach(), self.gradient()
        loss = optimizer.step(self.closure(optimizer))
        return self.w.detach() - before, gradient, loss


def series(matrix, gradient, terms):
    """−Σ matrixⁱ gradient, i = 0 … terms."""
    return -sum(torch.linalg.matrix_power(matrix, i) @ gradient for i in range(terms + 1))


EYE = torch.eye(SIZE, dtype=torch.float64)


@pytest.mark.parametrize("terms", [0, 1, 4, 40])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_iterate_is_the_truncated_neumann_series(terms, weight_decay):
    problem = Quadratic(0.1, 4.0)
    optimizer = TwoLoopNeumann(problem.params, 0.3, 0.7, terms, weight_decay=weight_decay)
    hessian = problem.hessian + weight_decay * EYE
    first = 0.5 * (problem.w - problem.centre) @ problem.gradient()
    gradient = problem.gradient() + weight_decay * problem.w.detach()
    moved, _, loss = problem.moved(optimizer)
    m = series(EYE - 0.3 * hessian, gradient, terms)
    assert (moved - 0.7 * m).abs().max() < 1e-10
    assert loss.item() == pytest.approx(first.item(), rel=1e-14)  # at the weights that the step began with
    assert optimizer.gradient_evaluations == terms + 1
    if terms == 40:  # η_in m tends to the Newton direction
        newton = -torch.linalg.solve(hessian, gradient)
        assert (0.3 * m - newton).norm() < 0.35 * newton.norm()


def test_without_inner_steps_it_is_plain_sgd():
    problem, other = Quadratic(0.1, 4.0), Quadratic(0.1, 4.0)
    optimizer = TwoLoopNeumann(problem.params, 0.3, 0.1, 0)
    sgd = torch.optim.SGD(other.params, 0.1)
    for _ in range(5):
        problem.moved(optimizer)
        other.moved(sgd)
    assert relative(problem.params, other.params) < 1e-15


def test_the_patents_one_rate_follows_the_schedule_and_groups_have_rates_of_their_own():
    problem = Quadratic(0.1, 4.0)
    optimizer = TwoLoopNeumann([{"params": [problem.params[0]]}, {"params": [problem.params[1]]}], None, 0.4, 5)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)  # which sets the rate at once
    moved, gradient, _ = problem.moved(optimizer)
    assert (moved - 0.2 * series(EYE - 0.2 * problem.hessian, gradient, 5)).abs().max() < 1e-10
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.param_groups[1].update(lr=0.05, lr_in=0.2)
    moved, gradient, _ = problem.moved(optimizer)
    inner, outer = (torch.tensor([a] * 6 + [b] * 6, dtype=torch.float64) for a, b in ((0.1, 0.2), (0.1, 0.05)))
    assert (moved - outer * series(EYE - problem.hessian * inner, gradient, 5)).abs().max() < 1e-10


def test_the_convexified_iteration_converges_where_the_loss_is_not_convex():
    problem = Quadratic(-1.0, 4.0)
    mu, eta = convexified(largest=4.0, smallest=-1.0)
    assert (mu, eta) == (0.8, 0.25)
    optimizer = TwoLoopNeumann(problem.params, eta, eta, 6, mu=mu)
    moved, gradient, _ = problem.moved(optimizer)
    within = mu * (EYE - eta * problem.hessian)
    assert (moved - eta * series(within, gradient, 6)).abs().max() < 1e-10
    problem = Quadratic(-0.9, 4.0)  # within the bounds: B̂ is positive definite
    moved, gradient, _ = problem.moved(TwoLoopNeumann(problem.params, eta, eta, 1500, mu=mu))
    solution = -torch.linalg.solve((1 - mu) * EYE + mu * eta * problem.hessian, eta * gradient)
    assert (moved - solution).abs().max() < 1e-9
    assert convexified(2.0, 0.0) == (1.0, 0.5)


def test_both_regularizers_are_those_of_the_paper():
    """Against autograd of ĝ(w) = f̂(w) + (α/3)‖w − v‖³ + β/‖w − v‖, with v kept as it is printed."""
    problem = Quadratic(0.1, 4.0)
    alpha, beta, gamma, mu, eta, rate = 0.05, 0.02, 0.9, 0.8, 0.2, 0.1
    optimizer = TwoLoopNeumann(
        problem.params, eta, rate, 3, mu=mu, alpha=alpha, beta=beta / 2, gamma=gamma, min_distance=0.0
    )
    w = problem.w.detach().clone()
    v = w.clone()

    def gradient(at):
        at = at.detach().requires_grad_()
        value = 0.5 * (at - problem.centre) @ problem.hessian @ (at - problem.centre)
        distance = (at - v).norm()
        if distance > 0:
            value = value + alpha / 3 * distance**3 + beta / distance
        return torch.autograd.grad(value, at)[0]

    for _ in range(4):
        m = -gradient(w)
        for _ in range(3):
            m = mu * m - gradient(w + mu * eta * m)
        w = w + rate * m
        v = w + gamma * (v - w)
        problem.moved(optimizer)
        assert (problem.w.detach() - w).abs().max() < 1e-10
    kept = torch.cat([optimizer.state[p]["r"].flatten() for p in problem.params])
    assert (kept - (w - v)).abs().max() < 1e-10


class Drawing:
    """A network with batch norm and dropout, and a batch."""

    def __init__(self, dtype=torch.float64):
        torch.manual_seed(0)
        layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.model = nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(8, 3)).to(dtype)
        self.inputs, self.labels = torch.randn(16, 6, dtype=dtype), torch.arange(16) % 3

    def loss(self):
        return cross_entropy(self.model(self.inputs), self.labels)

    def closure(self, optimizer):
        def evaluate():
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        return evaluate


def test_its_gradients_are_of_one_function_with_dropout_and_batch_norm_in_it():
    problem = Drawing()
    model = problem.model
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    begun = torch.get_rng_state()

    def gradient(at):
        torch.set_rng_state(begun)
        leaves = {name: value.clone().requires_grad_() for name, value in at.items()}
        counted = {name: b.clone() for name, b in buffers.items()}
        loss = cross_entropy(functional_call(model, {**leaves, **counted}, problem.inputs), problem.labels)
        return dict(zip(leaves, torch.autograd.grad(loss, [*leaves.values()]), strict=True))

    m = {name: -g for name, g in gradient(weights).items()}
    for _ in range(3):
        g = gradient({name: w + 0.4 * m[name] for name, w in weights.items()})
        m = {name: m[name] - g[name] for name in m}
    expected = [w + 0.1 * m[name] for name, w in weights.items()]
    torch.set_rng_state(begun)
    optimizer = TwoLoopNeumann(model.parameters(), 0.4, 0.1, 3, model=model)
    optimizer.step(problem.closure(optimizer))
    assert relative([*model.parameters()], expected) < 1e-14


def test_streams_and_running_statistics_are_as_after_one_forward_pass():
    one, plain = Drawing(), Drawing()
    optimizer = TwoLoopNeumann(one.model.parameters(), 0.4, 0.1, 3, model=one.model)
    torch.manual_seed(5)
    plain.loss()
    expected = torch.get_rng_state()
    torch.manual_seed(5)
    optimizer.step(one.closure(optimizer))
    assert torch.equal(torch.get_rng_state(), expected)
    for buffer, other in zip(one.model.buffers(), plain.model.buffers(), strict=True):
        assert torch.equal(buffer, other)
    assert one.model[1].num_batches_tracked == 1
    one, optimizer = copy.deepcopy((one, optimizer))  # the copy keeps its model
    optimizer.step(one.closure(optimizer))
    assert one.model[1].num_batches_tracked == 2


def test_without_its_model_the_buffers_move_with_every_gradient():
    problem = Drawing()
    optimizer = TwoLoopNeumann(problem.model.parameters(), 0.4, 0.1, 3)
    optimizer.step(problem.closure(optimizer))
    assert problem.model[1].num_batches_tracked == 4


@pytest.mark.parametrize("around", [False, True], ids=["within the closure", "around the step"])
def test_under_autocast_each_gradient_is_at_its_own_point(around):
    """A block around the whole step keeps casts of the weights, which must not outlive a move."""

    def run(terms, cache):
        problem = Drawing(torch.float32)
        optimizer = TwoLoopNeumann(problem.model.parameters(), 0.4, 0.1, terms, model=problem.model)
        plain = problem.closure(optimizer)

        def casting():
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
                return plain()

        torch.manual_seed(1)
        if cache and around:
            with torch.autocast("cpu", torch.bfloat16):
                optimizer.step(plain)
        else:
            optimizer.step(casting)
        return [p.detach() for p in problem.model.parameters()]

    assert same_bits(run(3, cache=True), run(3, cache=False))
    assert not same_bits(run(3, cache=True), run(2, cache=True))


@pytest.mark.parametrize("at", [0, 1, 3])
def test_an_error_of_the_closure_leaves_the_weights_where_they_were(at):
    problem = Drawing()
    optimizer = TwoLoopNeumann(problem.model.parameters(), 0.4, 0.1, 3, model=problem.model)
    plain, calls = problem.closure(optimizer), []

    def failing():
        calls.append(len(calls))
        if calls[-1] == at:
            raise ZeroDivisionError
        return plain()

    before = copies([*problem.model.parameters()])
    with pytest.raises(ZeroDivisionError):
        optimizer.step(failing)
    assert same_bits([*problem.model.parameters()], before)
    assert problem.model[1].num_batches_tracked == min(at, 1)


def test_the_weights_are_the_answer():
    problem = Quadratic(0.1, 4.0)
    optimizer = TwoLoopNeumann(problem.params, 0.3, 0.1, 3)
    assert points(optimizer) == ("held",)
    assert eval_point(optimizer) == "held"


def made(params, lr=0.1, **settings):
    return TwoLoopNeumann(params, settings.pop("lr_in", 0.2), lr, settings.pop("inner_steps", 3), **settings)


def test_it_keeps_what_torchs_users_expect_but_needs_a_closure_as_lbfgs_does():
    found = contracts(made)
    assert "needs a closure" in found.pop("steps without a closure")
    assert set(found.values()) == {KEPT}


def through_a_file(optimizer, params):
    file = io.BytesIO()
    torch.save({"params": copies(params), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    members = [p.requires_grad_() for p in saved["params"]]
    other = made(members)
    other.load_state_dict(saved["optimizer"])
    return other, members


COPIES = {
    "state_dict": through_a_file,
    "deepcopy": lambda *pair: copy.deepcopy(pair),
    "pickle": lambda *pair: pickle.loads(pickle.dumps(pair)),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_copies_go_on_alike_with_the_average_in_float32(duplicate, dtype):
    def closure(optimizer, params):
        def evaluate():
            optimizer.zero_grad()
            loss = sum((0.5 * p.square() + torch.sin(p)).sum() for p in params)
            loss.backward()
            return loss

        return evaluate

    params = [nn.Parameter(torch.linspace(-1, 1, 7).to(dtype)), nn.Parameter(torch.ones(()).to(dtype))]
    optimizer = made(params, alpha=0.1, beta=0.1, mu=0.9, weight_decay=0.01)
    for _ in range(3):
        optimizer.step(closure(optimizer, params))
    other, members = duplicate(optimizer, params)
    assert members[0] is not params[0]
    assert {state["r"].dtype for state in other.state.values()} == {torch.promote_types(dtype, torch.float32)}
    for _ in range(3):
        optimizer.step(closure(optimizer, params))
        other.step(closure(other, members))
    assert same_bits(members, params)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"lr": -1.0}, "lr must be a finite number >= 0"),
        ({"lr_in": math.nan}, "lr_in must be a finite number >= 0"),
        ({"inner_steps": 2.5}, "inner_steps must be a whole number >= 0"),
        ({"inner_steps": -1}, "inner_steps must be a whole number >= 0"),
        ({"mu": 1.5}, "mu must be a finite number >= 0 and <= 1"),
        ({"gamma": 1.0}, "gamma must be a finite number >= 0 and < 1"),
        ({"inner_data": "some"}, "inner_data must be one of 'same', 'chunks', 'fresh'"),
        ({"solver": "newton"}, "solver must be one of 'series', 'series_exact', 'cg'"),
        ({"beta_count": "tensor"}, "did you mean 'tensors'"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"alpha": "much"}, "alpha must be"),
        ({"min_distance": -1}, "min_distance must be"),
    ],
)
def test_what_is_not_valid_is_refused_at_once_and_later(setting, said):
    params = Quadratic(0.1, 4.0).params
    with pytest.raises(ValueError, match=said):
        made(params, **setting)
    optimizer = made(params)
    optimizer.param_groups[0].update(setting)
    with pytest.raises(ValueError, match=r"param_groups\[0\]: .*" + said):
        optimizer.step(lambda: 0.0)
    saved = made(params).state_dict()
    saved["param_groups"][0].update(setting)
    with pytest.raises(ValueError, match=said):
        made(params).load_state_dict(saved)


def test_other_misuse_is_told():
    params = Quadratic(0.1, 4.0).params
    with pytest.raises(ValueError, match="did you mean 'lr'"):
        made([{"params": params, "learning_rate": 0.1}])
    with pytest.raises(ValueError, match=r"largest must be a finite number > 0"):
        convexified(0.0, -1.0)
    with pytest.raises(ValueError, match="smallest must be"):
        convexified(1.0, math.nan)
    with pytest.raises(ValueError, match="real floating-point"):
        made([torch.zeros(2, dtype=torch.complex64)])
    optimizer = made([{"params": params[:1]}, {"params": params[1:]}])
    optimizer.param_groups[1]["inner_steps"] = 7
    with pytest.raises(ValueError, match=r"inner_steps belongs to the loop, .* is 3, 7"):
        optimizer.step(lambda: 0.0)
    with pytest.raises(ValueError, match="was not saved by TwoLoopNeumann"):
        made(params).load_state_dict(torch.optim.SGD(params, 0.1).state_dict())
    saved = made(params).state_dict()
    saved["state"][0] = {"r": torch.zeros(5)}
    with pytest.raises(ValueError, match=r"'r' .* has the shape \(5,\)"):
        made(params).load_state_dict(saved)
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = made(embedding.parameters())
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step(lambda: embedding(torch.tensor([1])).sum().backward())


def test_a_gradient_scaler_is_refused_in_one_sentence():
    p = nn.Parameter(torch.ones(3))
    optimizer, scaler = made([p]), torch.amp.GradScaler("cpu")
    scaler.scale(p.square().sum()).backward()
    with pytest.raises(RuntimeError, match=r"needs a closure .* train in bfloat16 or float32"):
        scaler.step(optimizer)


@pytest.mark.parametrize("data", ["chunks", "fresh"])
def test_other_data_is_asked_for_by_its_number_and_nothing_is_put_back(data):
    problem = Drawing()
    model, start = problem.model, copy.deepcopy(problem.model.state_dict())
    optimizer = TwoLoopNeumann(model.parameters(), 0.4, 0.1, 3, data, model=model)
    asked = []

    def closure(k):
        asked.append(k)
        optimizer.zero_grad()
        loss = cross_entropy(model(problem.inputs.chunk(4)[k]), problem.labels.chunk(4)[k])
        loss.backward()
        return loss

    torch.manual_seed(2)
    returned = optimizer.step(closure)
    found = copies([*model.parameters()]), torch.get_rng_state()
    assert asked == [0, 1, 2, 3]
    assert model[1].num_batches_tracked == 4
    model.load_state_dict(start)
    torch.manual_seed(2)
    w = copies([*model.parameters()])
    first = closure(0)
    assert torch.equal(first, returned)
    m = [-p.grad for p in model.parameters()]
    for k in (1, 2, 3):
        with torch.no_grad():
            for p, w_p, m_p in zip(model.parameters(), w, m, strict=True):
                p.copy_(w_p + 0.4 * m_p)
        closure(k)
        m = [m_p - p.grad for m_p, p in zip(m, model.parameters(), strict=True)]
    assert relative(found[0], [w_p + 0.1 * m_p for w_p, m_p in zip(w, m, strict=True)]) < 1e-14
    assert torch.equal(found[1], torch.get_rng_state())


def graphed(problem, optimizer):
    """The closure of ``problem`` for exact products."""

    def evaluate():
        optimizer.zero_grad()
        loss = problem.loss()
        grads = torch.autograd.grad(loss, [*problem.params], create_graph=True)
        for p, g in zip(problem.params, grads, strict=True):
            p.grad = g
        return loss

    return evaluate


class Curved(Drawing):
    """The same as a problem whose loss is not quadratic, without what draws."""

    def __init__(self):
        super().__init__()
        self.model[2].p = self.model[6].p = 0.0
        self.params = [*self.model.parameters()]

    def hessian(self):
        flat = torch.cat([p.detach().flatten() for p in self.params])
        names, shapes = zip(*((name, p.shape) for name, p in self.model.named_parameters()), strict=True)

        def loss(vector):
            parts = vector.split([shape.numel() for shape in shapes])
            weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
            return cross_entropy(functional_call(self.model, weights, self.inputs), self.labels)

        matrix = torch.autograd.functional.hessian(loss, flat)
        return matrix, torch.autograd.functional.jacobian(loss, flat), flat


@pytest.mark.parametrize("solver", ["series_exact", "cg"])
def test_with_exact_products_it_is_exact_where_the_loss_is_not_quadratic(solver):
    problem = Curved()
    matrix, gradient, flat = problem.hessian()
    decay = 0.05
    matrix, gradient = matrix + decay * torch.eye(len(flat), dtype=flat.dtype), gradient + decay * flat
    smallest, *_, largest = torch.linalg.eigvalsh(matrix).tolist()
    assert smallest < 0  # it is not convex there
    mu, eta = convexified(1.1 * largest, 1.1 * smallest)
    optimizer = TwoLoopNeumann(problem.params, eta, 0.5, 4, mu=mu, weight_decay=decay, solver=solver)
    optimizer.step(graphed(problem, optimizer))
    moved = torch.cat([p.detach().flatten() for p in problem.params]) - flat
    system = (1 - mu) * torch.eye(len(flat), dtype=flat.dtype) + mu * eta * matrix
    if solver == "series_exact":
        expected = series(torch.eye(len(flat), dtype=flat.dtype) - system, gradient, 4)
    else:  # the best of the Krylov space, in the norm of the system
        basis = torch.stack([torch.linalg.matrix_power(system, i) @ gradient for i in range(4)], dim=1)
        within, _ = torch.linalg.qr(basis)
        expected = -within @ torch.linalg.solve(within.T @ system @ within, within.T @ gradient)
    assert (moved - 0.5 * expected).norm() < 1e-9 * expected.norm()
    assert optimizer.gradient_evaluations == 1 + 2 * 4
    assert not any(p.grad.requires_grad for p in problem.params)


def test_on_a_quadratic_exact_products_change_nothing_and_conjugate_gradients_solve_it():
    """Regularizers included, whose gradient is taken at the displaced point in both."""
    setting = {"mu": 0.9, "alpha": 0.1, "beta": 0.01, "weight_decay": 0.1}
    ends = []
    for solver in ("series", "series_exact"):
        problem = Quadratic(0.1, 4.0)
        problem.loss = lambda of=problem: 0.5 * (of.w - of.centre) @ of.hessian @ (of.w - of.centre)
        optimizer = TwoLoopNeumann(problem.params, 0.2, 0.1, 5, solver=solver, **setting)
        for _ in range(3):
            optimizer.step(graphed(problem, optimizer))
        ends.append(copies(problem.params))
    assert relative(*ends) < 1e-12
    problem = Quadratic(0.1, 4.0)
    problem.loss = lambda: 0.5 * (problem.w - problem.centre) @ problem.hessian @ (problem.w - problem.centre)
    optimizer = TwoLoopNeumann(problem.params, 0.2, 0.2, SIZE, solver="cg")
    optimizer.step(graphed(problem, optimizer))
    assert (problem.w - problem.centre).abs().max() < 1e-10


def test_conjugate_gradients_stop_where_the_loss_is_not_convex():
    problem = Quadratic(-2.0, -0.5)
    problem.loss = lambda: 0.5 * (problem.w - problem.centre) @ problem.hessian @ (problem.w - problem.centre)
    gradient, before = problem.gradient(), problem.w.detach()
    optimizer = TwoLoopNeumann(problem.params, 0.2, 0.1, 5, solver="cg")
    optimizer.step(graphed(problem, optimizer))
    assert torch.allclose(problem.w.detach() - before, -0.1 * gradient, rtol=1e-14)
    assert optimizer.gradient_evaluations == 1 + 2


def test_a_product_costs_two_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    weights = [*model.parameters()]
    with FlopCounterMode(display=False) as once:
        grads = torch.autograd.grad(cross_entropy(model(images), labels), weights, create_graph=True)
    with FlopCounterMode(display=False) as product:
        torch.autograd.grad(grads, weights, [torch.ones_like(p) for p in weights])
    assert product.get_total_flops() == pytest.approx(2 * once.get_total_flops(), rel=0.15)


def test_what_exact_products_need_is_told():
    problem = Curved()
    for setting, said in (
        ({"inner_data": "fresh"}, "takes its products on the frozen batch"),
        ({"beta": 0.1}, "alpha and beta would not leave it"),
        ({"inner_steps": 0}, "inner_steps must be a whole number >= 1 for solver='cg'"),
    ):
        with pytest.raises(ValueError, match=said):
            made(problem.params, solver="cg", **setting)
    idle = nn.Parameter(torch.ones(2))
    assert made([idle], solver="cg").step(lambda: 1.0) == 1.0
    assert made([idle], solver="series_exact").step(lambda: 1.0) == 1.0
    assert torch.equal(idle, torch.ones(2))
    optimizer = made(problem.params, solver="series_exact")
    before = copies(problem.params)
    with pytest.raises(RuntimeError, match=r"call loss.backward\(create_graph=True\) in the closure"):
        optimizer.step(problem.closure(optimizer))
    assert same_bits(problem.params, before)
    optimizer = made([{"params": problem.params[:1]}, {"params": problem.params[1:], "lr_in": 0.1}], solver="cg")
    with pytest.raises(ValueError, match="needs a symmetric matrix"):
        optimizer.step(graphed(problem, optimizer))


def test_attention_has_exact_products_too():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    words = torch.randn(4, 5, 8)

    class Attending:
        def __init__(self):
            self.params = [*layer.parameters()]

        def loss(self):
            return layer(words).square().mean()

    problem, before = Attending(), copies([*layer.parameters()])
    optimizer = made(problem.params, solver="series_exact")
    optimizer.step(graphed(problem, optimizer))
    assert all(torch.isfinite(p).all() for p in problem.params)
    assert not same_bits(problem.params, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_mask_is_the_same_for_every_gradient_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Linear(32, 3)).cuda()
    inputs, masks = torch.randn(16, 6, device="cuda"), []
    model[1].register_forward_hook(lambda _, given, out: masks.append(out == 0))
    optimizer = TwoLoopNeumann(model.parameters(), 0.4, 0.1, 3, model=model)

    def closure():
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    before = torch.cuda.get_rng_state()
    optimizer.step(closure)
    after = torch.cuda.get_rng_state()
    assert len(masks) == 4
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    torch.cuda.set_rng_state(before)
    model(inputs)
    assert torch.equal(torch.cuda.get_rng_state(), after)
