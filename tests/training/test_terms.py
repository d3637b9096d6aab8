"""What is measured of a step's terms: closed forms on a quadratic, by hand on a network, for every optimizer's YAML."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from timm.optim import Lookahead
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from neumann.config import compose
from neumann.errors import UserError
from neumann.optim import NesterovInner, Neumann, TwoLoopNeumann, WeightAverage, at
from neumann.training import terms
from neumann.training.batch_curvature import batch_curvature, flat
from neumann.training.classifier import Batch, ImageClassifier
from neumann.training.distributed import RankGroup
from neumann.training.measured_terms import check_whole
from neumann.training.parts import build_parts
from neumann.training.terms import Found, StepTerms, noise_of
from tests.support.known_curvature import dense, with_spectrum
from tests.support.quick_runs import quick
from tests.support.rank_groups import together

SPECTRUM = (4.0, 2.5, 1.0, 0.5, -0.4, -1.6)
BATCH, PART, TRACE = 32, 4, 6.0  # images, and tr Σ that is planted


class Quadratic:
    """The curvature of ½ wᵀAw − bᵀw at the weights that a module holds, as `batch_curvature` gives it."""

    def __init__(self, module: Any, matrix: Tensor, slope: Tensor) -> None:
        self.matrix, self.slope = matrix, slope
        self.at = flat(module.model, lambda p: p).clone()
        self.size, self.dtype, self.device, self.examples = len(matrix), torch.float64, torch.device("cpu"), BATCH

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector

    def gradient(self, displacement: Tensor | None = None) -> Tensor:
        where = self.at if displacement is None else self.at + displacement
        return self.matrix @ where - self.slope

    def part_squares(self, least: int) -> tuple[float, int, int]:
        assert least == terms.PARTS
        return float(self.gradient().square().sum()) + TRACE * (1 / PART - 1 / BATCH), BATCH // PART, PART


def _module(model: nn.Module, optimizer: Any = None) -> ImageClassifier:
    return ImageClassifier(model, optimizer or (lambda m: SGD(m.parameters(), 0.1)))


def on_quadratic(monkeypatch: pytest.MonkeyPatch, make: Any, steps: int = 6) -> tuple[Quadratic, Found, Tensor, Tensor]:
    """Take steps on a quadratic; return it as it was before the last, what was found there, and w before and after."""
    matrix, slope = with_spectrum(SPECTRUM), torch.linspace(-1, 1, len(SPECTRUM), dtype=torch.float64)
    model = nn.Linear(len(SPECTRUM), 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linspace(0.5, 2, len(SPECTRUM)))
    monkeypatch.setattr(terms, "batch_curvature", lambda module, batches, group: Quadratic(module, matrix, slope))
    module, optimizer = _module(model), make(model)
    for step in range(steps):
        looked = StepTerms(module, optimizer, [], RankGroup()) if step == steps - 1 else None
        here, before = Quadratic(module, matrix, slope), flat(model, lambda p: p).clone()

        def closure() -> Tensor:
            model.weight.grad = Quadratic(module, matrix, slope).gradient().reshape(1, -1)
            return torch.zeros(())

        optimizer.step(closure)
    assert looked is not None
    found = looked.measured(len(SPECTRUM), newton=True)
    return here, found, before, flat(model, lambda p: p).clone()


MAKERS: dict[str, Any] = {
    "sgd": lambda m: SGD(m.parameters(), 0.05),
    "momentum": lambda m: SGD(m.parameters(), 0.05, momentum=0.9),
    "nesterov": lambda m: SGD(m.parameters(), 0.05, momentum=0.9, nesterov=True),
    "nesterov_inner": lambda m: NesterovInner(m.parameters(), 0.05, momentum=0.9),
    "neumann": lambda m: Neumann(m.parameters(), 0.05, alpha=0.01, beta=0.01),
    "two_loop": lambda m: TwoLoopNeumann(m.parameters(), 0.05, 0.05, 3),
    "lookahead": lambda m: Lookahead(NesterovInner(m.parameters(), 0.05, momentum=0.9)),
}
DISPLACED = ("nesterov", "nesterov_inner", "neumann", "lookahead")


@pytest.mark.parametrize("name", MAKERS)
def test_on_a_quadratic_everything_is_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here, found, before, after = on_quadratic(monkeypatch, MAKERS[name])
    gradient = here.gradient()
    assert found["lambda_max"] == pytest.approx(4.0, rel=1e-9)
    assert found["lambda_min"] == pytest.approx(-1.6, rel=1e-9)
    assert found["mu"] == pytest.approx(4 / 5.6)
    assert found["eta"] == pytest.approx(1 / 4)
    assert (found["rate"], found["images"]) == (0.05, BATCH)
    assert found["lambda_max_times_rate"] == pytest.approx(0.2)
    assert found["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-12)
    assert found["update_norm"] == pytest.approx(float((after - before).norm()), rel=1e-12)
    assert found["transport_error"] < 1e-12  # a gradient of a quadratic is linear
    assert found["transport_along"] == ("displacement" if name in DISPLACED else "move")
    assert ("displacement_norm" in found) == (name in DISPLACED)
    assert found["noise_trace"] == pytest.approx(TRACE, rel=1e-9)
    assert found["noise_share"] == pytest.approx(TRACE / BATCH / float(gradient.square().sum()), rel=1e-9)
    damping = 1.6 + 4e-3
    newton = -torch.linalg.solve(here.matrix + damping * torch.eye(6, dtype=torch.float64), gradient)
    cosine = functional.cosine_similarity
    assert found["newton_damping"] == pytest.approx(damping, rel=1e-9)
    assert found["newton_cosine_gradient"] == pytest.approx(float(cosine(-gradient, newton, dim=0)), rel=1e-6)
    assert found["newton_cosine_move"] == pytest.approx(float(cosine(after - before, newton, dim=0)), rel=1e-6)
    assert ("newton_cosine_momentum" in found) == (name in DISPLACED)
    products, gradients = 6 + 6 + 1, 2 + (2 if name in DISPLACED else 1)
    assert found["gradient_evaluations"] == 2 * products + gradients
    assert ("distance" in found) == ("repulsion" in found) == (name == "neumann")


def test_a_newton_step_has_a_cosine_of_one_but_for_the_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of an optimizer that solves the damped system is the direction itself; its opposite has −1."""

    class Solver(Optimizer):
        def __init__(self, params: Any, sign: float) -> None:
            super().__init__(params, {"lr": sign})

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            assert closure is not None
            closure()
            (p,) = self.param_groups[0]["params"]
            matrix = with_spectrum(SPECTRUM) + (1.6 + 4e-3) * torch.eye(6, dtype=torch.float64)
            p.sub_(self.param_groups[0]["lr"] * torch.linalg.solve(matrix, p.grad.reshape(-1)).reshape(1, -1))

    for sign in (1e-3, -1e-3):
        _, found, *_ = on_quadratic(monkeypatch, lambda m, sign=sign: Solver(m.parameters(), sign), steps=2)
        assert found["newton_cosine_move"] == pytest.approx(math.copysign(1, sign), abs=1e-9)


