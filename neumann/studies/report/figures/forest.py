"""The figure of effects: a line for every comparison, its effect and interval against the margin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neumann.studies.effects import Effect
from neumann.studies.numbers import DASH, effect_interval, effect_value, measure, verdict_text
from neumann.studies.report.figures.parts import WIDTH, nothing, sheet, wrapped
from neumann.studies.report.figures.svg import BLUE, FAINT, INK, PAPER, SOFT, Drawing, save
from neumann.studies.report.text import label_of
from neumann.studies.results import Comparison, StudyResults
from neumann.studies.verdicts import Margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT, RIGHT = 2.5, 2.1  # inches for labels and numbers
FAR = 3.0  # times the largest effect or margin: an interval that goes on from there ends in an arrow


def forest_figure(results: StudyResults) -> Drawing:
    """Return the effect of every comparison on the study's outcome, the primary one first, in the margin's unit."""
    shown = [c for c in sorted(results.comparisons, key=lambda c: not c.primary) if _values(c.effect)]
    if not shown:
        return nothing("No comparison has an effect yet.")
    height = 0.36 * len(shown) + 0.85
    figure = sheet(height)
    axes = figure.add_axes((LEFT / WIDTH, 0.47 / height, (WIDTH - LEFT - RIGHT) / WIDTH, 1 - 0.8 / height))
    what = "percentage points" if not results.margin.relative else "%"
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlabel=f"effect on {measure(results.outcome)} ({what})")
    texts = [f"{label_of(results, c.row)} against {label_of(results, c.against)}" for c in shown]
    axes.set_yticks(range(len(shown)), [wrapped(text, 34) for text in texts], fontsize=8)
    axes.tick_params("y", length=0)
    axes.spines["left"].set_visible(False)
    low, high = (_place(end, results.margin) for end in results.margin.bounds())
    axes.axvspan(low, high, color=FAINT, zorder=0, linewidth=0)
    axes.axvline(0, color=SOFT, linewidth=0.8, zorder=1)
    far = FAR * max(-low, high, *(abs(_place(v, results.margin)) for c in shown for v in _values(c.effect)[:1]))
    ends = [min(far, max(-far, _place(v, results.margin))) for c in shown for v in _values(c.effect)]
    least, most = min([low, *ends]), max([high, *ends])
    pad = 0.06 * (most - least)
    axes.set_xlim(least - pad, most + pad)
    beside = axes.get_yaxis_transform()
    axes.text(1.03, -0.62, "effect [95 % interval]", transform=beside, fontsize=8, color=SOFT)
    for i, one in enumerate(shown):
        colour = BLUE if one.primary else INK
        _draw(axes, i, [_place(v, results.margin) for v in _values(one.effect)], colour)
        axes.text(1.03, i, _said(one), transform=beside, va="center", fontsize=8, color=colour, linespacing=1.1)
    alt = "; ".join(f"{text}: {_said(c)}".replace("\n", ", ") for text, c in zip(texts, shown, strict=True))
    return save(figure, f"Effect of every comparison with its 95 % interval and the margin, in {what}: {alt}.")


def _values(effect: Effect | None) -> list[float]:
    """Return an effect and the ends of its interval, as far as they are known; [] without an effect."""
    known = (effect.value, effect.low, effect.high) if effect is not None and effect.value is not None else ()
    return [value for value in known if value is not None]


def _place(value: float, margin: Margin) -> float:
    """Return where an effect lies: a ratio's change in percent, or a difference in percentage points."""
    return 100 * (value - 1 if margin.relative else value)


def _draw(axes: Axes, height: float, places: list[float], colour: str) -> None:
    value, *ends = places
    if len(ends) == 2:
        axes.plot(ends, (height, height), color=colour, linewidth=1.6, zorder=3)
        left, right = axes.get_xlim()
        for edge, mark, beyond in ((left, "<", ends[0] < left), (right, ">", ends[1] > right)):
            if beyond:
                axes.plot(edge, height, mark, color=colour, markersize=5, markeredgewidth=0, clip_on=False, zorder=3)
    axes.plot(value, height, "o", color=colour, markersize=5.5, markeredgecolor=PAPER, zorder=4)


def _said(one: Comparison) -> str:
    effect = one.effect
    assert effect is not None
    bounds = effect_interval(effect)
    said = f"{effect_value(effect)}{' ' + bounds if bounds != DASH else ', no interval'}"
    return f"{said}\n{verdict_text(one.verdict)}" if one.verdict is not None else said
