"""The claims of a study: a line for every comparison with its verdict, and the published numbers in a table apart."""

from __future__ import annotations

from dataclasses import dataclass

from neumann.studies.numbers import (
    DASH,
    correlation,
    count,
    effect_interval,
    effect_value,
    interval,
    percent,
    printable,
    size,
    unit_of,
)
from neumann.studies.report.tables import paper_number, shown_p, verdict_word, within
from neumann.studies.report.text import TextTable, joined, label_of
from neumann.studies.results import ERROR, Comparison, StudyResults
from neumann.studies.statistics import Summary


@dataclass(frozen=True)
class Claim:
    """A comparison as text: ``effect`` and ``interval`` in the margin's unit, ``paper`` the published effect in it.

    ``n`` counts the seeds at which both rows have a value, of those at which both are over, and ``r`` is the
    correlation of their errors by seed. ``within`` is the interval that "equivalent" rests on.
    """

    row: str
    against: str
    primary: bool
    verdict: str
    within: str
    effect: str
    interval: str
    n: str
    r: str
    p: str
    kind: str
    includes: str
    paper: str


def claims(results: StudyResults) -> list[Claim]:
    """Return a line for every comparison, the primary one first."""
    return [_claim(results, c) for c in sorted(results.comparisons, key=lambda c: not c.primary)]


def _claim(results: StudyResults, c: Comparison) -> Claim:
    p, kind = shown_p(c)
    return Claim(
        row=label_of(results, c.row),
        against=label_of(results, c.against),
        primary=c.primary,
        verdict=verdict_word(c),
        within=within(c),
        effect=effect_value(c.effect),
        interval=effect_interval(c.effect),
        n=count(c.effect.n, c.effect.over) if c.effect else DASH,
        r=correlation(c.paired.correlation if c.paired else None).removeprefix("r ") or DASH,
        p=p,
        kind=kind,
        includes="at equal settings" if c.settings else "tuning included" if results.grid else "at these settings",
        paper=_published(results, c),
    )


def _published(results: StudyResults, c: Comparison) -> str:
    """Return the effect that the published numbers of both rows show, in the margin's unit; a dash without them."""
    ours, other = (next((row.paper for row in results.rows if row.key == key), None) for key in (c.row, c.against))
    if ours is None or not other or results.outcome != ERROR:
        return DASH
    found = 100 * (ours / other - 1) if results.margin.relative else ours - other
    return f"{found:+.{1 if results.margin.relative else 2}f}".replace("-", "\N{MINUS SIGN}")


def claims_table(results: StudyResults) -> TextTable:
    """Return the claims as text."""
    unit = unit_of(results.margin)
    published = [f"paper's effect, {unit}"] if results.paper else []
    header = ["comparison", "verdict", f"effect, {unit} [95 % interval]", "of", "n", "r", "p", *published]
    body = [
        [
            f"{one.row} against {one.against}" + (" (primary)" if one.primary else ""),
            f"{one.verdict} ({one.within})" if one.within else one.verdict,
            joined(one.effect, one.interval),
            one.includes,
            one.n,
            one.r,
            f"{one.p} ({one.kind})" if one.kind else one.p,
            *([one.paper] if results.paper else []),
        ]
        for one in claims(results)
    ]
    return TextTable("claims", claims_caption(results), header, body, (0, 1, 3))


def claims_caption(results: StudyResults) -> str:
    """Return what the table of claims says, the margin included."""
    margin = size(results.margin.size, results.margin)
    said = (
        f"Every comparison, paired by seed; negative where the first row does better. The margin of {margin}, the "
        "smallest effect of interest, decides of the primary comparison, which was named in advance; of all others p "
        "does, adjusted together by Holm's method. n: seeds with a value in both rows; r: correlation of their test "
        "errors by seed."
    )
    if results.pilot:
        said = (
            "Every comparison, paired by seed; negative where the first row does better. This budget is a pilot, which "
            "has neither verdicts nor p. n: seeds with a value in both rows; r: correlation of their test errors by "
            "seed."
        )
    return f"{said} The paper's effect is that of its own numbers." if results.paper else said


def paper_table(results: StudyResults) -> TextTable | None:
    """Return the published numbers beside ours, None for a study without them."""
    if results.paper is None:
        return None
    header = ["row", "paper, %", "here, test error, % [95 % interval]"]
    body = [
        [printable(row.label), paper_number(row), _ours(row.error)] for row in results.rows if row.paper is not None
    ]
    said = f"The paper's numbers are not ours and measure something else: {printable(results.paper.measure)} "
    return TextTable("paper", f"{said}({printable(results.paper.source)}).", header, body, (0,))


def _ours(error: Summary | None) -> str:
    return joined(percent(error.mean), interval(error.low, error.high)) if error else DASH
