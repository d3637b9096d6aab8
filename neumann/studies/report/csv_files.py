"""The CSV files of a study, for spreadsheets and scripts: fractions, full precision, empty where unknown.

A text that a spreadsheet would take for a formula gets a leading quote; a number never does, nor does a text that is
one, such as a setting '-0.1' from a study.yaml.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence

from neumann.studies.numbers import printable, value
from neumann.studies.results import Results, RowResult, RunEntry, StudyResults
from neumann.studies.statistics import Summary

NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
# the last four are full-width, which spreadsheets in Japanese and Chinese take for the same
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")

Cell = str | int | float | bool | None


def table_csv(results: StudyResults) -> bytes:
    """Return table.csv: the main table, one line per row of the study, errors at every evaluation point too."""
    keys, points = setting_keys(results), results.points()
    header = ["key", "label", "point", "evaluated_at", *keys, "edge", "planned", "finished", "diverged"]
    header += [f"test_{what}_{part}" for what in ("error", "loss") for part in ("mean", "median", "sd", "low", "high")]
    header += [f"test_error_{part}_at_{point}" for point in points for part in ("n", "mean", "low", "high")]
    header += [f"difference_{part}" for part in ("against", "n", "mean", "sd", "low", "high")]
    header += ["correlation", "p", "p_holm", "p_sign_flip", "wins", "ties", "losses", "primary", "verdict"]
    header += ["equivalence_low", "equivalence_high", "smallest_detectable_effect"]
    header += ["deciding_n", "deciding_n_low", "deciding_n_high", "paper_error"]
    lines: list[list[Cell]] = []
    for row in results.rows:
        c = row.reference
        pair, effect, verdict = (c.paired, c.effect, c.verdict) if c else (None, None, None)
        line: list[Cell] = [row.key, row.label, row.point, row.at, *(_chosen(row, key) for key in keys), row.edge]
        line += [row.planned, len(row.errors), len(row.diverged), *summary_cells(row.error), *summary_cells(row.loss)]
        for point in points:
            s = row.points.get(point)
            line += [s.n, s.mean, s.low, s.high] if s else [None] * 4
        line.append(c.against if c else None)
        line += [pair.n, pair.mean, pair.sd, pair.low, pair.high] if pair else [None] * 5
        line += [pair.correlation if pair else None, effect.p if effect else None]
        line.append(c.adjusted if c else None)
        line += [pair.sign_flip_p, pair.wins, pair.ties, pair.losses] if pair else [None] * 4
        line.append(c.primary if c else None)
        line.append(verdict.answer if verdict else None)
        line += [effect.inner_low, effect.inner_high] if effect else [None] * 2
        line.append(verdict.smallest_detectable_effect if verdict and not verdict.detects_nothing else None)
        line += [verdict.seeds, verdict.fewest_seeds, verdict.most_seeds] if verdict else [None] * 3
        line.append(None if row.paper is None else round(row.paper / 100, 12))  # 23.1 / 100 without binary dust
        lines.append(line)
    return as_csv(header, lines)


def _chosen(row: RowResult, key: str) -> Cell:
    """Return what was chosen for ``key``; in a grid each value with how many seeds chose it: "0.1 x7 0.3 x3"."""
    if not row.choices:
        return (row.setting or {}).get(key)
    values = [value(setting[key]) for setting in row.choices.values() if key in setting]
    often = sorted(dict.fromkeys(values), key=lambda one: -values.count(one))
    return " ".join(f"{one} x{values.count(one)}" for one in often)


def runs_csv(results: Results) -> bytes:
    """Return runs.csv: a line per run and evaluation point; a run without a result has one line and no point."""
    keys = setting_keys(results)
    header = ["rows", "role", *keys, "seed", "status", "signature", "point"]
    header += ["validation_error", "validation_loss", "test_error", "test_loss", "train_seconds"]
    lines: list[list[Cell]] = []
    for run in results.runs:
        for point in _points(run):
            line: list[Cell] = ["; ".join(run.rows), run.role, *(run.setting.get(key) for key in keys)]
            line += [run.seed, run.status, run.signature, point]
            for scores in (run.validation, run.test):
                at = (scores or {}).get(point or "") or {}
                line += [at.get("error"), at.get("loss")]
            lines.append([*line, run.train_seconds])
    return as_csv(header, lines)


def curves_csv(results: Results) -> bytes:
    """Return curves.csv: the mean curves of every row by epoch, with their 95 % intervals."""
    header = ["row", "epoch", "n", "validation_error", "validation_error_low", "validation_error_high"]
    header += ["train_loss", "train_loss_low", "train_loss_high"]
    lines: list[list[Cell]] = []
    for row in results.rows:
        c = row.curve
        if c:
            columns = (c.epochs, c.n, c.error, c.error_low, c.error_high, c.loss, c.loss_low, c.loss_high)
            lines += [[row.key, *values] for values in zip(*columns, strict=True)]
    return as_csv(header, lines)


def terms_csv(results: Results) -> bytes:
    """Return terms.csv: what the optimizers' terms did by epoch, a line per row and quantity, with 95 % intervals."""
    lines = [
        [row.key, key, *values]
        for row in results.rows
        for key, c in row.terms.items()
        for values in zip(c.epochs, c.n, c.mean, c.low, c.high, strict=True)
    ]
    return as_csv(["row", "quantity", "epoch", "n", "mean", "low", "high"], lines)


def setting_keys(results: Results) -> list[str]:
    """Return the keys of all settings of runs and rows, in order."""
    settings = [run.setting for run in results.runs]
    settings += [trial.setting for row in results.rows for trial in row.trials]
    settings += [row.setting for row in results.rows if row.setting]
    return list(dict.fromkeys([*results.tuned, *(key for setting in settings for key in setting)]))


def _points(run: RunEntry) -> Sequence[str | None]:
    return list(dict.fromkeys([*(run.validation or {}), *(run.test or {})])) or [None]


def summary_cells(summary: Summary | None) -> list[Cell]:
    """Return mean, median, sd and the ends of the interval, empty cells where there is no summary."""
    return [summary.mean, summary.median, summary.sd, summary.low, summary.high] if summary else [None] * 5


def as_csv(header: Sequence[str], lines: Iterable[Sequence[Cell]]) -> bytes:
    """Return a CSV file of ``lines`` below ``header``."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_cell(name) for name in header])
    writer.writerows([_cell(cell) for cell in line] for line in lines)
    return file.getvalue().encode("utf-8", "replace")


def _cell(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, str):
        text = printable(cell)
        return f"'{text}" if text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text
    return repr(cell) if isinstance(cell, float) else str(cell)
