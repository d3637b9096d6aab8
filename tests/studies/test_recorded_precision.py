"""A study and a run that leave their precision open, on a machine of another kind than the one that trained them."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from neumann.config import make_spec, precision
from neumann.errors import UserError
from neumann.store import find
from neumann.store.other_precision import said_of_others
from neumann.studies.collect import collect
from neumann.studies.plan import PlannedRun, Study, load_study
from neumann.studies.run import report, study
from tests.support.study_folders import STUDY, finish, write_study

pytestmark = pytest.mark.medium


def loaded(*overrides: str) -> Study:
    content = copy.deepcopy(STUDY)
    content["overrides"] += overrides
    content["space"] = {"optimizer.lr": [0.1, 0.3]}
    content["seeds"] = {"tuning": [100, 101, 102], "evaluation": [0, 1]}
    write_study(content)
    return load_study("mine")


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(precision, "torch_has_gpu", lambda: there)


def train(planned: list[PlannedRun]) -> None:
    for one in planned:
        finish(one, 0.02, spec=make_spec(one.overrides))


def whole(study: Study) -> list[PlannedRun]:
    rows = [row for row in study.config.rows if row != "averaged"]  # it shares the runs of sgd
    return [*study.tuning(), *(run for row in rows for run in study.evaluation(row, {"optimizer.lr": 0.1}))]


def test_a_report_stands_on_the_runs_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = loaded()
    on_a_gpu(monkeypatch, True)
    train(whole(one))
    assert collect(one).study.taken_over is None
    on_a_gpu(monkeypatch, False)
    found = collect(one)
    assert {run.spec.config.trainer.precision for run in (*found.tuning, *found.evaluation)} == {"bf16-mixed"}
    assert all(run.over for run in (*found.tuning, *found.evaluation))
    assert all(
        "trainer.precision=bf16-mixed" in run.overrides for run in found.entries
    )  # the commands that repeat them
    capsys.readouterr()
    for _ in range(2):  # the second is answered from the stamp
        assert report("mine", console=Console(file=io.StringIO())) == 0
        told = capsys.readouterr().err
        assert told.startswith("note: trainer.precision=bf16-mixed, at which the runs that are there were trained: ")
    said = io.StringIO()
    assert study("mine", plan=True, console=Console(file=said)) == 0
    assert "to train: 0 runs" in said.getvalue()


def test_what_is_missing_is_trained_at_the_precision_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    one = loaded()
    on_a_gpu(monkeypatch, True)
    train(one.tuning()[:1])
    on_a_gpu(monkeypatch, False)
    asked = []

    def stopped(study: Study, runs: object, trials: object) -> None:
        asked.extend(run.overrides for run in study.tuning())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(one, stopped)
    assert all("trainer.precision=bf16-mixed" in words for words in asked)


def test_a_precision_that_is_named_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, True)
    train(whole(loaded()))
    on_a_gpu(monkeypatch, False)
    found = collect(loaded("trainer.precision=32-true"))
    assert found.study.taken_over is None
    assert not any(run.over for run in found.tuning)


def test_runs_of_two_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one = loaded()
    for gpu, these in ((True, one.tuning()[:2]), (False, one.tuning()[1:2])):
        on_a_gpu(monkeypatch, gpu)
        train(these)
    with pytest.raises(
        UserError, match="open, and of its runs 1 at 32-true and 2 at bf16-mixed are finished: name one"
    ):
        collect(one)
    on_a_gpu(monkeypatch, True)
    with pytest.raises(UserError, match="2 at bf16-mixed and 1 at 32-true"):
        collect(one)


def test_a_run_that_another_device_has_finished_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, True)
    (planned, other) = loaded().tuning()[:2]
    train([planned])
    on_a_gpu(monkeypatch, False)
    spec = make_spec(planned.overrides)
    there = find(make_spec([*planned.overrides, "trainer.precision=bf16-mixed"])).path
    told = said_of_others([spec])
    assert told is not None
    assert told.endswith(f"over at bf16-mixed in {there}: trainer.precision=bf16-mixed takes that result")
    assert "1 runs" not in (said_of_others([spec, make_spec(other.overrides)]) or "1 runs")
    assert said_of_others([make_spec(other.overrides)]) is None
    assert said_of_others([make_spec([*planned.overrides, "trainer.precision=32-true"])]) is None
    finish(planned, 0.02, spec=spec)
    assert said_of_others([spec]) is None


@pytest.mark.slow
def test_the_command_says_so_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["data=digits", "model=small_cnn", "+model.kwargs.width=4", "trainer.max_epochs=1", "logger=none"]
    at_bf16 = make_spec([*words, "trainer.precision=bf16-mixed"])
    finish(PlannedRun("sgd", "tuning", {}, 0, tuple(words)), 0.5, spec=at_bf16)
    done = subprocess.run(
        [sys.executable, "-m", "neumann", "train", *words],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert f"it is over at bf16-mixed in {Path(find(at_bf16).path)}" in done.stderr
