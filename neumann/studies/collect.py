"""Runs of a study, read from their folders and its archive: results, the setting that each row chose, measurements.

`collect` covers both phases: tuning runs, the choice by validation error alone, evaluation runs.
It trains nothing itself. A run is read by `neumann.studies.study_run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any

from neumann.config import making_specs
from neumann.store import OVER
from neumann.store.archive import is_same
from neumann.store.code_digests import contributing
from neumann.studies.curves import Line, Seen, by_epoch, errors_along, number
from neumann.studies.effects import Way, way
from neumann.studies.grid import Ended, Measured, best, cheapest, mean_over
from neumann.studies.plan import (
    EQUAL,
    EVALUATION,
    TUNING,
    PlannedRun,
    Study,
    check_comparable,
    check_distinct,
    check_points,
)
from neumann.studies.recorded_precision import recorded_precision
from neumann.studies.results import COSTS, RunEntry, TermCurve, TuningTrial, choices, chosen
from neumann.studies.study_run import StudyRun, point_of, read_again, runs_of, scores
from neumann.studies.terms import term_curves


@dataclass(frozen=True)
class RowMeasurements(Measured):
    """Measurements of one row's evaluation runs, the errors at its point.

    ``at`` is the evaluation point that the row's ``point`` means for its optimizer, None before a run is over.
    ``losses`` maps a seed to the test loss (nats) at that point, ``errors_at`` an evaluation point to the test errors
    at every point that was recorded. ``curve`` maps an epoch to what was seen of each finished run,
    ``terms`` has the curves of what the optimizer's terms did, where the finished runs have measured them.
    ``equal`` is what the row's runs at equal settings ended with, None where it is not compared so.
    """

    at: str | None = None
    losses: Mapping[int, float] = field(default_factory=dict)
    errors_at: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    curve: Mapping[float, Sequence[Seen]] = field(default_factory=dict)
    terms: Mapping[str, TermCurve] = field(default_factory=dict)
    equal: Measured | None = None


@dataclass(frozen=True)
class StudyRuns:
    """Everything read from the run folders and the archive of ``study``.

    ``target`` is the validation error that costs are counted to, None without one and before tuning is over.
    ``tuning`` has every run that chooses; ``trials`` and ``measured`` are by row. ``evaluation`` has the runs of the
    rows whose setting is chosen, and in a grid those at equal settings. ``entries`` names a run that several rows or
    both phases share once.
    """

    study: Study
    target: float | None
    tuning: Sequence[StudyRun]
    trials: Mapping[str, tuple[TuningTrial, ...]]
    evaluation: Sequence[StudyRun]
    measured: Mapping[str, RowMeasurements]
    entries: tuple[RunEntry, ...]


Train = Callable[[Study, Sequence[StudyRun], Mapping[str, tuple[TuningTrial, ...]]], None]


def collect(study: Study, train: Train | None = None) -> StudyRuns:
    """Return what the run folders and the archive of ``study`` say, as far as they are there; write nothing.

    ``train`` is called before a phase is read, with the study, the runs of that phase and the trials that are known by
    then (none while tuning), and returns when they are over; without it nothing is trained. A study that leaves its
    precision open is taken at that of its finished runs. Raises UserError where a run cannot be made, or where a row is
    judged at an evaluation point that its runs do not have.
    """
    with making_specs(study.config_dirs) as make:
        tuning = runs_of(study, study.tuning(), make)
        if (precision := recorded_precision(tuning, study.archive)) is not None:
            study = study.at_precision(precision)
            tuning = runs_of(study, study.tuning(), make)
        check_points(study, {run.planned.row: run.spec.config for run in reversed(tuning)})
        specs = {row: [run.spec for run in tuning if _is_trial(study, run, row)] for row in study.config.rows}
        check_distinct(study, specs)
        check_comparable(study, specs)
        if train is not None:
            train(study, tuning, {})
            tuning = read_again(study, tuning)
        trials = {row: _trials(study, row, tuning) for row in study.config.rows}
        evaluation = runs_of(study, _second_phase(study, trials), make)
    if train is not None:
        train(study, evaluation, trials)
        evaluation = read_again(study, evaluation)
    target = target_error(study, tuning, trials)
    return StudyRuns(
        study=study,
        target=target,
        tuning=tuning,
        trials=trials,
        evaluation=evaluation,
        measured={row: _measured(study, row, trials[row], evaluation, target) for row in study.config.rows},
        entries=_entries(study, [*evaluation, *tuning] if study.is_grid else [*tuning, *evaluation]),
    )


def _is_trial(study: Study, run: StudyRun, row: str) -> bool:
    """Return whether ``run`` is one of the runs by which ``row`` chooses, and not one for the target alone."""
    return run.planned.row == row and (not study.is_grid or run.planned.seed in study.evaluation_seeds)


def _second_phase(study: Study, trials: Mapping[str, Sequence[TuningTrial]]) -> list[PlannedRun]:
    """Return the runs that follow from what was chosen: at that setting, and those of a grid at equal settings."""
    planned: list[PlannedRun] = []
    for row, its in trials.items():
        setting = chosen(its)
        if setting is not None:
            planned += study.evaluation(row, setting)
        planned += study.evaluation_at(row, choices(its))
    for row, its in trials.items():
        waiting = {seed for trial in its for seed in trial.missing}
        planned += study.equal(row, [seed for seed in study.evaluation_seeds if seed not in waiting])
    return planned


def _ended(run: StudyRun, point: str) -> Ended:
    found = scores(run, "validation", point)
    return Ended(None, None) if found is None else Ended(found["error"], found["loss"])


def _trials(study: Study, row: str, runs: Iterable[StudyRun]) -> tuple[TuningTrial, ...]:
    """Return the row's trials, one of them chosen where every run that chooses is over; in a grid, one by each seed.

    The lowest mean validation error wins; equal ones, which a few hundred images make likely, are told apart by the
    mean validation loss, and then by their order in the space. A setting that diverged on any seed is never chosen for
    all; a seed of a grid does not choose where it diverged itself. Where `Study.least` names a cost, a seed chooses
    what reached the target at the least of it.
    """
    point = study.config.rows[row].point
    own = [run for run in runs if _is_trial(study, run, row)]
    ended = [
        {run.planned.seed: _ended(run, point) for run in own if run.planned.setting == setting and run.over}
        for setting in study.spaces[row]
    ]
    trials = []
    for setting, known in zip(study.spaces[row], ended, strict=True):
        missing = tuple(run.planned.seed for run in own if run.planned.setting == setting and not run.over)
        errors = {seed: one.error for seed, one in known.items()}
        values = [error for error in errors.values() if error is not None]
        losses = [one.loss for one in known.values()]
        whole = not missing and values and len(values) == len(errors) and None not in losses
        trials.append(TuningTrial(setting, errors, missing, mean(values) if whole else None, chosen=False))
    if study.is_grid:
        picked = {seed: best([known[seed] for known in ended]) for seed in _everywhere(ended)}
        named = study.config.target
        if study.least is not None and named is not None and named.error is not None:
            ways = [
                ways_of((run for run in own if run.planned.setting == setting and run.over), point, named.error / 100)
                for setting in study.spaces[row]
            ]
            picked = {
                seed: cheapest([known[seed] for known in ended], [its.get(seed) for its in ways], study.least)
                for seed in picked
            }
        return tuple(
            replace(trial, seeds=tuple(seed for seed, at in picked.items() if at == order))
            for order, trial in enumerate(trials)
        )
    if all(not trial.missing for trial in trials):
        means = [
            Ended(trial.mean, None if trial.mean is None else mean(one.loss or 0.0 for one in known.values()))
            for trial, known in zip(trials, ended, strict=True)
        ]
        at = best(means)
        if at is not None:
            trials[at] = replace(trials[at], chosen=True)
    return tuple(trials)


def _everywhere(ended: Sequence[Mapping[int, Ended]]) -> list[int]:
    """Return the seeds whose runs are over at every setting."""
    return sorted(set.intersection(*map(set, ended)))


def target_error(study: Study, tuning: Iterable[StudyRun], trials: Mapping[str, Sequence[TuningTrial]]) -> float | None:
    """Return the validation error (fraction) that costs are counted to; None without one, and before it is known.

    That of a row is the median of the errors with which it ends on the tuning seeds, which no comparison uses, at the
    setting that is chosen, in a grid by each of these seeds itself.
    """
    target = study.config.target
    if target is None:
        return None
    if target.of is None:
        return (target.error or 0.0) / 100
    if not study.is_grid:
        ends = [error for trial in trials[target.of] if trial.chosen for error in trial.errors.values()]
        return median(error for error in ends if error is not None) if ends else None
    point = study.config.rows[target.of].point
    own = [run for run in tuning if run.planned.row == target.of and run.planned.seed in study.tuning_seeds]
    if any(not run.over for run in own):
        return None
    by_seed = [[_ended(run, point) for run in own if run.planned.seed == seed] for seed in study.tuning_seeds]
    found = [ended[at].error for ended in by_seed if (at := best(ended)) is not None]
    return median(error for error in found if error is not None) if found else None


def _measured(
    study: Study, row: str, trials: Sequence[TuningTrial], evaluation: Sequence[StudyRun], target: float | None
) -> RowMeasurements:
    point = study.config.rows[row].point
    over = [run for run in evaluation if run.planned.row == row and run.planned.role == EVALUATION and run.over]
    sound = [run for run in over if not run.diverged]
    names = list(sound[0].result["test"]) if sound and sound[0].result else []
    at_chosen = _ends(over, point, target)
    lost = _diverged_everywhere(trials) if study.is_grid else ()
    missed = {} if target is None else {seed: Way(False, dict.fromkeys(COSTS)) for seed in lost}
    return RowMeasurements(
        errors=at_chosen.errors,
        diverged=(*at_chosen.diverged, *lost),
        ways={**at_chosen.ways, **missed},
        at=point_of(over[0], point) if over else None,
        losses=_test(over, point, "loss"),
        errors_at={name: _test(over, name, "error") for name in names},
        curve=by_epoch(_along(run, point) for run in sound),
        terms=term_curves(run.folder.terms(run.result) for run in sound if run.result),
        equal=_at_equal_settings(study, row, evaluation, target),
    )


def _diverged_everywhere(trials: Sequence[TuningTrial]) -> tuple[int, ...]:
    """Return the seeds of a grid that have nothing to choose: they diverged at every setting."""
    return tuple(sorted(set.intersection(*({s for s, e in trial.errors.items() if e is None} for trial in trials))))


def _at_equal_settings(study: Study, row: str, evaluation: Sequence[StudyRun], target: float | None) -> Measured | None:
    settings, point = study.equal_settings(row), study.config.rows[row].point
    if not settings:
        return None
    own = [run for run in evaluation if run.planned.row == row and run.planned.role == EQUAL and run.over]
    return mean_over(
        _ends([run for run in own if run.planned.setting == setting], point, target) for setting in settings
    )


def _ends(over: Sequence[StudyRun], point: str, target: float | None) -> Measured:
    """Return what the runs ended with, at most one a seed, and how they came to ``target``."""
    diverged = tuple(run.planned.seed for run in over if run.diverged)
    return Measured(_test(over, point, "error"), diverged, {} if target is None else ways_of(over, point, target))


def ways_of(over: Iterable[StudyRun], point: str, target: float) -> dict[int, Way]:
    """Return how the runs came to ``target``, by seed, without those that were never evaluated."""
    ways = {}
    for run in over:
        to_target = [(error, _costs(run, line)) for line, error in _along(run, point)]
        found = way(to_target, target, diverged=run.diverged)
        if found is not None:
            ways[run.planned.seed] = found
    return ways


def _along(run: StudyRun, point: str) -> list[Line]:
    """Return every evaluation of a run that is over, with its validation error at what ``point`` means for it."""
    assert run.result is not None
    return errors_along(run.folder, run.result, point_of(run, point))


def _costs(run: StudyRun, line: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what the run had cost by an evaluation; None where the line does not say it, as an earlier version's."""
    assert run.result is not None
    seconds, devices = number(line, "train_seconds"), number(run.result, "world_size")
    costs = {cost: number(line, cost) for cost in COSTS} | {"steps": number(line, "step")}
    costs["device_seconds"] = None if seconds is None or devices is None else seconds * devices
    return {cost: spent if spent is not None and spent > 0 else None for cost, spent in costs.items()}


