"""What a reader's eye stumbles over: lines that end inside a formula, labels that a curve runs through."""

from __future__ import annotations

import pytest

from neumann.studies.report.page import _bound


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
