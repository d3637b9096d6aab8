"""Planned runs of a study with what is there of each: its folder or the archive, and its result.

A tuning run's test values are never read: `scores` refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neumann.config import MakeSpecs, RunSpec
from neumann.errors import UserError
from neumann.store import RunFolder
from neumann.store.archive import ArchivedRun
from neumann.store.lookup import Places, find_with_archive
from neumann.studies.plan import TUNING, PlannedRun, Study

NEEDED = {"signature", "validation", "test", "eval_point", "train_seconds"}  # of a result


@dataclass(frozen=True)
class StudyRun:
    """A planned run with its specification, its folder, and the result in it, None before the run is over.

    ``folder`` is an `ArchivedRun` where the study's archive alone has the run. Rows that ask for the same run have a
    `StudyRun` each, with the same specification.
    """

    planned: PlannedRun
    spec: RunSpec
    folder: RunFolder | ArchivedRun
    result: Mapping[str, Any] | None

    @property
    def over(self) -> bool:
        """Return whether the run has a result, finished or diverged."""
        return self.result is not None

    @property
    def diverged(self) -> bool:
        """Return whether the run's loss was no longer finite."""
        return self.result is not None and self.result["status"] == "diverged"

    @property
    def from_archive(self) -> bool:
        """Return whether it was read from the study's archive, since its folder holds no result."""
        return isinstance(self.folder, ArchivedRun)


def runs_of(study: Study, planned: Sequence[PlannedRun], make: MakeSpecs) -> list[StudyRun]:
    """Return the runs that ``planned`` asks for, with what is there of them. Raises UserError as ``make`` does."""
    jobs = list(
        dict.fromkeys(run.overrides for run in planned)
    )  # rows that differ only in the evaluation point share their runs
    specs = dict(zip(jobs, make([list(job) for job in jobs]), strict=True))
    tagged: dict[tuple[tuple[str, ...], str], RunSpec] = {}
    places = Places()
    for run in planned:
        if (run.overrides, run.role) not in tagged:
            tagged[run.overrides, run.role] = _tagged(specs[run.overrides], run.role)
    return [_read(study, run, tagged[run.overrides, run.role], places) for run in planned]


def _tagged(spec: RunSpec, role: str) -> RunSpec:
    """Return ``spec`` with its role as W&B's job type; the logger is not signed, so the run stays the same one."""
    return spec.with_logger(replace(spec.config.logger, job_type=role))


def _read(study: Study, planned: PlannedRun, spec: RunSpec, places: Places) -> StudyRun:
    folder, result = find_with_archive(spec, study.archive, places)
    if result is not None and (lacking := NEEDED - result.keys()):
        raise UserError(
            f"{folder.path}/result.json lacks {', '.join(sorted(lacking))}: move it away to train the run again"
        )
    return StudyRun(planned, spec, folder, result)


def read_again(study: Study, runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Return ``runs`` with what has come of those that were not over."""
    places = Places()
    return [run if run.over else _read(study, run.planned, run.spec, places) for run in runs]


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
    name = point_of(run, point)
    if name not in measured:
        raise UserError(
            f"rows.{run.planned.row}: its runs have the evaluation points {', '.join(measured)} and none called "
            f"'{name}'" + (", which recipe.weight_average=0.99 would add" if name == "average" else "")
        )
    found: Mapping[str, float] = measured[name]
    return found


def point_of(run: StudyRun, point: str) -> str:
    """Return the evaluation point that ``point`` means for a run that is over: "eval" is its optimizer's own."""
    assert run.result is not None
    return str(run.result["eval_point"]) if point == "eval" else point
