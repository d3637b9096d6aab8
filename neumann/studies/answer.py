"""The answer of a study in sentences: what the primary comparison shows, and what is still to be trained."""

from __future__ import annotations

from collections.abc import Sequence

from neumann.store import OVER
from neumann.store.code_digests import listed
from neumann.studies.numbers import equivalence_interval, interval, p_value, percent, percentage_points
from neumann.studies.results import Comparison, RowResult, RunEntry
from neumann.studies.statistics import Paired, Verdict


def answer(primary: Comparison, rows: Sequence[RowResult]) -> tuple[str, str]:
    """Return the finding of ``primary`` in sentences, and in short form for a terminal."""
    labels = {row.key: row.label for row in rows}
    ours, other = labels[primary.row], labels[primary.against]
    lost = _never_chosen(rows)
    never = "".join(f" Every setting of {label} diverged on some tuning seed, so it has no result." for label in lost)
    if {ours, other} & set(lost):
        return f"Not answered.{never}", "not answered: no setting trained without diverging"
    if primary.paired is None or primary.verdict is None:
        return f"Not answered yet: {ours} and {other} share no evaluation seed that is over.", "not answered yet"
    one, verdict = primary.paired, primary.verdict
    both = [row for row in rows if row.key in (primary.row, primary.against)]
    if one.diverged or one.mean is None:
        said = _with_divergence(one, verdict, ours, other)
    else:
        said = _without_divergence(one, one.mean, verdict, ours, other)
    untuned = [row.label for row in both if len(row.trials) == 1]
    if untuned:
        said += f" Nothing was tuned for {' and '.join(untuned)}: one setting was tried, which may favour either."
    edges = [row.label for row in both if row.edge and len(row.trials) > 1]
    if edges:
        said += f" A better setting may lie outside the space, on whose edge {' and '.join(edges)} ended."
    if primary.unlike:
        said += f" The runs of {ours} and {other} differ in {listed(primary.unlike)} too, "
        said += "from which part of this may come."
    said += never
    return said, _short(one, verdict, ours, other)


def _without_divergence(one: Paired, mean: float, verdict: Verdict, ours: str, other: str) -> str:
    size = percent(abs(mean))
    evidence = f"{_difference(one)}, n = {one.n} paired seed{'s' if one.n != 1 else ''}, {_p(one.p)}"
    margin = percent(verdict.smallest_effect_of_interest)
    if verdict.answer == "equivalent":
        inside = equivalence_interval(verdict)
        shown = f", whose {inside} lies within ±{margin}" if inside else ""
        said = (
            f"{ours} and {other} are equivalent within ±{margin} percentage points of test error, the smallest effect "
            f"of interest ({evidence}; two one-sided tests, {_p(verdict.p_equivalence)}{shown})."
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
    return said


def _with_divergence(one: Paired, verdict: Verdict, ours: str, other: str) -> str:
    """Return the finding of a comparison in which a diverged run counts as worse than any that finished."""
    a, b = len(one.diverged_a), len(one.diverged_b)
    if not one.n and verdict.answer == "diverged":
        said = f"Not answered: of {one.over} evaluation seeds {a} diverged in {ours} and {b} in {other}, and none "
        said += "finished in both, so there is no difference of errors."
    else:
        said = {
            "better": f"{ours} is better than {other}",
            "worse": f"{ours} is worse than {other}",
        }.get(verdict.answer, f"No difference was shown between {ours} and {other}")
        said += f": of {one.over} evaluation seeds {a} diverged in {ours} and {b} in {other}."
    said += f" A diverged run is worse than any that finished: {ours} wins {one.wins}, ties {one.ties} and loses "
    said += f"{one.losses} of the seeds (sign test, {_p(one.p)})."
    if one.over < 6:
        said += " Fewer than six seeds cannot show a difference in this test."
    if one.n:
        said += (
            f" On the {one.n} seed{'s' if one.n != 1 else ''} on which both finished: {_difference(one)}, which says "
        )
        said += "nothing of the others."
    return said


def _difference(one: Paired) -> str:
    bounds = interval(one.low, one.high, percentage_points)
    return f"difference {percentage_points(one.mean)} percentage points, 95 % interval {bounds}"


def _short(one: Paired, verdict: Verdict, ours: str, other: str) -> str:
    """Return the finding for a terminal; what diverged stands beside n."""
    lost = [
        f"{len(seeds)} diverged in {label}"
        for label, seeds in ((ours, one.diverged_a), (other, one.diverged_b))
        if seeds
    ]
    counted = f"n = {one.n}" + (f" of {one.over} ({', '.join(lost)})" if lost else "")
    answered = "not answered" if verdict.answer == "diverged" else verdict.answer
    if one.mean is None:
        return f"{answered}, {counted}"
    bounds = f"95 % interval {interval(one.low, one.high, percentage_points)}"
    if one.low is None or one.high is None:
        bounds = "no interval"
    elif verdict.answer == "equivalent":
        bounds = f"{equivalence_interval(verdict)} within ±{percent(verdict.smallest_effect_of_interest)}"
    return f"{answered}, {percentage_points(one.mean)} percentage points, {bounds}, {counted}"


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
