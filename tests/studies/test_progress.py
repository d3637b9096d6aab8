"""The live view of a study: lines where there is no terminal, a line per row above the runs that train on one."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from neumann.config import make_specs
from neumann.launch import progress
from neumann.launch.protocol import RunOutcome
from neumann.studies.plan import Study, load_study
from neumann.studies.progress import StudyView
from neumann.studies.so_far import LEGEND
from neumann.studies.study_run import StudyRun, runs_of
from tests.support.study_folders import scores, write_study

pytestmark = pytest.mark.medium


@pytest.fixture
def study() -> Study:
    write_study()
    return load_study("mine")


def outcome_of(run: StudyRun, status: str = "finished") -> RunOutcome:
    both = {"held": scores(0.25), "average": scores(0.125), "base": scores(0.5)}
    result = {"status": status, "validation": both, "test": both, "step": 36, "eval_point": "held"}
    message = None if status == "finished" else "it broke"
    return RunOutcome(run.spec, status, None if status == "failed" else result, message, False, 4.0, run.spec.folder)


def console_of(terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=terminal, color_system=None)


def text_of(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def shown(console: Console) -> list[str]:
    """Return the lines of a table without its frame, blanks collapsed."""
    lines = text_of(console).translate({ord(c): " " for c in "│┃"}).splitlines()
    return [" ".join(line.split()) for line in lines]


def test_without_a_terminal_a_line_counts_the_runs_of_the_phase(study: Study) -> None:
    tuning = runs_of(study, study.tuning(), make_specs)
    console = console_of(terminal=False)
    signatures = {run.spec.signature for run in tuning}
    assert len(signatures) < len(tuning)  # rows that differ in their point share runs
    with StudyView(console, "importing PyTorch", study, tuning) as view:
        view.tick([run.spec for run in tuning[:2]], len(signatures) - 2)
        view.done(outcome_of(tuning[0]))
        view.done(outcome_of(tuning[1], "failed"))
        view.evaluating({}, tuning[:1])
        view.tick([], 1)
    rate = tuning[0].spec.config.optimizer["lr"]
    assert text_of(console).splitlines() == [
        f"{len(signatures)} of {len(signatures)} runs to train; importing PyTorch for them",
        f"tuning 1/{len(signatures)}  {tuning[0].spec.name} lr={rate}  finished  validation error 50.00 %  4.0 s"
        "  about 52 s left",  # 17 more, and 9 of the second phase, of 4 s, two at a time
        f"tuning 2/{len(signatures)}  {tuning[1].spec.name} lr={rate}  failed  it broke  4.0 s  about 50 s left",
    ]


def test_on_a_terminal_every_row_is_a_line_with_its_setting_and_test_error(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "REFRESH_S", 0.0)
    tuning = runs_of(study, study.tuning(), make_specs)
    evaluation = runs_of(study, study.evaluation("averaged", {"optimizer.lr": 0.3}), make_specs)
    console = console_of(terminal=True)
    with StudyView(console, "importing PyTorch", study, tuning) as view:
        for run in tuning:
            if run.planned.row != "neumann":
                view.done(outcome_of(run))
        neumann = next(run.spec for run in tuning if run.planned.row == "neumann")
        view.started(neumann)
        view.tick([neumann], 3)
        first = shown(console)
        chosen: Any = SimpleNamespace(chosen=True, setting={"optimizer.lr": 0.3}, seeds=())
        view.evaluating({"averaged": [chosen]}, evaluation)
        for run in evaluation:
            view.done(outcome_of(run))
        view.tick([], 0)
        second = shown(console)[len(first) :]
    assert "SGD ✓✓✓ 9/9 25.00 % (n = 3)" in first
    assert "SGD, averaged ✓✓✓ 9/9 12.50 % (n = 3)" in first
    assert "Neumann ▸·· 0/9" in first
    assert " ".join(LEGEND.split()) in first
    assert f"{neumann.name} lr={neumann.config.optimizer['lr']} 0/36" in first
    assert "9 finished, 3 waiting" in first[-1]  # both rows that it judges share their runs
    assert "SGD, averaged ✓✓✓ 9/9 lr=0.3 3/3 12.50 % (n = 3)" in second  # at its own point


@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_narrow_terminal_cuts_no_count_setting_or_error(study: Study, width: int) -> None:
    tuning = runs_of(study, study.tuning(), make_specs)
    evaluation = runs_of(study, study.evaluation("averaged", {"optimizer.lr": 0.3}), make_specs)
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    view = StudyView(console, "importing PyTorch", study, tuning)
    chosen: Any = SimpleNamespace(chosen=True, setting={"optimizer.lr": 0.3}, seeds=())
    view.evaluating({"averaged": [chosen]}, evaluation)
    for run in evaluation:
        view._over[run.spec.signature] = outcome_of(run)
    console.print(view.overview())
    lines = text_of(console).splitlines()
    (row,) = (line for line in lines if "12.50 %" in line)
    assert row.startswith("SGD")
    assert row.endswith("12.50 % (n = 3)")
    assert width == 40 or "3/3" in row
    assert width < 60 or "lr=0.3" in row
    assert max(map(len, lines)) <= width
