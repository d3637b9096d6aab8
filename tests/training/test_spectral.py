"""schedule=spectral: η and μ are those of the spectrum that is measured, safeguarded, counted, and kept to the bit."""

from __future__ import annotations

import json
import math
import signal
from typing import Any

import pytest
import torch

from neumann.config import make_spec
from neumann.curvature import extreme_eigenvalues
from neumann.errors import Interrupted, UserError
from neumann.optim import Neumann, TwoLoopNeumann
from neumann.store import RunFolder, find
from neumann.store.steps import STEPS, read_lines
from neumann.training.rate_schedules import cosine
from neumann.training.spectral import (
    SpectralSchedule,
    SpectrumFollower,
    SpectrumMeasuring,
    gradients_a_step,
    is_measured_before,
)
from neumann.training.step_cost import model_cost, step_times
from neumann.training.stopping import Stop
from tests.support.known_curvature import Matrix, with_spectrum
from tests.support.quick_runs import Train, quick
from tests.support.rank_groups import together
from tests.training.test_accumulation import assert_equal, on_two_ranks, weights

SPECTRAL = ("schedule=spectral", "launch.threads=1", "timing.burn_in=0.1", "timing.reset_period=0.2")
# 7 steps in float64 with ghost batches, as in test_accumulation: what is left is rounding
EXACT = (
    "trainer.precision=64-true",
    "trainer.max_epochs=0.4",
    "trainer.check_val_every_n_epoch=0.2",
    "schedule.every_steps=3",
    "model=mlp",
    "+model.kwargs.width=4",
)


def follower(**settings: float) -> SpectrumFollower:
    return SpectrumFollower(**{"smoothing": 0.5, "growth": 2.0, "peak": 0.9, **settings})


# ----------------------------------------------------------------------------------------------------- the follower


def test_on_a_known_spectrum_eta_and_mu_are_those_of_the_paper() -> None:
    ends = extreme_eigenvalues(Matrix(with_spectrum([-1.0, 0.5, 2.0, 4.0])), iterations=4, tolerance=None)
    found = follower()
    for _ in range(3):
        assert found.take(ends.largest, ends.smallest)
    assert found.eta == pytest.approx(1 / 4, rel=1e-12)
    assert found.mu == pytest.approx(4 / 5, rel=1e-12)


@pytest.mark.parametrize(("smallest", "mu"), [(0.0, 0.9), (0.1, 0.9), (-0.1, 0.9), (-4.0, 0.5), (-12.0, 0.25)])
def test_mu_has_a_peak(smallest: float, mu: float) -> None:
    found = follower()
    found.take(4.0, smallest)
    assert found.mu == pytest.approx(mu)


def test_the_logarithm_of_the_largest_and_the_ratio_are_averaged() -> None:
    found = follower(smoothing=0.75, growth=100.0)
    largest, smallest = [8.0, 2.0, 32.0], [-4.0, -2.0, -8.0]
    for pair in zip(largest, smallest, strict=True):
        found.take(*pair)
    weight = (0.75**2, 0.75 * 0.25, 0.25)
    assert -math.log(found.eta) == pytest.approx(sum(w * math.log(x) for w, x in zip(weight, largest, strict=True)))
    ratio = sum(w * -low / high for w, high, low in zip(weight, largest, smallest, strict=True))
    assert found.mu == pytest.approx(1 / (1 + ratio))


def test_without_smoothing_the_last_spectrum_alone_counts() -> None:
    found = follower(smoothing=0.0)
    found.take(4.0, -1.0)
    found.take(5.0, -5.0)
    assert (found.eta, found.mu) == (pytest.approx(0.2), pytest.approx(0.5))


@pytest.mark.parametrize(("smoothing", "raised"), [(0.0, 2.0), (0.5, math.sqrt(2.0))])
def test_one_measurement_raises_the_rate_by_so_much_at_most_and_lowers_it_freely(
    smoothing: float, raised: float
) -> None:
    found = follower(smoothing=smoothing)
    found.take(4.0, 0.0)
    found.take(1e-12, 0.0)
    assert found.eta == pytest.approx(raised / 4)
    found = follower(smoothing=smoothing)
    found.take(4.0, 0.0)
    found.take(4e6, 0.0)
    assert found.eta == pytest.approx((1 / 4) * 1e-6 ** (1 - smoothing))


