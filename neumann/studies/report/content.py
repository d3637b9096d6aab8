"""What the pages of a study's report say beside its tables of numbers: comparisons, failures, origin, explanations.

report.html and the report on W&B (`neumann.studies.report.wandb_blocks`) both take it from here, as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neumann.estimates.rate import duration
from neumann.store.code_digests import listed
from neumann.store.folder import OVER
from neumann.studies.conditions import is_mixed
from neumann.studies.numbers import (
    DASH,
    correlation,
    count,
    detectable,
    effect_interval,
    effect_value,
    either,
    interval,
    mean_and_interval,
    measure,
    p_value,
    percentage_points,
    printable,
    setting_text,
    size,
    value,
)
from neumann.studies.plan import EVALUATION, TUNING
from neumann.studies.report.tables import epochs_text, settings_text, verdict_word, within
from neumann.studies.report.text import label_of
from neumann.studies.results import Comparison, Results, RowResult, RunEntry, StudyResults
from neumann.studies.statistics import proportion_interval
from neumann.studies.terms import QUANTITIES

# Explanations of tables that several pages show as they are
VERDICTS = (
    "Better or worse by at least the margin: the whole 95 % interval is beyond it. Equivalent: the 90 % interval, "
    "below the word, lies within the margin on both sides, which is to say that two one-sided tests at 0.05 reject, "
    "while the 95 % interval beside it may reach further; different but negligible: that, and the 95 % interval leaves "
    "out no effect. Better, worse, size undecided: told from no effect, and the margin is inside the interval. "
    "Undecided is not equality; n in brackets would decide, by the noise found here. All other comparisons are better, "
    "worse or undecided by Holm's p alone: their intervals are not adjusted. Where runs diverged or missed the target, "
    "no row is better of which more are lost."
)
PILOT = "This budget is a pilot, which has no verdicts."
POINTS_INTRODUCED = (
    "Some optimizers hold their weights at one evaluation point and answer with another. Comparing one at its base "
    "point with another at its held point is a confound, so every run is evaluated at all of them. The one that the "
    "main table uses is set in bold."
)
POINTS = (
    "Test error in %, mean and 95 % interval over the runs that finished (n in the main table). Held: where the "
    "gradient is taken. Base: the answer w − μm of Neumann and Nesterov. Average: the moving average of the weights."
)
FAILURES = (
    "Evaluation runs per row. Divergence rate: share of the runs that are over, in %, with its 95 % score interval."
)
CHECKS = (
    "What users of torch expect of any optimizer, tried on a small problem before anything was trained, and what a "
    "step costs on the machine that tried it."
)


def design(results: StudyResults) -> str:
    """Return what was trained and on how many images and seeds it is judged, in a few sentences."""
    validation, test = f"{either(results.validation_images)} images", f"{either(results.test_images)} test images"
    seeds, tuning = len(results.evaluation_seeds), len(results.tuning_seeds)
    said = f"{results.data}. {epochs_text(results)}, "
    if results.grid:
        each = "one seed, which" if seeds == 1 else f"each of {seeds} seeds, each of which"
        said += f"every setting on {each} chose its own by {chosen_by(results)} "
        said += f"({validation}) and is compared on {test}."
    else:
        said += f"tuned on validation error ({validation}, {tuning} seed{'' if tuning == 1 else 's'} a setting), "
        said += f"compared on {test} with {seeds} new seed{'' if seeds == 1 else 's'} a row."
    settings = settings_text(results)
    return f"{said} {settings}" if settings else said


def chosen_by(results: StudyResults) -> str:
    """Return what each seed of a grid chose its setting by."""
    return measure(results.least) if results.least else "validation error"


def comparisons_caption(results: StudyResults) -> str:
    """Return what the table of all comparisons shows."""
    return (
        "Test error of the first row minus that of the second, paired by seed, in percentage points; negative where "
        "the first errs less. The primary comparison was named in advance and stands alone; the p of all others are "
        f"adjusted together by Holm's method. Verdict and Holm p are on {measure(results.outcome)}. Sign-flip p "
        "assumes only that differences are symmetric, and needs six seeds to reach 0.05. r: the correlation of both "
        "errors by seed, by which pairing narrows the interval."
    )


def failures_told(results: StudyResults) -> str:
    """Return how many runs diverged, failed or are missing, in a sentence."""
    if not results.runs:
        return "No run has been started."
    if not unfinished(results):
        return f"There are none: all {len(results.runs)} runs finished."
    diverged, failed = (sum(run.status == status for run in results.runs) for status in ("diverged", "failed"))
    pending = sum(run.status not in (*OVER, "failed") for run in results.runs)
    return (
        f"Of {len(results.runs)} runs, {diverged} diverged, {failed} failed and {pending} have no result yet. A "
        "diverged run has no error: it is counted here and left out of every mean, so a mean speaks of the runs that "
        "finished."
    )


def comparisons(results: StudyResults) -> list[dict[str, Any]]:
    """Return all comparisons as text (`compared`), the primary ones first."""
    return [compared(results, c) for c in sorted(results.comparisons, key=lambda c: not c.primary)]


def unfinished(results: StudyResults) -> list[RunEntry]:
    """Return the runs that have not finished."""
    return [run for run in results.runs if run.status != "finished"]


def seeds_told(results: StudyResults) -> str:
    """Return which seeds the study has, for what."""
    tuning = ", ".join(map(str, results.tuning_seeds))
    said = f"{'Seeds of the target' if results.grid else 'Tuning seeds'}: {tuning}. " if tuning else ""
    return f"{said}Evaluation seeds: {', '.join(map(str, results.evaluation_seeds))}."


def terms_told(results: Results) -> str:
    """Return the caption of the figure of terms: what each panel that is there shows, and how it was measured."""
    there = {key for row in results.rows for key in row.terms}
    said = "; ".join(f"{one.name}: {one.meaning}" for one in QUANTITIES if one.key in there)
    return (
        f"{said}. By epoch, means over seeds with 95 % bands, of each measured step's own batch, at the "
        "weights that the step begins with, without dropout and at the batch's statistics; ∇f̂ is without weight decay "
        "and without regularizers. What an optimizer does not have has no line. A band that touches an "
        "end of its axis goes on there."
    )


def labels(results: StudyResults, run: RunEntry) -> str:
    """Return the labels of the rows that read a run."""
    return ", ".join(label_of(results, key) for key in run.rows)


def origin(results: Results) -> dict[str, Any]:
    """Return what provenance.html.j2 shows."""
    return {
        "provenance": [(k, values, is_mixed(k, values)) for k, values in results.provenance.items()],
        "seconds": duration(sum(run.train_seconds or 0.0 for run in results.runs)),
        "trained": sum(run.train_seconds is not None for run in results.runs),
    }


def compared(results: StudyResults, c: Comparison) -> dict[str, Any]:
    """Return one comparison as text, by column of the table of comparisons."""
    pair, verdict = c.paired, c.verdict
    dropped = [
        f"{'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds)} {what} in {label_of(results, key)}{only}"
        for key, seeds, what, only in (
            (c.row, pair.only_a if pair else (), "finished", " only"),
            (c.against, pair.only_b if pair else (), "finished", " only"),
            (c.row, pair.diverged_a if pair else (), "diverged", ""),
            (c.against, pair.diverged_b if pair else (), "diverged", ""),
        )
        if seeds
    ]
    equal = []
    if pair and pair.diverged:
        equal = [
            f"p = {p_value(pair.p)} is the sign test's over {pair.over} seeds, a diverged run worse than any other"
        ]
    elif pair and pair.sd == 0:
        equal = ["all differences are equal: p is the sign-flip test's"]
    settings = ", ".join(setting_text(setting) for setting in c.settings)
    at_equal = [f"at equal settings: the mean over {settings}"] if settings else []
    apart = [f"the runs of the two differ in {listed(c.unlike)}"] if c.unlike else []
    return {
        "row": label_of(results, c.row),
        "against": label_of(results, c.against),
        "primary": c.primary,
        "n": count(pair.n, pair.over) if pair else DASH,
        "includes": "at equal settings" if settings else "tuning included" if results.grid else "at these settings",
        "effect": effect_value(c.effect),
        "correlation": correlation(pair.correlation if pair else None),
        "seeds": count(c.effect.n, c.effect.over) if c.effect else DASH,
        "effect_interval": effect_interval(c.effect),
        "test": c.effect.test if c.effect else DASH,
        "difference": percentage_points(pair.mean if pair else None),
        "interval": interval(pair.low, pair.high, percentage_points) if pair else DASH,
        # Where all differences are equal there is no t test, and p is the sign-flip test's
        "p": p_value(pair.p if pair and pair.t is not None and not results.pilot else None),
        "own_p": p_value(c.effect.p if c.effect and not results.pilot else None),
        "holm": p_value(c.adjusted if not results.pilot else None),
        "flip": p_value(pair.sign_flip_p if pair and not results.pilot else None),
        "counts": f"{pair.wins}/{pair.ties}/{pair.losses}" if pair else DASH,
        "verdict": verdict_word(c),
        "within": within(c),
        "detectable": detectable(verdict) if verdict else DASH,
        "power": f"{100 * verdict.power:.0f} %" if verdict else DASH,
        "sentence": budget_sentence(results, c),
        "note": "; ".join([*([c.note] if c.note else []), *at_equal, *dropped, *equal, *apart]),
    }


def budget_sentence(results: StudyResults, c: Comparison) -> str:
    """Return the sentence on the smallest effect that this number of seeds detects."""
    margin = size(results.margin.size, results.margin)
    if c.verdict is None or c.effect is None:
        return f"The smallest effect that these seeds detect is not known yet; the smallest of interest is {margin}."
    n, found = c.effect.n, c.verdict.smallest_detectable_effect
    seeds = "one seed" if n == 1 else f"{n} seeds"
    if found is None and c.effect.lost:
        return f"The smallest effect that these seeds would detect is unknown: the {c.effect.test} uses no sizes."
    if found is None:
        why = "one difference has no spread" if n == 1 else "all differences are equal"
        return f"The smallest effect that {seeds} would detect is unknown: {why}."
    seen = f"a true difference of {detectable(c.verdict)}"
    if c.verdict.detects_nothing:
        seen = "no true difference, however large,"
    sentence = (
        f"With {seeds} and the spread found here, {seen} is detected "
        f"with a power of {100 * c.verdict.power:.0f} % (two-sided test, α = {c.verdict.alpha:g})."
    )
    if c.verdict.detects_nothing:
        return f"{sentence} This budget can miss every effect."
    of_interest = f"the smallest effect of interest, {margin}"
    if found > results.margin.size:
        return f"{sentence} That is more than {of_interest}: this budget can miss an effect that matters."
    return f"{sentence} That is enough for {of_interest}."


def by_point(row: RowResult, columns: Sequence[str]) -> tuple[str, list[tuple[str, bool]]]:
    """Return a row's label, and its error at each of ``columns``, with whether the main table takes that one."""
    cells = [(mean_and_interval(row.points.get(point)), point == row.at) for point in columns]
    return printable(row.label), cells


