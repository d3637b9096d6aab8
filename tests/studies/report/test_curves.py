"""The bands of the learning curves stay on the axis, which is logarithmic where the means span much."""

from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.collections import LineCollection

from neumann.studies.report.figures.curves import _apart, _together
from neumann.studies.results import Curve
from tests.support.fake_results import study

pytestmark = pytest.mark.medium


@pytest.mark.parametrize("together", [True, False])
def test_a_band_that_reaches_zero_ends_at_the_axis_and_its_upper_end_is_shown(together: bool) -> None:
    results = study(seeds=(1, 2))
    rows = []
    for row in results.rows[:3]:
        assert row.curve is not None
        curve = replace(row.curve, error_low=(0.0,) * 30, error_high=tuple(1.6 * e for e in row.curve.error))
        rows.append(replace(row, curve=curve))
    figure = _together(rows) if together else _apart(results, rows)
    first = figure.axes[0]
    assert first.get_yscale() == "log"
    bottom, top = first.get_ylim()
    bands = [path.vertices[:, 1] for each in first.collections for path in each.get_paths()]
    assert min(float(values.min()) for values in bands) == pytest.approx(bottom)
    assert max(float(values.max()) for values in bands) <= top


@pytest.mark.parametrize("together", [True, False])
def test_a_band_below_the_means_is_on_a_linear_axis_too(together: bool) -> None:
    results = study(seeds=(1, 2))
    rows = []
    for row in results.rows[:3]:
        assert row.curve is not None
        curve = replace(row.curve, error=(0.3,) * 30, error_low=(0.1,) * 30, error_high=(0.5,) * 30)
        rows.append(replace(row, curve=curve))
    first = (_together(rows) if together else _apart(results, rows)).axes[0]
    assert first.get_yscale() == "linear"
    bottom, top = first.get_ylim()
    assert 0 <= bottom < 10
    assert top >= 50


def test_the_interval_of_a_single_evaluation_is_drawn() -> None:
    (row,) = study(seeds=(1, 2)).rows[:1]
    curve = Curve((1.0,), (2,), (0.3,), (0.1,), (0.5,), (1.0,), (0.8,), (1.2,))
    first = _together([replace(row, curve=curve)]).axes[0]
    ends = [line for each in first.collections if isinstance(each, LineCollection) for line in each.get_segments()]
    assert [point[1] for line in ends for point in line] == [10, 50]
