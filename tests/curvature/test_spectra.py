"""Both ends of a spectrum and its density, of matrices whose eigenvalues are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neumann.curvature import extreme_eigenvalues, extreme_eigenvalues_by_arpack, spectral_density
from neumann.curvature.lanczos import direction, lanczos
from tests.support.known_curvature import Matrix, with_spectrum

SPECTRA = {
    "positive": [*range(1, 41)],
    "indefinite": [-8.0, *torch.linspace(-1, 1, 60).tolist(), 25.0, 108.0],
    "negative": [-5.0, -4.0, -3.0, -1.0],
    "degenerate ends": [-2.0] * 5 + [0.0] * 30 + [3.0] * 7,
    "mostly zero": [0.0] * 50 + [1.0, 10.0],
    "one value": [4.0] * 9,
    "one row": [-3.0],
    "zero": [0.0] * 6,
    "far apart": [-1e-6, 1e-3, 1.0, 1e6],
}


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends_are_found_to_ten_digits(name: str, shifted: bool) -> None:
    values = SPECTRA[name]
    matrix = Matrix(with_spectrum(values))
    found = extreme_eigenvalues(matrix, tolerance=1e-12, shifted=shifted)
    exact = torch.linalg.eigvalsh(matrix.matrix)
    size = float(exact.abs().max())
    assert found.largest == pytest.approx(float(exact[-1]), abs=1e-10 * size)
    assert found.smallest == pytest.approx(float(exact[0]), abs=1e-10 * size)
    assert found.converged
    assert found.products == matrix.products <= (2 if shifted else 1) * len(values)
    assert found.gradient_evaluations == 2 * matrix.products
    assert max(found.largest_residual, found.smallest_residual) <= 1e-12 * size


@given(
    st.lists(st.floats(-100, 100).map(lambda x: round(x, 6)), min_size=1, max_size=12),
    st.integers(0, 5),
    st.integers(1, 12),
)
@settings(max_examples=50, deadline=None)
def test_an_eigenvalue_lies_within_the_residual(values: list[float], seed: int, iterations: int) -> None:
    matrix = with_spectrum(values, seed)
    found = extreme_eigenvalues(Matrix(matrix), iterations=iterations, tolerance=None, seed=seed)
    exact, rounding = torch.linalg.eigvalsh(matrix), 1e-13 * max(map(abs, values))
    for value, residual in ((found.largest, found.largest_residual), (found.smallest, found.smallest_residual)):
        assert (exact - value).abs().min() <= residual + rounding
        assert float(exact[0]) - rounding <= value <= float(exact[-1]) + rounding


def test_a_fixed_number_of_iterations_is_made_and_bounds_hold_before_convergence() -> None:
    exact = sorted([*torch.linspace(-1, 1, 200).tolist(), 2.0])
    matrix = Matrix(with_spectrum(exact))
    told: list[tuple[int, int]] = []
    found = extreme_eigenvalues(matrix, iterations=10, tolerance=None, progress=lambda *both: told.append(both))
    assert (matrix.products, found.products, found.converged) == (10, 10, None)
    assert told == [(k, 10) for k in range(1, 11)]
    assert found.krylov_bytes == 10 * 201 * 8
    assert found.smallest_residual > 1e-3
    for value, residual in ((found.largest, found.largest_residual), (found.smallest, found.smallest_residual)):
        assert min(abs(one - value) for one in exact) <= residual
    assert -1 <= found.smallest < found.largest <= 2
    short = extreme_eigenvalues(matrix, iterations=3, tolerance=1e-9)
    assert (short.converged, short.products) == (False, 3)


def test_many_iterations_cost_products_alone() -> None:
    """The small eigenproblem of k iterations costs k³, so it is not solved after each of them."""
    matrix = Matrix(torch.diag(torch.linspace(0, 1, 900).double()))
    calls: list[int] = []
    before = torch.linalg.eigh

    def counted(small: torch.Tensor) -> Any:
        calls.append(len(small))
        return before(small)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", counted)
        found = extreme_eigenvalues(matrix, iterations=230, tolerance=1e-15)
        assert (found.products, found.converged) == (230, False)
        assert len(calls) <= 60
        calls.clear()
        extreme_eigenvalues(matrix, iterations=230, tolerance=None)
        assert calls == [230, 230]


def test_the_shift_of_the_paper_leads_to_the_same_eigenvalue() -> None:
    """λ_min of A is that of A − λ_max I, plus λ_max; from one start vector the Krylov spaces are even the same."""
    matrix = with_spectrum(SPECTRA["indefinite"])
    told: list[tuple[int, int]] = []
    twice = extreme_eigenvalues(
        Matrix(matrix), iterations=10, tolerance=None, shifted=True, progress=lambda *both: told.append(both)
    )
    assert (twice.products, twice.gradient_evaluations, told[-1]) == (20, 40, (20, 20))
    assert twice.krylov_bytes == 10 * 63 * 8
    assert twice.largest == pytest.approx(108, abs=1e-6)
    assert twice.smallest == pytest.approx(-8, abs=1e-3)
    start = direction(Matrix(matrix), torch.Generator().manual_seed(0))
    for shift in (0.0, 108.0):
        *_, last = lanczos(Matrix(matrix - shift * torch.eye(63)), start, 10)
        ends = last.ritz()[0] + shift
        once = extreme_eigenvalues(Matrix(matrix), iterations=10, tolerance=None)
        assert (float(ends[0]), float(ends[-1])) == pytest.approx((once.smallest, once.largest), abs=1e-9)


def test_mu_and_eta_are_the_papers() -> None:
    found = extreme_eigenvalues(Matrix(with_spectrum([-25.0, 1.0, 75.0])), tolerance=1e-12)
    assert (found.mu, found.eta) == (pytest.approx(0.75), pytest.approx(1 / 75))
    assert found.mu is not None
    assert found.eta is not None
    assert 1 - found.mu + found.mu * found.eta * found.smallest == pytest.approx(0, abs=1e-12)


def test_vectors_stay_orthogonal_in_single_precision() -> None:
    """Without reorthogonalization the largest eigenvalue would come up again and again."""
    values = [1e4, *torch.linspace(0, 1, 300).tolist()]
    matrix = Matrix(with_spectrum(values).float())
    *_, last = lanczos(matrix, direction(matrix, torch.Generator().manual_seed(0)), 60)
    ritz = last.ritz()[0]
    assert float(ritz[-1]) == pytest.approx(1e4, rel=1e-5)
    assert int((ritz > 100).sum()) == 1
    found = extreme_eigenvalues(matrix)
    assert found.largest_residual >= torch.finfo(torch.float32).eps * 1e4  # no residual is below rounding


def test_the_same_seed_is_the_same_bits_and_leaves_torchs_stream_alone() -> None:
    matrix = Matrix(with_spectrum(SPECTRA["indefinite"]))
    state = torch.get_rng_state()
    runs = [extreme_eigenvalues(matrix, iterations=8, tolerance=None, seed=seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]
    densities = [spectral_density(matrix, iterations=5, probes=2, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(densities[0].density, densities[1].density)
    assert not torch.equal(densities[0].nodes, densities[2].nodes)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["positive", "indefinite", "negative", "degenerate ends", "mostly zero", "far apart"])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_arpack_finds_both_ends_too(name: str, kind: torch.dtype) -> None:
    values = SPECTRA[name]
    matrix = Matrix(with_spectrum(values).to(kind))
    near = 1e-10 if kind == torch.float64 else 1e-5
    found = extreme_eigenvalues_by_arpack(matrix, tolerance=near, vectors=10)
    size = max(map(abs, values))
    assert (found.largest, found.smallest) == pytest.approx((max(values), min(values)), abs=10 * near * size)
    assert max(found.largest_residual, found.smallest_residual) <= 100 * near * size
    assert found.products == matrix.products
    assert found.krylov_bytes == min(10, len(values)) * len(values) * kind.itemsize


def test_arpack_says_where_it_has_not_converged() -> None:
    matrix = Matrix(with_spectrum(torch.linspace(0, 1, 400)))
    with pytest.raises(RuntimeError, match=r"ARPACK has not found the LA end: .*No convergence"):
        extreme_eigenvalues_by_arpack(matrix, tolerance=1e-14, vectors=3)


@pytest.mark.parametrize("name", SPECTRA)
def test_moments_of_the_density_are_those_of_the_spectrum(name: str) -> None:
    values = torch.tensor(SPECTRA[name], dtype=torch.float64)
    values = values / (values.abs().max() + (values == 0).all())
    matrix = Matrix(with_spectrum(values))
    found = spectral_density(matrix, iterations=min(6, len(values)), probes=100)
    assert float(found.weights.sum()) == pytest.approx(1)
    for power in range(1, 5):
        exact = float((values**power).mean())
        spread = float((values**power).std(correction=0)) * math.sqrt(2 / (len(values) + 2) / 100)  # of a probe's mean
        assert found.moment(power) == pytest.approx(exact, abs=4 * spread + 1e-10)
    step = float(found.grid[1] - found.grid[0])
    assert float(found.density.sum()) * step == pytest.approx(1, abs=1e-3)
    assert float((found.density * found.grid).sum()) * step == pytest.approx(found.moment(1), abs=1e-3)


def test_the_quadrature_is_exact_up_to_its_degree() -> None:
    matrix = with_spectrum(SPECTRA["positive"]) / 40
    few, many = (spectral_density(Matrix(matrix), iterations=k, probes=3) for k in (4, 40))
    for power in range(8):
        assert few.moment(power) == pytest.approx(many.moment(power), abs=1e-10)
    assert few.moment(8) != pytest.approx(many.moment(8), abs=1e-10)


def test_the_density_is_the_histogram_of_the_spectrum() -> None:
    """Three bands with 10, 60 and 30 % of the eigenvalues."""
    values = torch.cat([torch.full((20,), -2.0), torch.zeros(120), torch.full((60,), 3.0)])
    told: list[tuple[int, int]] = []
    found = spectral_density(
        Matrix(with_spectrum(values)), iterations=10, probes=60, width=0.1, progress=lambda *both: told.append(both)
    )
    assert found.width == 0.1
    step = float(found.grid[1] - found.grid[0])
    for centre, share in ((-2, 0.1), (0, 0.6), (3, 0.3)):
        near = (found.grid - centre).abs() < 0.5
        assert float(found.density[near].sum()) * step == pytest.approx(share, abs=0.03)
        peak = share / (0.1 * math.sqrt(2 * math.pi))
        assert float(found.density[near].max()) == pytest.approx(peak, rel=0.2)
    assert len(told) == found.products
    assert found.products < 60 * 10  # three eigenvalues exhaust a Krylov space of three vectors
    assert found.gradient_evaluations == 2 * found.products


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda a: extreme_eigenvalues(a, iterations=0), "iterations must be a whole number >= 1, got 0"),
        (lambda a: extreme_eigenvalues(a, tolerance=0), "tolerance must be a finite number > 0 and < 1, got 0"),
        (lambda a: extreme_eigenvalues(a, tolerance=1.0), "tolerance must be a finite number > 0 and < 1"),
        (lambda a: extreme_eigenvalues(a, seed=-1), "seed must be a whole number >= 0, got -1"),
        (lambda a: extreme_eigenvalues_by_arpack(a, vectors=2), "vectors must be a whole number >= 3, got 2"),
        (lambda a: extreme_eigenvalues_by_arpack(a, tolerance=2), "tolerance must be a finite number > 0 and < 1"),
        (lambda _: extreme_eigenvalues_by_arpack(Matrix(torch.ones(1, 1))), "2 rows or more"),
        (lambda _: extreme_eigenvalues_by_arpack(Matrix(torch.full((5, 5), math.nan))), "is not finite"),
        (lambda _: extreme_eigenvalues(Matrix(torch.full((5, 5), math.inf))), "is not finite"),
        (lambda a: spectral_density(a, probes=0), "probes must be a whole number >= 1, got 0"),
        (lambda a: spectral_density(a, iterations=0.5), "iterations must be a whole number >= 1, got 0.5"),
        (lambda a: spectral_density(a, width=0), "width must be a finite number > 0, got 0"),
        (lambda a: spectral_density(a, points=1), "points must be a whole number >= 2, got 1"),
    ],
)
def test_wrong_input_is_one_sentence(call: Callable[[Any], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(Matrix(with_spectrum([1.0, 2.0, 3.0])))
