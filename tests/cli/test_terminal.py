"""Texts of another user's folders and studies reach the terminal spelt out: none moves its cursor or changes its title."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from neumann.cli.main import main as cli
from neumann.config import make_spec
from neumann.errors import UserError
from neumann.launch.progress import SweepView, status_table
from neumann.launch.protocol import RunOutcome
from neumann.search.grid import expand
from neumann.studies.run import print_studies
from neumann.training.display import Display

ESCAPE = "\x1b]0;title\x07\x1b[2J\u202e[/][red]:bug:"
SHOWN = "\\x1b]0;title\\x07\\x1b[2J\\u202e[/][red]:bug:"
STUDY = r"""
title: "T\e[2J[/]"
question: "Q\e]0;title\a[/][red]:bug:"
overrides: [data=digits]
rows:
  a: { label: "A\e[2J[/]", overrides: [optimizer=sgd] }
  b: { label: "B", overrides: [optimizer=adam] }
space: { optimizer.lr: [0.01, 0.1] }
seeds: { tuning: [100, 101, 102], evaluation: [0] }
comparisons: { primary: b, reference: a, smallest_effect: 0.5 }
limits: ["L\e[2J"]
"""


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str]) -> Console:
    return Console(width=300)


def test_a_studys_texts(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    Path("experiments/mine").mkdir(parents=True)
    Path("experiments/mine/study.yaml").write_text(STUDY)
    print_studies(console)
    for words in (["study", "mine", "--plan"], ["report", "mine"]):
        assert cli(words) == 0
    out = "".join(capsys.readouterr())
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "Q\\x1b]0;title\\x07[/][red]:bug:" in out


@pytest.mark.medium
def test_what_a_study_prints_while_it_trains(capsys: pytest.CaptureFixture[str]) -> None:
    study = Path("experiments/mine/study.yaml")
    study.parent.mkdir(parents=True)
    study.write_text(STUDY.replace("data=digits]", "data=digits, batch.size=1000, trainer.max_epochs=1]"))
    assert cli(["study", "mine", "logger=none"]) == 0
    out = "".join(capsys.readouterr())
    assert "\x1b" not in out
    assert "T\\x1b[2J[/]" in out


def test_the_table_of_a_launch(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    spec = make_spec(["optimizer=sgd", "logger=none"])
    folder = Path("runs/default") / f"{ESCAPE.replace('/', '')}-{spec.signature}"
    outcomes = [RunOutcome(spec, "failed", None, ESCAPE, reused=False, seconds=1.0, folder=folder)]
    status_table(console, outcomes, [ESCAPE])
    with SweepView(console, "importing", [spec], [ESCAPE]) as view:
        view.done(outcomes[0])
        console.print(view._running([]))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert SHOWN in out


def test_the_name_of_a_run_that_trains(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    class Progress:
        step = 0

    class Evaluation:
        progress = Progress()

    display = Display(console, Evaluation(), name=ESCAPE, total_steps=4)  # type: ignore[arg-type]
    scores = {"held": {"error": 0.5, "loss": 1.0, "n": 3}}
    display.measured({"validation": scores, "step": 1, "epoch": 1.0, "lr": 0.1, "train_loss": 1.0})
    out = capsys.readouterr().out
    assert out.startswith(f"{SHOWN}  step 1/4")


@pytest.mark.parametrize("key", ["name", "study"])
def test_a_run_and_a_study_are_not_called_so(key: str) -> None:
    for name in ("a\x1b[2J", "a\tb", "a\u202eb", "a/b", "a\nb", ".."):
        with pytest.raises(UserError, match=f"^{key}=.* cannot be a folder's name"):
            make_spec([f"{key}='{name}'"])
    assert make_spec([f"{key}='größe 日本 [x]'"]).folder.is_relative_to("runs")
    shutil.rmtree("runs", ignore_errors=True)
    assert expand(["seed=0,1"])