@pytest.mark.parametrize("bad", [(0.0, -1.0), (-3.0, -4.0), (math.nan, 0.0), (math.inf, 0.0), (4.0, math.nan)])
def test_a_spectrum_that_gives_no_rate_changes_nothing(bad: tuple[float, float]) -> None:
    found = follower()
    assert not found.take(*bad)
    assert not found.is_ready
    with pytest.raises(RuntimeError, match="no spectrum has been measured yet"):
        _ = found.eta
    found.take(4.0, -1.0)
    before = (found.eta, found.mu)
    assert not found.take(*bad)
    assert (found.eta, found.mu) == before
    assert (found.measured, found.dropped) == (1, 2)


def test_its_state_goes_on_to_the_bit() -> None:
    whole, first, second = follower(), follower(), follower()
    spectra = [(3.0 + math.sin(k), -math.cos(k)) for k in range(10)]
    for pair in spectra:
        whole.take(*pair)
    for pair in spectra[:4]:
        first.take(*pair)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for pair in spectra[4:]:
        second.take(*pair)
    assert second.state_dict() == whole.state_dict()
    assert (second.eta, second.mu) == (whole.eta, whole.mu)


def test_it_is_measured_often_at_first_and_then_regularly() -> None:
    assert [s for s in range(50) if is_measured_before(s, 20)] == [0, 1, 2, 4, 8, 16, 20, 40]
    assert [s for s in range(6) if is_measured_before(s, 1)] == [0, 1, 2, 3, 4, 5]


# ------------------------------------------------------------------------------------------------------ the schedule


def test_groups_get_their_share_of_the_rate_and_the_momentum() -> None:
    one, other = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = Neumann([{"params": [one]}, {"params": [other], "lr": 0.5}], lr=1.0, momentum=0.0)
    found = follower()
    found.take(4.0, -1.0)
    schedule = SpectralSchedule(optimizer, lambda step: 0.5**step, found, ("lr", "momentum", "momentum_unit"))
    for step in range(3):
        for p in (one, other):
            p.grad = torch.ones(1)
        optimizer.step()
        assert [g["lr"] for g in optimizer.param_groups] == [0.25 * 0.5**step, 0.125 * 0.5**step]
        assert [g["momentum"] for g in optimizer.param_groups] == [0.8, 0.8]
    assert schedule.count == 3


def test_the_series_of_an_inner_loop_has_the_rate_before_the_decay() -> None:
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    curvature = torch.tensor([4.0, -1.0], dtype=torch.float64)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (curvature * p**2).sum() / 2
        loss.backward()
        return loss.detach()

    optimizer = TwoLoopNeumann([p], lr_in=1.0, lr_out=1.0, inner_steps=2, mu=0.0)
    found = follower()
    found.take(4.0, -1.0)
    SpectralSchedule(optimizer, lambda step: 0.5, found, ("lr", "lr_in", "mu"))
    optimizer.step(closure)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["lr_in"], group["mu"]) == (0.125, 0.25, 0.8)
    m = -curvature
    for _ in range(2):
        m = 0.8 * m - curvature * (1 + 0.8 * 0.25 * m)
    torch.testing.assert_close(p.detach(), 1 + 0.125 * m, rtol=1e-12, atol=0)


# ----------------------------------------------------------------------------------------------------------- in runs


