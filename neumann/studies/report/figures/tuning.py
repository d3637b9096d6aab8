"""The figure of tuning: validation error against every setting that was tried, a panel a row.

It shows the range of the search, and so a choice at its edge or beside a cliff; a setting that diverged stands at the
top edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neumann.studies.numbers import RATE, choices_text, printable, setting_text, value
from neumann.studies.report.figures.parts import (
    Grid,
    finite,
    fit_y,
    heading,
    legend,
    nothing,
    plain_log,
    sheet,
    shown,
)
from neumann.studies.report.figures.svg import BLUE, INK, PAPER, SOFT, VERMILION, Drawing, save
from neumann.studies.results import RowResult, TuningTrial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 4  # rates that span more have an x axis each


def tuning_figure(rows: Sequence[RowResult]) -> Drawing:
    """Return the trials of ``rows``, by their rate or, without one, by another setting that was tuned."""
    rows = [row for row in rows if any(trial.setting for trial in row.trials)]
    tried = [e for row in rows for t in row.trials for e in finite(t.errors.values(), 100)]
    if not any(t.errors for row in rows for t in row.trials):
        return nothing("No tuning run is finished yet: there is no search to show.")
    grid = Grid(len(rows), step=1.5, panel=0.95)
    height = 0.75 + grid.height + 0.1
    figure = sheet(height)
    key = _tuned(rows)
    label = "learning rate" if key == RATE else printable(key).removeprefix("optimizer.")
    heading(figure, "validation error (%)", height - 0.35)
    places = [_places(row.trials, key) for row in rows]
    every = [x for own in places for x in own]
    log = min(every) > 0
    shared = not log or max(every) / min(every) <= 10**DECADES
    for k, (row, own, axes) in enumerate(zip(rows, places, grid.axes(figure, height - 0.55), strict=True)):
        fit_y(axes, tried)
        _fit_x(axes, every if shared else own, log)
        _trials(axes, row, own, key)
        grid.title(axes, row)
        if grid.lowest(k):
            axes.set_xlabel(label, fontsize=8, labelpad=1)
    found = any(trial.chosen or trial.seeds for row in rows for trial in row.trials)
    entries: list[tuple[dict[str, Any], str]] = [
        *([({"color": BLUE, "marker": "o", "markersize": 6, "linestyle": ""}, "chosen")] if found else []),
        ({"color": INK, "marker": "o", "markersize": 3.4, "linewidth": 0.8, "markeredgewidth": 0}, "mean over seeds"),
        ({"color": SOFT, "marker": "o", "markersize": 2.6, "linestyle": "", "markeredgewidth": 0}, "one seed"),
        ({"color": VERMILION, "marker": "x", "markersize": 5, "linestyle": ""}, "diverged on some seed"),
    ]
    legend(figure, entries)
    said = "; ".join(f"{printable(row.label)} {_choice(row)}" for row in rows)
    told = f" Chosen: {said}." if found else ""
    return save(figure, f"Validation error of every setting tried, by {label}.{told}")


def _choice(row: RowResult) -> str:
    return choices_text(row.choices) if row.choices else setting_text(row.setting)


def _trials(axes: Axes, row: RowResult, places: Sequence[float], key: str) -> None:
    lines: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    pairs = list(zip(row.trials, places, strict=True))
    seeds = [(x, shown(axes, e)) for trial, x in pairs for e in finite(trial.errors.values(), 100)]
    look: dict[str, Any] = {"color": SOFT, "markersize": 2.6, "markeredgewidth": 0, "alpha": 0.7}
    axes.plot(*_columns(seeds), "o", **look, clip_on=False, zorder=2)
    lost = [x for trial, x in pairs if None in trial.errors.values()]
    top = axes.get_xaxis_transform()
    axes.plot(lost, [0.95] * len(lost), "x", color=VERMILION, markersize=5, transform=top, clip_on=False, zorder=5)
    for trial, x in pairs:
        if trial.mean is None or not math.isfinite(trial.mean):
            continue
        rest = tuple((k, v) for k, v in trial.setting.items() if k != key)  # a line per setting of all else
        mean = shown(axes, 100 * trial.mean)
        lines.setdefault(rest, []).append((x, mean))
        if trial.chosen or trial.seeds:
            size = 6 if trial.chosen else 2.5 + 4.5 * len(trial.seeds) / max(1, len(row.choices))
            axes.plot(x, mean, "o", color=BLUE, markersize=size, clip_on=False, zorder=4)
            named = _value(trial, key) if trial.chosen else f"{len(trial.seeds)}×"
            _name(axes, x, mean, named + (" †" if trial.chosen and row.edge else ""))
    for line in lines.values():
        axes.plot(*_columns(sorted(line)), "o-", color=INK, markersize=3.4, linewidth=0.8, markeredgewidth=0, zorder=3)


def _name(axes: Axes, x: float, y: float, text: str) -> None:
    # Above the lowest point of a valley there is room; near a side or the top the text turns inwards
    across, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    side = "left" if across < 0.12 else "right" if across > 0.88 else "center"
    axes.annotate(
        text,
        (x, y),
        (0, 7 if up < 0.75 else -14),
        textcoords="offset points",
        ha=side,
        fontsize=8,
        color=BLUE,
        fontweight="bold",
        zorder=6,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.85},  # over the line
    )


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _tuned(rows: Sequence[RowResult]) -> str:
    """Return what lies along x: the rate, else the first setting that is a number everywhere."""
    keys = list(dict.fromkeys(k for row in rows for t in row.trials for k in t.setting))
    numbers = [k for k in keys if all(_number(t.setting.get(k, 1)) for row in rows for t in row.trials)]
    return RATE if RATE in keys else (numbers or keys or [RATE])[0]


def _places(trials: Sequence[TuningTrial], key: str) -> list[float]:
    """Return where each trial lies along x: its value, or its rank where not all are numbers."""
    values = [trial.setting.get(key) for trial in trials]
    if all(_number(v) for v in values):
        return [float(v) for v in values if v is not None]
    names = list(dict.fromkeys(map(str, values)))
    return [1.0 + names.index(str(v)) for v in values]


def _number(v: object) -> bool:
    return isinstance(v, int | float) and math.isfinite(v)


def _value(trial: TuningTrial, key: str) -> str:
    return value(trial.setting[key]) if key in trial.setting else setting_text(trial.setting)


def _fit_x(axes: Axes, places: Sequence[float], log: bool) -> None:
    low, high = min(places), max(places)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.6, high * 1.6)
        plain_log(axes.xaxis, low, high, sorted(set(places)))
    else:
        pad = 0.08 * (high - low) or 0.5
        axes.set_xlim(low - pad, high + pad)