def failures(results: StudyResults, row: RowResult) -> dict[str, Any]:
    """Return how many runs of a row went wrong; the rate is that of its evaluation runs that are over."""
    own = [run for run in results.runs if row.key in run.rows]
    over, diverged = len(row.errors) + len(row.diverged), len(row.diverged)
    tuning = [run for run in own if run.role == TUNING and run.status in OVER]
    return {
        "label": printable(row.label),
        "finished": count(len(row.errors), row.planned),
        "diverged": diverged,
        "rate": _rate(diverged, over),
        "failed": _counted(own, EVALUATION, "failed"),
        "missing": max(0, row.planned - over - _counted(own, EVALUATION, "failed")),
        "tuning": f"{_counted(own, TUNING, 'diverged')}/{len(tuning)}" if tuning else DASH,
    }


def _rate(diverged: int, over: int) -> str:
    if not diverged:
        return "0" if over else DASH
    rate = proportion_interval(diverged, over)
    return f"{100 * rate.rate:.0f} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def _counted(runs: Sequence[RunEntry], role: str, status: str) -> int:
    return sum(run.role == role and run.status == status for run in runs)


def space(row: RowResult) -> list[tuple[str, str]]:
    """Return what was tried per setting, in the order of the trials."""
    tried: dict[str, dict[str, None]] = {}
    for trial in row.trials:
        for key, v in trial.setting.items():
            tried.setdefault(key, {})[value(v)] = None
    return [(printable(key), ", ".join(values)) for key, values in tried.items()]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
