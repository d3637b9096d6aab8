"""The table of outcomes: the error at the fixed last step and the costs of reaching the target, side by side.

A line is a comparison; a column is an outcome, as a change in percent with its 95 % interval. Below it, where the study
names a target, stands what each row needed to reach it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neumann.studies.effects import Effect, Median
from neumann.studies.numbers import (
    DASH,
    amount,
    change,
    effect_interval,
    interval,
    measure,
    p_value,
    percent,
    printable,
)
from neumann.studies.report.csv_files import Cell, as_csv
from neumann.studies.report.text import TextTable, joined, label_of, markdown, markdown_rows
from neumann.studies.results import COSTS, OUTCOMES, StudyResults


@dataclass(frozen=True)
class OutcomeCell:
    """One outcome of a comparison as text: its ``change`` in percent, the ``interval``, and what else is to be said."""

    change: str
    interval: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OutcomeLine:
    """One comparison of the table of outcomes, a cell for each of `columns`; ``against`` says how it is compared."""

    row: str
    against: str
    primary: bool
    cells: tuple[OutcomeCell, ...]


@dataclass(frozen=True)
class TargetLine:
    """What one row needed to reach the target: how many of its runs did, and the median of each cost."""

    row: str
    reached: str
    medians: tuple[str, ...]


def columns(results: StudyResults) -> tuple[str, ...]:
    """Return the outcomes that any comparison has, in order."""
    return tuple(outcome for outcome in OUTCOMES if any(outcome in c.effects for c in results.comparisons))


def costs(results: StudyResults) -> tuple[str, ...]:
    """Return the costs that any row has a median of, in order."""
    return tuple(cost for cost in COSTS if any(cost in row.to_target for row in results.rows))


def outcome_lines(results: StudyResults) -> list[OutcomeLine]:
    """Return the table of outcomes, the primary comparison first."""
    shown = columns(results)
    return [
        OutcomeLine(
            label_of(results, c.row),
            label_of(results, c.against) + (", at equal settings" if c.settings else ""),
            c.primary,
            tuple(_cell(c.effects.get(outcome), results.pilot) for outcome in shown),
        )
        for c in results.comparisons
        if c.effects
    ]


def _cell(effect: Effect | None, pilot: bool) -> OutcomeCell:
    if effect is None:
        return OutcomeCell(DASH, DASH)
    lost = f"{len(effect.lost_a)} and {len(effect.lost_b)} of {effect.over}"
    if effect.test == "log-rank test":
        p = () if pilot else (f"log-rank p {p_value(effect.p)}",)
        return OutcomeCell(change(effect.value), DASH, (f"missed {lost}", *p))
    notes = (f"diverged {lost}",) if effect.lost else ()
    return OutcomeCell(change(effect.value), effect_interval(effect), notes)


def target_lines(results: StudyResults) -> list[TargetLine]:
    """Return what each row needed to reach the target, for the rows that have runs which are over."""
    shown = costs(results)
    return [
        TargetLine(printable(row.label), _reached(row.to_target), tuple(_median(row.to_target.get(c)) for c in shown))
        for row in results.rows
        if row.to_target
    ]


def _reached(medians: Mapping[str, Median]) -> str:
    one = next(iter(medians.values()))
    return f"{one.reached}/{one.runs}"


def _median(one: Median | None) -> str:
    if one is None or one.value is None:
        return DASH
    return joined(amount(one.value), interval(one.low, one.high, amount))


def outcomes_caption(results: StudyResults) -> str:
    """Return what the table of outcomes shows."""
    said = (
        "Change in percent of the first row against the second, with its 95 % interval; negative where the first errs "
        "or needs less. Test error at the fixed last step: the ratio of the means, with Fieller's interval."
    )
    if results.target is not None:
        said += (
            " Costs of reaching the target: the ratio of the geometric means, with the paired t interval of the log "
            "ratios by seed. Where a run missed the target, its cost is only known to be above that of its whole run: "
            "the change is then that of the Kaplan–Meier medians, without an interval, and p is the log-rank test's, "
            "which does not use the pairing by seed."
        )
    return f"{said} Verdicts are on {measure(results.outcome)} alone; no p or interval of this table is adjusted."


def target_text(results: StudyResults) -> str:
    """Return what the target is, where it is from, and what a cost to it is exact to; "" without one."""
    target = results.target
    if target is None:
        return ""
    error = f"a validation error of {percent(target.error)} %" if target.error is not None else "not known yet"
    return (
        f"Target: {error}, {printable(target.source)}. A run reaches it at its first evaluation at or below it; "
        f"evaluations are {target.every} apart, nothing is interpolated. Device-seconds are of training alone, and of "
        "this machine."
    )


def outcome_tables(results: StudyResults) -> list[TextTable]:
    """Return the table of outcomes and that of what rows needed, none where nothing is compared yet."""
    lines, shown = outcome_lines(results), columns(results)
    if not lines:
        return []
    body = [[f"{line.row} against {line.against}", *(_in_a_line(cell) for cell in line.cells)] for line in lines]
    header = ["comparison", *(f"{measure(outcome)}, %" for outcome in shown)]
    tables = [TextTable("outcomes", outcomes_caption(results), header, body)]
    needed = [[line.row, line.reached, *line.medians] for line in target_lines(results)]
    if results.target is not None and needed:
        heads = ["row", "reached the target", *(f"median {COSTS[cost]} [95 % interval]" for cost in costs(results))]
        tables.append(TextTable("target", target_text(results), heads, needed))
    return tables


def outcomes_markdown(results: StudyResults) -> list[str]:
    """Return the paragraphs of both tables in Markdown, none where nothing is compared yet."""
    tables = outcome_tables(results)
    if not tables:
        return []
    parts = [markdown_rows(tables[0]), markdown(tables[0].caption)]
    if results.target is not None:
        parts.append(markdown(target_text(results)))
    return [*parts, *map(markdown_rows, tables[1:])]


def _in_a_line(cell: OutcomeCell) -> str:
    return joined(cell.change, cell.interval) + (f" ({', '.join(cell.notes)})" if cell.notes else "")


def outcomes_csv(results: StudyResults) -> bytes:
    """Return outcomes.csv: a line per comparison and outcome, ratios and their intervals in full precision.

    ``settings`` says whether the rows are compared at those that were chosen or over equal ones.
    """
    header = [
        "row",
        "against",
        "primary",
        "settings",
        "outcome",
        "ratio",
        "low",
        "high",
        "low_90",
        "high_90",
        "sd",
        "n",
        "over",
    ]
    header += ["lost_row", "lost_against", "p", "test"]
    lines: list[list[Cell]] = []
    for c in results.comparisons:
        for outcome, e in c.effects.items():
            settings = "equal" if c.settings else "chosen"
            line: list[Cell] = [
                c.row,
                c.against,
                c.primary,
                settings,
                outcome,
                e.value,
                e.low,
                e.high,
                e.inner_low,
                e.inner_high,
            ]
            lines.append([*line, e.sd, e.n, e.over, len(e.lost_a), len(e.lost_b), e.p, e.test])
    return as_csv(header, lines)


def target_csv(results: StudyResults) -> bytes:
    """Return target.csv: a line per row and cost, how many of its runs reached the target, and the median."""
    header = ["row", "cost", "runs", "reached", "median", "low", "high"]
    lines: list[list[Cell]] = [
        [row.key, cost, one.runs, one.reached, one.value, one.low, one.high]
        for row in results.rows
        for cost, one in row.to_target.items()
    ]
    return as_csv(header, lines)
