"""`schedule=spectral`: η and μ are those of the measured spectrum, kept within bounds, and a run goes on to the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neumann.config import make_spec
from neumann.errors import Interrupted, UserError
from neumann.optim import Neumann, TwoLoopNeumann
from neumann.store import RunFolder
from neumann.training.rate_schedules import spectral
from neumann.training.run import run
from neumann.training.spectral import FOLLOWS, SpectralSchedule, Spectrum, products_a_step
from neumann.training.step_cost import model_cost

SETTINGS = {"every_steps": 5, "iterations": 10, "smoothing": 0.5, "scale": 1.0, "growth": 2.0, "most_momentum": 0.9}
QUICK = ["model=mlp", "+model.kwargs.width=4", "batch.size=128", "trainer.max_epochs=2", "logger=none"]


def _spectrum(**changes: float) -> Spectrum:
    kept = {key: value for key, value in SETTINGS.items() if key not in ("every_steps", "iterations")}
    return Spectrum(**{**kept, **changes})


def test_eta_and_mu_are_those_of_section_3_1() -> None:
    found = _spectrum(most_momentum=0.99)
    found.observe(8.0, -2.0)
    assert found.eta == pytest.approx(1 / 8)
    assert found.mu == pytest.approx(8 / (2 + 8))
    convex = _spectrum(scale=0.5)
    convex.observe(8.0, 0.1)
    assert (convex.eta, convex.mu) == (pytest.approx(0.5 / 8), 0.9)  # μ would be 1


def test_a_curvature_that_grows_is_followed_at_once_and_one_that_falls_slowly() -> None:
    found = _spectrum(smoothing=0.5, growth=1.5)
    found.observe(4.0, -4.0)
    found.observe(16.0, 0.0)
    assert found.log_largest == pytest.approx(math.log(8))  # the mean of both on the logarithmic scale
    assert found.eta == pytest.approx(1 / 16)  # not 1/8, above which this batch's curvature may not be crossed
    assert found.ratio == pytest.approx(0.5)
    assert found.mu == pytest.approx(1 / 1.5)
    found.observe(2.0, 0.0)
    assert found.log_largest == pytest.approx(math.log(4))
    assert found.eta == pytest.approx(1.5 / 16)  # it would be 1/4
    for _ in range(60):
        found.observe(2.0, 0.0)
    assert found.eta == pytest.approx(1 / 2)


@pytest.mark.parametrize("ends", [(math.nan, 0.0), (math.inf, 0.0), (0.0, -1.0), (-1.0, -2.0), (1.0, -math.inf)])
def test_what_is_no_curvature_changes_nothing(ends: tuple[float, float]) -> None:
    found = _spectrum()
    found.observe(*ends)
    assert (found.log_largest, found.eta) == (None, 0.0)
    found.observe(4.0, -1.0)
    before = vars(found).copy()
    found.observe(*ends)
    assert vars(found) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Neumann(p, 0.1),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.5, nesterov=True),
        lambda p: TwoLoopNeumann(p, lr_in=None, lr_out=0.1, inner_steps=2),
    ],
)
def test_a_step_is_taken_with_the_rate_of_today_times_the_fall_over_the_run(make: Callable[[Any], Any]) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = make([weight])
    schedule = SpectralSchedule(optimizer, lambda step: spectral(step, total_steps=4, **SETTINGS), SETTINGS)

    def closure(*_: Any) -> Tensor:
        optimizer.zero_grad()
        loss = (torch.tensor([4.0, 1.0, -1.0], dtype=torch.float64) * weight**2).sum() / 2
        loss.backward()
        return loss

    schedule.spectrum.observe(4.0, -1.0)
    rates = []
    for _ in range(4):
        optimizer.step(closure)
        (group,) = optimizer.param_groups
        rates.append(group["lr"])
        if isinstance(optimizer, TwoLoopNeumann):
            assert (group["mu"], group["lr_in"]) == (0.8, 0.25)
        else:
            assert group["momentum"] == 0.8
    assert rates == pytest.approx([0.25 * 0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(4)])
    again = SpectralSchedule(optimizer, lambda step: 1.0, SETTINGS)
    again.load_state_dict(schedule.state_dict())
    assert (again.count, again.spectrum) == (4, schedule.spectrum)


def test_the_first_step_of_neumann_on_a_quadratic_is_that_of_the_exact_spectrum() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = Neumann([weight], 123.0, alpha=0.0, beta=0.0)
    schedule = SpectralSchedule(optimizer, lambda _: 1.0, SETTINGS)
    schedule.spectrum.observe(4.0, -1.0)
    other = weight.detach().clone().requires_grad_()
    twin = Neumann([other], 0.25, alpha=0.0, beta=0.0, momentum=0.8)
    for _ in range(5):
        for w, o in ((weight, optimizer), (other, twin)):
            w.grad = torch.tensor([4.0, -1.0], dtype=torch.float64) * w.detach()
            o.step()
    assert torch.equal(weight, other)


@pytest.mark.parametrize("name", ["adam", "lars", "rmsprop", "nesterov_inner"])
def test_an_optimizer_for_which_they_mean_nothing_is_refused(name: str) -> None:
    spec = make_spec([*QUICK, f"optimizer={name}", "schedule=spectral"])
    with pytest.raises(UserError, match=r"schedule=spectral sets η = 1/λ_max and μ, which mean nothing for"):
        run(spec)
    assert not Path("runs").exists()


@pytest.mark.parametrize("word", ["optimizer.lr=0.1", "optimizer.momentum=0.5", "recipe.lr_scaling=linear"])
def test_what_it_would_replace_is_refused(word: str) -> None:
    scaled = ["recipe.lr_base_size=64"] if "scaling" in word else []
    with pytest.raises(UserError, match=rf"{word}'? beside schedule=spectral"):
        make_spec([*QUICK, "optimizer=sgd", "schedule=spectral", word, *scaled])


def _trained(*words: str) -> tuple[dict[str, Any], RunFolder]:
    spec = make_spec([*QUICK, "schedule=spectral", "schedule.every_steps=8", *words])
    return run(spec), RunFolder(spec.folder)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["neumann", "sgd", "two_loop_neumann"])
def test_a_run_learns_and_counts_every_product(name: str) -> None:
    result, folder = _trained(f"optimizer={name}", "trainer.max_epochs=6")
    assert result["validation"]["held"]["loss"] < 2.25  # ln 10 is chance
    a_step = 5 if name == "two_loop_neumann" else 1
    for line in folder.read_measurements():
        measured = (line["step"] - 1) // 8 + 1  # before step 1, 9, 17, …
        assert line["gradient_evaluations"] == a_step * line["step"] + 20 * measured


@pytest.mark.medium
@pytest.mark.parametrize("name", ["neumann", "two_loop_neumann"])
def test_it_goes_on_to_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"optimizer={name}", "trainer.max_epochs=3"]
    expected, whole = _trained(*words, "study=whole")
    stopped = make_spec([*QUICK, "schedule=spectral", "schedule.every_steps=8", *words, "study=stopped"])
    from neumann.training.spectral import SpectrumMeasuring

    look = SpectrumMeasuring.before_batch

    def stops(self: Any, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if self._progress.step == 11:
            raise KeyboardInterrupt
        look(self, trainer, module, batch, index)

    with monkeypatch.context() as patched:
        patched.setattr(SpectrumMeasuring, "before_batch", stops)
        with pytest.raises((Interrupted, KeyboardInterrupt, SystemExit)):
            run(stopped)
    result = run(stopped)
    assert result["attempts"] == 2
    kept = ("step", "lr", "train_loss", "validation", "gradient_evaluations")
    one, two = (
        [{key: line[key] for key in kept} for line in folder.read_measurements()]
        for folder in (whole, RunFolder(stopped.folder))
    )
    assert one == two
    assert result["validation"] == expected["validation"]


@pytest.mark.medium
def test_accumulated_micro_batches_have_the_spectrum_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, float]] = []
    observe = Spectrum.observe
    monkeypatch.setattr(Spectrum, "observe", lambda self, *ends: (seen.append(ends), observe(self, *ends))[1])
    words = ["optimizer=sgd", "trainer.precision=64-true", "trainer.max_epochs=1", "schedule.scale=1e-9"]
    _trained(*words, "study=whole")
    whole, seen = seen, []
    monkeypatch.setattr(Spectrum, "observe", lambda self, *ends: (seen.append(ends), observe(self, *ends))[1])
    _trained(*words, "study=cut", "batch.max_per_device=32")
    assert len(seen) == len(whole) > 0
    assert [end for ends in seen for end in ends] == pytest.approx([end for ends in whole for end in ends], rel=1e-9)


def test_an_estimate_has_the_products() -> None:
    words = [*QUICK, "optimizer=sgd"]
    plain, measured = model_cost(make_spec(words)), model_cost(make_spec([*words, "schedule=spectral"]))
    assert measured.training == pytest.approx(1.4 * plain.training)  # ten products of two gradients every 50 steps
    assert products_a_step({"_target_": "neumann.schedules.cosine"}) == 0


def test_only_optimizers_whose_rate_and_momentum_are_those_of_the_paper_follow_it() -> None:
    assert {each.__name__ for each in FOLLOWS} == {"Neumann", "NeumannReference", "TwoLoopNeumann", "SGD"}
    with pytest.raises(UserError, match="Adam"):
        SpectralSchedule(torch.optim.Adam([nn.Parameter(torch.ones(1))]), lambda _: 1.0, SETTINGS)
