"""Products with the Hessian and the Gauss-Newton matrix are those of the exact matrices, whatever the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy, mse_loss

from neumann.curvature import extreme_eigenvalues, gauss_newton_operator, hessian_operator
from neumann.models.ghost_batch_norm import use_ghost_batches
from tests.support.known_curvature import dense, exact_gauss_newton, exact_hessian, probed

N = 12  # examples


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mixed(x.reshape(len(x), 2, 1, 4)).transpose(1, 2).chunk(3, dim=-1)
        out: Tensor = self.head(functional.scaled_dot_product_attention(q, k, v).mean(dim=(1, 2)))
        return out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return out


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)),
        nn.Conv2d(2, 3, 2, padding=1),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Conv2d(3, 3, 2),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(12, 3),
        nn.BatchNorm1d(3),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)),
    "relu in place": lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 4), nn.Linear(4, 3)),
    "convolutions and batch norm": convolutional,
    "attention": Attention,
    "tied, frozen and unused weights": Tied,
}


def made(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in float64 and training mode, with running statistics of its own, and a batch."""
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    images, labels = torch.randn(N, 8, dtype=torch.float64), torch.randint(3, (N,))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean, part.running_var = torch.randn(3).double() / 4, torch.rand(3).double() + 0.5
    return model.train(), images, labels


def cut(images: Tensor, labels: Tensor, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sizes", [(N,), (5, 4, 3)], ids=["one batch", "three of unequal sizes"])
def test_products_are_those_of_the_exact_matrices(name: str, sizes: tuple[int, ...]) -> None:
    model, images, labels = made(name)
    batches = cut(images, labels, *sizes)
    hessian, gauss_newton = (make(model, cross_entropy, batches) for make in (hessian_operator, gauss_newton_operator))
    assert all(part.training for part in model.modules())
    exact = exact_hessian(copy.deepcopy(model), cross_entropy, images, labels)
    torch.testing.assert_close(probed(hessian), probed(exact))
    other = exact_gauss_newton(copy.deepcopy(model), cross_entropy, images, labels)
    torch.testing.assert_close(probed(gauss_newton), probed(other))
    assert (exact - other).abs().max() > 1e-3  # they are two matrices
    assert hessian.examples == N


def test_a_loss_that_is_linear_in_the_weights_has_no_hessian() -> None:
    model = nn.Linear(3, 2).double()
    batches = [(torch.randn(4, 3).double(), torch.zeros(4))]
    operator = hessian_operator(model, lambda out, _: out.mean(), batches)
    assert not dense(operator).any()
    found = extreme_eigenvalues(operator)
    assert (found.largest, found.smallest, found.mu, found.eta, found.converged) == (0, 0, None, None, True)
    assert not dense(gauss_newton_operator(model, lambda out, _: out.mean(), batches)).any()


def test_squared_errors_of_a_linear_network_have_the_closed_form() -> None:
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    model = nn.Linear(4, 2, bias=False).double()
    closed = torch.kron(torch.eye(2).double(), x.T @ x) * 2 / (9 * 2)  # the mean over examples and outputs
    for make in (hessian_operator, gauss_newton_operator):
        operator = make(model, mse_loss, [(x[:4], y[:4]), (x[4:], y[4:])])
        torch.testing.assert_close(dense(operator), closed, rtol=1e-12, atol=1e-12)
        found = extreme_eigenvalues(operator, tolerance=1e-10)
        values = torch.linalg.eigvalsh(closed)
        assert (found.smallest, found.largest) == pytest.approx((float(values[0]), float(values[-1])), abs=1e-12)


def test_logistic_regression_has_the_closed_form() -> None:
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randint(2, (20, 1)).double()
    model = nn.Linear(3, 1).double()
    ones = torch.cat([x, torch.ones(20, 1)], dim=1)
    p = torch.sigmoid(model(x).detach())
    closed = ones.T @ (p * (1 - p) * ones) / 20
    for make in (hessian_operator, gauss_newton_operator):
        operator = make(model, functional.binary_cross_entropy_with_logits, [(x, y)])
        torch.testing.assert_close(dense(operator), closed, rtol=1e-12, atol=1e-12)


class _Captured(nn.Module):
    """Affine with the constants that a batch norm in training mode had."""

    def __init__(self, layer: Any, x: Tensor) -> None:
        super().__init__()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.mean, self.var = x.mean(axes), x.var(axes, correction=0)

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.0, self.eps)


@pytest.mark.parametrize("sizes", [(N,), (5, 4, 3)])
@pytest.mark.parametrize("ghosts", [False, True])
def test_batch_norm_is_held_at_the_statistics_of_the_whole_batch(sizes: tuple[int, ...], ghosts: bool) -> None:
    model, images, labels = made("convolutions and batch norm")
    if ghosts:
        use_ghost_batches(model, 4, images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    operator = hessian_operator(model, cross_entropy, cut(images, labels, *sizes), batch_norm="batch")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_pre_hooks for part in model.modules())
    frozen: Any = copy.deepcopy(made("convolutions and batch norm")[0])
    frozen[7] = nn.Identity()  # dropout
    x = images
    for at, part in enumerate(frozen):  # as training sees it: each layer by the statistics of its own input
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            frozen[at] = _Captured(part, x.detach())
        x = frozen[at](x)
    torch.testing.assert_close(probed(operator), probed(exact_hessian(frozen, cross_entropy, images, labels)))


