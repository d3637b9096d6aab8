"""Runs of a study, read from their folders: their results, the setting that each row chose, what each row measured.

`collect` covers both phases: tuning runs, the choice by validation error alone, evaluation runs.
It trains nothing itself. A tuning run's test values never leave its folder: `scores` refuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

from neumann.config import MakeSpecs, RunSpec, making_specs
from neumann.errors import UserError
from neumann.store import OVER, RunFolder, find
from neumann.store.code_digests import contributing
from neumann.store.lookup import result_in
from neumann.store.scores import is_number
from neumann.studies.effects import Way, way
from neumann.studies.plan import EVALUATION, TUNING, PlannedRun, Study, check_comparable, check_distinct, check_points
from neumann.studies.results import COSTS, RunEntry, TuningTrial, chosen


@dataclass(frozen=True)
class StudyRun:
    """A planned run with its specification, its folder, and the result in it, None before the run is over.

    Rows that ask for the same run have a `StudyRun` each, with the same specification.
    """

    planned: PlannedRun
    spec: RunSpec
    folder: RunFolder
    result: Mapping[str, Any] | None

    @property
    def over(self) -> bool:
        """Return whether the run has a result, finished or diverged."""
        return self.result is not None

    @property
    def diverged(self) -> bool:
        """Return whether the run's loss was no longer finite."""
        return self.result is not None and self.result["status"] == "diverged"


@dataclass(frozen=True)
class RowMeasurements:
    """Measurements of one row's evaluation runs.

    ``at`` is the evaluation point that the row's ``point`` means for its optimizer, None before a run is over.
    ``errors`` and ``losses`` map a seed to the test error (fraction) and loss (nats) at that point, ``errors_at`` an
    evaluation point to the same for every point that was recorded; ``diverged`` are the seeds that have neither.
    ``curve`` maps an epoch to (validation error, training loss) of each finished run. ``ways`` maps a seed to how its
    run came to the study's target, empty where there is none or it is not known yet.
    """

    at: str | None
    errors: Mapping[int, float]
    losses: Mapping[int, float]
    errors_at: Mapping[str, Mapping[int, float]]
    diverged: tuple[int, ...]
    curve: Mapping[float, Sequence[tuple[float, float]]]
    ways: Mapping[int, Way]


@dataclass(frozen=True)
class StudyRuns:
    """Everything read from the run folders of ``study``.

    ``target`` is the validation error that costs are counted to, None without one and before tuning is over.
    ``tuning`` has every tuning run; ``trials`` and ``measured`` are by row. ``evaluation`` has the runs of the rows
    whose setting is chosen. ``entries`` names a run that several rows share once.
    """

    study: Study
    target: float | None
    tuning: Sequence[StudyRun]
    trials: Mapping[str, tuple[TuningTrial, ...]]
    evaluation: Sequence[StudyRun]
    measured: Mapping[str, RowMeasurements]
    entries: tuple[RunEntry, ...]


NEEDED = {"signature", "validation", "test", "eval_point", "train_seconds"}  # of a result
Train = Callable[[Sequence[StudyRun], Mapping[str, tuple[TuningTrial, ...]]], None]


def collect(study: Study, train: Train | None = None) -> StudyRuns:
    """Return what the run folders of ``study`` say, as far as they are there; write nothing.

    ``train`` is called before a phase is read, with the runs of that phase and the trials that are known by then (none
    while tuning), and returns when they are over; without it nothing is trained. Raises UserError where a run cannot be
    made, or where a row is judged at an evaluation point that its runs do not have.
    """
    with making_specs(study.config_dirs) as make:
        tuning = runs_of(study.tuning(), make)
        check_points(study, {run.planned.row: run.spec.config for run in reversed(tuning)})
        specs = {row: [run.spec for run in tuning if run.planned.row == row] for row in study.config.rows}
        check_distinct(study, specs)
        check_comparable(study, specs)
        if train is not None:
            train(tuning, {})
            tuning = _read_again(tuning)
        trials = {row: _trials(study, row, tuning) for row in study.config.rows}
        settings = {row: chosen(its) for row, its in trials.items()}
        planned = [run for row, its in settings.items() if its is not None for run in study.evaluation(row, its)]
        evaluation = runs_of(planned, make)
    if train is not None:
        train(evaluation, trials)
        evaluation = _read_again(evaluation)
    target = target_error(study, trials)
    return StudyRuns(
        study=study,
        target=target,
        tuning=tuning,
        trials=trials,
        evaluation=evaluation,
        measured={row: _measured(study, row, evaluation, target) for row in study.config.rows},
        entries=(*_entries(tuning), *_entries(evaluation)),
    )


