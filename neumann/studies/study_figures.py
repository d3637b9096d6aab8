"""How do the rows of a study look beside each other? Test errors by seed, learning curves, and the tuning of each row.

Rows are told apart by place and label first, by line style second and by colour last. Nothing is computed here but
where a mark lies.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neumann.studies.results import Curve, RowResult, StudyResults, Trial
from neumann.studies.svg import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SOFT,
    VERMILION,
    Drawing,
    save,
    style,
)
from neumann.studies.tables import RATE, count, label_of, mean_and_interval, percent, printable, setting_text, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("errors", "curves", "tuning")
TOGETHER = 5  # rows that one panel holds without a tangle
WIDTH, COLUMNS = 7.4, 4  # inches, panels
LINES = ((BLUE, "-"), (VERMILION, "--"), (GREEN, "-."), (PURPLE, (0, (5, 1, 1, 1, 1, 1))), (ORANGE, ":"))


def draw(results: StudyResults) -> dict[str, Drawing]:
    """Return every figure of the study by its name; one without data says so."""
    with style():
        return {
            "errors": _errors(results, _rows(results, "errors")),
            "curves": _curves(results, _rows(results, "curves")),
            "tuning": _tuning(results, _rows(results, "tuning")),
        }


def _rows(results: StudyResults, figure: str) -> list[RowResult]:
    wanted = results.figures.get(figure)
    return [row for row in results.rows if wanted is None or row.key in wanted]


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height))


def _nothing(sentence: str) -> Drawing:
    figure = _figure(0.9)
    figure.text(0.5, 0.5, sentence, ha="center", va="center", color=SOFT)
    return save(figure, sentence)


# ------------------------------------------------------------------------------------------------------ test errors


def _errors(results: StudyResults, rows: Sequence[RowResult]) -> Drawing:
    """Every seed a dot; mean and interval above them; the reference row's mean as a line through all rows."""
    values = [100 * e for row in rows for e in row.errors.values() if math.isfinite(e)]
    if not values:
        return _nothing("No evaluation run is finished yet: there are no test errors to show.")
    labels = [textwrap.fill(printable(row.label), 30, max_lines=2, placeholder=" …") for row in rows]
    left = min(2.5, 0.25 + 0.076 * max(len(line) for label in labels for line in label.split("\n")))
    height, right = 0.42 * len(rows) + 0.75, 1.55
    figure = _figure(height)
    axes = figure.add_axes((left / WIDTH, 0.5 / height, (WIDTH - left - right) / WIDTH, 1 - 0.75 / height))
    log = min(values) > 0 and max(values) / min(values) > 20
    axes.set(ylim=(len(rows) - 0.4, -0.6), xscale="log" if log else "linear", xlabel="test error (%)")
    axes.set_yticks(range(len(rows)), labels)
    axes.tick_params("y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    _room(axes, values, log)
    primary = {key for c in results.comparisons if c.primary for key in (c.row, c.against)}
    reference = next((r.error for r in rows if r.key == results.reference), None)
    if reference:
        axes.axvline(100 * reference.mean, color=SOFT, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    axes.text(1.03, -0.62, "mean [95 % interval]", transform=axes.get_yaxis_transform(), fontsize=8, color=SOFT)
    for i, row in enumerate(rows):
        colour = BLUE if row.key in primary else INK
        own = sorted(100 * e for e in row.errors.values() if math.isfinite(e))
        heights = [i + 0.17 + 0.075 * level for level in _stack(own, (max(values) - min(values)) / 70)]
        axes.scatter(own, heights, s=13, color=colour, alpha=0.45, linewidths=0, zorder=2)
        if row.error:
            _mean(axes, row, i - 0.16, colour)
        missing = "" if len(own) == row.planned else f"  (n = {count(len(own), row.planned)})"
        said = mean_and_interval(row.error) + missing if row.error else f"no run of {row.planned} yet"
        colour = colour if row.error else SOFT
        axes.text(1.03, i, said, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=colour)
    said = "; ".join(f"{printable(row.label)} {mean_and_interval(row.error)}" for row in rows)
    return save(figure, f"Test error of every seed, with mean and 95 % interval per row, in percent: {said}.")


def _mean(axes: Axes, row: RowResult, height: float, colour: str) -> None:
    error = row.error
    assert error is not None
    if error.low is not None and error.high is not None:
        axes.plot((100 * error.low, 100 * error.high), (height, height), color=colour, linewidth=1.6, zorder=3)
    axes.plot(100 * error.mean, height, "o", color=colour, markersize=5.5, markeredgecolor=PAPER, zorder=4)


def _stack(values: Sequence[float], reach: float) -> list[int]:
    """Return a level per value of a sorted list, so that dots nearer than ``reach`` lie below each other."""
    ends: list[float] = []
    levels = []
    for v in values:
        level = next((k for k, end in enumerate(ends) if v - end > reach), len(ends))
        ends[level : level + 1] = [v]
        levels.append(min(level, 4))
    return levels


def _room(axes: Axes, values: Sequence[float], log: bool) -> None:
    low, high = min(values), max(values)
    if log:
        axes.set_xlim(low / 1.15, high * 1.15)
        _plain_log(axes.xaxis, low, high)
    else:
        pad = 0.04 * (high - low) or 0.05 * high or 0.5
        axes.set_xlim(max(low - pad, -pad / 2), high + pad)


# --------------------------------------------------------------------------------------------------- learning curves


def _curves(results: StudyResults, rows: Sequence[RowResult]) -> Drawing:
    """Validation error and training loss by epoch: rows in one panel where they are few, else a panel a row."""
    rows = [row for row in rows if row.curve and row.curve.epochs]
    if not rows:
        return _nothing("No evaluation run is finished yet: there are no learning curves to show.")
    measures = (("error", 100.0, "validation error (%)"), ("loss", 1.0, "training loss (nats)"))
    figure = _together(rows, measures) if len(rows) <= TOGETHER else _apart(results, rows, measures)
    said = "; ".join(f"{printable(r.label)} {percent(r.curve.error[-1])}" for r in rows if r.curve)
    return save(
        figure,
        "Validation error and training loss by epoch, means over seeds with 95 % bands. "
        f"Validation error at the last epoch, in percent: {said}.",
    )


def _together(rows: Sequence[RowResult], measures: Iterable[tuple[str, float, str]]) -> Figure:
    height = 3.3 + 0.22 * math.ceil(len(rows) / 2)
    figure = _figure(height)
    handles: list[Any] = []
    for i, (measure, scale, label) in enumerate(measures):
        axes = figure.add_axes((0.08 + 0.49 * i, 0.5 / height, 0.42, 2.7 / height))
        handles = []
        for row, (colour, dashes) in zip(rows, LINES, strict=False):
            handles += _curve(axes, row.curve, measure, scale, color=colour, linestyle=dashes, linewidth=1.6)
        _epochs(axes, rows)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(axis="y")
        _range(axes, *_curve_values(rows, measure, scale))
    labels = [textwrap.shorten(printable(row.label), 44, placeholder=" …") for row in rows]
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.06, 1.0), ncols=2, handlelength=2.8)
    return figure


