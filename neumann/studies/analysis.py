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

from neumann.config import RunConfig
from neumann.data.settings import KINDS
from neumann.studies import archived
from neumann.studies.answer import answer, incomplete
from neumann.studies.collect import RowMeasurements, StudyRuns
from neumann.studies.compared import compare, costs_of
from neumann.studies.conditions import mixed, provenance, settings, unlike
from neumann.studies.curves import mean_curve, possible
from neumann.studies.effects import median
from neumann.studies.grid import Measured
from neumann.studies.numbers import setting_text
from neumann.studies.plan import EVALUATION, PlannedRun, Study
from neumann.studies.results import (
    Comparison,
    Paper,
    RowResult,
    Setting,
    StudyResults,
    Target,
    TuningTrial,
    choices,
    chosen,
)
from neumann.studies.scaling import AtBatch, ScalingCurve, curve
from neumann.studies.schema import RowConfig
from neumann.studies.statistics import Paired, holm
from neumann.studies.study_run import StudyRun
from neumann.studies.verdicts import decide

ALPHA, POWER = 0.05, 0.8


def analyse(runs: StudyRuns) -> StudyResults:
    """Return the results of a study from what its run folders say."""
    study, config = runs.study, runs.study.config
    comparisons = _compare(runs)
    against = {c.row: c for c in comparisons if c.against == study.reference_of(c.row)}
    rows = tuple(
        _row(study, key, row, runs.trials[key], runs.measured[key], against.get(key), mixed(runs.entries, key))
        for key, row in config.rows.items()
    )
    primary = next(c for c in comparisons if c.primary)
    left = incomplete(runs.entries, rows)
    said, headline = answer(primary, rows, config.comparisons.outcome, grid=study.is_grid)
    return StudyResults(
        name=study.name,
        title=config.title,
        question=config.question,
        budget=study.budget,
        answer=said,
        headline=f"{study.name} ({study.budget}): {headline}" + (" (incomplete)" if left else ""),
        incomplete=left,
        data=_data(study, runs.tuning),
        recipe=study.overrides[: len(study.overrides) - len(study.extra)],  # not those that cannot change a result
        settings=settings(study, runs.tuning),
        tuned=tuple(dict.fromkeys(key for space in study.spaces.values() for setting in space for key in setting)),
        tuning_seeds=study.tuning_seeds,
        evaluation_seeds=study.evaluation_seeds,
        epochs=tuple(sorted({run.spec.config.trainer.max_epochs for run in runs.tuning})),
        test_images=tuple(dict.fromkeys(run.spec.facts.test_count for run in runs.tuning)),
        validation_images=tuple(dict.fromkeys(run.spec.facts.validation_count for run in runs.tuning)),
        outcome=config.comparisons.outcome,
        margin=config.comparisons.named_margin(),
        target=_target(runs),
        pilot=study.pilot,
        grid=study.is_grid,
        reference=config.comparisons.reference,
        rows=rows,
        comparisons=comparisons,
        runs=runs.entries,
        paper=Paper(config.paper.source, config.paper.measure) if config.paper else None,
        checks=dict(config.checks),
        limits=tuple(config.limits),
        figures={name: tuple(keys) for name, keys in config.figures.items()},
        provenance=provenance(runs.entries, {key: row.label for key, row in config.rows.items()}),
        commands=_commands(study, (*runs.evaluation, *runs.tuning)[0].planned),
        archive=archived.use(runs),
        exploratory=study.exploratory,
        seeds_planned=config.comparisons.sd is not None,
        least=study.least,
        cells=study.cells,
        scaling=_scaling(runs, rows),
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
        choices=choices(trials),
        edge=edge(trials),
        planned=len(study.evaluation_seeds),
        errors=errors,
        losses=losses,
        diverged=measured.diverged,
        error=possible(errors.values(), 1.0) if errors else None,
        loss=possible(losses.values(), math.inf) if len(losses) == len(errors) > 0 else None,
        points={name: possible(found.values(), 1.0) for name, found in measured.errors_at.items()},
        curve=mean_curve(measured.curve),
        reference=reference,
        paper=study.config.paper.rows.get(key) if study.config.paper else None,
        mixed=mixed_by,
        terms=measured.terms,
        to_target={cost: median(measured.ways.values(), cost) for cost in costs_of([measured])},
    )


def _scaling(runs: StudyRuns, rows: Iterable[RowResult]) -> tuple[ScalingCurve, ...]:
    """Return the curve of every row of a batch-size study that has runs which are over at the smallest batch.

    What a row needs is told against that batch, so one without them has no curve yet.
    """
    study = runs.study
    if not study.is_of_batches:
        return ()
    found: dict[str, dict[int, AtBatch]] = {}
    for row in rows:
        own = [run for run in runs.evaluation if run.planned.row == row.key and run.planned.role == EVALUATION]
        rates = {run.planned.seed: rate for run in own if (rate := _rate(run.spec.config)) is not None}
        cell, ways = study.cells[row.key], runs.measured[row.key].ways
        if ways:
            found.setdefault(cell.row, {})[cell.batch] = AtBatch(ways, rates, row.edge)
    labels = {cell.row: cell.label for cell in study.cells.values()}
    other = study.cells[study.config.comparisons.reference].row
    smallest = min(cell.batch for cell in study.cells.values())
    return tuple(
        curve(row, labels[row], its, found.get(other) if row != other else None)
        for row, its in found.items()
        if smallest in its
    )


def _rate(config: RunConfig) -> float | None:
    """Return the learning rate of a run after any scaling by its batch, None where its optimizer has none."""
    rate = config.optimizer.get("lr")
    return rate * config.derived.rate_factor if isinstance(rate, int | float) else None