def test_dtype_is_cast_for_the_copy_alone() -> None:
    model, images, labels = made("convolutions and batch norm")
    exact = probed(hessian_operator(model, cross_entropy, [(images, labels)]))
    model.float()
    single = hessian_operator(model, cross_entropy, [(images.float(), labels)])
    double = hessian_operator(model, cross_entropy, [(images.float(), labels)], dtype=torch.float64)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(probed(single), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probed(double), exact, rtol=1e-5, atol=1e-6)
    half = hessian_operator(model.bfloat16(), cross_entropy, [(images.bfloat16(), labels)], dtype=torch.float32)
    assert (half @ torch.ones(half.size)).dtype == torch.float32


def test_the_operator_stays_at_its_weights_and_gives_the_same_bits() -> None:
    model, images, labels = made("mlp")
    model, images = model.float(), images.float()  # double is never autocast
    operator = hessian_operator(model, cross_entropy, iter([(images, labels)]))
    vector = torch.randn(operator.size)
    copy_ = hessian_operator(model, cross_entropy, [(images, labels)])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):  # the caller's modes do not matter
        first = operator @ vector
    assert torch.equal(operator @ vector, first)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    state = torch.get_rng_state()
    assert torch.equal(operator @ vector, first)
    operator @ -vector
    assert torch.equal(operator @ vector, first)  # by the graph that is kept
    assert torch.equal(copy_ @ vector, first)  # and by one that is made now, when the model has moved
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_inputs_may_be_lists_and_dicts() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x: Any) -> Tensor:
            out: Tensor = self.layer(x["a"] + sum(x["b"]))
            return out

    model, (_, images, labels) = Summed().double(), made("mlp")
    whole = {"a": images.float(), "b": (images.float(), [images][0])}
    operator = hessian_operator(model, cross_entropy, [(whole, labels)])
    exact = exact_hessian(model, cross_entropy, {"a": images.float(), "b": (images.float(), images)}, labels)
    torch.testing.assert_close(probed(operator), probed(exact), rtol=1e-6, atol=1e-7)


@pytest.mark.medium  # the compiler is imported
def test_a_compiled_network_is_run_as_it_was_written() -> None:
    model, images, labels = made("mlp")
    exact = probed(hessian_operator(model, cross_entropy, [(images, labels)]))
    model.compile(backend="aot_eager")
    torch.testing.assert_close(probed(hessian_operator(model, cross_entropy, [(images, labels)])), exact)


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.norm(x)))
        return out


def _operator(model: nn.Module | None = None, loss: Any = cross_entropy, batches: Any = None, **options: Any) -> Any:
    own, images, labels = made("mlp")
    return hessian_operator(model or own, loss, batches if batches is not None else [(images, labels)], **options)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: _operator(nn.Flatten()), "no parameter of the model requires a gradient"),
        (lambda: _operator(nn.Linear(8, 3).bfloat16()), "are torch.bfloat16: choose dtype=torch.float32"),
        (lambda: _operator(nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 3).double())), "torch.float32, torch.float64"),
        (lambda: _operator(nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 3, device="meta"))), "several devices"),
        (lambda: _operator(dtype=torch.float16), "too coarse for second derivatives"),
        (lambda: _operator(nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False))), "batch norm 0 keeps no running"),
        (lambda: _operator(batch_norm="train"), "\"eval\" or \"batch\""),
        (lambda: _operator(batch_norm="batch"), "has no batch norm: leave batch_norm at \"eval\""),
        (lambda: _operator(_Twice().double(), batch_norm="batch"), "norm is called twice in a pass"),
        (lambda: _operator(batches=[]), "no example in the batches"),
        (lambda: _operator(batches=[(torch.zeros(0, 8), torch.zeros(0))]), "no example in the batches"),
        (lambda: _operator(batches=[torch.zeros(2, 8)]), "not a pair of inputs and a tensor of targets"),
        (lambda: _operator(batches=[(torch.zeros(2, 8), 1)]), "not a pair of inputs and a tensor of targets"),
        (lambda: _operator() @ torch.zeros(3), "has shape \\[3\\], and the operator takes \\[63\\]"),
        (lambda: _operator(loss=lambda out, _: out.sum(1)) @ torch.zeros(63), "loss of a batch is \\[12\\]"),
        (lambda: _operator(loss=lambda out, _: 1.0) @ torch.zeros(63), "loss of a batch is float"),
        (lambda: _operator(loss=lambda out, _: out.detach().sum()) @ torch.zeros(63), "does not depend on any parameter"),
        (lambda: extreme_eigenvalues(_operator(loss=lambda out, _: (1e99 * out).pow(8).sum())), "not finite"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_gauss_newton_needs_one_tensor() -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    _, images, labels = made("mlp")
    operator = gauss_newton_operator(Pair(8, 3).double(), lambda out, y: cross_entropy(out[0], y), [(images, labels)])
    with pytest.raises(TypeError, match="returns tuple, and Gauss-Newton products need one tensor"):
        operator @ torch.zeros(operator.size)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["mlp", "convolutions and batch norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_curvlinops_gives_the_same_products(name: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, images, labels = made(name)
    batches = cut(images, labels, 6, 6)
    loss, theirs = nn.CrossEntropyLoss(), copy.deepcopy(model).eval()
    vector = torch.randn(hessian_operator(model, loss, batches).size, dtype=torch.float64)
    for make, kind in (
        (hessian_operator, curvlinops.HessianLinearOperator),
        (gauss_newton_operator, curvlinops.GGNLinearOperator),
    ):
        other = kind(theirs, loss, list(theirs.parameters()), batches) @ vector
        torch.testing.assert_close(make(model, loss, batches) @ vector, other, rtol=1e-10, atol=1e-12)
