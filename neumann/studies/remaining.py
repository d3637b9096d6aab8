"""The runs that a study lacks, each with how often it counts, and those that are over here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neumann.config import RunSpec
from neumann.studies.collect import StudyRuns
from neumann.studies.results import chosen


def remaining(runs: StudyRuns) -> list[tuple[RunSpec, float]]:
    """Return the runs without a result, each with how often it counts; those after tuning as the mean of a row's.

    What follows a grid's first phase is the test of runs that are trained, which counts for nothing here.
    """
    trained = {run.spec.signature for run in runs.tuning if run.over}
    missing = [run for run in (*runs.tuning, *runs.evaluation) if not run.over and run.spec.signature not in trained]
    found = list({run.spec.signature: (run.spec, 1.0) for run in missing}.values())
    if runs.study.is_grid:
        return found
    for row, trials in runs.trials.items():
        if chosen(trials) is None:
            tuning = [run.spec for run in runs.tuning if run.planned.row == row]
            found += [(spec, len(runs.study.evaluation_seeds) / len(tuning)) for spec in tuning]
    return found


def over(runs: StudyRuns) -> list[tuple[RunSpec, Mapping[str, Any]]]:
    """Return the runs that have a result in their folder, with it: an archived one's seconds are another machine's."""
    every = (*runs.tuning, *runs.evaluation)
    return [(run.spec, run.result) for run in every if run.result is not None and not run.from_archive]
