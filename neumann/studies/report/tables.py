"""The main table of a study, for the regularizers study the paper's table 4: its lines, its columns, and both as text.

A line is a row of study.yaml, in its order; `TableLine` names the columns. `main_table` and `print_main_table` lay
them out here, section "table" of report.html.j2 on the page, and `neumann.studies.report.csv_files.table_csv` for
scripts. The published numbers stand in study.yaml too, under ``paper.rows``, and are a column of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from neumann.fitting import print_table
from neumann.store.code_digests import in_words, listed
from neumann.studies.numbers import (
    DASH,
    RATE,
    choices_text,
    count,
    effect_interval,
    effect_value,
    either,
    inner_interval,
    interval,
    measure,
    nats,
    p_value,
    percent,
    printable,
    setting_text,
    unit_of,
    verdict_text,
)
from neumann.studies.report.text import TextTable, joined, reference_label
from neumann.studies.results import ERROR, Comparison, RowResult, StudyResults

INSIDE = ("equivalent", "negligible")  # the verdicts by which the inner interval lies within the margin


@dataclass(frozen=True)
class TableLine:
    """One line of the main table as text; a field is a column or a part of one, a dash where nothing is known.

    ``label``, ``at`` (the evaluation point) and ``setting`` say which row it is, ``edge`` where its setting lies on the
    border of the space, ``mixed`` that its runs were not made alike, or not as the reference row's. ``error`` is the
    mean test error in percent with its ``interval``, half that interval's width (``half``; a dash where an end is cut
    off at 0 or 100 %), ``sd`` and ``n``; ``loss`` the mean test loss in nats; ``paper`` the published error in percent.
    ``effect`` against the reference row and its ``effect_interval`` are on the study's outcome, in the unit of its
    margin (`effect_header`). ``p`` is the one that counts, ``kind`` says which that is: "primary", "Holm", "unadjusted"
    or "". ``verdict`` is the short answer, ``word`` the shorter one of a terminal, and ``within`` the interval
    that "equivalent" and "negligible" rest on, empty for other verdicts. ``primary`` marks the row of a primary
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
    effect: str
    effect_interval: str
    p: str
    kind: str
    verdict: str
    word: str
    within: str
    primary: bool
    is_reference: bool
    loss: str
    paper: str


def main_lines(results: StudyResults) -> list[TableLine]:
    """Return the main table, a line a row in the study's order."""
    return [_line(row, results.is_reference(row), reference_label(results)) for row in results.rows]


def _line(row: RowResult, is_reference: bool, reference: str) -> TableLine:
    error, comparison = row.error, None if is_reference else row.reference
    effect = comparison.effect if comparison else None
    half = None
    if error and error.low is not None and error.high is not None and error.low > 0 and error.high < 1:
        half = error.high - error.mean
    p, kind = shown_p(comparison)
    return TableLine(
        label=printable(row.label),
        at=printable(row.at) if row.at else DASH,
        setting=choices_text(row.choices) if row.choices else setting_text(row.setting),
        edge=printable(row.edge) if row.edge else None,
        mixed=mixed_text(row, comparison, reference),
        error=percent(error.mean if error else None),
        interval=interval(error.low, error.high) if error else DASH,
        half=percent(half),
        sd=percent(error.sd if error else None),
        n=count(error.n if error else 0, row.planned) + (f", {len(row.diverged)} diverged" if row.diverged else ""),
        effect=effect_value(effect),
        effect_interval=effect_interval(effect),
        p=p,
        kind=kind,
        verdict="reference" if is_reference else verdict_word(comparison),
        word="reference" if is_reference else comparison.verdict.answer if comparison and comparison.verdict else DASH,
        within=within(comparison),
        primary=bool(comparison and comparison.primary),
        is_reference=is_reference,
        loss=nats(row.loss.mean if row.loss else None),
        paper=paper_number(row),
    )


def mixed_text(row: RowResult, comparison: Comparison | None, reference: str) -> str | None:
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
    if comparison is None or comparison.effect is None or comparison.verdict is None:
        return DASH, ""
    if comparison.verdict.answer == "pilot":  # a p is a verdict to most readers
        return DASH, ""
    if comparison.primary:
        return p_value(comparison.effect.p), "primary"
    if comparison.adjusted is not None:
        return p_value(comparison.adjusted), "Holm"
    return p_value(comparison.effect.p), "" if comparison.effect.p is None else "unadjusted"


def verdict_word(comparison: Comparison | None) -> str:
    """Return the verdict in short form, or a dash."""
    return verdict_text(comparison.verdict) if comparison and comparison.verdict else DASH