def _apart(results: StudyResults, rows: Sequence[RowResult], measures: Sequence[tuple[str, float, str]]) -> Figure:
    """A panel a row: the row with its band, the reference dashed, all others faint behind."""
    lines = math.ceil(len(rows) / COLUMNS)
    block = 0.35 + 1.42 * lines + 0.3
    height = 0.3 + block * len(measures)
    figure = _figure(height)
    for i, (measure, scale, label) in enumerate(measures):
        top = height - 0.3 - i * block
        figure.text(0.01, (top - 0.1) / height, label, fontsize=9.5, fontweight="bold", va="top")
        values = _curve_values(rows, measure, scale)
        for k, (row, axes) in enumerate(zip(rows, _grid(figure, len(rows), top - 0.35, 1.42, 0.92), strict=True)):
            for other in rows:
                is_reference = other.key == results.reference
                if other is not row and not is_reference:
                    _line(axes, other.curve, measure, scale, color=FAINT, linewidth=0.7, zorder=1)
                elif is_reference and other is not row:
                    _line(axes, other.curve, measure, scale, color=INK, linewidth=1, linestyle=(0, (3, 1.5)), zorder=3)
            _curve(axes, row.curve, measure, scale, color=BLUE, linewidth=1.5, zorder=4)
            _title(axes, row)
            _epochs(axes, rows)
            _range(axes, *values)
            _outer_labels(axes, k, len(rows), "epoch")
    reference = label_of(results, results.reference)
    _legend(
        figure,
        [
            (dict(color=BLUE, linewidth=1.5), "the row, with its 95 % band"),
            (dict(color=INK, linewidth=1, linestyle=(0, (3, 1.5))), textwrap.shorten(reference, 34, placeholder=" …")),
            (dict(color=FAINT, linewidth=0.9), "the other rows"),
        ],
    )
    return figure


def _curve(axes: Axes, curve: Curve | None, measure: str, scale: float, **look: Any) -> list[Any]:
    if curve is None:
        return []
    low, high = (_scaled(getattr(curve, f"{measure}_{side}"), scale) for side in ("low", "high"))
    axes.fill_between(curve.epochs, low, high, color=look["color"], alpha=0.18, linewidth=0, zorder=2)
    return _line(axes, curve, measure, scale, **look)


