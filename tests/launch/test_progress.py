"""The live view of a launch: lines where there is no terminal, a table on one, and the table of all runs at the end."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from neumann.config import RunSpec, make_spec
from neumann.launch import progress
from neumann.launch.progress import SweepView, status_table
from neumann.launch.protocol import RunOutcome
from neumann.store import RunFolder

pytestmark = pytest.mark.medium

SCORES = {"held": {"loss": 1.0, "error": 0.5, "n": 300}, "base": {"loss": 1.0, "error": 0.125, "n": 300}}


def spec_of(seed: int) -> RunSpec:
    return make_spec(["logger=none", "trainer.max_epochs=2", f"seed={seed}"])


def outcome_of(spec: RunSpec, status: str = "finished", message: str | None = None, reused: bool = False) -> RunOutcome:
    result = {"status": status, "validation": SCORES, "test": SCORES} if status == "finished" else None
    return RunOutcome(spec, status, result, message, reused, 2.5, spec.folder)


def console_of(terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=terminal, color_system=None)


def text_of(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_without_a_terminal_every_run_that_was_trained_is_a_line() -> None:
    specs = [spec_of(seed) for seed in range(3)]
    console = console_of(terminal=False)
    with SweepView(console, "importing PyTorch", specs, ["seed=0", "seed=1", ""]) as view:
        view.done(outcome_of(specs[0], reused=True))
        for _ in range(2):
            view.tick([], 2)
        view.started(specs[1])
        view.done(outcome_of(specs[1]))
        view.done(outcome_of(specs[2], "failed", "it \x1b[31mbroke"))
    assert text_of(console).splitlines() == [
        "2 of 3 runs to train; importing PyTorch for them",
        "2/3  seed=1  finished  validation error 12.50 %  2.5 s",
        f"3/3  {specs[2].name}  failed  it \\x1b[31mbroke  2.5 s",
    ]


def test_on_a_terminal_a_table_shows_what_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH_S", 0.0)
    specs = [spec_of(seed) for seed in range(3)]
    console = console_of(terminal=True)
    with SweepView(console, "importing PyTorch", specs, ["seed=0", "seed=1", "seed=2"]) as view:
        view.tick([], 3)
        assert "importing PyTorch, once for all runs, 3 waiting" in text_of(console)
        view.started(specs[0])
        folder = RunFolder(specs[0].folder)
        folder.path.mkdir(parents=True)
        folder.append_measurement({"step": 37, "validation": SCORES})
        view.tick(specs[:1], 2)
        shown = [" ".join(line.split()) for line in text_of(console).splitlines()]
        assert any(line.endswith("seed=0 37/74 12.50 %") for line in shown), shown
        view.done(outcome_of(specs[0]))
        view.tick([], 2)
    end = text_of(console).rsplit("validation error", 1)[1]
    assert "1 finished, 2 waiting" in end
    assert "importing" not in end  # that is done once a run has begun


def test_a_search_counts_the_runs_that_it_will_have() -> None:
    console = console_of(terminal=False)
    with SweepView(console, "importing PyTorch", total=8) as view:
        view.add([spec_of(0)], ["trial 0"])
        view.done(outcome_of(spec_of(0)))
    assert text_of(console).startswith("1/8  trial 0  finished  ")


@pytest.mark.parametrize("test", [True, False])
def test_the_table_at_the_end_tells_how_every_run_ended(test: bool, tmp_path: Path) -> None:
    specs = [spec_of(seed) for seed in range(3)]
    outcomes = [
        outcome_of(specs[0], reused=True),
        outcome_of(specs[1], "failed", "it broke"),
        outcome_of(specs[2], "interrupted"),
    ]
    trace = RunFolder(outcomes[1].folder).error
    trace.parent.mkdir(parents=True)
    trace.write_text("Traceback")
    console = console_of(terminal=False)
    status_table(console, outcomes, ["seed=0", "seed=1", "seed=2"], test=test)
    head, *lines = text_of(console).splitlines()
    assert ("test" in head.split()) == test
    errors = ["12.50", "%", "12.50", "%"] if test else ["12.50", "%"]
    assert lines[0].split() == ["seed=0", "already", "there", *errors, outcomes[0].folder.name]
    assert lines[3:] == [
        f"failed: seed=1: it broke (traceback in {trace})",
        "interrupted: seed=2: no reason is known",
        "2 of 3 runs did not finish: once the cause is mended, the same command tries them again",
    ]


def narrow(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_narrow_terminal_cuts_no_folder_status_or_error(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(progress, "REFRESH_S", 0.0)
    words = ["logger=none", "checkpoint=none", "optimizer=neumann_literal", "ablation=no_regularizers"]
    specs = [make_spec([*words, f"seed={seed}"]) for seed in (0, 1)]
    console = narrow(width)
    why = "ValueError: " + "a long reason " * 10
    status_table(console, [outcome_of(specs[0]), outcome_of(specs[1], "failed", why)], ["", "optimizer.lr=0.3"])
    lines = text_of(console).splitlines()
    for spec in specs:
        assert any(line.strip() == spec.folder.name for line in lines)  # whole, and alone where it does not fit
    assert any("finished" in line and "12.50 %" in line for line in lines)
    assert any(line.startswith("optimizer.lr=0.3") and "failed" in line for line in lines)
    assert any(why.strip() in line for line in lines)

    view = SweepView(console, "importing PyTorch", specs, ["", ""])
    for spec in specs:
        view.started(spec)
    console = narrow(width)
    console.print(view._running(specs))
    header, *rows = (line.rstrip() for line in text_of(console).splitlines())
    assert header.endswith("validation error")
    assert [row.split()[-1] for row in rows] == ["0/740", "0/740"]
    assert [row.split()[0][-2:] for row in rows] == ["s0", "s1"]
