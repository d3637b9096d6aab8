"""The main table of a study, for the regularizers study the paper's table 4: its lines, its columns, and both as text.

A line is a row of study.yaml, in its order; `TableLine` names the columns. `markdown_table` and `terminal_table` lay
them out here, section "table" of report.html.j2 on the page, and `neumann.studies.report.csv_files.table_csv` for
scripts. The published numbers stand in study.yaml too, under ``paper.rows``, and are a column of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neumann.store.code_digests import in_words, listed
from neumann.studies.numbers import (
    DASH,
    RATE,
    count,
    interval,
    nats,
    p_value,
    percent,
    percentage_points,
    printable,
    setting_text,
)
from neumann.studies.results import Comparison, RowResult, StudyResults

if TYPE_CHECKING:
    from rich.table import Table


def label_of(results: StudyResults, key: str) -> str:
    """Return the label of row ``key``, or the key itself where there is no such row."""
    return next((printable(row.label) for row in results.rows if row.key == key), printable(key))


@dataclass(frozen=True)
class TableLine:
    """One line of the main table as text; a field is a column or a part of one, a dash where nothing is known.

    ``label``, ``at`` (the evaluation point) and ``setting`` say which row it is, ``edge`` where its setting lies on the
    border of the space, ``mixed`` that its runs were not made alike, or not as the reference row's. ``error`` is the
    mean test error in percent with its ``interval``, half that interval's width (``half``), ``sd`` and ``n``; ``loss``
    the mean test loss in nats; ``paper`` the published error in percent. ``difference`` to the reference row and its
    ``difference_interval`` are in percentage points. ``p`` is the one that counts, ``kind`` says which that is:
    "primary", "Holm", "unadjusted" or "". ``verdict`` is the short answer, ``primary`` marks the row of a primary
    comparison, ``is_reference`` the reference row.
    """

    label: str
    at: str
    setting: str
    edge: str | None
    mixed: str | None
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


def main_lines(results: StudyResults) -> list[TableLine]:
    """Return the main table, a line a row in the study's order."""
    return [_line(row, row.key == results.reference, label_of(results, results.reference)) for row in results.rows]


def _line(row: RowResult, is_reference: bool, reference: str) -> TableLine:
    error, comparison = row.error, None if is_reference else row.reference
    pair = comparison.paired if comparison else None
    half = None
    if error and error.low is not None and error.high is not None:
        half = max(error.high - error.mean, error.mean - error.low)  # an end may be cut off at 0
    p, kind = shown_p(comparison)
    return TableLine(
        label=printable(row.label),
        at=printable(row.at) if row.at else DASH,
        setting=setting_text(row.setting),
        edge=printable(row.edge) if row.edge else None,
        mixed=_mixed(row, comparison, reference),
        error=percent(error.mean if error else None),
        interval=interval(error.low, error.high) if error else DASH,
        half=percent(half),
        sd=percent(error.sd if error else None),
        n=count(error.n if error else 0, row.planned) + (f", {len(row.diverged)} diverged" if row.diverged else ""),
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


def _mixed(row: RowResult, comparison: Comparison | None, reference: str) -> str | None:
    """Return what makes a row's runs, or those that they are compared with, unlike each other, or None."""
    said = [f"{in_words(row.mixed)} changed between its runs"] if row.mixed else []
    if comparison is not None and comparison.unlike:
        said.append(f"its runs and those of {reference} differ in {listed(comparison.unlike)}")
    return printable(", and ".join(said)) or None


def paper_number(row: RowResult) -> str:
    """Return the published number in percent with its own decimals: 23.0 must not become 23.00."""
    return DASH if row.paper is None else str(float(row.paper))


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
    """Return the verdict in short form, or a dash."""
    return comparison.verdict.answer if comparison and comparison.verdict else DASH


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
        f"difference to {reference}, percentage points [95 % interval]", "p", "verdict", "test loss, nats", "paper, %",
    ]  # fmt: skip
    body = []
    for line in lines:
        cells = [
            line.label + (" ‡" if line.mixed else ""), line.at, line.setting + (" †" if line.edge else ""),
            _joined(line.error, line.interval),
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
    parts += [f"‡ {markdown(line.label)}: {markdown(line.mixed)}." for line in lines if line.mixed]
    parts.append(markdown(caption(results)))
    if results.settings:
        parts.append(markdown(settings_text(results)))
    if results.paper:
        parts.append(f"Paper: {markdown(results.paper.measure)} ({markdown(results.paper.source)}).")
    return "\n\n".join(parts) + "\n"


def _joined(mean: str, bounds: str) -> str:
    return mean if bounds == DASH else f"{mean} {bounds}"


def missing_sentence(results: StudyResults) -> str:
    """Return what is still to be trained, without "Incomplete", which page and Markdown each write themselves."""
    text = printable(results.incomplete or "").removeprefix("Incomplete: ")
    return text[:1].upper() + text[1:]


def caption(results: StudyResults) -> str:
    """Return what the main table measures: n, units, and what interval and p are."""
    seeds = len(results.evaluation_seeds)
    return (
        f"Error on {results.test_images:,} test images after {epochs_text(results)}, mean over "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'} with its 95 % t interval, cut off at 0 and 100 %; n: runs that "
        "finished. Differences are paired by seed, negative where the row errs less, in percentage points. p is of the "
        "paired t test, or, where a run diverged, of the sign test, in which that run is worse than any that finished: "
        "as it is for the primary comparison, Holm-adjusted for the others. Losses are in nats."
    )


def settings_text(results: StudyResults) -> str:
    """Return schedule, batch size and weight decay of the runs as sentences, by row where rows differ."""
    said = []
    for what, values in results.settings.items():
        shown = [
            printable(v) + (f" for {', '.join(printable(label) for label in rows)}" if len(values) > 1 else "")
            for v, rows in values.items()
        ]
        name = what if "." in what else what.capitalize()  # a setting is written as it is set
        said.append(f"{name}: {'; '.join(shown)}.")
    return " ".join(said)


def epochs_text(results: StudyResults) -> str:
    """Return how long the rows trained: "20 epochs", or "2 or 40 epochs, as the row says"."""
    shown = " or ".join(f"{epochs:g}" for epochs in results.epochs)
    return f"{shown} epoch{'s' if shown != '1' else ''}" + (", as the row says" if len(results.epochs) > 1 else "")


def terminal_table(results: StudyResults) -> Table:
    """Return the main table, compact, for `rich`: test error in %, differences in percentage points."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))  # twelve rows fit 80 columns, a line each
    headers = ("row", setting_header(results), "error, %", "n", "diff.", "verdict", "paper")
    for header in headers:
        table.add_column(header, justify="left" if header in ("row", "verdict") else "right", no_wrap=header != "row")
    for line in main_lines(results):
        error = line.error if line.half == DASH else f"{line.error} ±{line.half}"
        cells: Iterable[str] = (
            line.label + (" ‡" if line.mixed else ""), line.setting + (" †" if line.edge else ""), error, line.n,
            line.difference, line.verdict, line.paper,
        )  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells), style="bold" if line.primary else "")
    return table