def _line(axes: Axes, curve: Curve | None, measure: str, scale: float, **look: Any) -> list[Any]:
    return axes.plot(curve.epochs, _scaled(getattr(curve, measure), scale), **look) if curve else []


def _scaled(values: Iterable[float | None], scale: float) -> list[float]:
    return [scale * v if v is not None and math.isfinite(v) else math.nan for v in values]


def _curve_values(rows: Iterable[RowResult], measure: str, scale: float) -> tuple[list[float], bool]:
    values = [v for row in rows if row.curve for v in _scaled(getattr(row.curve, measure), scale) if math.isfinite(v)]
    return values, _wide(values)


def _epochs(axes: Axes, rows: Iterable[RowResult]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, max(row.curve.epochs[-1] for row in rows if row.curve) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


# ------------------------------------------------------------------------------------------------------------ tuning


def _tuning(results: StudyResults, rows: Sequence[RowResult]) -> Drawing:
    """Validation error against the rate, a panel a row; what diverged stands as a cross at the top edge."""
    rows = [row for row in rows if row.trials]
    tried = [100 * e for row in rows for t in row.trials for e in t.errors.values() if e is not None]
    tried = [e for e in tried if math.isfinite(e)]
    if not tried and not any(t.errors for row in rows for t in row.trials):
        return _nothing("No tuning run is finished yet: there is no search to show.")
    height = 0.45 + 1.5 * math.ceil(len(rows) / COLUMNS) + 0.3
    figure = _figure(height)
    key = _tuned(rows)
    places = [x for row in rows for x in _places(row.trials, key) if x]
    log = bool(places) and min(places) > 0
    shared = log and max(places) / min(places) <= 1e4
    label = "learning rate" if key == RATE else printable(key).removeprefix("optimizer.")
    for k, (row, axes) in enumerate(zip(rows, _grid(figure, len(rows), height - 0.45, 1.5, 0.9), strict=True)):
        own = _places(row.trials, key)
        axes.set_xscale("log" if log else "linear")
        _range(axes, tried, _wide(tried))
        _trials(axes, row, own, key)
        _title(axes, row)
        _outer_labels(axes, k, len(rows), label, "validation error (%)", hide=False)
        _rate_ticks(axes, places if shared else own, log)
    _legend(
        figure,
        [
            (dict(color=BLUE, marker="o", markersize=6, linestyle=""), "chosen"),
            (dict(color=INK, marker="o", markersize=3.6, linewidth=0.8, markeredgewidth=0), "mean over seeds"),
            (dict(color=SOFT, marker="o", markersize=2.6, linestyle="", alpha=0.6, markeredgewidth=0), "one seed"),
            (dict(color=VERMILION, marker="x", markersize=5, linestyle=""), "diverged"),
        ],
    )
    said = "; ".join(f"{printable(row.label)} {setting_text(row.setting)}" for row in rows)
    return save(figure, f"Validation error of every setting tried, by {label}. Chosen: {said}.")


def _trials(axes: Axes, row: RowResult, places: Sequence[float], key: str) -> None:
    lines: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    edge = axes.get_xaxis_transform()
    for trial, x in zip(row.trials, places, strict=True):
        seeds = [100 * e for e in trial.errors.values() if e is not None and math.isfinite(e)]
        axes.plot([x] * len(seeds), seeds, "o", color=SOFT, markersize=2.6, markeredgewidth=0, alpha=0.6, zorder=2)
        if len(seeds) < len(trial.errors):
            axes.plot(x, 0.97, "x", color=VERMILION, markersize=5, transform=edge, zorder=5)
        if trial.mean is None or not math.isfinite(trial.mean):
            continue
        rest = tuple((k, v) for k, v in trial.setting.items() if k != key)
        lines.setdefault(rest, []).append((x, 100 * trial.mean))
        if trial.chosen:
            axes.plot(x, 100 * trial.mean, "o", color=BLUE, markersize=6, zorder=4)
            axes.annotate(
                _value(trial, key) + (" †" if row.edge else ""), (x, 100 * trial.mean), (0, -11), fontsize=7.5,
                textcoords="offset points", ha="center", color=BLUE, fontweight="bold", zorder=6,
            )  # fmt: skip
    for line in lines.values():
        xs, ys = zip(*sorted(line), strict=True)
        axes.plot(xs, ys, "o-", color=INK, markersize=3.6, linewidth=0.8, markeredgewidth=0, zorder=3)


def _tuned(rows: Sequence[RowResult]) -> str:
    keys = list(dict.fromkeys(k for row in rows for t in row.trials for k in t.setting))
    numbers = [k for k in keys if all(isinstance(t.setting.get(k, 1), int | float) for r in rows for t in r.trials)]
    return RATE if RATE in keys else (numbers or keys or [RATE])[0]


def _places(trials: Sequence[Trial], key: str) -> list[float]:
    """Return where each trial lies on the x axis: its value, or its rank where values are no numbers."""
    values = [trial.setting.get(key) for trial in trials]
    if all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        return [float(v) for v in values if v is not None]
    names = list(dict.fromkeys(map(str, values)))
    return [1.0 + names.index(str(v)) for v in values]


def _value(trial: Trial, key: str) -> str:
    return value(trial.setting[key]) if key in trial.setting else setting_text(trial.setting)


def _rate_ticks(axes: Axes, places: Sequence[float], log: bool) -> None:
    low, high = (min(places), max(places)) if places else (1.0, 1.0)
    if not log:
        pad = 0.08 * (high - low) or 0.5
        axes.set_xlim(low - pad, high + pad)
        return
    axes.set_xlim(low / 1.5, high * 1.5)
    _plain_log(axes.xaxis, low, high, sorted(set(places)))


# ------------------------------------------------------------------------------------------------------------ shared


def _grid(figure: Figure, n: int, top: float, step: float, panel: float) -> list[Axes]:
    """Return n axes in rows of four, the first ``top`` inches above the bottom of the figure."""
    left, gap, height = 0.52, 0.24, figure.get_figheight()
    width = (WIDTH - left - 0.1 - gap * (COLUMNS - 1)) / COLUMNS
    return [
        figure.add_axes(
            (
                (left + (k % COLUMNS) * (width + gap)) / WIDTH,
                (top - (k // COLUMNS + 1) * step + (step - panel) / 2) / height,
                width / WIDTH,
                panel / height,
            )
        )
        for k in range(n)
    ]


def _title(axes: Axes, row: RowResult) -> None:
    lines = textwrap.wrap(printable(row.label), 25, max_lines=2, placeholder=" …")
    axes.set_title("\n".join(lines), fontsize=8, pad=4, linespacing=1.05)


def _outer_labels(axes: Axes, k: int, n: int, x: str, y: str = "", *, hide: bool = True) -> None:
    axes.grid(axis="y")
    if k % COLUMNS:
        axes.tick_params("y", labelleft=False)
    elif y:
        axes.set_ylabel(y, fontsize=7.5)
    if k + COLUMNS >= n:
        axes.set_xlabel(x, fontsize=8, labelpad=2)
    elif hide:
        axes.tick_params("x", labelbottom=False)
    axes.tick_params(labelsize=7.5, pad=2)


def _legend(figure: Figure, entries: Sequence[tuple[Mapping[str, Any], str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look) for look, _ in entries]
    figure.legend(
        handles, [label for _, label in entries], loc="upper left", bbox_to_anchor=(0.0, 1.0), ncols=len(entries),
        fontsize=8, handlelength=2.2, borderaxespad=0.2, columnspacing=1.6,
    )  # fmt: skip


def _wide(values: Sequence[float]) -> bool:
    above = [v for v in values if v > 0]
    return bool(above) and max(above) / min(above) > 8


def _range(axes: Axes, values: Sequence[float], log: bool) -> None:
    """Give y the range of ``values``, logarithmic where they span much; zeros then lie below the axis."""
    if not values:
        axes.set_yticks([])
    elif log:
        low, high = min(v for v in values if v > 0), max(values)
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(low / 1.4, high * 1.4)
        _plain_log(axes.yaxis, low / 1.4, high * 1.4)
    else:
        low, high = min(values), max(values)
        pad = 0.15 * (high - low) or 0.1 * abs(high) or 0.1
        axes.set_ylim(max(low - pad, 0) if low >= 0 else low - pad, high + pad)


def _plain_log(axis: Any, low: float, high: float, tried: Sequence[float] = ()) -> None:
    """Write 0.1, 1, 10 instead of powers: decades, or steps between them where there are not two."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [t for d in decades if low <= (t := 10.0**d) <= high]
    if len(inside) < 2:
        inside = [t for d in decades for m in (1, 2, 5) if low <= (t := m * 10.0**d) <= high]
    if len(inside) < 2 and tried:
        inside = list(tried[:: math.ceil(len(tried) / 4)])
    axis.set_major_locator(FixedLocator(inside[:: math.ceil(len(inside) / 6)] if inside else [low, high]))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(FixedLocator([]))
