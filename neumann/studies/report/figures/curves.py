"""The figure of learning curves: validation error and training loss by epoch, with 95 % bands.

Up to five rows share a panel, told apart by line style and colour; more have a panel each, with the reference dashed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from neumann.studies.numbers import percent, printable
from neumann.studies.report.figures.parts import (
    Grid,
    finite,
    fit_y,
    heading,
    legend,
    none_finished,
    nothing,
    sheet,
    short,
)
from neumann.studies.report.figures.svg import BLUE, GREEN, INK, MUTE, ORANGE, PURPLE, VERMILION, Drawing, save
from neumann.studies.report.text import label_of
from neumann.studies.results import Curve, Results, RowResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = (("error", 100.0, "validation error (%)"), ("loss", 1.0, "training loss (nats)"))
LINES = ((BLUE, "-"), (VERMILION, "--"), (GREEN, "-."), (PURPLE, (0, (5, 1, 1, 1, 1, 1))), (ORANGE, ":"))
TOGETHER = len(LINES)  # rows that one panel holds without a tangle
DASHED = (0, (3, 1.5))


def curve_figure(results: Results, rows: Sequence[RowResult]) -> Drawing:
    """Return validation error and training loss of ``rows`` by epoch."""
    drawn = [row for row in rows if row.curve and row.curve.epochs]
    if not drawn:
        return nothing(none_finished(rows, "there are no learning curves to show"))
    rows = drawn
    figure = _together(rows) if len(rows) <= TOGETHER else _apart(results, rows)
    said = "; ".join(f"{printable(row.label)} {percent(row.curve.error[-1])}" for row in rows if row.curve)
    return save(
        figure,
        "Validation error and training loss by epoch, means over seeds with 95 % bands. "
        f"Validation error at the last epoch, in percent: {said}.",
    )


def _together(rows: Sequence[RowResult]) -> Figure:
    height = 3.3 + 0.22 * math.ceil(len(rows) / 2)
    figure = sheet(height)
    handles: list[Any] = []
    for i, (measure, scale, label) in enumerate(MEASURES):
        axes = figure.add_axes((0.075 + 0.52 * i, 0.48 / height, 0.385, 2.7 / height))
        axes.grid(axis="y")
        axes.set(xlabel="epoch", ylabel=label)
        handles = []
        floor = _fit_y(axes, rows, measure, scale)
        for row, (colour, dashes) in zip(rows, LINES, strict=False):
            handles += _curve(axes, row.curve, measure, scale, floor, color=colour, linestyle=dashes, linewidth=1.6)
        _epochs(axes, rows)
    labels = [short(row.label, 44) for row in rows]
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.06, 1.0), ncols=2, handlelength=2.8)
    return figure


def _apart(results: Results, rows: Sequence[RowResult]) -> Figure:
    # One artist for all rows behind, instead of a dozen: it halves the time to draw
    from matplotlib.collections import LineCollection

    grid = Grid(len(rows), step=1.4, panel=0.95)
    block = 0.25 + grid.height + 0.25
    height = 0.3 + block * len(MEASURES)
    figure = sheet(height)
    for i, (measure, scale, label) in enumerate(MEASURES):
        top = height - 0.35 - i * block
        heading(figure, label, top)
        for k, (row, axes) in enumerate(zip(rows, grid.axes(figure, top - 0.2), strict=True)):
            others = [other for other in rows if other is not row and other.key != results.reference]
            axes.add_collection(LineCollection(_paths(others, measure, scale), colors=MUTE, linewidths=0.6, zorder=1))
            for other in rows:
                if other.key == results.reference and other is not row:
                    _line(axes, other.curve, measure, scale, color=INK, linewidth=1, linestyle=DASHED, zorder=3)
            floor = _fit_y(axes, rows, measure, scale)
            _curve(axes, row.curve, measure, scale, floor, color=BLUE, linewidth=1.5, zorder=4)
            grid.title(axes, row)
            _epochs(axes, rows)
            if grid.lowest(k):
                axes.set_xlabel("epoch", fontsize=8, labelpad=1)
            else:
                axes.tick_params("x", bottom=False, labelbottom=False)
    entries = [
        ({"color": BLUE, "linewidth": 1.5}, "the row, with its 95 % band"),
        ({"color": INK, "linewidth": 1, "linestyle": DASHED}, short(label_of(results, results.reference), 34)),
        ({"color": MUTE, "linewidth": 0.8}, "the other rows"),
    ]
    legend(figure, entries)
    return figure


def _curve(axes: Axes, curve: Curve | None, measure: str, scale: float, floor: float | None, **look: Any) -> list[Any]:
    if curve is None:
        return []
    low, high = (_scaled(getattr(curve, f"{measure}_{side}"), scale) for side in ("low", "high"))
    if floor is not None:  # on a logarithmic axis a band that reaches zero ends at the axis
        low = [max(v, floor) for v in low]
        high = [max(v, floor) for v in high]
    if len(curve.epochs) == 1:  # one evaluation makes no band
        axes.vlines(curve.epochs, low, high, color=look["color"], alpha=0.4, linewidth=3, zorder=2)
    axes.fill_between(curve.epochs, low, high, color=look["color"], alpha=0.2, linewidth=0, zorder=2)
    return _line(axes, curve, measure, scale, **look)


def _line(axes: Axes, curve: Curve | None, measure: str, scale: float, **look: Any) -> list[Any]:
    if curve is None:
        return []
    if len(curve.epochs) == 1:  # one evaluation makes no line
        look["marker"] = "o"
    return axes.plot(curve.epochs, _scaled(getattr(curve, measure), scale), **look)


def _paths(rows: Iterable[RowResult], measure: str, scale: float) -> list[list[tuple[float, float]]]:
    return [
        list(zip(row.curve.epochs, _scaled(getattr(row.curve, measure), scale), strict=True))
        for row in rows
        if row.curve
    ]


def _scaled(values: Iterable[float | None], scale: float) -> list[float]:
    return [scale * v if v is not None and math.isfinite(v) else math.nan for v in values]


def _values(rows: Iterable[RowResult], measure: str, scale: float) -> list[float]:
    """Return what the axis shows: every mean, and upper ends of bands as far as they do not dwarf the means."""
    curves = [row.curve for row in rows if row.curve]
    means = [v for curve in curves for v in finite(getattr(curve, measure), scale)]
    most = 2 * max(means, default=0.0)
    return means + [min(v, most) for curve in curves for v in finite(getattr(curve, f"{measure}_high"), scale)]


def _fit_y(axes: Axes, rows: Sequence[RowResult], measure: str, scale: float) -> float | None:
    """Give y the range of the curves with their bands; return its lower end where it is logarithmic, else None."""
    fit_y(axes, _values(rows, measure, scale))
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        return low
    bands = [v for row in rows if row.curve for v in finite(getattr(row.curve, f"{measure}_low"), scale)]
    if bands and min(bands) < low:
        axes.set_ylim(max(0.0, min(bands) - 0.04 * (high - low)), high)
    return None


def _epochs(axes: Axes, rows: Iterable[RowResult]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, max(row.curve.epochs[-1] for row in rows if row.curve) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], integer=True))