def _target(runs: StudyRuns) -> Target | None:
    named = runs.study.config.target
    if named is None:
        return None
    source = "named by the study"
    if named.of is not None:
        seeds = runs.study.tuning_seeds
        label = runs.study.config.rows[named.of].label
        source = f"the median validation error with which {label} ends on {_seeds(len(seeds))} that no comparison uses"
    grids = sorted({run.spec.config.derived.eval_every_steps for run in runs.tuning})
    every = " or ".join(f"{steps:,}" for steps in grids) + f" step{'s' if grids != [1] else ''}"
    return Target(runs.target, source, every)


def _seeds(count: int) -> str:
    return f"{count} tuning seed{'s' if count != 1 else ''}"


def edge(trials: Sequence[TuningTrial]) -> str | None:
    """Return where the chosen setting lies on the border of a space of numbers, as a sentence, else None.

    A space of one setting is all border: nothing was tuned. In a grid, how many seeds chose a setting there.
    """
    setting, by_seed = chosen(trials), choices(trials)
    if setting is None and not by_seed:
        return None
    if len(trials) == 1:
        if not trials[0].setting:
            return "the row has no search space, so it is not tuned"
        return f"{setting_text(trials[0].setting)} is the only setting tried, so the row is not tuned"
    if setting is None:
        on = sum(bool(_borders(trials, picked)) for picked in by_seed.values())
        return f"{on} of {len(by_seed)} seeds chose a setting on the edge of those tried" if on else None
    return "; ".join(_borders(trials, setting)) or None


def _borders(trials: Sequence[TuningTrial], setting: Setting) -> list[str]:
    """Return a phrase for each number of ``setting`` that is the smallest or largest tried."""
    said = []
    for key, at in setting.items():
        values = sorted({trial.setting[key] for trial in trials}, key=lambda v: (isinstance(v, str), v))
        if len(values) < 2 or any(isinstance(v, str) for v in values):
            continue
        if at in (values[0], values[-1]):
            which = "smallest" if at == values[0] else "largest"
            said.append(f"{key}={at:g} is the {which} of {len(values)} tried")
    return said


def _compare(runs: StudyRuns) -> tuple[Comparison, ...]:
    """Return the primary comparison, which stands alone, then the others, whose p are adjusted together by Holm.

    A pair that is listed in both orders is one hypothesis, and one member of the family; so are pairs of rows that are
    the same runs at the same point, which two names of a point may hide until the runs say what they mean.
    """
    study, measured, config = runs.study, runs.measured, runs.study.config.comparisons
    pairs = [(config.primary, config.reference)]
    pairs += [
        (row, study.reference_of(row))
        for row in study.config.rows
        if row not in (config.primary, study.reference_of(row))
    ]
    pairs += [(a, b) for a, b in config.also if (a, b) not in pairs]
    margin = config.named_margin()
    at_equal = [{a, b} in [set(pair) for pair in config.equal_settings] for a, b in pairs]
    sides = [
        (measured[a].equal or Measured({}, ()), measured[b].equal or Measured({}, ()))
        if equal
        else (measured[a], measured[b])
        for (a, b), equal in zip(pairs, at_equal, strict=True)
    ]
    found = [compare(*two, config.outcome, margin, ALPHA) for two in sides]
    # A comparison on one seed has no p and is not a member of the family
    one_of = _distinct(runs)
    names = ["/".join(sorted({one_of[a], one_of[b]})) for a, b in pairs]
    judged = [one.judged for one in found]
    members = [(name, one.p) for name, one in zip(names, judged, strict=True) if one is not None and "/" in name]
    family = {name: p for name, p in members if name != names[0] and p is not None}
    adjusted = holm(family, ALPHA) if family else {}
    comparisons = []
    for i, ((row, against), one, effect) in enumerate(zip(pairs, found, judged, strict=True)):
        p = adjusted[names[i]].adjusted if names[i] in adjusted else None
        verdict = None
        if effect is not None:
            against_margin = names[i] == names[0]  # intervals of a family are not adjusted: p alone is
            verdict = decide(
                effect, margin, ALPHA, power=POWER, adjusted_p=p, against_margin=against_margin, pilot=study.pilot
            )
        note = "the rows share no evaluation seed that is over" if one.paired is None else None
        pair = None if one.paired is None else _bounded(one.paired)
        apart = unlike(runs.entries, row, against)
        settings = study.equal_settings(row) if at_equal[i] else ()
        comparisons.append(
            Comparison(row, against, i == 0, pair, effect, one.effects, p, verdict, note, apart, settings)
        )  # fmt: skip
    return tuple(comparisons)


def _distinct(runs: StudyRuns) -> dict[str, str]:
    """Return, for each row, the first row that has the same runs at the same evaluation point."""
    first: dict[tuple[frozenset[str], str | None], str] = {}
    found = {}
    for row in runs.study.config.rows:
        signatures = frozenset(run.spec.signature for run in runs.evaluation if run.planned.row == row)
        same = (signatures, runs.measured[row].at) if signatures else (frozenset([row]), None)
        found[row] = first.setdefault(same, row)
    return found


def _bounded(found: Paired) -> Paired:
    """Return a comparison of errors, its interval without what no difference of two errors can be."""
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))


def _data(study: Study, runs: Iterable[StudyRun]) -> str:
    """Return the data set in a sentence; several, where they are a factor, each with its levels."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        cell = study.cells.get(run.planned.row)
        found.setdefault(_data_of(run.spec.facts, run.spec.config.data), {})[cell.at if cell else ""] = None
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{', '.join(levels)}: {said}" for said, levels in found.items())


def _data_of(facts: Any, section: Mapping[str, Any]) -> str:
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
        "Train one of its runs by hand": f"neumann train{folders} {shlex.join(study.shown(example))}",
    }
