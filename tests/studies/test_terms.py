"""What a report shows of the optimizers' terms: means over seeds, one line per row, and nothing without them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from neumann.studies.report.content import terms_told
from neumann.studies.report.csv_files import terms_csv
from neumann.studies.report.figures import draw
from neumann.studies.report.page import page
from neumann.studies.results import StudyResults, TermCurve
from neumann.studies.statistics import summarize
from neumann.studies.terms import BY_KEY, QUANTITIES, term_curves
from tests.support.fake_results import results

RUNS = [
    [{"epoch": 1.0, "lambda_max": 4.0, "mu": 0.9, "note": "x"}, {"epoch": 2.0, "lambda_max": 6.0}],
    [{"epoch": 1.0, "lambda_max": 8.0, "mu": 0.8}, {"epoch": 2.0, "lambda_max": True}, {"lambda_max": 1.0}],
]


def test_curves_are_means_over_the_runs_that_have_them() -> None:
    found = term_curves(RUNS)
    assert list(found) == ["lambda_max", "mu"]
    at = summarize([4.0, 8.0])
    assert found["lambda_max"] == TermCurve((1.0, 2.0), (2, 1), (6.0, 6.0), (at.low, None), (at.high, None))
    mu = found["mu"]
    assert mu.mean == (pytest.approx(0.85),)
    assert mu.high == (1.0,)  # a share is no more
    assert term_curves([[], []]) == {}


def with_terms() -> StudyResults:
    plain = results()
    values = {"lambda_max": (5.0, 9.0), "lambda_min": (-2.0, -1.0), "transport_error": (0.5, 2.0)}

    def curve(key: str, factor: float) -> TermCurve:
        mean = tuple(factor * v for v in values[key])
        return TermCurve((1.0, 2.0), (3, 3), mean, tuple(v - 0.1 for v in mean), (mean[0] + 0.1, None))

    rows = [replace(row, terms={key: curve(key, 1 + k) for key in values}) for k, row in enumerate(plain.rows[:2])]
    return replace(plain, rows=(*rows, *plain.rows[2:]))


@pytest.mark.medium
def test_the_figure_has_a_panel_for_each_quantity_and_is_absent_without_any() -> None:
    plain, measured = results(), with_terms()
    without = draw(plain)
    assert "terms" not in without
    assert "Inside the optimizers" not in page(plain, without)
    drawings = draw(measured)
    assert list(drawings) == [*without, "terms"]
    svg = drawings["terms"].svg.decode()
    for key in BY_KEY:
        assert (f">{BY_KEY[key].name}<" in svg) == (key in measured.rows[0].terms), key
    assert svg.count(f">{measured.rows[0].label}<") == 1
    assert not drawings["terms"].empty
    written = page(measured, drawings)
    assert '<section id="terms"' in written
    told = terms_told(measured)
    assert "transport error: ‖∇f̂(w + d)" in told
    assert "noise share" not in told


def test_the_csv_has_a_line_for_each_row_and_quantity() -> None:
    measured = with_terms()
    lines = list(csv.DictReader(io.StringIO(terms_csv(measured).decode())))
    assert len(lines) == 2 * 3 * 2
    assert lines[0] == {
        "row": measured.rows[0].key,
        "quantity": "lambda_max",
        "epoch": "1.0",
        "n": "3",
        "mean": "5.0",
        "low": "4.9",
        "high": "5.1",
    }


def test_every_quantity_has_a_name_of_its_own() -> None:
    assert len({one.name for one in QUANTITIES}) == len(QUANTITIES) == len(BY_KEY)
