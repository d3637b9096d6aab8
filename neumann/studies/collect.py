"""What do a study's run folders say? Settings chosen by validation error alone, and test errors of evaluation runs.

Reading changes nothing and trains nothing. A tuning run's test values never leave its folder: `scores` refuses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neumann.config import MakeSpecs, RunSpec, make_specs
from neumann.errors import UserError
from neumann.store import OVER, RunFolder, find
from neumann.store.files import read_json
from neumann.studies.definition import PlannedRun, Study
from neumann.studies.results import Curve, RunEntry, TuningTrial
from neumann.studies.statistics import summarize

TUNING, EVALUATION = "tuning", "evaluation"


@dataclass(frozen=True)
class StudyRun:
    """A planned run, its specification and its folder."""

    planned: PlannedRun
    role: str
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


def runs_of(planned: Sequence[PlannedRun], role: str, make: MakeSpecs = make_specs) -> list[StudyRun]:
    """Return the runs that ``planned`` asks for, with what is there of them. Raises UserError as `make_specs` does."""
    jobs = list(dict.fromkeys(run.overrides for run in planned))  # rows that differ only in the point share their runs
    specs = [_tagged(spec, role) for spec in make([list(job) for job in jobs])]
    by_job = dict(zip(jobs, specs, strict=True))
    return [_run(run, role, by_job[run.overrides]) for run in planned]


def _tagged(spec: RunSpec, role: str) -> RunSpec:
    """Let W&B tell tuning runs from evaluation runs; the logger is not signed, so the run stays the same one."""
    return replace(spec, config=replace(spec.config, logger=replace(spec.config.logger, job_type=role)))


def check_points(study: Study, tuning: Sequence[StudyRun]) -> None:
    """Refuse, before anything trains, a point that a row's optimizer is known not to have. Raises UserError."""
    for key, row in study.config.rows.items():
        config = next(run.spec.config for run in tuning if run.planned.row == key)
        target = str(config.optimizer.get("_target_"))
        if row.point == "average" and config.recipe.weight_average is None and target != "neumann.optim.Neumann":
            raise UserError(
                f"{study.file}: rows.{key}.point=average: its optimizer keeps no average, which "
                "recipe.weight_average=0.99 among the overrides would add"
            )
        nesterov = config.optimizer.get("nesterov") and config.optimizer.get("momentum")
        if row.point == "base" and target.startswith("torch.optim.") and not nesterov:
            raise UserError(f"{study.file}: rows.{key}.point=base: its optimizer has no base point, use point=eval")


def refreshed(run: StudyRun) -> StudyRun:
    """Return ``run`` as its folder tells it now."""
    return run if run.over else _run(run.planned, run.role, run.spec)


def _run(planned: PlannedRun, role: str, spec: RunSpec) -> StudyRun:
    folder = find(spec)
    return StudyRun(planned, role, spec, folder, folder.result())


def scores(run: StudyRun, split: str, point: str) -> Mapping[str, float] | None:
    """Return {"error", "loss", "wrong", "n"} on ``split`` ("validation" or "test") at ``point``, after the last step.

    None where the run diverged. Raises PermissionError for the test values of a tuning run: whatever reads them has
    looked at the test set to choose. Raises UserError where the run did not record that point.
    """
    if split == "test" and run.role == TUNING:
        raise PermissionError(f"the test values of the tuning run {run.folder.path} are not to be read")
    assert run.result is not None
    measured = run.result[split]
    if run.diverged or measured is None:
        return None
    name = point_of(run, point)
    if name not in measured:
        raise UserError(
            f"rows.{run.planned.row}: its runs have the points {', '.join(measured)} and none called '{name}'"
            + (", which recipe.weight_average=0.99 would add" if name == "average" else "")
        )
    found: Mapping[str, float] = measured[name]
    return found


def point_of(run: StudyRun, point: str) -> str:
    """Return the point that ``point`` means for a run that is over: "eval" is its optimizer's own."""
    assert run.result is not None
    return str(run.result["eval_point"]) if point == "eval" else point


def tried(study: Study, row: str, runs: Iterable[StudyRun]) -> tuple[TuningTrial, ...]:
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
        mean = None
        if not missing and values and len(values) == len(errors) and None not in losses:
            mean = summarize(values).mean
            ranks.append((round(mean, 12), summarize(loss for loss in losses if loss is not None).mean, order))
        trials.append(TuningTrial(setting, errors, tuple(missing), mean, chosen=False))
    if complete and ranks:
        best = min(ranks)[-1]
        chosen = trials[best]
        trials[best] = TuningTrial(chosen.setting, chosen.errors, chosen.missing, chosen.mean, chosen=True)
    return tuple(trials)


def edge(trials: Sequence[TuningTrial]) -> str | None:
    """Say where the chosen setting lies on the border of a space of numbers, so that a better one may lie outside."""
    chosen = next((trial.setting for trial in trials if trial.chosen), None)
    if chosen is None:
        return None
    said = []
    for key, value in chosen.items():
        values = sorted({trial.setting[key] for trial in trials}, key=lambda v: (isinstance(v, str), v))
        if len(values) < 2 or any(isinstance(v, str) for v in values):
            continue
        if value in (values[0], values[-1]):
            which = "smallest" if value == values[0] else "largest"
            said.append(f"{key}={value:g} is the {which} of {len(values)} tried")
    return "; ".join(said) or None


def curve_of(runs: Sequence[StudyRun], point: str) -> Curve | None:
    """Return mean and 95 % interval of validation error and training loss by epoch over finished evaluation runs."""
    by_epoch: dict[float, list[tuple[float, float]]] = {}
    for run in runs:
        if run.over and not run.diverged:
            name = point_of(run, point)
            for measured in run.folder.read_measurements():
                pair = (measured["validation"][name]["error"], measured["train_loss"])
                by_epoch.setdefault(round(measured["epoch"], 6), []).append(pair)
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)
    errors = [summarize(error for error, _ in by_epoch[epoch]) for epoch in epochs]
    losses = [summarize(loss for _, loss in by_epoch[epoch]) for epoch in epochs]
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


def entries(runs: Iterable[StudyRun]) -> tuple[RunEntry, ...]:
    """Return one entry per run, those that several rows share named once."""
    by_signature: dict[str, list[StudyRun]] = {}
    for run in runs:
        by_signature.setdefault(run.spec.signature, []).append(run)
    return tuple(_entry(shared) for shared in by_signature.values())


def _entry(shared: Sequence[StudyRun]) -> RunEntry:
    run = shared[0]
    status = run.folder.status()
    if run.result is None and status["status"] in OVER:  # its result was lost since: the result is the truth
        status = {"status": "pending", "message": "its result.json is missing or damaged"}
    provenance = read_json(run.folder.provenance)
    attempts = provenance.get("attempts", []) if isinstance(provenance, dict) else []
    return RunEntry(
        rows=tuple(dict.fromkeys(one.planned.row for one in shared)),
        role=run.role,
        setting=run.planned.setting,
        seed=run.planned.seed,
        status=run.result["status"] if run.result is not None else str(status["status"]),
        message=status.get("message") if run.result is None else None,
        signature=run.spec.signature,
        folder=str(run.folder.path),
        overrides=run.planned.overrides,
        train_seconds=run.result["train_seconds"] if run.result is not None else None,
        validation=run.result["validation"] if run.result is not None else None,
        test=run.result["test"] if run.result is not None and run.role == EVALUATION else None,
        provenance=attempts[-1] if attempts else None,
    )
