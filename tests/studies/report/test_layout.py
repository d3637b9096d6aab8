"""What a reader's eye stumbles over: lines that end inside a formula, labels that a curve runs through."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neumann.studies.report.page import _bound
from tests.support.fake_results import ROWS, study


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("Neumann, α = β = 0", "Neumann, α~=~β~=~0"),
        ("n = 5 paired seeds, p = 0.034)", "n~=~5 paired seeds, p~=~0.034)"),
        ("p < 0.001", "p~<~0.001"),
        ("a power of 80 % (two-sided)", "a power of 80~% (two-sided)"),
        ("lr=0.1 is the largest", "lr=0.1 is the largest"),
    ],
)
def test_no_line_ends_inside_a_formula_or_before_a_percent_sign(text: str, bound: str) -> None:
    assert _bound(text) == bound.replace("~", "\N{NO-BREAK SPACE}")


def test_an_error_of_zero_is_drawn_on_the_lower_end_of_a_logarithmic_axis() -> None:
    from matplotlib.figure import Figure

    from neumann.studies.report.figures.parts import fit_y
    from neumann.studies.report.figures.tuning import _trials

    (row, *_) = study(ROWS[:2], row="sgd_average").rows
    errors = {True: 0.0, False: 0.3}
    trials = tuple(
        replace(one, errors=dict.fromkeys(one.errors, errors[one.chosen]), mean=errors[one.chosen] + 0.01 * (i == 0))
        for i, one in enumerate(row.trials)
    )
    axes = Figure().add_subplot()
    fit_y(axes, [0.0, 1.0, 31.0])
    assert axes.get_yscale() == "log"
    _trials(axes, replace(row, trials=trials), [float(i + 1) for i in range(len(trials))], "optimizer.lr")
    low, high = axes.get_ylim()
    drawn = [y for line in axes.lines for y in line.get_ydata() if line.get_transform() == axes.transData]
    assert len(drawn) > len(trials)
    assert low == min(drawn) <= max(drawn) <= high


def test_beside_the_errors_there_is_room_for_what_diverged() -> None:
    from neumann.studies.report.figures import draw

    svg = draw(study(ROWS))["errors"].svg.decode()
    assert "n = 8/10, 2 diverged" in svg  # on a line of its own
    assert "8/10, 2 of" not in svg


def test_where_every_run_diverged_no_figure_waits_for_more() -> None:
    from neumann.studies.report.figures import draw

    results = study(ROWS[:2], row="sgd_average", seeds=(1, 2, 3))
    lost = {"errors": {}, "losses": {}, "error": None, "loss": None, "points": {}, "curve": None}
    drawings = draw(replace(results, rows=tuple(replace(r, **lost, diverged=(1, 2, 3)) for r in results.rows)))
    for name in ("errors", "curves"):
        assert drawings[name].alt.startswith("No evaluation run finished, 6 diverged: there are no ")


def test_the_label_of_the_chosen_setting_stands_on_paper_where_a_curve_passes() -> None:
    import matplotlib.colors
    from matplotlib.figure import Figure

    from neumann.studies.report.figures.svg import PAPER
    from neumann.studies.report.figures.tuning import _name

    axes = Figure().add_subplot()
    (line,) = axes.plot([0, 1], [0, 1], zorder=3)
    _name(axes, 0.5, 0.5, "0.1")
    (label,) = axes.texts
    box = label.get_bbox_patch()
    assert box is not None
    assert matplotlib.colors.same_color(box.get_facecolor()[:3], PAPER)
    assert label.get_zorder() > line.get_zorder()
