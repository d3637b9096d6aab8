"""The figure of test errors: every seed a dot, mean and interval above them, a line a row of the study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neumann.studies.numbers import count, mean_and_interval, printable
from neumann.studies.report.figures.parts import WIDTH, finite, none_finished, nothing, plain_log, sheet, wrapped
from neumann.studies.report.figures.svg import BLUE, INK, PAPER, SOFT, Drawing, save
from neumann.studies.results import Results, RowResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = 20  # a larger ratio of test errors than this takes a log axis
DOT = 5.0  # pixels at matplotlib's 100 to the inch
RIGHT = 2.05  # inches for the numbers beside the dots


def error_figure(results: Results, rows: Sequence[RowResult], measure: str = "test error") -> Drawing:
    """Return the errors of ``rows``, which are ``measure``; the reference row's mean is a line through all of them."""
    values = [e for row in rows for e in finite(row.errors.values(), 100)]
    if not values:
        return nothing(none_finished(rows, "there are no errors to show"))
    labels = [wrapped(row.label, 30) for row in rows]
    left = min(2.4, 0.25 + 0.074 * max(len(line) for label in labels for line in label.split("\n")))
    height = 0.4 * len(rows) + 0.75
    figure = sheet(height)
    axes = figure.add_axes((left / WIDTH, 0.45 / height, (WIDTH - left - RIGHT) / WIDTH, 1 - 0.72 / height))
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"{measure} (%)")
    axes.set_yticks(range(len(rows)), labels)
    axes.tick_params("y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    _fit_x(
        axes, values, [100 * x for row in rows if row.error for x in (row.error.low, row.error.high) if x is not None]
    )
    reference = next((row.error for row in rows if row.key == results.reference), None)
    if reference:
        axes.axvline(100 * reference.mean, color=SOFT, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    beside = axes.get_yaxis_transform()
    axes.text(1.03, -0.62, "mean [95 % interval]", transform=beside, fontsize=8, color=SOFT)
    primary = {key for c in results.comparisons if c.primary for key in (c.row, c.against)}
    for i, row in enumerate(rows):
        colour = BLUE if row.key in primary else INK
        own = sorted(finite(row.errors.values(), 100))
        levels = _stack([float(axes.transData.transform((v, 0))[0]) for v in own])
        step = min(0.11, 0.36 / max([1, *levels]))  # many equal errors overlap rather than reach the next row
        heights = [i + 0.16 + step * level for level in levels]
        axes.scatter(own, heights, s=13, color=colour, alpha=0.45, linewidths=0, zorder=2)
        if row.error:
            _mean(axes, row, i - 0.14, colour)
        counted = "" if len(own) == row.planned else f"\nn = {count(len(own), row.planned)}"  # beside it is no room
        counted += f", {len(row.diverged)} diverged" if row.diverged else ""
        none = f"{len(row.diverged)} of {row.planned} diverged" if row.diverged else f"none of {row.planned} runs yet"
        said = mean_and_interval(row.error) + counted if row.error else none
        shade = colour if row.error else SOFT
        axes.text(1.03, i, said, transform=beside, va="center", fontsize=8, color=shade)
    alt = "; ".join(f"{printable(row.label)} {mean_and_interval(row.error)}" for row in rows)
    what = f"{measure.capitalize()} of every seed"
    return save(figure, f"{what}, with mean and 95 % interval per row, in percent: {alt}.")


def _mean(axes: Axes, row: RowResult, height: float, colour: str) -> None:
    error = row.error
    assert error is not None
    if error.low is not None and error.high is not None:
        axes.plot((100 * error.low, 100 * error.high), (height, height), color=colour, linewidth=1.6, zorder=3)
        left, right = axes.get_xlim()
        for end, mark, beyond in ((left, "<", 100 * error.low < left), (right, ">", 100 * error.high > right)):
            if beyond:
                axes.plot(end, height, mark, color=colour, markersize=5, markeredgewidth=0, clip_on=False, zorder=3)
    axes.plot(100 * error.mean, height, "o", color=colour, markersize=5.5, markeredgecolor=PAPER, zorder=4)


def _stack(places: Sequence[float]) -> list[int]:
    """Return a level per dot, so that dots that would touch lie below each other; ``places`` are sorted pixels."""
    ends: list[float] = []
    levels = []
    for x in places:
        level = next((k for k, end in enumerate(ends) if x - end > DOT), len(ends))
        ends[level : level + 1] = [x]
        levels.append(level)
    return levels


def _fit_x(axes: Axes, values: Sequence[float], bounds: Sequence[float]) -> None:
    """Give x the range of the dots, and of the intervals as far as they do not dwarf the dots; arrows mark the rest."""
    low, high = min(values), max(values)
    if low > 0 and high > WIDE * low:
        low, high = max(min([low, *bounds]), low / 2), min(max([high, *bounds]), 2 * high)
        axes.set_xscale("log")
        axes.set_xlim(low / 1.15, high * 1.15)
        plain_log(axes.xaxis, low / 1.15, high * 1.15)
    else:
        reach = (high - low) / 2 or 0.1 * high or 0.5
        low, high = max(min([low, *bounds]), low - reach, 0), min(max([high, *bounds]), high + reach)
        pad = 0.04 * (high - low) or 0.05 * high or 0.5
        axes.set_xlim(max(low - pad, -pad / 2), high + pad)
