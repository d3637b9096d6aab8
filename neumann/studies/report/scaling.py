"""The tables of a batch-size study: steps and examples at every batch, and what the curves come to."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from neumann.fitting import print_table
from neumann.studies.effects import Effect
from neumann.studies.numbers import DASH, amount, count, interval, printable, value
from neumann.studies.report.csv_files import Cell, as_csv
from neumann.studies.report.text import TextTable, joined
from neumann.studies.results import StudyResults
from neumann.studies.scaling import FEWEST, LOOSE, NEARLY, RESAMPLES, Fit, ScalingCurve, ScalingPoint

NEAR = f"{100 * (NEARLY - 1):.0f} %"


@dataclass(frozen=True)
class Number:
    """A number as text, with its 95 % interval and a note below it."""

    text: str
    interval: str
    note: str = ""


@dataclass(frozen=True)
class PointLine:
    """One row at one batch: how many runs reached the target, steps, both ratios of examples, and the chosen rates."""

    row: str
    batch: str
    reached: str
    steps: Number
    excess: Number
    against: Number
    rates: str
    edge: str | None


@dataclass(frozen=True)
class CurveLine:
    """What the curve of one row comes to."""

    row: str
    nearly: str
    floor: Number
    critical: Number
    residual: str
    why: str


def point_lines(results: StudyResults) -> list[PointLine]:
    """Return the table of batches, row by row."""
    return [
        PointLine(
            row=printable(one.label),
            batch=f"{point.batch:,}",
            reached=count(len(point.steps), point.runs),
            steps=_steps(point),
            excess=_ratio(point.excess) if i else Number("1", DASH),
            against=_ratio(point.against) if point.against else Number(DASH, DASH),
            rates=_rates(point),
            edge=printable(point.edge) if point.edge else None,
        )
        for one in results.scaling
        for i, point in enumerate(one.points)
    ]


def curve_lines(results: StudyResults) -> list[CurveLine]:
    """Return the table of curves, a line a row."""
    return [
        CurveLine(
            row=printable(one.label),
            nearly=_nearly(one),
            floor=_fitted(one.fit, "floor"),
            critical=_fitted(one.fit, "critical"),
            residual=f"{one.fit.residual:.2f}" if one.fit else DASH,
            why=printable(one.why) if one.why else "",
        )
        for one in results.scaling
    ]


def _nearly(one: ScalingCurve) -> str:
    if one.nearly is None:
        return DASH
    largest = one.nearly == one.points[-1].batch
    said = f"{one.nearly:,}" + (", the largest tried" if largest else "")
    return said if one.surely == one.nearly else f"{said} (by the intervals {one.surely or 0:,})"


def _steps(point: ScalingPoint) -> Number:
    if point.mean is None:
        given_up = [steps for steps in point.missed.values() if steps is not None]
        return Number(DASH, DASH, f"missed in {max(given_up):,.0f}" if given_up else "diverged" if point.missed else "")
    return Number(amount(point.mean), interval(point.low, point.high, amount))


def _ratio(effect: Effect | None) -> Number:
    if effect is None or effect.lost:
        return Number(DASH, DASH, "a run missed" if effect is not None else "")
    return Number(_times(effect.value), interval(effect.low, effect.high, _times))


def _times(ratio: float | None) -> str:
    return DASH if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.3g}"


def _rates(point: ScalingPoint) -> str:
    rates = list(point.rates.values())
    often = sorted(dict.fromkeys(rates), key=lambda rate: (-rates.count(rate), rate))
    return ", ".join(f"{value(float(f'{rate:.3g}'))} ×{rates.count(rate)}" for rate in often) or DASH


def _fitted(found: Fit | None, name: str) -> Number:
    if found is None:
        return Number(DASH, DASH)
    low, high = getattr(found, f"{name}_low"), getattr(found, f"{name}_high")
    bounds = DASH
    if low is not None or high is not None:  # one end may lie beyond what these batches can show
        bounds = f"[{'0' if low is None else amount(low)}, {'∞' if high is None else amount(high)}]"
    return Number(amount(getattr(found, name)), bounds)


def points_caption(results: StudyResults) -> str:
    """Return what the table of batches shows."""
    label = printable(results.cells[results.reference].label)
    return (
        "Steps to the target: geometric mean over the seeds with its 95 % t interval, none where a run missed it. "
        "Examples: steps × batch, as a ratio to the same row's at the smallest batch, where perfect scaling is 1, and "
        f"to {label} at the same batch; paired by seed, with 95 % t intervals of the log ratios, none of them adjusted "
        "for their number. Rates, after any scaling by batch, with how many seeds chose each: the one that reached the "
        "target in the fewest steps. † marks a choice on the edge of the rates tried: a better one may lie outside."
    )


def curves_caption(results: StudyResults) -> str:
    """Return what the table of curves shows."""
    return (
        f"Largest batch up to which a row needs at most {NEAR} more examples than at its smallest; in brackets by the "
        "upper ends of the intervals, where that is another. S = S_min (1 + B_crit / B) is fitted to the logarithm of "
        f"the mean steps, at {FEWEST} batches or more at which every run reached the target; S_min is in steps, B_crit "
        "in examples. Residual: the root of the sum of squares of ln S over the degrees of freedom; a fit is shown "
        f"below {LOOSE}. Intervals: 95 %, by {RESAMPLES:,} bootstrap samples of the seeds, each of which has chosen "
        "its own rates."
    )


def scaling_tables(results: StudyResults) -> list[TextTable]:
    """Return both tables, none for a study that is about something else."""
    if not results.scaling:
        return []
    points = [
        [
            line.row, line.batch, line.reached, _in_a_line(line.steps), _in_a_line(line.excess),
            _in_a_line(line.against), line.rates + (" †" if line.edge else ""),
        ]
        for line in point_lines(results)
    ]  # fmt: skip
    curves = [
        [line.row, line.nearly, _in_a_line(line.floor), _in_a_line(line.critical), line.residual, line.why or DASH]
        for line in curve_lines(results)
    ]
    heads = ["row", "batch", "reached the target", "steps [95 % interval]", "examples, × smallest batch"]
    heads += [f"examples, × {printable(results.cells[results.reference].label)}", "rates"]
    names = ["row", f"within {NEAR} of perfect scaling", "S_min", "B_crit", "residual", "why no fit"]
    return [
        TextTable("scaling", points_caption(results), heads, points),
        TextTable("curves", curves_caption(results), names, curves, (0, 5)),
    ]


def print_scaling(console: Console, results: StudyResults) -> None:
    """Print the steps of every row at every batch, compact, on a terminal."""
    batches = sorted({point.batch for one in results.scaling for point in one.points})
    names = ("steps at batch", *(f"{batch:,}" for batch in batches), f"within {NEAR} up to")
    rows = []
    for one in results.scaling:
        steps = {point.batch: _steps(point) for point in one.points}
        cells = [steps[batch].note or steps[batch].text if batch in steps else DASH for batch in batches]
        rows.append([Text(printable(cell)) for cell in (one.label, *cells, _nearly(one))])
    print_table(console, names, rows, right=names[1:], shortest=24)


def _in_a_line(number: Number) -> str:
    return joined(number.text, number.interval) + (f" ({number.note})" if number.note else "")


def scaling_csv(results: StudyResults) -> bytes:
    """Return scaling.csv: a line per row and batch, ratios and intervals in full precision."""
    header = ["row", "batch", "runs", "reached", "steps", "steps_low", "steps_high"]
    header += [f"{name}_{part}" for name in ("excess", "against_reference") for part in ("ratio", "low", "high", "n")]
    header += ["edge"]
    lines: list[list[Cell]] = []
    for one in results.scaling:
        for p in one.points:
            line: list[Cell] = [one.row, p.batch, p.runs, len(p.steps), p.mean, p.low, p.high]
            for effect in (p.excess, p.against):
                whole = effect is not None and not effect.lost
                line += [effect.value, effect.low, effect.high, effect.n] if effect and whole else [None] * 4
            lines.append([*line, p.edge])
    return as_csv(header, lines)


def seeds_csv(results: StudyResults) -> bytes:
    """Return scaling-seeds.csv: a line per row, batch and seed; a run that missed has the steps of all of it."""
    lines: list[list[Cell]] = []
    for one in results.scaling:
        for p in one.points:
            for seed in sorted({*p.steps, *p.missed}):
                steps = p.steps.get(seed, p.missed.get(seed))
                lines.append([one.row, p.batch, seed, p.rates.get(seed), seed in p.steps, steps])
    return as_csv(["row", "batch", "seed", "rate", "reached", "steps"], lines)


def fits_csv(results: StudyResults) -> bytes:
    """Return scaling-fits.csv: a line per row, with the fit where there is one."""
    fields = ("floor", "floor_low", "floor_high", "critical", "critical_low", "critical_high", "residual", "batches")
    header = ["row", "within_20_percent", "within_20_percent_by_intervals", *fields, "seeds", "why"]
    lines: list[list[Cell]] = []
    for one in results.scaling:
        fit = [getattr(one.fit, name) for name in (*fields, "seeds")] if one.fit else [None] * (len(fields) + 1)
        lines.append([one.row, one.nearly, one.surely, *fit, one.why])
    return as_csv(header, lines)