def runs_of(planned: Sequence[PlannedRun], make: MakeSpecs) -> list[StudyRun]:
    """Return the runs that ``planned`` asks for, with what is there of them. Raises UserError as ``make`` does."""
    jobs = list(
        dict.fromkeys(run.overrides for run in planned)
    )  # rows that differ only in the evaluation point share their runs
    specs = dict(zip(jobs, make([list(job) for job in jobs]), strict=True))
    return [_read(run, _tagged(specs[run.overrides], run.role)) for run in planned]


def _tagged(spec: RunSpec, role: str) -> RunSpec:
    """Return ``spec`` with its role as W&B's job type; the logger is not signed, so the run stays the same one."""
    return replace(spec, config=replace(spec.config, logger=replace(spec.config.logger, job_type=role)))


def _read(planned: PlannedRun, spec: RunSpec) -> StudyRun:
    folder = find(spec)
    result = result_in(folder, spec)
    if result is not None and (lacking := NEEDED - result.keys()):
        raise UserError(
            f"{folder.path}/result.json lacks {', '.join(sorted(lacking))}: move it away to train the run again"
        )
    return StudyRun(planned, spec, folder, result)


def _read_again(runs: Sequence[StudyRun]) -> list[StudyRun]:
    return [run if run.over else _read(run.planned, run.spec) for run in runs]


def scores(run: StudyRun, split: str, point: str) -> Mapping[str, float] | None:
    """Return {"error", "loss", "wrong", "n"} on ``split`` after the last step, or None where the run diverged.

    ``split`` is "validation" or "test", ``point`` an evaluation point or "eval", the optimizer's own. Raises
    PermissionError for the test values of a tuning run: to read them would be to choose by the test set. Raises
    UserError where the run did not record that point.
    """
    if split == "test" and run.planned.role == TUNING:
        raise PermissionError(f"the test values of the tuning run {run.folder.path} are not to be read")
    assert run.result is not None
    measured = run.result[split]
    if run.diverged or measured is None:
        return None
    name = _point(run, point)
    if name not in measured:
        raise UserError(
            f"rows.{run.planned.row}: its runs have the evaluation points {', '.join(measured)} and none called "
            f"'{name}'" + (", which recipe.weight_average=0.99 would add" if name == "average" else "")
        )
    found: Mapping[str, float] = measured[name]
    return found


def _point(run: StudyRun, point: str) -> str:
    assert run.result is not None
    return str(run.result["eval_point"]) if point == "eval" else point


def _trials(study: Study, row: str, runs: Iterable[StudyRun]) -> tuple[TuningTrial, ...]:
    """Return the row's trials, one of them chosen where every tuning run is over.

    The lowest mean validation error wins; equal ones, which a few hundred images make likely, are told apart by the
    mean validation loss, and then by their order in the space. A setting that diverged on any seed is never chosen.
    """
    point = study.config.rows[row].point
    own = [run for run in runs if run.planned.row == row]
    trials, ranks, complete = [], [], True
    for order, setting in enumerate(study.spaces[row]):
        errors: dict[int, float | None] = {}
        losses = []
        missing = []
        for run in (run for run in own if run.planned.setting == setting):
            if not run.over:
                missing.append(run.planned.seed)
                continue
            found = scores(run, "validation", point)
            errors[run.planned.seed] = None if found is None else found["error"]
            losses.append(None if found is None else found["loss"])
        complete = complete and not missing
        values = [error for error in errors.values() if error is not None]
        average = None
        if not missing and values and len(values) == len(errors) and None not in losses:
            average = mean(values)
            ranks.append((round(average, 12), mean(loss for loss in losses if loss is not None), order))
        trials.append(TuningTrial(setting, errors, tuple(missing), average, chosen=False))
    if complete and ranks:
        best = min(ranks)[-1]
        trials[best] = replace(trials[best], chosen=True)
    return tuple(trials)


