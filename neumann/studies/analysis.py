"""Analysis of a study: rows, paired comparisons and provenance, from the runs that are over.

It reads no file: `neumann.studies.collect` has read the run folders, and `neumann.studies.answer` puts the outcome into
sentences.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from neumann.data.settings import KINDS
from neumann.studies.answer import answer, incomplete
from neumann.studies.collect import RowMeasurements, StudyRuns
from neumann.studies.conditions import mixed, provenance, settings, unlike
from neumann.studies.definition import RowConfig
from neumann.studies.numbers import setting_text
from neumann.studies.plan import PlannedRun, Study
from neumann.studies.results import Comparison, Curve, Paper, RowResult, StudyResults, TuningTrial, chosen
from neumann.studies.statistics import Paired, Summary, decide, holm, paired, summarize

ALPHA, POWER = 0.05, 0.8


def analyse(runs: StudyRuns) -> StudyResults:
    """Return the results of a study from what its run folders say."""
    study, config = runs.study, runs.study.config
    comparisons = _compare(runs)
    against = {c.row: c for c in comparisons if c.against == config.comparisons.reference}
    rows = tuple(
        _row(study, key, row, runs.trials[key], runs.measured[key], against.get(key), mixed(runs.entries, key))
        for key, row in config.rows.items()
    )
    primary = next(c for c in comparisons if c.primary)
    left = incomplete(runs.entries, rows)
    said, headline = answer(primary, rows)
    spec = runs.tuning[0].spec
    return StudyResults(
        name=study.name,
        title=config.title,
        question=config.question,
        budget=study.budget,
        answer=said,
        headline=f"{study.name} ({study.budget}): {headline}" + (" (incomplete)" if left else ""),
        incomplete=left,
        data=_data(spec.facts, spec.config.data),
        recipe=study.overrides[: len(study.overrides) - len(study.extra)],  # not those that cannot change a result
        settings=settings(study, runs.tuning),
        tuned=tuple(dict.fromkeys(key for space in study.spaces.values() for setting in space for key in setting)),
        tuning_seeds=study.tuning_seeds,
        evaluation_seeds=study.evaluation_seeds,
        epochs=tuple(sorted({run.spec.config.trainer.max_epochs for run in runs.tuning})),
        test_images=spec.facts.test_count,
        validation_images=spec.facts.validation_count,
        smallest_effect=config.comparisons.smallest_effect / 100,
        reference=config.comparisons.reference,
        rows=rows,
        comparisons=comparisons,
        runs=runs.entries,
        paper=Paper(config.paper.source, config.paper.measure) if config.paper else None,
        limits=tuple(config.limits),
        figures={name: tuple(keys) for name, keys in config.figures.items()},
        provenance=provenance(runs.entries, {key: row.label for key, row in config.rows.items()}),
        commands=_commands(study, (*runs.evaluation, *runs.tuning)[0].planned),
    )


def _row(
    study: Study,
    key: str,
    row: RowConfig,
    trials: tuple[TuningTrial, ...],
    measured: RowMeasurements,
    reference: Comparison | None,
    mixed_by: tuple[str, ...],
) -> RowResult:
    errors, losses = measured.errors, measured.losses
    return RowResult(
        key=key,
        label=row.label,
        point=row.point,
        at=measured.at,
        overrides=tuple(row.overrides),
        trials=trials,
        setting=chosen(trials),
        edge=edge(trials),
        planned=len(study.evaluation_seeds),
        errors=errors,
        losses=losses,
        diverged=measured.diverged,
        error=_possible(errors.values(), 1.0) if errors else None,
        loss=_possible(losses.values(), math.inf) if len(losses) == len(errors) > 0 else None,
        points={name: _possible(found.values(), 1.0) for name, found in measured.errors_at.items()},
        curve=_curve(measured.curve),
        reference=reference,
        paper=study.config.paper.rows.get(key) if study.config.paper else None,
        mixed=mixed_by,
    )


def _possible(values: Iterable[float], most: float) -> Summary:
    """Return the summary of values from 0 to ``most``, its interval without what no mean can be.

    Cutting off impossible values leaves the interval's coverage as it is.
    """
    found = summarize(values)
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(most, found.high))


def edge(trials: Sequence[TuningTrial]) -> str | None:
    """Return where the chosen setting lies on the border of a space of numbers, as a sentence, else None.

    A space of one setting is all border: nothing was tuned.
    """
    setting = chosen(trials)
    if setting is None:
        return None
    if len(trials) == 1:
        return f"{setting_text(setting)} is the only setting tried, so the row is not tuned"
    said = []
    for key, at in setting.items():
        values = sorted({trial.setting[key] for trial in trials}, key=lambda v: (isinstance(v, str), v))
        if len(values) < 2 or any(isinstance(v, str) for v in values):
            continue
        if at in (values[0], values[-1]):
            which = "smallest" if at == values[0] else "largest"
            said.append(f"{key}={at:g} is the {which} of {len(values)} tried")
    return "; ".join(said) or None


def _curve(by_epoch: Mapping[float, Sequence[tuple[float, float]]]) -> Curve | None:
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)
    errors = [_possible((error for error, _ in by_epoch[epoch]), 1.0) for epoch in epochs]
    losses = [_possible((loss for _, loss in by_epoch[epoch]), math.inf) for epoch in epochs]
    return Curve(
        epochs=tuple(epochs),
        n=tuple(s.n for s in errors),
        error=tuple(s.mean for s in errors),
        error_low=tuple(s.low for s in errors),
        error_high=tuple(s.high for s in errors),
        loss=tuple(s.mean for s in losses),
        loss_low=tuple(s.low for s in losses),
        loss_high=tuple(s.high for s in losses),
    )


def _compare(runs: StudyRuns) -> tuple[Comparison, ...]:
    """Return the primary comparison, which stands alone, then the others, whose p are adjusted together by Holm.

    A pair that is listed in both orders is one hypothesis, and one member of the family.
    """
    study, measured, config = runs.study, runs.measured, runs.study.config.comparisons
    pairs = [(config.primary, config.reference)]
    pairs += [(row, config.reference) for row in study.config.rows if row not in (config.primary, config.reference)]
    pairs += [(a, b) for a, b in config.also if (a, b) not in pairs]
    found = [_paired(measured[a], measured[b]) for a, b in pairs]
    # A comparison on one seed has no p and is not a member of the family
    names = ["/".join(sorted(pair)) for pair in pairs]
    members = zip(names, found, strict=True)
    family = {name: one.p for name, one in members if name != names[0] and one is not None and one.p is not None}
    adjusted = holm(family, ALPHA) if family else {}
    comparisons = []
    for i, ((row, against), one) in enumerate(zip(pairs, found, strict=True)):
        p = adjusted[names[i]].adjusted if names[i] in adjusted else None
        verdict = None
        if one is not None:
            verdict = decide(one, config.smallest_effect / 100, ALPHA, adjusted_p=p, power=POWER)
        note = "the rows share no evaluation seed that is over" if one is None else None
        pair = None if one is None else _bounded(one)
        apart = unlike(runs.entries, row, against)
        comparisons.append(Comparison(row, against, i == 0, pair, p, verdict, note, apart))
    return tuple(comparisons)


def _bounded(found: Paired) -> Paired:
    """Return a comparison of errors, its interval without what no difference of two errors can be."""
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))


def _paired(a: RowMeasurements, b: RowMeasurements) -> Paired | None:
    if not {*a.errors, *a.diverged} & {*b.errors, *b.diverged}:
        return None
    return paired(a.errors, b.errors, diverged_a=a.diverged, diverged_b=b.diverged)


def _data(facts: Any, section: Mapping[str, Any]) -> str:
    name = KINDS[facts.kind].title or f"images under {section['root']}"
    copied = facts.copies.get("test_in_train", 0)
    leak = f", {copied:,} of its images are training images too" if copied else ""
    return (
        f"{name}: {facts.train_count:,} training, {facts.validation_count:,} validation and {facts.test_count:,} test "
        f"images, {facts.num_classes} classes; test is {facts.test_is}{leak}"
    )


def _commands(study: Study, example: PlannedRun) -> dict[str, str]:
    folders = "".join(f" --config-dir {shlex.quote(folder)}" for folder in study.config_dirs)
    return {
        "Train what is missing, then render this page": study.command("study"),
        "Render this page again from what is there": study.command("report"),
        "See what would be trained": f"{study.command('study')} --plan",
        "Train one of its runs by hand": f"neumann train{folders} {shlex.join(example.overrides)}",
    }
