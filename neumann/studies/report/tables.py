"""How is a number of a study written, and what stands in its main table? One answer for page, Markdown and terminal.

Errors are shown in percent, differences of errors in percentage points, both with two decimals; what is unknown is a
dash. Text that comes from data is made one printable line here, and escaped by whoever writes it down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neumann.studies.results import Comparison, RowResult, Setting, StudyResults
from neumann.studies.statistics import Summary

if TYPE_CHECKING:
    from rich.table import Table

DASH = "–"
RATE = "optimizer.lr"


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


def percentage_points(value: float | None) -> str:
    """Return a difference of two fractions in percentage points, with its sign: -0.0031 is "−0.31"."""
    return _decimals(None if value is None else 100 * value, 2, "+")


def nats(value: float | None) -> str:
    """Return a loss."""
    return _decimals(value, 3)


def interval(low: float | None, high: float | None, show: Callable[[float | None], str] = percent) -> str:
    """Return "[a, b]", or a dash where there is no interval."""
    return f"[{show(low)}, {show(high)}]" if _finite(low) and _finite(high) else DASH


def p_value(p: float | None) -> str:
    """Return p with three decimals, or "< 0.001"."""
    return "< 0.001" if p is not None and p < 0.001 else _decimals(p, 3)


def count(n: int, planned: int) -> str:
    """Return "10" where all are there, else "8/10"."""
    return str(n) if n == planned else f"{n}/{planned}"


def value(setting: float | int | str) -> str:
    """Return one tuned value as a person would write it."""
    return f"{setting:g}" if isinstance(setting, float) else printable(setting)


def setting_text(setting: Setting | None) -> str:
    """Return the rate alone where only the rate was tuned, else "lr 0.1, momentum 0.9"."""
    if not setting:
        return DASH
    if tuple(setting) == (RATE,):
        return value(setting[RATE])
    return ", ".join(f"{printable(key).removeprefix('optimizer.')} {value(v)}" for key, v in setting.items())


def paper_number(row: RowResult) -> str:
    """Return the published number in percent with its own decimals: 23.0 must not become 23.00."""
    return DASH if row.paper is None else str(float(row.paper))


def duration(seconds: float) -> str:
    """Return a duration in the two largest units that it has."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def label_of(results: StudyResults, key: str) -> str:
    """Return the label of row ``key``, or the key itself where there is no such row."""
    return next((printable(row.label) for row in results.rows if row.key == key), printable(key))


@dataclass(frozen=True)
class Line:
    """One line of the main table as text. ``kind`` tells what p is: "primary", "Holm" or nothing known."""

    label: str
    at: str
    setting: str
    edge: str | None
    error: str
    interval: str
    half: str
    sd: str
    n: str
    difference: str
    difference_interval: str
    p: str
    kind: str
    verdict: str
    primary: bool
    is_reference: bool
    loss: str
    paper: str


def main_lines(results: StudyResults) -> list[Line]:
    """Return the main table, a line a row in the study's order."""
    return [_line(row, row.key == results.reference) for row in results.rows]


def _line(row: RowResult, is_reference: bool) -> Line:
    error, comparison = row.error, None if is_reference else row.reference
    pair = comparison.paired if comparison else None
    half = None
    if error and error.low is not None and error.high is not None:
        half = (error.high - error.low) / 2
    p, kind = shown_p(comparison)
    return Line(
        label=printable(row.label),
        at=printable(row.at) if row.at else DASH,
        setting=setting_text(row.setting),
        edge=printable(row.edge) if row.edge else None,
        error=percent(error.mean if error else None),
        interval=interval(error.low, error.high) if error else DASH,
        half=percent(half),
        sd=percent(error.sd if error else None),
        n=count(error.n if error else 0, row.planned),
        difference=percentage_points(pair.mean if pair else None),
        difference_interval=interval(pair.low, pair.high, percentage_points) if pair else DASH,
        p=p,
        kind=kind,
        verdict="reference" if is_reference else verdict_word(comparison),
        primary=bool(comparison and comparison.primary),
        is_reference=is_reference,
        loss=nats(row.loss.mean if row.loss else None),
        paper=paper_number(row),
    )


def shown_p(comparison: Comparison | None) -> tuple[str, str]:
    """Return the p that counts, and its kind: the primary comparison's own, else Holm's."""
    if comparison is None or comparison.paired is None:
        return DASH, ""
    if comparison.primary:
        return p_value(comparison.paired.p), "primary"
    if comparison.adjusted is not None:
        return p_value(comparison.adjusted), "Holm"
    return p_value(comparison.paired.p), "" if comparison.paired.p is None else "unadjusted"


