"""The answer of a study in sentences: what the primary comparison shows, and what is still to be trained."""

from __future__ import annotations

from collections.abc import Sequence

from neumann.store import OVER
from neumann.store.code_digests import listed
from neumann.studies.effects import Effect
from neumann.studies.numbers import (
    detectable,
    effect_interval,
    effect_value,
    inner_interval,
    measure,
    p_value,
    setting_text,
    size,
    unit_of,
    verdict_text,
)
from neumann.studies.results import ERROR, Comparison, RowResult, RunEntry, unchosen
from neumann.studies.statistics import Paired
from neumann.studies.verdicts import Verdict


def answer(primary: Comparison, rows: Sequence[RowResult], outcome: str, *, grid: bool) -> tuple[str, str]:
    """Return the finding of ``primary`` on ``outcome`` in sentences, and in short form for a terminal.

    In a ``grid`` every seed chose its own settings.
    """
    labels = {row.key: row.label for row in rows}
    ours, other = labels[primary.row], labels[primary.against]
    lost = _never_chosen(rows)
    never = "".join(f" Every setting of {label} diverged on some tuning seed, so it has no result." for label in lost)
    if {ours, other} & set(lost):
        return f"Not answered.{never}", "not answered: no setting trained without diverging"
    if primary.paired is None:
        return f"Not answered yet: {ours} and {other} share no evaluation seed that is over.", "not answered yet"
    if primary.effect is None or primary.verdict is None:
        said = f"their runs do not record {measure(outcome)}, or the target is not known yet"
        return f"Not answered yet: {said}.", "not answered yet"
    effect, verdict = primary.effect, primary.verdict
    both = [row for row in rows if row.key in (primary.row, primary.against)]
    names = (ours, other, measure(outcome))
    if outcome != ERROR and effect.lost:
        said = _with_misses(effect, verdict, *names)
    elif effect.lost:
        said = _with_divergence(primary.paired, effect, verdict, *names)
    else:
        said = _without_divergence(effect, verdict, *names)
    if primary.settings:
        over = ", ".join(setting_text(setting) for setting in primary.settings)
        said += f" Both are compared at equal settings, by the mean over {over}."
    elif grid:
        said += " Every seed chose its own settings, so the luck of tuning is in this."
    else:
        said += " It holds at the settings that were chosen: the luck of tuning is not in it."
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
    return said, _short(effect, verdict, *names)


def _without_divergence(effect: Effect, verdict: Verdict, ours: str, other: str, of: str) -> str:
    n = effect.n
    evidence = f"{_evidence(effect, of)}, n = {n} paired seed{'s' if n != 1 else ''}"
    if verdict.answer != "pilot":
        evidence += f", {_p(effect.p)}"
    margin = size(verdict.margin.size, verdict.margin)
    inside = inner_interval(effect)
    shown = f"; its {inside} lies within the margin" if inside else ""
    said = {
        "better by the margin": f"{ours} is better than {other} in {of} by at least {margin} ({evidence}).",
        "worse by the margin": f"{ours} is worse than {other} in {of} by at least {margin} ({evidence}).",
        "equivalent": f"{ours} and {other} are equivalent in {of} within the margin of {margin} ({evidence}{shown}).",
        "negligible": f"{ours} and {other} differ in {of} by less than the margin of {margin}, the smallest effect of "
        f"interest ({evidence}{shown}).",
        "undecided": f"Which of {ours} and {other} is better in {of}, if either is, is undecided ({evidence}).",
        "pilot": f"A pilot has no verdict. {ours} against {other}: {evidence}.",
    }.get(verdict.answer)
    if said is None:
        said = (
            f"{ours} is {verdict.answer} than {other} in {of} ({evidence}), by how much is undecided: smaller effects "
        )
        said += f"than the margin of {margin} and larger ones are possible."
    if effect.n == 1:
        return f"{said} One seed has no interval and shows nothing."
    if effect.value is None:
        return f"{said} The mean of {other} is not told from 0, so there is no ratio to it."
    if verdict.smallest_detectable_effect is None:
        return (
            f"{said} All paired differences are equal, so neither the noise nor the detectable effect can be estimated."
        )
    seen = f"a true difference of {detectable(verdict)}"
    if verdict.detects_nothing:
        seen = "no true difference, however large,"
    said += f" With these {n} seeds {seen} would be found"
    said += f" {10 * verdict.power:g} times in 10 (margin: {margin})."
    if verdict.answer in ("undecided", "pilot", "better", "worse") and verdict.seeds is not None:
        said += f" By the noise found here, n = {verdict.seeds:,} would decide{_range(verdict)}."
    return said


def _range(verdict: Verdict) -> str:
    """Return what n would be at both ends of the noise's interval, which few seeds tell badly."""
    if verdict.fewest_seeds is None:
        return ""
    most = "a million" if verdict.most_seeds is None else f"{verdict.most_seeds:,}"
    return f" ({verdict.fewest_seeds:,} to {most} by the 95 % interval of that noise)"