def _test(over: Iterable[StudyRun], point: str, key: str) -> dict[int, float]:
    found = {run.planned.seed: scores(run, "test", point) for run in over}
    return {seed: values[key] for seed, values in found.items() if values is not None and values[key] is not None}


def _entries(study: Study, runs: Iterable[StudyRun]) -> tuple[RunEntry, ...]:
    by_signature: dict[str, list[StudyRun]] = {}
    for run in runs:
        by_signature.setdefault(run.spec.signature, []).append(run)
    return tuple(_entry(study, shared) for shared in by_signature.values())


def _entry(study: Study, shared: Sequence[StudyRun]) -> RunEntry:
    run, result = shared[0], shared[0].result
    role = EVALUATION if any(one.planned.role != TUNING for one in shared) else TUNING
    archived = study.archive.runs.get(run.spec.signature)
    status = run.folder.status() if result is None else {"status": result["status"]}
    if result is None and status["status"] in OVER:  # it ended after its result was looked for
        status = {"status": "pending"}
    return RunEntry(
        rows=tuple(dict.fromkeys(one.planned.row for one in shared)),
        role=role,
        setting=run.planned.setting,
        seed=run.planned.seed,
        status=str(status["status"]),
        message=status.get("message"),
        signature=run.spec.signature,
        folder=str(run.folder.path),
        overrides=study.shown(run.planned),
        train_seconds=None if result is None else result["train_seconds"],
        validation=None if result is None else result["validation"],
        test=result["test"] if result is not None and role == EVALUATION else None,
        attempts=tuple(contributing(run.folder.attempts())),
        archived=result is not None and archived is not None and is_same(archived.result, result),
    )