def target_error(study: Study, trials: Mapping[str, Sequence[TuningTrial]]) -> float | None:
    """Return the validation error (fraction) that costs are counted to; None without one, and before it is known.

    That of a row is the median of the errors with which its chosen setting ends on the tuning seeds, which no
    comparison uses.
    """
    target = study.config.target
    if target is None:
        return None
    if target.error is not None:
        return target.error / 100
    ends = [error for trial in trials[str(target.of)] if trial.chosen for error in trial.errors.values()]
    return median(error for error in ends if error is not None) if ends else None


def _measured(study: Study, row: str, evaluation: Iterable[StudyRun], target: float | None) -> RowMeasurements:
    point = study.config.rows[row].point
    over = [run for run in evaluation if run.planned.row == row and run.over]
    sound = [run for run in over if not run.diverged]
    names = list(sound[0].result["test"]) if sound and sound[0].result else []
    curves = {run.planned.seed: _curve(run, _point(run, point)) for run in over}
    by_epoch: dict[float, list[tuple[float, float]]] = {}
    for run in sound:
        for line, error in curves[run.planned.seed]:
            epoch, loss = line.get("epoch"), line.get("train_loss")
            if is_number(epoch) and is_number(loss):
                by_epoch.setdefault(round(epoch, 6), []).append((error, loss))
    ways = {}
    for run in over if target is not None else ():
        to_target = [(error, _costs(run, line)) for line, error in curves[run.planned.seed]]
        found = way(to_target, target or 0.0, diverged=run.diverged)
        if found is not None:
            ways[run.planned.seed] = found
    return RowMeasurements(
        at=_point(over[0], point) if over else None,
        errors=_test(over, point, "error"),
        losses=_test(over, point, "loss"),
        errors_at={name: _test(over, name, "error") for name in names},
        diverged=tuple(run.planned.seed for run in over if run.diverged),
        curve=by_epoch,
        ways=ways,
    )


def _curve(run: StudyRun, point: str) -> list[tuple[Mapping[str, Any], float]]:
    """Return every evaluation of a run that is over, with its validation error at ``point``."""
    assert run.result is not None
    found = []
    for line in run.folder.curve(run.result):
        try:
            error = line["validation"][point]["error"]
        except (KeyError, TypeError):
            continue  # edited
        if is_number(error):
            found.append((line, error))
    return found


def _costs(run: StudyRun, line: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what the run had cost by an evaluation; None where the line does not say it, as an earlier version's."""
    assert run.result is not None
    seconds, devices = line.get("train_seconds"), run.result.get("world_size")
    costs: dict[str, Any] = {"steps": line["step"], **{key: line.get(key) for key in COSTS if key in line}}
    if is_number(seconds) and is_number(devices):
        costs["device_seconds"] = seconds * devices
    return {key: costs.get(key) if is_number(costs.get(key)) and costs[key] > 0 else None for key in COSTS}


def _test(over: Iterable[StudyRun], point: str, key: str) -> dict[int, float]:
    found = {run.planned.seed: scores(run, "test", point) for run in over}
    return {seed: values[key] for seed, values in found.items() if values is not None and values[key] is not None}


def _entries(runs: Iterable[StudyRun]) -> tuple[RunEntry, ...]:
    by_signature: dict[str, list[StudyRun]] = {}
    for run in runs:
        by_signature.setdefault(run.spec.signature, []).append(run)
    return tuple(_entry(shared) for shared in by_signature.values())


def _entry(shared: Sequence[StudyRun]) -> RunEntry:
    run, result = shared[0], shared[0].result
    status = run.folder.status()
    if result is None and status["status"] in OVER:  # it ended after its result was looked for
        status = {"status": "pending"}
    return RunEntry(
        rows=tuple(dict.fromkeys(one.planned.row for one in shared)),
        role=run.planned.role,
        setting=run.planned.setting,
        seed=run.planned.seed,
        status=str(status["status"]) if result is None else result["status"],
        message=status.get("message") if result is None else None,
        signature=run.spec.signature,
        folder=str(run.folder.path),
        overrides=run.planned.overrides,
        train_seconds=None if result is None else result["train_seconds"],
        validation=None if result is None else result["validation"],
        test=result["test"] if result is not None and run.planned.role == EVALUATION else None,
        attempts=tuple(contributing(run.folder.attempts())),
    )