def verdict_word(comparison: Comparison | None) -> str:
    """Return the verdict in a word, or a dash."""
    return comparison.verdict.answer if comparison and comparison.verdict else DASH


def mean_and_interval(summary: Summary | None) -> str:
    """Return "1.23 [1.10, 1.36]", the mean alone where there is no interval, or a dash."""
    if summary is None:
        return DASH
    bounds = interval(summary.low, summary.high)
    return percent(summary.mean) if bounds == DASH else f"{percent(summary.mean)} {bounds}"


def setting_header(results: StudyResults) -> str:
    """Return the name of what was tuned."""
    keys = set(results.tuned).union(*(trial.setting for row in results.rows for trial in row.trials))
    return "rate" if keys <= {RATE} else "setting"


# ------------------------------------------------------------------------------------------------ Markdown, terminal


def markdown(text: object) -> str:
    """Return ``text`` as one line that GitHub shows as it is, in a table too."""
    line = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)


def markdown_table(results: StudyResults) -> str:
    """Return the main table in GitHub-flavoured Markdown, with a caption that says what it measures."""
    lines, reference = main_lines(results), label_of(results, results.reference)
    header = [
        "row", "evaluated at", setting_header(results), "test error, % [95 % interval]", "sd, %", "n",
        f"difference to {reference}, points [95 % interval]", "p", "verdict", "test loss, nats", "paper, %",
    ]  # fmt: skip
    body = []
    for line in lines:
        cells = [
            line.label, line.at, line.setting + (" †" if line.edge else ""), _joined(line.error, line.interval),
            line.sd, line.n, _joined(line.difference, line.difference_interval),
            f"{line.p} ({line.kind})" if line.kind else line.p, line.verdict, line.loss, line.paper,
        ]  # fmt: skip
        body.append([markdown(cell) for cell in cells])
    align = ["---" if i in (0, 1, 8) else "---:" for i in range(len(header))]
    table = [[markdown(h) for h in header], align, *body]
    parts = [f"**{markdown(results.title)}**", f"*Question.* {markdown(results.question)}"]
    if results.incomplete:
        parts.append(f"**This study is not finished.** {markdown(missing_sentence(results))}")
    parts += [f"*Answer.* {markdown(results.answer)}", "\n".join(f"| {' | '.join(cells)} |" for cells in table)]
    parts += [f"† {markdown(line.label)}: {markdown(line.edge)}." for line in lines if line.edge]
    parts.append(markdown(caption(results)))
    if results.paper:
        parts.append(f"Paper: {markdown(results.paper.measure)} ({markdown(results.paper.source)}).")
    return "\n\n".join(parts) + "\n"


def _joined(mean: str, bounds: str) -> str:
    return mean if bounds == DASH else f"{mean} {bounds}"


def missing_sentence(results: StudyResults) -> str:
    """Return what is still to be trained, without the word that those who show it put before it."""
    text = printable(results.incomplete or "").removeprefix("Incomplete: ")
    return text[:1].upper() + text[1:]


def caption(results: StudyResults) -> str:
    """Return what the main table measures: n, units, and what interval and p are."""
    seeds = len(results.evaluation_seeds)
    return (
        f"Error on {results.test_images:,} test images after {results.epochs:g} epochs, mean over "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'} with its 95 % t interval; n: runs that finished. Differences are "
        "paired by seed, negative where the row errs less, in percentage points. p is of the paired t test: as it is "
        "for the primary comparison, Holm-adjusted for the others. Losses are in nats."
    )


def terminal_table(results: StudyResults) -> Table:
    """Return the main table, compact, for `rich`: test error in %, differences to the reference row in points."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))  # twelve rows fit 80 columns, a line each
    headers = ("row", setting_header(results), "error, %", "n", "diff.", "verdict", "paper")
    for header in headers:
        table.add_column(header, justify="left" if header in ("row", "verdict") else "right", no_wrap=header != "row")
    for line in main_lines(results):
        error = line.error if line.half == DASH else f"{line.error} ±{line.half}"
        cells: Iterable[str] = (
            line.label, line.setting + (" †" if line.edge else ""), error, line.n,
            line.difference, line.verdict, line.paper,
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells), style="bold" if line.primary else "")
    return table