@pytest.mark.medium
def test_a_run_counts_every_product_and_records_what_it_measured(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    spectra: list[tuple[float, float]] = []
    take = SpectrumFollower.take

    def noted(self: SpectrumFollower, largest: float, smallest: float) -> bool:
        spectra.append((largest, smallest))
        return take(self, largest, smallest)

    monkeypatch.setattr(SpectrumFollower, "take", noted)
    words = ("schedule.every_steps=10", "schedule.lanczos_steps=4", "trainer.log_every_n_steps=1")
    result, folder = train("optimizer=neumann", *SPECTRAL, *words)
    measured = [s for s in range(36) if is_measured_before(s, 10)]  # 0, 1, 2, 4, 8, 10, 20, 30
    assert len(spectra) == len(measured) == 8
    last = folder.read_measurements()[-1]
    assert last["gradient_evaluations"] == 36 + 8 * 4 * 2
    expected = follower()
    lines = read_lines(folder.path, folder.result(), STEPS)
    assert [line["step"] for line in lines] == list(range(1, 37))
    for step, line in enumerate(lines):
        if step in measured:
            expected.take(*spectra[measured.index(step)])
        assert line["lr"] == pytest.approx(expected.eta * cosine(step, total_steps=36), rel=1e-12)
        assert line["momentum"] == (expected.mu if step >= 2 else 0.0)  # two steps of burn-in
    assert result["spectrum"] == {
        "measured": 8, "dropped": 0, "gradient_evaluations": 64, "eta": expected.eta, "mu": expected.mu,
    }  # fmt: skip
    assert result["lr"] == {"given": None, "factor": 1.0, "scaled": None}


@pytest.mark.medium
def test_an_inner_loop_on_fresh_batches_pays_for_all_of_them(train: Train) -> None:
    words = ("optimizer=two_loop_neumann", "optimizer.inner_steps=2", "optimizer.inner_data=fresh")
    result, folder = train(*words, *SPECTRAL, *EXACT[2:], "trainer.max_epochs=1", "schedule.lanczos_steps=4")
    steps = result["step"]
    count = sum(is_measured_before(s, 3) for s in range(steps))
    assert result["spectrum"]["gradient_evaluations"] == count * 4 * 2 * 3
    assert folder.read_measurements()[-1]["gradient_evaluations"] == 3 * steps + count * 24


@pytest.mark.medium
@pytest.mark.parametrize("optimizer", ["neumann", "two_loop_neumann", "nesterov", "nesterov_inner", "sgd_burn_in"])
def test_accumulation_and_two_ranks_measure_what_one_big_batch_does(optimizer: str, train: Train) -> None:
    words = (f"optimizer={optimizer}", *SPECTRAL, *EXACT)
    whole, folder = train(*words)
    accumulated, beside = train(*words, "batch.max_per_device=16")
    assert_equal(weights(folder), weights(beside), buffers=True)
    spec = quick(*words, "trainer.devices=2", "batch.max_per_device=16")
    for answer in together(on_two_ranks, 2, [spec]):
        if isinstance(answer, Exception):
            raise answer
    assert_equal(weights(folder), weights(find(spec)), buffers=True)
    for other in (accumulated, find(spec).result() or {}):
        for key in ("measured", "dropped", "gradient_evaluations"):
            assert other["spectrum"][key] == whole["spectrum"][key]
        for key in ("eta", "mu"):
            assert other["spectrum"][key] == pytest.approx(whole["spectrum"][key], rel=1e-9)


def _whole(folder: RunFolder) -> list[dict[str, Any]]:
    kept = ("step", "lr", "gradient_evaluations", "train_loss", "validation")
    return [{key: line[key] for key in kept} for line in folder.read_measurements()]


@pytest.mark.medium
@pytest.mark.parametrize("step", [20, 25])
def test_a_run_that_goes_on_is_the_untouched_one_to_the_bit(
    step: int, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped just before a step that is measured, and between two."""
    words = ("optimizer=neumann", *SPECTRAL, "schedule.every_steps=10", "+model.kwargs.drop_rate=0.2")
    plain, untouched = train(*words, "study=untouched")
    original = Stop.on_train_batch_end

    def stop_once(self: Stop, *given: Any) -> None:
        if given[-1] == step - 1:
            monkeypatch.setattr(Stop, "on_train_batch_end", original)
            signal.raise_signal(signal.SIGINT)
        original(self, *given)

    monkeypatch.setattr(Stop, "on_train_batch_end", stop_once)
    with pytest.raises(Interrupted):
        train(*words)
    result, folder = train(*words)
    assert result["attempts"] == 2
    assert result["spectrum"] == plain["spectrum"]
    assert _whole(folder) == _whole(untouched)
    assert all(torch.equal(value, weights(untouched)[key]) for key, value in weights(folder).items())


@pytest.mark.medium
def test_a_first_batch_without_a_rate_is_one_sentence(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpectrumMeasuring, "_ends", lambda *_: (-1.0, -2.0))
    with pytest.raises(UserError, match="schedule=spectral: λ_max of the first batch is -1, of which no rate can be"):
        train("optimizer=neumann", *SPECTRAL)


# ------------------------------------------------------------------------------------------------- the configuration


def test_what_follows_the_spectrum_is_null_and_signed_once() -> None:
    spec = quick("optimizer=neumann", "schedule=spectral")
    settings = spec.config.optimizer
    assert (settings["lr"], settings["momentum"], settings["momentum_unit"]) == (None, None, None)
    assert settings["gamma"] == 0.99
    two_loop = quick("optimizer=two_loop_neumann", "schedule=spectral").config.optimizer
    assert (two_loop["lr"], two_loop["lr_in"], two_loop["mu"]) == (None, None, None)
    sgd = quick("optimizer=sgd", "schedule=spectral", "optimizer.momentum=0.5").config.optimizer
    assert (sgd["lr"], sgd["momentum"]) == (None, 0.5)  # its momentum is its own


def test_the_interval_is_a_share_of_the_run() -> None:
    assert make_spec(["schedule=spectral", "trainer.max_epochs=100"]).config.schedule["every_steps"] == round(
        2 * make_spec(["trainer.max_epochs=100"]).config.derived.steps_per_epoch
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["optimizer.lr=0.1"], "'optimizer.lr=0.1' has no effect with schedule=spectral"),
        (["optimizer.momentum=0.9"], "'optimizer.momentum=0.9' has no effect with schedule=spectral"),
        (["timing.momentum_unit=1"], "'timing.momentum_unit=1' has no effect with schedule=spectral"),
        (["optimizer=two_loop_neumann", "optimizer.mu=0.5"], "'optimizer.mu=0.5' has no effect"),
        (["optimizer=two_loop_neumann", "optimizer.lr_in=0.5"], "'optimizer.lr_in=0.5' has no effect"),
        (["optimizer=adam"], "Adam scales its steps by itself"),
        (["optimizer=lars"], "Lars scales its steps by itself"),
        (["optimizer=torch", "optimizer.name=Adagrad", "optimizer.lr=0.1"], "Adagrad scales its steps by itself"),
        (["recipe.lr_scaling=linear", "recipe.lr_base_size=32"], "schedule=spectral measures the rate on the batch"),
    ],
)
def test_what_would_be_ignored_or_means_nothing_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match="schedule=spectral") as caught:
        quick("schedule=spectral", *words)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("every", "steps"), [(1, 36), (2, 36), (10, 36), (16, 36), (50, 36)])
def test_what_spectra_cost_is_known_before_a_run(every: int, steps: int) -> None:
    spec = quick("schedule=spectral", f"schedule.every_steps={every}", "schedule.lanczos_steps=4")
    assert spec.config.derived.total_steps == steps
    assert gradients_a_step(spec.config) * steps == 8 * sum(is_measured_before(s, every) for s in range(steps))
    assert gradients_a_step(quick().config) == 0


@pytest.mark.medium
def test_an_estimate_has_the_spectra_in_it() -> None:
    words = ("optimizer=neumann", "model=mlp", "+model.kwargs.width=4")
    plain, spectral = (model_cost(quick(*words, *more)) for more in ((), ("schedule=spectral",)))
    extra = gradients_a_step(quick(*words, "schedule=spectral").config)
    assert spectral.training == pytest.approx((1 + extra) * plain.training)
    assert step_times(quick(*words, "schedule=spectral"), threads=1, seconds=0.2).micro_batch > 0