def within(comparison: Comparison | None) -> str:
    """Return the interval that "equivalent" and "negligible" rest on; empty for other verdicts, and without one."""
    verdict = comparison.verdict if comparison else None
    return inner_interval(comparison.effect) if comparison and verdict and verdict.answer in INSIDE else ""


def effect_header(results: StudyResults) -> tuple[str, str]:
    """Return what the effects of the main table are, and their unit."""
    reference, unit = reference_label(results), unit_of(results.margin)
    if results.margin.relative:
        return f"{measure(results.outcome).capitalize()} against {reference}", unit
    return f"Difference to {reference}", unit


def setting_header(results: StudyResults) -> str:
    """Return the name of what was tuned."""
    keys = set(results.tuned).union(*(trial.setting for row in results.rows for trial in row.trials))
    return "rate" if keys <= {RATE} else "setting"


# ------------------------------------------------------------------------------------------------ Markdown, terminal


def main_table(results: StudyResults) -> TextTable:
    """Return the main table as text."""
    lines, (compared, unit) = main_lines(results), effect_header(results)
    header = [
        "row", "evaluated at", setting_header(results), "test error, % [95 % interval]", "sd, %", "n",
        f"{compared[:1].lower() + compared[1:]}, {unit} [95 % interval]", "p", "verdict", "test loss, nats",
    ]  # fmt: skip
    body = []
    for line in lines:
        cells = [
            line.label + (" ‡" if line.mixed else ""), line.at, line.setting + (" †" if line.edge else ""),
            joined(line.error, line.interval),
            line.sd, line.n, joined(line.effect, line.effect_interval),
            f"{line.p} ({line.kind})" if line.kind else line.p,
            f"{line.verdict} ({line.within})" if line.within else line.verdict, line.loss,
        ]  # fmt: skip
        body.append(cells)
    return TextTable("main", caption(results), header, body, (0, 1, 8))


def missing_sentence(results: StudyResults) -> str:
    """Return what is still to be trained, without "Incomplete", which page and Markdown each write themselves."""
    text = printable(results.incomplete or "").removeprefix("Incomplete: ")
    return text[:1].upper() + text[1:]


def caption(results: StudyResults) -> str:
    """Return what the main table measures: n, units, and what interval and p are."""
    seeds = len(results.evaluation_seeds)
    kind = "p is as it is for the primary comparison, Holm-adjusted for the others. "
    return (
        f"Error on {either(results.test_images)} test images after {epochs_text(results)}, mean over "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'} with its 95 % t interval, cut off at 0 and 100 %; n: runs that "
        f"finished. {_effects_told(results)} {'' if results.pilot else kind}"
        f"Losses are in nats.{_equal_told(results)}"
    )


def _equal_told(results: StudyResults) -> str:
    """Return a sentence for each row that is compared with the reference at equal settings, not at what was chosen."""
    found = [(row.label, row.reference.settings) for row in results.rows if row.reference and row.reference.settings]
    return "".join(
        f" {printable(label)} and {reference_label(results)} are compared at equal settings, by the mean "
        f"over {', '.join(map(setting_text, settings))}, and not at what was chosen."
        for label, settings in found
    )


def _effects_told(results: StudyResults) -> str:
    if results.outcome != ERROR:
        return (
            f"Effects are the change of the geometric mean of {measure(results.outcome)} in percent, paired by seed, "
            "negative where the row needs less; p is of the paired t test of the log ratios, or, where a run missed "
            "the target, of the log-rank test."
        )
    said = "Differences are paired by seed, negative where the row errs less, in percentage points."
    if results.margin.relative:
        said = "Effects are the change of the mean test error in percent, paired by seed, with Fieller's interval, "
        said += "negative where the row errs less."
    return (
        f"{said} p is of the paired t test, or, where a run diverged, of the sign test, in which that run is worse "
        "than any that finished."
    )


def settings_text(results: StudyResults) -> str:
    """Return schedule, batch size, weight decay and precision as sentences, by row where rows differ."""
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


def print_main_table(console: Console, results: StudyResults) -> None:
    """Print the main table, compact, on a terminal: test error in %, differences in percentage points."""
    against = "diff." if not results.margin.relative else "effect, %"
    names = ("row", setting_header(results), "error, %", "n", against, "verdict", "paper")
    rows = []
    for line in main_lines(results):
        # ± would reach below 0 or above 100 % where an end is cut off
        error = f"{line.error} ±{line.half}" if line.half != DASH else joined(line.error, line.interval)
        cells = (
            line.label + (" ‡" if line.mixed else ""), line.setting + (" †" if line.edge else ""), error, line.n,
            line.effect, line.word, line.paper,
        )  # fmt: skip
        rows.append([Text(cell, style="bold" if line.primary else "") for cell in cells])
    print_table(console, names, rows, right=(*names[1:5], "paper"), shortest=24)