def test_the_displacement_is_in_units_of_the_weights_wherever_the_rate_lives() -> None:
    """At one rate torch's Nesterov, whose buffer is a gradient, and the one with the rate inside are one method."""
    norms = []
    for make in (MAKERS["nesterov"], MAKERS["nesterov_inner"]):
        with pytest.MonkeyPatch.context() as patch:
            _, found, *_ = on_quadratic(patch, make)
        norms.append(found["displacement_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


@pytest.mark.parametrize(("burn_in", "steps"), [(9, 6), (5, 6)])
def test_terms_that_do_not_act_are_left_out(burn_in: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a burn-in and at the first reset nothing is pushed and no gradient is transported; w − v is there."""
    make = lambda m: Neumann(m.parameters(), 0.05, alpha=0.01, burn_in_steps=burn_in)  # noqa: E731
    _, found, *_ = on_quadratic(monkeypatch, make, steps)
    assert found["distance"] > 0
    assert not {"attraction", "repulsion", "displacement_norm"} & found.keys()
    assert ("transport_error" in found) == (burn_in > steps)  # at a reset the weights stay
    assert found.get("transport_along", "move") == "move"


def test_an_average_beside_any_optimizer_has_its_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(model: nn.Module) -> Optimizer:
        optimizer = SGD(model.parameters(), 0.05)
        WeightAverage(optimizer, 0.5)
        made.append(optimizer)
        return optimizer

    made: list[Optimizer] = []
    _, found, before, after = on_quadratic(monkeypatch, make)
    with at(made[0], "average"):
        average = made[0].param_groups[0]["params"][0].detach().reshape(-1).clone()
    previous = 2 * average - after  # v ← (v + w)/2
    assert found["distance"] == pytest.approx(float((before - previous).norm()), rel=1e-9)


def test_what_is_not_finite_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    here, found, *_ = on_quadratic(monkeypatch, lambda m: SGD(m.parameters(), 1e308), steps=3)
    assert not here.gradient().isfinite().all()
    assert found.keys() == {"rate", "images", "gradient_evaluations"}


def test_the_noise_of_planted_gradients_is_found_without_bias() -> None:
    """Gradients of single images are g + noise of a known covariance; over many batches the means are the truth."""
    generator = torch.Generator().manual_seed(0)
    true, spread = torch.tensor([0.6, -0.8, 0.0], dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5]).double()
    single = true + spread * torch.randn(20_000, BATCH, 3, generator=generator, dtype=torch.float64)
    parts = single.reshape(20_000, BATCH // PART, PART, 3).mean(2).square().sum(2).mean(1)
    whole = single.mean(1).square().sum(1)
    traces, squares = zip(
        *(noise_of(float(p), PART, float(w), BATCH) for p, w in zip(parts, whole, strict=True)), strict=True
    )
    assert sum(traces) / len(traces) == pytest.approx(float(spread.square().sum()), rel=0.01)
    assert sum(squares) / len(squares) == pytest.approx(1.0, rel=0.01)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def _images(count: int = 16) -> Batch:
    torch.manual_seed(1)
    return torch.randn(count, 1, 2, 2, dtype=torch.float64), torch.arange(count) % 3


def _step(model: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
    optimizer.zero_grad()
    functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def _after_steps(group: RankGroup, cut: Sequence[Sequence[Batch]]) -> Found:
    """Return what is found at the fourth step of Neumann's, of a network on the rank's share of the images."""
    model, whole = _network(), _images()
    optimizer = Neumann(model.parameters(), 0.2, alpha=0.1, beta=0.1)
    for _ in range(3):
        _step(model, optimizer, whole)
    looked = StepTerms(_module(model), optimizer, cut[group.rank], group)
    _step(model, optimizer, whole)
    return looked.measured(40, newton=True)


def test_a_networks_terms_are_those_of_autograd_by_hand() -> None:
    model, batch = _network(), _images()
    found = _after_steps(RankGroup(), [[batch]])
    optimizer = Neumann(model.parameters(), 0.2, alpha=0.1, beta=0.1)
    for _ in range(3):
        _step(model, optimizer, batch)
    base = copy.deepcopy(model)
    with at(optimizer, "base"):
        base.load_state_dict(model.state_dict())
    operator = batch_curvature(_module(model), [batch], RankGroup())
    values = torch.linalg.eigvalsh(dense(operator))
    assert found["lambda_max"] == pytest.approx(float(values[-1]), rel=1e-9)
    assert found["lambda_min"] == pytest.approx(float(values[0]), rel=1e-6)
    model.zero_grad(), base.zero_grad()
    for each in (model, base):
        functional.cross_entropy(each(batch[0]), batch[1]).backward()
    held, there = (flat(each, lambda p: p.grad) for each in (model, base))
    d = flat(model, lambda p: p) - flat(base, lambda p: p)
    product = dense(batch_curvature(_module(base), [batch], RankGroup())) @ d
    error = float((held - there - product).norm() / product.norm())
    assert error > 1e-3
    assert found["transport_error"] == pytest.approx(error, rel=1e-8)
    assert found["gradient_norm"] == pytest.approx(float(held.norm()), rel=1e-12)
    squares = [float(operator.gradient().norm()) ** 2, 0.0]
    for images, labels in zip(batch[0].chunk(8), batch[1].chunk(8), strict=True):
        squares[1] += float(batch_curvature(_module(model), [(images, labels)], RankGroup()).gradient().norm()) ** 2 / 8
    trace, square = noise_of(squares[1], 2, squares[0], 16)
    assert found["noise_trace"] == pytest.approx(trace, rel=1e-9)
    assert found["noise_scale"] == pytest.approx(trace / square, rel=1e-9)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_are_the_global_batch(micro_batches: int) -> None:
    cut = list(zip(*(tensor.chunk(micro_batches) for tensor in _images()), strict=True))
    one, other = _after_steps(RankGroup(), [[_images()]]), _after_steps(RankGroup(), [cut])
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert other[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), key


def test_every_rank_finds_what_one_finds() -> None:
    halves = [[half] for half in zip(*(tensor.chunk(2) for tensor in _images()), strict=True)]
    first, second = together(_after_steps, 2, halves)
    assert first == second
    alone = _after_steps(RankGroup(), [[_images()]])
    assert first.keys() == alone.keys()
    for key, value in alone.items():
        assert first[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), key


NAMED = {"timm": ("optimizer.name=lookahead_sgd",), "torch": ("optimizer.name=NAdam",)}  # those without a default
OPTIMIZERS = sorted(file.stem for file in (compose.CONF / "optimizer").glob("*.yaml"))
OF_EVERY = {
    "rate",
    "update_norm",
    "gradient_norm",
    "images",
    "lambda_max",
    "lambda_min",
    "noise_trace",
    "transport_error",
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_measured_and_goes_on_to_the_same_bits(name: str) -> None:
    """In float32, over two micro-batches; batch norm, dropout and an average are there."""
    words = (f"optimizer={name}", "model=mlp", "+model.kwargs.drop_rate=0.2", "batch.max_per_device=32")
    words = (*words, "timing.burn_in=0.1", "timing.reset_period=1", *NAMED.get(name, ()))
    ended = []
    for measures in (False, True):
        parts = build_parts(quick(*words[:2], "+model.kwargs.width=4", *words[2:]), RankGroup())
        model, optimizer = parts.module.model.train(), parts.module.configure_optimizers()
        torch.manual_seed(0)
        batches, found = iter(parts.data.train_dataloader()), {}
        for step in range(4):
            pair = [next(batches), next(batches)]
            looked = StepTerms(parts.module, optimizer, pair, RankGroup()) if measures and step == 3 else None

            def closure(pair: Any = pair, net: nn.Module = model, optimizer: Optimizer = optimizer) -> Tensor:
                optimizer.zero_grad()
                losses = [functional.cross_entropy(net(images), labels) / 2 for images, labels in pair]
                sum(losses[1:], losses[0]).backward()
                return losses[0].detach()

            optimizer.step(closure)
            if looked is not None:
                found = looked.measured(5)
        ended.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*ended, strict=True))
    assert found.keys() >= OF_EVERY
    assert all(math.isfinite(value) for value in found.values() if not isinstance(value, str))
    assert ("distance" in found) == name.startswith("neumann")
    assert ("attraction" in found) == ("repulsion" in found) == name.startswith("neumann")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("terms.every=100",), "terms.every=100 is more than the 36 steps of the run, so nothing would be measured"),
        (("terms.every=9", "terms.newton=true"), "networks of up to 2,000 parameters, and this one has 3,778"),
        (("terms.newton=true",), "terms.newton=true has no step to be measured at: give terms.every=100"),
        (("terms.every=0",), "terms.every=0"),
        (("terms.every=9", "terms.lanczos_steps=0"), "terms.lanczos_steps=0"),
        (("terms.often=9",), "terms has no setting 'often': choose from every, lanczos_steps, newton"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match="terms") as refused:
        build_parts(quick(*words), RankGroup())
    assert said in str(refused.value)


def test_shards_are_refused_in_a_sentence() -> None:
    config = quick("terms.every=9").config
    optimizer = SGD(_network().parameters(), 0.1)
    check_whole(config, optimizer)

    class ZeroRedundancyOptimizer(SGD):
        """By whose name torch's is known, which needs a process group."""

    with pytest.raises(UserError, match="every process holds whole, and ZeroRedundancyOptimizer is given shards"):
        check_whole(config, ZeroRedundancyOptimizer(_network().parameters(), 0.1))
    check_whole(quick().config, ZeroRedundancyOptimizer(_network().parameters(), 0.1))
