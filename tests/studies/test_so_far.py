"""What is told of a study before it is over: a mark for each seed, the outcome by the best run of each, time left."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from neumann.config import make_specs
from neumann.launch.protocol import RunOutcome
from neumann.studies.plan import Study, load_study
from neumann.studies.so_far import MARKS, MOST_MARKS, SoFar, TimeLeft, marks
from neumann.studies.study_run import StudyRun, runs_of
from tests.support.study_folders import STUDY, finish, scores, write_study

pytestmark = pytest.mark.medium
MARK = {meaning: mark for meaning, (mark, _) in MARKS.items()}


def grid(**changes: Any) -> Study:
    content = copy.deepcopy(STUDY) | {"design": "grid", "seeds": {"evaluation": [0, 1, 2]}}
    write_study(content | changes)
    return load_study("mine")


def runs_of_row(study: Study, row: str) -> list[StudyRun]:
    return [run for run in runs_of(study, study.tuning(), make_specs) if run.planned.row == row]


def ended(run: StudyRun, status: str = "finished", error: float = 0.25, **changes: Any) -> RunOutcome:
    both = {"held": scores(error), "average": scores(error), "base": scores(error)}
    result = {"status": status, "validation": both, "test": None, "step": 36, "eval_point": "held"}
    known = None if status == "failed" else result
    return replace(RunOutcome(run.spec, status, known, None, False, 9.0, run.spec.folder), **changes)


def fake(seed: int, signature: str) -> Any:
    return SimpleNamespace(planned=SimpleNamespace(seed=seed), spec=SimpleNamespace(signature=signature))


def test_a_seed_is_what_its_runs_are() -> None:
    runs = [fake(seed, f"{seed}{trial}") for seed in range(6) for trial in "ab"]
    statuses = {"1a": "finished", "2a": "finished", "3a": "finished", "3b": "finished"}
    statuses |= {"4a": "finished", "4b": "diverged", "5a": "failed"}
    outcomes: Any = {signature: SimpleNamespace(status=status) for signature, status in statuses.items()}
    shown = marks(runs, outcomes, ["2b", "5b"]).plain
    assert shown == "".join(MARK[m] for m in ("waiting", "begun", "training", "over", "diverged", "failed"))


def test_too_many_seeds_have_no_marks() -> None:
    runs = [fake(seed, str(seed)) for seed in range(MOST_MARKS + 1)]
    assert marks(runs[1:], {}, []).plain == MARK["waiting"] * MOST_MARKS
    assert marks(runs, {}, []).plain == ""


def test_each_seed_counts_with_its_best_run_until_then() -> None:
    study = grid()
    runs = runs_of_row(study, "sgd")
    of = {(run.planned.seed, run.planned.setting["optimizer.lr"]): run for run in runs}
    outcomes = {
        run.spec.signature: ended(run, error=error)
        for run, error in ((of[0, 0.1], 0.5), (of[0, 0.3], 0.25), (of[1, 1.0], 0.125))
    }
    outcomes[of[2, 0.1].spec.signature] = ended(of[2, 0.1], "diverged")
    so_far = SoFar(study)
    assert so_far.column("validation") == "validation error"
    assert so_far.of(runs, {}, "validation") == ""
    assert so_far.of(runs, outcomes, "validation") == "18.75 % (n = 2)"


def test_a_run_without_its_rows_point_ends_no_launch() -> None:
    study = grid()
    run = runs_of_row(study, "averaged")[0]
    good = ended(run)
    assert good.result is not None
    lacks = {"held": scores(0.25)}
    outcomes = {run.spec.signature: ended(run, result={**good.result, "validation": lacks})}
    assert SoFar(study).of([run], outcomes, "validation") == ""


def test_a_study_of_steps_counts_steps_to_its_target() -> None:
    comparisons = {"primary": "neumann", "reference": "sgd", "outcome": "steps", "margin": 0.1}
    study = grid(comparisons=comparisons, target={"error": 30})
    runs = runs_of_row(study, "sgd")[:3]
    # one reaches 30 % after one epoch, one after two, one never does
    errors = ((0.25, 0.5), (0.25, 0.25), (0.5, 0.5))
    folders = [finish(run.planned, end, first=at, spec=run.spec) for run, (at, end) in zip(runs, errors, strict=True)]
    outcomes = {
        run.spec.signature: ended(run, result=folder.result(), folder=folder.path)
        for run, folder in zip(runs, folders, strict=True)
    }
    so_far = SoFar(study)
    assert so_far.column("validation") == "steps to the target"
    assert so_far.of(runs[:1], outcomes, "validation") == "18 (n = 1)"
    assert so_far.of(runs[1:], outcomes, "validation") == "18 (n = 1)"
    assert so_far.of(runs[2:], outcomes, "validation") == ""
    later = finish(runs[2].planned, 0.25, first=0.5, spec=runs[2].spec)
    outcomes[runs[2].spec.signature] = ended(runs[2], result=later.result(), folder=later.path)
    assert SoFar(study).of(runs, outcomes, "validation") == "24 (n = 3)"


def test_the_time_left_follows_runs_that_are_alike_and_how_far_the_others_are() -> None:
    study = grid()
    sgd, neumann = runs_of_row(study, "sgd"), runs_of_row(study, "neumann")
    left = TimeLeft()
    assert left.seconds([(sgd[0].spec, 1.0)], {}) is None
    left.add(ended(sgd[0], reused=True, seconds=500.0))
    left.add(ended(sgd[0], "failed", seconds=500.0))
    assert left.seconds([(sgd[0].spec, 1.0)], {}) is None  # they say nothing of what a run takes here
    left.add(ended(sgd[0], seconds=9.0))  # 36 steps
    assert left.seconds([(sgd[1].spec, 1.0)], {}) == pytest.approx(9.0)
    assert left.seconds([(sgd[1].spec, 1.0)], {sgd[1].spec.signature: 27}) == pytest.approx(2.25)
    assert left.seconds([(neumann[0].spec, 1.0)], {}) == pytest.approx(9.0)  # as all did: none is alike
    left.add(ended(neumann[1], seconds=36.0))
    assert left.seconds([(neumann[0].spec, 1.0), (sgd[1].spec, 2.0)], {}) == pytest.approx(36.0 + 18.0)
    left.train(2)
    assert left.seconds([(neumann[0].spec, 1.0), (sgd[1].spec, 2.0)], {}) == pytest.approx(27.0)
    assert left.seconds([], {}) == 0
