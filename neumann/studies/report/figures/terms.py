"""The figure of what the optimizers' terms did: a small panel per quantity by epoch, a line per row with its band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neumann.studies.report.figures.curves import LINES
from neumann.studies.report.figures.parts import WIDTH, finite, fit_y, nothing, sheet, short
from neumann.studies.report.figures.svg import Drawing, save
from neumann.studies.results import RowResult, TermCurve
from neumann.studies.terms import QUANTITIES, Quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, STEP, PANEL = 3, 1.5, 1.0  # panels in a line, and heights in inches
LEFT, GAP = 0.55, 0.62  # inches


def terms_figure(rows: Sequence[RowResult]) -> Drawing:
    """Return every quantity that one of ``rows`` has measured, by epoch."""
    drawn = [row for row in rows if row.terms]
    shown = [quantity for quantity in QUANTITIES if any(quantity.key in row.terms for row in drawn)]
    if not shown:
        return nothing("No row of this figure has measured its terms.")
    head = 0.12 + 0.2 * math.ceil(len(drawn) / 2)
    height = head + STEP * math.ceil(len(shown) / COLUMNS) + 0.2
    figure = sheet(height)
    width = (WIDTH - LEFT - 0.1 - GAP * (COLUMNS - 1)) / COLUMNS
    looks = [_look(place) for place in range(len(drawn))]
    for k, quantity in enumerate(shown):
        line, column = divmod(k, COLUMNS)
        low = height - head - (line + 1) * STEP + (STEP - PANEL) * 0.5
        box = ((LEFT + column * (width + GAP)) / WIDTH, low / height, width / WIDTH, PANEL / height)
        axes = figure.add_axes(box)
        axes.grid(axis="y")
        axes.tick_params(labelsize=7.5, pad=2)
        axes.set_title(quantity.name, fontsize=8.5)
        _panel(axes, quantity, drawn, looks)
        if k + COLUMNS >= len(shown):
            axes.set_xlabel("epoch", fontsize=8, labelpad=1)
    handles, labels = _handles(looks), [short(row.label, 44) for row in drawn]
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.04, 1.0), ncols=2, handlelength=2.8, fontsize=8)
    names = ", ".join(quantity.name for quantity in shown)
    return save(figure, f"What the optimizers' terms did by epoch, means over seeds with 95 % bands: {names}.")


def _look(place: int) -> dict[str, Any]:
    """Return the colour and the dashes of row number ``place``; no two of 25 rows have the same."""
    turn, at = divmod(place, len(LINES))
    return {"color": LINES[at][0], "linestyle": LINES[(at + turn) % len(LINES)][1], "linewidth": 1.4}


def _handles(looks: Sequence[dict[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], **look) for look in looks]


def _panel(axes: Axes, quantity: Quantity, rows: Sequence[RowResult], looks: Sequence[dict[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    curves = [
        (row.terms[quantity.key], look) for row, look in zip(rows, looks, strict=True) if quantity.key in row.terms
    ]
    _fit_y(axes, [curve for curve, _ in curves], is_linear=quantity.is_linear)
    bottom = axes.get_ylim()[0] if axes.get_yscale() == "log" else -math.inf
    for curve, look in curves:
        low, high = ([math.nan if v is None else max(v, bottom) for v in side] for side in (curve.low, curve.high))
        if len(curve.epochs) == 1:  # one measurement makes neither a line nor a band
            axes.vlines(curve.epochs, low, high, color=look["color"], alpha=0.4, linewidth=3, zorder=2)
            axes.plot(curve.epochs, curve.mean, marker="o", markersize=3, **look)
        else:
            axes.fill_between(curve.epochs, low, high, color=look["color"], alpha=0.15, linewidth=0, zorder=2)
            axes.plot(curve.epochs, curve.mean, **look)
    axes.set_xlim(0, max(curve.epochs[-1] for curve, _ in curves) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))


def _fit_y(axes: Axes, curves: Sequence[TermCurve], *, is_linear: bool) -> None:
    """Give y the range of the means, and of their bands as far as these do not dwarf them."""
    means = [v for curve in curves for v in finite(curve.mean)]
    ends = [v for curve in curves for side in (curve.low, curve.high) for v in finite(side)]
    low, high = min(means), max(means)
    if not is_linear and low > 0:
        fit_y(axes, means + [v for v in ends if low / 2 <= v <= 2 * high])
        return
    room = max(high - low, 0.1 * max(abs(low), abs(high))) or 0.1
    seen = [*means, *(min(max(v, low - room), high + room) for v in ends)]
    low, high = min(seen), max(seen)
    axes.set_ylim(low - 0.06 * (high - low or 1), high + 0.06 * (high - low or 1))