def _with_misses(effect: Effect, verdict: Verdict, ours: str, other: str, of: str) -> str:
    """Return the finding of costs to a target that some run missed: medians and the log-rank test."""
    a, b = len(effect.lost_a), len(effect.lost_b)
    said = {
        "better": f"{ours} is better than {other} in {of}",
        "worse": f"{ours} is worse than {other} in {of}",
        "missed": f"Not answered: at no seed did both {ours} and {other} reach the target",
        "pilot": f"A pilot has no verdict. {ours} against {other} in {of}",
    }.get(verdict.answer, f"Which of {ours} and {other} is better in {of}, if either is, is undecided")
    said += f": of {effect.over} evaluation seeds {a} of {ours} and {b} of {other} missed the target"
    said += f" (log-rank test, {_p(effect.p)})." if verdict.answer != "pilot" else "."
    if effect.value is not None:
        said += f" The ratio of the medians is {effect.value:.3g}."
    return f"{said} A missed target has no cost, so there is no interval, and nothing is said of the margin."


def _with_divergence(one: Paired, effect: Effect, verdict: Verdict, ours: str, other: str, of: str) -> str:
    """Return the finding of a comparison in which a diverged run counts as worse than any that finished."""
    a, b = len(one.diverged_a), len(one.diverged_b)
    if not one.n and verdict.answer == "diverged":
        said = f"Not answered: of {one.over} evaluation seeds {a} diverged in {ours} and {b} in {other}, and none "
        said += "finished in both, so there is no difference of errors."
    else:
        said = {
            "better": f"{ours} is better than {other}",
            "worse": f"{ours} is worse than {other}",
            "pilot": f"A pilot has no verdict. {ours} against {other}",
        }.get(verdict.answer, f"Which of {ours} and {other} is better, if either is, is undecided")
        said += f": of {one.over} evaluation seeds {a} diverged in {ours} and {b} in {other}."
    said += f" A diverged run is worse than any that finished: {ours} wins {one.wins}, ties {one.ties} and loses "
    said += f"{one.losses} of the seeds (sign test, {_p(one.p)})."
    if one.over < 6:
        said += " Fewer than six seeds cannot show a difference in this test."
    if one.n:
        shown = f"{of} {effect_value(effect)} {unit_of(verdict.margin)}"
        said += f" On the {one.n} seed{'s' if one.n != 1 else ''} on which both finished: {shown}, which says "
        said += "nothing of the others."
    return said


def _evidence(effect: Effect, of: str) -> str:
    unit = "percentage points" if effect.scale == "difference" else "%"
    return f"{of} {effect_value(effect)} {unit}, 95 % interval {effect_interval(effect)}"


def _short(effect: Effect, verdict: Verdict, ours: str, other: str, of: str) -> str:
    """Return the finding for a terminal; what diverged or missed the target stands beside n."""
    what = "diverged in" if of == measure(ERROR) else "missed in"
    lost = [f"{len(s)} {what} {label}" for label, s in ((ours, effect.lost_a), (other, effect.lost_b)) if s]
    counted = f"n = {effect.n}" + (f" of {effect.over} ({', '.join(lost)})" if lost else "")
    said = "not answered" if verdict.answer in ("diverged", "missed") else verdict_text(verdict)
    if effect.value is None or effect.test == "log-rank test":
        return f"{said}, {of}, {counted}"
    bounds = f"95 % interval {effect_interval(effect)}"
    if effect.low is None or effect.high is None:
        bounds = "no interval"
    elif verdict.answer in ("equivalent", "negligible"):
        bounds = f"{inner_interval(effect)} within the margin of {size(verdict.margin.size, verdict.margin)}"
    return f"{said}, {of} {effect_value(effect)} {unit_of(verdict.margin)}, {bounds}, {counted}"


def incomplete(runs: Sequence[RunEntry], rows: Sequence[RowResult]) -> str | None:
    """Return a sentence on what is still to be trained, or None where nothing is."""
    left = sum(run.status not in OVER for run in runs)
    waiting = [row.label for row in rows if row.setting is None and unchosen(row.trials)]
    said = []
    if left:
        said.append(f"{left} of the {len(runs)} runs planned so far have no result")
    if waiting:
        said.append(f"no setting is chosen yet for {'any row' if len(waiting) == len(rows) else '; '.join(waiting)}")
    return f"Incomplete: {'; '.join(said)}." if said else None


def _never_chosen(rows: Sequence[RowResult]) -> list[str]:
    """Return the labels of rows whose tuning is over and has no setting that never diverged: that is their result."""
    return [row.label for row in rows if row.setting is None and not row.choices and not unchosen(row.trials)]


def _p(p: float | None) -> str:
    if p is None:
        return "no p"
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"
