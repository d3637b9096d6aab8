"""The figure of a batch-size study: steps, examples and rates against batch size, a line a row.

As in Shallue et al. (2019, figures 1 and 3): both axes logarithmic, perfect scaling a dashed line, and what missed the
target marked where it was given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from neumann.studies.effects import Effect
from neumann.studies.numbers import printable
from neumann.studies.report.figures.curves import DASHED, LINES
from neumann.studies.report.figures.parts import WIDTH, finite, nothing, plain_log, sheet, short
from neumann.studies.report.figures.svg import INK, PAPER, SOFT, Drawing, save
from neumann.studies.results import StudyResults
from neumann.studies.scaling import NEARLY, ScalingCurve, ScalingPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = ("o", "s", "D", "v", "P", "X", "h", "*")
APART = 1.025  # factor in batch between two rows, so that their marks lie side by side
TALL, LOW = 3.1, 1.75  # inches of the upper panel and of the lower ones
Point = tuple[float, float | None, float | None, float | None]  # batch, value, and the ends of its interval


def scaling_figure(results: StudyResults) -> Drawing:
    """Return the curves of a batch-size study; one without runs that are over says so."""
    curves = results.scaling
    if not any(point.steps for one in curves for point in one.points):
        return nothing("No run has reached the target yet: there are no steps to show.")
    head = 0.22 * ((len(curves) + 2) // 3) + 0.1
    height = head + TALL + LOW + 1.35
    figure = sheet(height)
    left, top = 0.62, height - head
    above = figure.add_axes((left / WIDTH, (top - TALL) / height, (WIDTH - left - 0.12) / WIDTH, TALL / height))
    handles = _steps(above, results)
    below = top - TALL - 0.85 - LOW
    wide = (WIDTH - left - 0.12 - 2 * 0.62) / 3
    panels = [
        figure.add_axes(((left + k * (wide + 0.62)) / WIDTH, below / height, wide / WIDTH, LOW / height))
        for k in range(3)
    ]
    _ratios(panels[0], curves, "examples, × smallest batch", lambda point: point.excess, (1.0, NEARLY))
    against = short(results.cells[results.reference].label, 22)
    _ratios(panels[1], curves, f"examples, × {against}", lambda point: point.against, (1.0,))
    _rates(panels[2], curves)
    labels = [short(one.label, 34) for one in curves]
    handles += above.plot([], [], color=INK, linewidth=1, linestyle=DASHED)
    figure.legend(
        handles, [*labels, "perfect scaling"], loc="upper left", bbox_to_anchor=(0.06, 1.0), ncols=3, handlelength=2.8,
        fontsize=8,
    )  # fmt: skip
    said = "; ".join(f"{printable(one.label)} {_said(one.points)}" for one in curves)
    return save(figure, f"Steps to the target by batch size, geometric means over seeds: {said}.")


def _said(points: Iterable[ScalingPoint]) -> str:
    return ", ".join(f"{p.mean:.0f} at {p.batch}" if p.mean else f"missed at {p.batch}" for p in points)


def _steps(axes: Axes, results: StudyResults) -> list[Any]:
    handles = []
    reference = results.cells[results.reference].row
    shown: list[float] = []
    for i, (one, look) in enumerate(_looks(results.scaling)):
        colour, aside = look["color"], _aside(i, len(results.scaling))
        handles += _line(axes, [(p.batch * aside, p.mean, p.low, p.high) for p in one.points], **look)
        for point in one.points:
            x = point.batch * aside
            dots = finite(point.steps.values())
            axes.plot([x] * len(dots), dots, ".", color=colour, alpha=0.35, markersize=4, markeredgewidth=0, zorder=2)
            given_up = finite(point.missed.values())
            axes.plot(
                [x] * len(given_up), given_up, "^", color="none", markeredgecolor=colour, markersize=6, zorder=3
            )  # fmt: skip
            shown += [*dots, *given_up, *finite([point.low, point.high])]
            at = point.mean or max(given_up, default=None)
            if point.edge and at:
                axes.annotate("†", (x, at), (4, 3), textcoords="offset points", fontsize=8, color=colour)
        if one.row == reference and one.points[0].mean:
            first, last = one.points[0], one.points[-1].batch
            begin = one.points[0].mean
            floor = begin * first.batch / last
            axes.plot((first.batch, last), (begin, floor), color=INK, linewidth=1, linestyle=DASHED, zorder=1)
            shown.append(floor)
    _logarithmic(axes, results.scaling)
    low, high = min(shown) / 1.3, max(shown) * 1.3
    axes.set(yscale="log", ylim=(low, high), xlabel="batch size", ylabel="steps to the target")
    plain_log(axes.yaxis, low, high)
    return handles


def _ratios(
    axes: Axes,
    curves: Sequence[ScalingCurve],
    label: str,
    effect_of: Callable[[ScalingPoint], Effect | None],
    lines: Sequence[float],
) -> None:
    shown = list(lines)
    for at in lines:
        axes.axhline(at, color=INK if at == 1 else SOFT, linewidth=0.8, linestyle=DASHED, zorder=1)
    for i, (one, look) in enumerate(_looks(curves)):
        own = len(lines) > 1  # against the row's own smallest batch, which is there too
        points: list[Point] = [(one.points[0].batch * _aside(i, len(curves)), 1.0, None, None)] if own else []
        for point in one.points:
            effect = effect_of(point)
            if effect is not None and not effect.lost:
                points.append((point.batch * _aside(i, len(curves)), effect.value, effect.low, effect.high))
                shown += finite([effect.value])
        _line(axes, points, **look)
    _logarithmic(axes, curves)
    low, high = min(shown) / 1.25, max(shown) * 1.25
    axes.set(yscale="log", ylim=(low, high), xlabel="batch size")
    axes.set_title(label, fontsize=8)
    plain_log(axes.yaxis, low, high)


def _rates(axes: Axes, curves: Sequence[ScalingCurve]) -> None:
    from statistics import median

    shown: list[float] = []
    for i, (one, look) in enumerate(_looks(curves)):
        aside = _aside(i, len(curves))
        known = [(p.batch * aside, sorted(p.rates.values())) for p in one.points if p.rates]
        _line(axes, [(x, median(rates), rates[0], rates[-1]) for x, rates in known], **look)
        shown += [rate for _, rates in known for rate in rates]
    _logarithmic(axes, curves)
    axes.set(xlabel="batch size")
    axes.set_title("best rate, median and range", fontsize=8)
    if shown and min(shown) > 0:
        low, high = min(shown) / 1.5, max(shown) * 1.5
        axes.set(yscale="log", ylim=(low, high))
        plain_log(axes.yaxis, low, high)


def _looks(curves: Sequence[ScalingCurve]) -> list[tuple[ScalingCurve, dict[str, Any]]]:
    return [
        (
            one,
            {
                "color": LINES[i % len(LINES)][0],
                "linestyle": LINES[i % len(LINES)][1],
                "marker": MARKS[i % len(MARKS)],
            },
        )
        for i, one in enumerate(curves)
    ]


def _aside(i: int, count: int) -> float:
    return float(APART ** (i - (count - 1) / 2))


def _line(axes: Axes, points: Sequence[Point], **look: Any) -> list[Any]:
    """Draw the values with their intervals; where one is unknown the line is broken."""
    for x, _, low, high in points:
        if low is not None and high is not None:
            axes.plot((x, x), (low, high), color=look["color"], linewidth=1.1, alpha=0.8, zorder=3)
    xs = [x for x, *_ in points]
    values = [float("nan") if value is None else value for _, value, *_ in points]
    return axes.plot(xs, values, linewidth=1.3, markersize=4.5, markeredgecolor=PAPER, zorder=4, **look)


def _logarithmic(axes: Axes, curves: Sequence[ScalingCurve]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    batches = sorted({point.batch for one in curves for point in one.points})
    axes.grid(axis="y")
    axes.set(xscale="log", xlim=(batches[0] / 1.3, batches[-1] * 1.3))
    axes.xaxis.set_major_locator(FixedLocator(batches))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=7.5, pad=2)
    if len(batches) > 4:
        axes.tick_params("x", labelrotation=30)
