"""The page of a sweep: report.html, with the files beside it, by the templates, figures and formats of a study's page.

The same results give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from neumann.fitting import print_table
from neumann.processes.beside import beside
from neumann.store.code_digests import listed
from neumann.store.files import replace_file
from neumann.studies.numbers import (
    DASH,
    correlation,
    count,
    either,
    interval,
    mean_and_interval,
    percent,
    percentage_points,
    printable,
    value,
)
from neumann.studies.report.content import origin, terms_told
from neumann.studies.report.csv_files import Cell, as_csv, curves_csv, runs_csv, summary_cells, terms_csv
from neumann.studies.report.page import fill
from neumann.studies.report.tables import mixed_text
from neumann.studies.report.text import joined, markdown
from neumann.studies.results import Comparison, RowResult
from neumann.studies.sweep import EXPLORATORY, SweepResults
from neumann.studies.sweep_columns import title

if TYPE_CHECKING:
    from neumann.studies.report.figures.svg import Drawing

MEASURE = "validation error"
DRAWN = 20  # rows that a figure shows, those with the lowest mean error: of more it can tell none apart
FIGURES = ("errors", "curves", "rates", "terms")


@dataclass(frozen=True)
class SweepLine:
    """One row of the main table as text; errors in percent, differences in percentage points."""

    label: str
    cells: tuple[str, ...]
    at: str
    mixed: str | None
    error: str
    interval: str
    sd: str
    n: str
    diverged: int
    difference: str
    difference_interval: str
    test: str
    test_interval: str
    tested: str
    is_reference: bool


def render(results: SweepResults, folder: Path) -> list[Path]:
    """Write the page, the tables and the figures into ``folder``; return their paths, report.html first.

    Every file is replaced atomically, and a figure that is drawn no more is removed. Raises OSError.
    """
    drawings = _draw(results)
    files = {
        "report.html": _page(results, drawings).encode(),
        "table.md": markdown_table(results).encode(),
        "table.csv": table_csv(results),
        "runs.csv": runs_csv(results),
        "curves.csv": curves_csv(results),
    }
    if "terms" in drawings:
        files["terms.csv"] = terms_csv(results)
    else:
        (folder / "terms.csv").unlink(missing_ok=True)
    for name, drawing in drawings.items():
        files |= {f"{name}.svg": drawing.svg, f"{name}.png": drawing.png}
    for name, content in reversed(files.items()):  # the page last, when the files beside it are there
        replace_file(folder / name, content)
    for name in FIGURES:
        if name not in drawings:
            for suffix in (".svg", ".png"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
    return [folder / name for name in files]


def _draw(results: SweepResults) -> dict[str, Drawing]:
    curves = beside(_figures, results, ["curves"])  # half of the work, for another core
    there = {"rates": bool(results.rates), "terms": any(row.terms for row in results.rows)}
    others = _figures(results, ["errors", *(name for name, has in there.items() if has)])
    return {"errors": others.pop("errors"), **curves(), **others}


def _figures(results: SweepResults, names: Sequence[str]) -> dict[str, Drawing]:
    from neumann.studies.report.figures.curves import curve_figure
    from neumann.studies.report.figures.errors import error_figure
    from neumann.studies.report.figures.svg import style
    from neumann.studies.report.figures.terms import terms_figure
    from neumann.studies.report.figures.tuning import tuning_figure

    figures: dict[str, Callable[[], Drawing]] = {
        "errors": lambda: error_figure(results, _drawn(results.rows), MEASURE),
        "curves": lambda: curve_figure(results, _drawn(results.rows)),
        "rates": lambda: tuning_figure(_drawn(results.rates)),
        "terms": lambda: terms_figure(_drawn(results.rows)),
    }
    with style():
        return {name: figures[name]() for name in names}


def _drawn(rows: Sequence[RowResult]) -> list[RowResult]:
    """Return the rows that a figure shows, in their order."""
    lowest = sorted(rows, key=lambda row: row.error.mean if row.error else 2.0)[:DRAWN]
    return [row for row in rows if any(row is one for one in lowest)]


def _page(results: SweepResults, drawings: dict[str, Drawing]) -> str:
    points = results.points()
    many = len(results.rows) > DRAWN
    counts = Counter(run.status for run in results.runs)
    return fill(
        "sweep.html.j2",
        drawings,
        r=results,
        exploratory=EXPLORATORY,
        terms_told=terms_told(results),
        lines=main_lines(results),
        heads=[title(key) for key in results.tuned],
        caption=caption(results),
        reference=printable(results.reference),
        tested=bool(results.tests),
        left_out_rows=f"Of {len(results.rows)} rows, the {DRAWN} with the lowest mean error." if many else "",
        by_seed=[(row.label, [_of_seed(row, seed, results) for seed in results.seeds]) for row in results.rows],
        differences=[_difference(one) for one in results.comparisons],
        points=points,
        by_point=[_by_point(row, points) for row in results.rows],
        unfinished=[run for run in results.runs if run.status != "finished"],
        counts=", ".join(f"{n} {status}" for status, n in counts.items()),
        **origin(results),
    )


def main_lines(results: SweepResults) -> list[SweepLine]:
    """Return the main table, a line a row."""
    return [_line(results, row) for row in results.rows]


def _line(results: SweepResults, row: RowResult) -> SweepLine:
    error, test = row.error, results.tests.get(row.key)
    pair = row.reference.paired if row.reference else None
    return SweepLine(
        label=printable(row.label),
        cells=tuple(value(row.setting[key]) if row.setting and key in row.setting else DASH for key in results.tuned),
        at=printable(row.at) if row.at else DASH,
        mixed=mixed_text(row, row.reference, printable(results.reference)),
        error=percent(error.mean if error else None),
        interval=interval(error.low, error.high) if error else DASH,
        sd=percent(error.sd if error else None),
        n=count(error.n if error else 0, row.planned),
        diverged=len(row.diverged),
        difference=percentage_points(pair.mean if pair else None),
        difference_interval=interval(pair.low, pair.high, percentage_points) if pair else DASH,
        test=percent(test.mean if test else None),
        test_interval=interval(test.low, test.high) if test else DASH,
        tested=f"n = {test.n}" if test and (error is None or test.n != error.n) else "",
        is_reference=row.key == results.reference,
    )


def caption(results: SweepResults) -> str:
    """Return what the main table measures."""
    images = f"{either(results.validation_images)} " if results.validation_images else ""
    said = (
        f"Error on {images}validation images at the eval point after the last step: mean over seeds with its 95 % t "
        "interval, cut off at 0 and 100 %, and standard deviation; n: runs that finished, of those that are there. "
        "Differences are paired by seed, negative where the row errs less."
    )
    if results.tests:
        said += f" Test error: on {either(results.test_images)} test images, of the runs that were scored on them."
    return said


def _of_seed(row: RowResult, seed: int, results: SweepResults) -> str:
    if seed in row.errors:
        return percent(row.errors[seed])
    return next((run.status for run in results.runs if run.rows == (row.key,) and run.seed == seed), DASH)


def _difference(c: Comparison) -> dict[str, Any]:
    pair = c.paired
    notes = [c.note] if c.note else []
    if pair:
        for seeds, what in ((pair.only_a, "finished in this row only"), (pair.only_b, "finished in the other only")):
            notes += [f"seeds {', '.join(map(str, seeds))} {what}"] if seeds else []
        for seeds, where in ((pair.diverged_a, "this row"), (pair.diverged_b, "the other")):
            notes += [f"seeds {', '.join(map(str, seeds))} diverged in {where}"] if seeds else []
    if c.unlike:
        notes.append(f"the runs of the two differ in {listed(c.unlike)}")
    return {
        "row": printable(c.row),
        "n": count(pair.n, pair.over) if pair else DASH,
        "mean": percentage_points(pair.mean if pair else None),
        "interval": interval(pair.low, pair.high, percentage_points) if pair else DASH,
        "sd": percent(pair.sd if pair else None),
        "counts": f"{pair.wins}/{pair.ties}/{pair.losses}" if pair else DASH,
        "correlation": (correlation(pair.correlation) if pair else "").removeprefix("r ") or DASH,
        "note": "; ".join(notes),
    }


def _by_point(row: RowResult, points: Sequence[str]) -> tuple[str, list[tuple[str, bool]]]:
    return printable(row.label), [(mean_and_interval(row.points.get(point)), point == row.at) for point in points]


# ------------------------------------------------------------------------------------------------ other formats


def table_csv(results: SweepResults) -> bytes:
    """Return table.csv: a line for each row, with the settings that differ; fractions, empty where unknown."""
    header = ["row", *results.tuned, "evaluated_at", "runs", "finished", "diverged"]
    header += [f"validation_error_{part}" for part in ("mean", "median", "sd", "low", "high")]
    header += ["test_n", *(f"test_error_{part}" for part in ("mean", "median", "sd", "low", "high"))]
    header += [f"difference_{part}" for part in ("against", "n", "mean", "sd", "low", "high")]
    lines: list[list[Cell]] = []
    for row in results.rows:
        test, pair = results.tests.get(row.key), row.reference.paired if row.reference else None
        line: list[Cell] = [row.label, *((row.setting or {}).get(key) for key in results.tuned), row.at]
        line += [row.planned, len(row.errors), len(row.diverged), *summary_cells(row.error)]
        line += [test.n if test else None, *summary_cells(test), row.reference.against if row.reference else None]
        line += [pair.n, pair.mean, pair.sd, pair.low, pair.high] if pair else [None] * 5
        lines.append(line)
    return as_csv(header, lines)


def markdown_table(results: SweepResults) -> str:
    """Return the main table in GitHub-flavoured Markdown."""
    lines = main_lines(results)
    header = ["row", *map(title, results.tuned), "evaluated at", "validation error, % [95 % interval]", "sd, %", "n"]
    header += [f"minus {printable(results.reference)}, percentage points [95 % interval]"]
    header += ["test error, % [95 % interval]"] if results.tests else []
    body = [
        [
            line.label + (" ‡" if line.mixed else ""), *line.cells, line.at, joined(line.error, line.interval), line.sd,
            line.n + (f", {line.diverged} diverged" if line.diverged else ""),
            "reference" if line.is_reference else joined(line.difference, line.difference_interval),
            *([_tested(line)] if results.tests else []),
        ]
        for line in lines
    ]  # fmt: skip
    rows = [[markdown(cell) for cell in header], ["---", *["---:"] * (len(header) - 1)]]
    rows += [[markdown(cell) for cell in line] for line in body]
    parts = [f"**{markdown(results.title)}**", f"**{EXPLORATORY}**", markdown(results.answer)]
    parts += [markdown(text) for text in (results.incomplete, *results.notes) if text]
    parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in rows))
    parts += [f"‡ {markdown(line.label)}: {markdown(line.mixed)}." for line in lines if line.mixed]
    parts.append(markdown(caption(results)))
    return "\n\n".join(parts) + "\n"


def _tested(line: SweepLine) -> str:
    return joined(line.test, line.test_interval) + (f" ({line.tested})" if line.tested else "")


def print_main_table(console: Console, results: SweepResults) -> None:
    """Print the main table, compact, on a terminal: errors in %, differences in percentage points."""
    names = ("row", "validation, %", "sd", "n", "diff.", *(["test, %"] if results.tests else []))
    rows = []
    for line in main_lines(results):
        n = line.n + (f", {line.diverged} diverged" if line.diverged else "")
        cells = [line.label + (" ‡" if line.mixed else ""), joined(line.error, line.interval), line.sd, n]
        cells += [DASH if line.is_reference else line.difference, *([line.test] if results.tests else [])]
        rows.append([Text(cell) for cell in cells])
    print_table(console, names, rows, right=names[1:], shortest=24)
