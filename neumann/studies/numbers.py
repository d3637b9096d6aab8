"""Formats of a study's numbers and strings, the same on the page, in Markdown, on the terminal and in sentences.

Errors are shown in percent, differences of errors in percentage points, both with two decimals; what is unknown is a
dash. Text that comes from data is made one printable line here, and escaped by the module that writes it down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from neumann.studies.effects import Effect
from neumann.studies.results import COSTS, ERROR, Setting
from neumann.studies.statistics import Summary
from neumann.studies.verdicts import Margin, Verdict

DASH = "–"
RATE = "optimizer.lr"
UNTUNED = "untuned"  # the setting of a row whose space is empty


def printable(text: object) -> str:
    """Return ``text`` as one line without control characters and lone surrogates, which folder names may hold."""
    line = " ".join(str(text).split()).encode("utf-8", "replace").decode()
    return "".join(c for c in line if c.isprintable())


def verbatim(text: str) -> str:
    """Return a command or a path as it is, spaces and line breaks too, but without what cannot be printed."""
    whole = text.encode("utf-8", "replace").decode()
    return "".join(c for c in whole if c.isprintable() or c == "\n")


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _decimals(value: float | None, digits: int, sign: str = "-") -> str:
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:{sign}.{digits}f}"
    if not float(text):  # a difference that rounds to nothing has no side
        text = text.lstrip("+-")
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """Return a fraction in percent, without the sign of the unit: 0.0123 is "1.23"."""
    return _decimals(None if value is None else 100 * value, 2)


def amount(value: float | None) -> str:
    """Return a number of steps, examples or seconds: "1,250", "45.1", or a dash."""
    return DASH if value is None else f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def percentage_points(value: float | None) -> str:
    """Return a difference of two fractions in percentage points, with its sign: -0.0031 is "−0.31"."""
    return _decimals(None if value is None else 100 * value, 2, "+")


def nats(value: float | None) -> str:
    """Return a loss in nats with three decimals: 0.0234 is "0.023"."""
    return _decimals(value, 3)


def interval(low: float | None, high: float | None, show: Callable[[float | None], str] = percent) -> str:
    """Return "[a, b]", or a dash where there is no interval."""
    return f"[{show(low)}, {show(high)}]" if _finite(low) and _finite(high) else DASH


def change(ratio: float | None) -> str:
    """Return a ratio as a change in percent, with its sign and without the unit's: 0.82 is "−18.0"."""
    return _decimals(None if ratio is None else 100 * (ratio - 1), 1, "+")


def shown_by(effect: Effect) -> Callable[[float | None], str]:
    """Return what writes the values of an effect: a difference in percentage points, a ratio as a change in percent."""
    return percentage_points if effect.scale == "difference" else change


def effect_value(effect: Effect | None) -> str:
    """Return the value of an effect without its unit: "−0.31" percentage points, or "−18.0" percent."""
    return DASH if effect is None else shown_by(effect)(effect.value)


def effect_interval(effect: Effect | None) -> str:
    """Return the 95 % interval of an effect, or a dash."""
    return DASH if effect is None else interval(effect.low, effect.high, shown_by(effect))


def inner_interval(effect: Effect | None) -> str:
    """Return "90 % interval [a, b]", on which two one-sided tests rest; "" where there is none."""
    if effect is None or effect.inner_low is None:
        return ""
    return f"90 % interval {interval(effect.inner_low, effect.inner_high, shown_by(effect))}"


def unit_of(margin: Margin) -> str:
    """Return the unit that a margin and its effect are in."""
    return "%" if margin.relative else "percentage points"


def size(value: float | None, margin: Margin) -> str:
    """Return a size in the unit of ``margin``: "10 %", or "0.50 percentage points"."""
    if value is None:
        return DASH
    return f"{100 * value:.3g} %" if margin.relative else f"{percent(value)} {unit_of(margin)}"


def detectable(verdict: Verdict) -> str:
    """Return the smallest detectable effect in the margin's unit; of differences it may be none that is possible."""
    if verdict.detects_nothing:
        return f"more than 100 {unit_of(verdict.margin)}"
    return size(verdict.smallest_detectable_effect, verdict.margin)


def measure(outcome: str) -> str:
    """Return what an outcome measures: "test error", or "steps to the target"."""
    return "test error" if outcome == ERROR else f"{COSTS[outcome]} to the target"


def verdict_text(verdict: Verdict) -> str:
    """Return the verdict in a few words."""
    margin = size(verdict.margin.size, verdict.margin)
    undecided = f"undecided (needs n = {verdict.seeds:,})" if verdict.judged and verdict.seeds else "undecided"
    sized = ", size undecided" if verdict.judged else ""
    return {
        "better by the margin": f"better by at least {margin}",
        "worse by the margin": f"worse by at least {margin}",
        "better": f"better{sized}",
        "worse": f"worse{sized}",
        "negligible": "different but negligible",
        "undecided": undecided,
        "pilot": "no verdict (pilot)",
        "missed": "not answered (target missed)",
    }.get(verdict.answer, verdict.answer)


def correlation(r: float | None) -> str:
    """Return "r 0.52", or "" where it is unknown."""
    return "" if r is None else f"r {_decimals(r, 2)}"


def p_value(p: float | None) -> str:
    """Return p with three decimals, or "< 0.001"."""
    return "< 0.001" if p is not None and p < 0.001 else _decimals(p, 3)


def count(n: int, planned: int) -> str:
    """Return "10" where all are there, else "8/10"."""
    return str(n) if n == planned else f"{n}/{planned}"


def either(counts: Iterable[int]) -> str:
    """Return the numbers that there are: "10,000", or "10,000 or 360" where they are of several data sets."""
    return " or ".join(f"{one:,}" for one in counts)


def value(setting: float | int | str) -> str:
    """Return one tuned value in short: 0.1, 1e-05, or the string itself."""
    return f"{setting:g}" if isinstance(setting, float) else printable(setting)


def setting_text(setting: Setting | None) -> str:
    """Return the rate alone where only the rate was tuned, else "lr 0.1, momentum 0.9"; "untuned" where nothing was."""
    if setting is None:
        return DASH
    if not setting:
        return UNTUNED
    if tuple(setting) == (RATE,):
        return value(setting[RATE])
    return ", ".join(f"{printable(key).removeprefix('optimizer.')} {value(v)}" for key, v in setting.items())


def choices_text(choices: Mapping[int, Setting]) -> str:
    """Return what the seeds of a grid chose, the most frequent first: "0.1 (7 seeds), 0.3 (3)"."""
    counts: dict[str, int] = {}
    for setting in choices.values():
        counts[setting_text(setting)] = counts.get(setting_text(setting), 0) + 1
    most = sorted(counts.items(), key=lambda item: -item[1])
    unit = " seed" if most and most[0][1] == 1 else " seeds"
    return ", ".join(f"{text} ({n}{unit if i == 0 else ''})" for i, (text, n) in enumerate(most)) or DASH


def mean_and_interval(summary: Summary | None) -> str:
    """Return "1.23 [1.10, 1.36]", the mean alone where there is no interval, or a dash."""
    if summary is None:
        return DASH
    bounds = interval(summary.low, summary.high)
    return percent(summary.mean) if bounds == DASH else f"{percent(summary.mean)} {bounds}"
