"""The answer of a study in sentences: what the primary comparison shows, and what is still to be trained."""

from __future__ import annotations

from collections.abc import Sequence

from neumann.store import OVER
from neumann.studies.numbers import interval, p_value, percent, percentage_points
from neumann.studies.results import Comparison, RowResult, RunEntry


def answer(primary: Comparison, rows: Sequence[RowResult]) -> tuple[str, str]:
    """Return the finding of ``primary`` in sentences, and in short form for a terminal."""
    labels = {row.key: row.label for row in rows}
    ours, other = labels[primary.row], labels[primary.against]
    lost = _never_chosen(rows)
    never = "".join(f" Every setting of {label} diverged on some tuning seed, so it has no result." for label in lost)
    if {ours, other} & set(lost):
        return f"Not answered.{never}", "not answered: no setting trained without diverging"
    if primary.paired is None or primary.verdict is None:
        return f"Not answered yet: {ours} and {other} share no finished evaluation seed.", "not answered yet"
    one, verdict = primary.paired, primary.verdict
    size = percent(abs(one.mean))
    difference = f"{percentage_points(one.mean)} percentage points"
    bounds = interval(one.low, one.high, percentage_points)
    counted = f"n = {one.n} paired seed{'s' if one.n != 1 else ''}"
    evidence = f"difference {difference}, 95 % interval {bounds}, {counted}, {_p(one.p)}"
    margin = percent(verdict.smallest_effect_of_interest)
    if verdict.answer == "equivalent":
        said = (
            f"{ours} and {other} are equivalent within ±{margin} percentage points of test error, the smallest effect "
            f"of interest ({evidence}; two one-sided tests, {_p(verdict.p_equivalence)})."
        )
        if verdict.p is not None and verdict.p <= verdict.alpha:
            said += " A difference is there, but it is smaller than what the study set out to find."
    elif verdict.answer == "no difference shown":
        said = f"No difference in test error was shown between {ours} and {other} ({evidence})."
    else:
        more = "lower" if verdict.answer == "better" else "higher"
        said = f"{ours} has a test error {size} percentage points {more} than {other} ({evidence})."
    if verdict.smallest_detectable_effect is not None:
        seen = percent(verdict.smallest_detectable_effect)
        said += f" With these {one.n} seeds a true difference of {seen} percentage points would be found"
        said += f" {10 * verdict.power:g} times in 10 (smallest effect of interest: {margin} percentage points)."
    elif one.n == 1:
        said += " One seed has no interval and shows nothing."
    else:
        said += " All paired differences are equal, so neither the noise nor the detectable effect can be estimated."
    both = [row for row in rows if row.key in (primary.row, primary.against)]
    for row in both:
        if row.diverged:
            said += f" {len(row.diverged)} of {row.planned} runs of {row.label} diverged and are not in the comparison."
    edges = [row.label for row in both if row.edge]
    if edges:
        said += f" A better setting may lie outside the space, on whose edge {' and '.join(edges)} ended."
    said += never
    return said, f"{verdict.answer}, {difference} {bounds}, n = {one.n}"


def incomplete(runs: Sequence[RunEntry], rows: Sequence[RowResult]) -> str | None:
    """Return a sentence on what is still to be trained, or None where nothing is."""
    left = sum(run.status not in OVER for run in runs)
    waiting = [row.label for row in rows if row.setting is None and row.label not in _never_chosen(rows)]
    said = []
    if left:
        said.append(f"{left} of the {len(runs)} runs planned so far have no result")
    if waiting:
        said.append(f"no setting is chosen yet for {'; '.join(waiting)}")
    return f"Incomplete: {'; '.join(said)}." if said else None


def _never_chosen(rows: Sequence[RowResult]) -> list[str]:
    """Return the labels of rows whose tuning is over and has no setting that never diverged: that is their result."""
    return [row.label for row in rows if row.setting is None and all(not trial.missing for trial in row.trials)]


def _p(p: float | None) -> str:
    if p is None:
        return "no p"
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"
