"""--estimate prints what a run, a sweep, a search or a study costs; it trains nothing and leaves nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from neumann.cli.main import main
from neumann.config import make_spec
from tests.support.study_folders import STUDY, write_study

QUICK = ["+model.kwargs.width=8", "trainer.max_epochs=2", "logger=none"]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    assert not Path("runs").exists()
    assert {path.name for path in Path().iterdir()} <= {"experiments"}
    return " ".join(capsys.readouterr().out.split())


def test_a_run_at_a_stated_rate(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["batch.size=64", "trainer.devices=2", "batch.max_per_device=16"]
    text = said(capsys, "train", "--estimate=100", *QUICK, *words)
    examples, forwards = 2 * 18 * 64, 3 * (2 * 300 + 300)
    seconds = (examples + forwards * forward_share()) / 100 / 2
    assert f"{seconds:.0f} s on 2 devices" in text
    assert "36 steps of 64 examples (16 at once × 2 × 2 devices), 2,304 examples" in text
    assert "2 × 300 validation images and 300 test images at each of 3 points" in text
    assert "100 images/s a device, as stated; nothing was measured" in text


def forward_share() -> float:
    from neumann.training.step_cost import model_cost

    cost = model_cost(make_spec(QUICK))
    return cost.forward / cost.training


@pytest.mark.medium
def test_a_run_by_measured_steps_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "train", "--estimate", *QUICK)
    assert re.search(
        r"images/s a device, \S+ m?s a step: measured on cpu, 1 thread, 20 steps of 32 after 3 of warm", text
    )


@pytest.mark.medium
def test_what_is_over_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*QUICK, "trainer.max_epochs=1"]
    words.remove("trainer.max_epochs=2")
    assert main(["train", *words, "seed=1"]) == 0
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(["train", "--estimate=100", *words, "seed=1"]) == 0
    assert "nothing is left to train: 1 run is over" in capsys.readouterr().out
    assert main(["train", "-m", "--estimate=100", *words, "seed=0,1,2"]) == 0
    assert "2 runs to train (1 are over and not counted)" in capsys.readouterr().out
    assert sorted(Path().rglob("*")) == before


def test_a_sweep_is_the_sum_of_its_runs_over_those_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "-m", "--estimate=10", *QUICK, "optimizer=sgd,nesterov", "seed=0,1", "launch.parallel=2"]
    text = said(capsys, *words)
    assert "4 runs to train" in text
    assert "with 2 runs at once" in text
    each = [2 * 37 * 32 / 10 + points * (2 * 300 + 300) * forward_share() / 10 for points in (1, 2)]
    minutes = re.search(r"up to (\d+) min with 2", text)
    assert minutes is not None
    assert int(minutes[1]) == round(sum(each) / 60)


def test_a_search_counts_the_trials_to_come(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=7", "optimizer.lr=tag(log,interval(0.01,1))", "seed=0,1"]
    assert "14 runs to train" in said(capsys, "train", "-m", "--estimate=100", *QUICK, *words)


def test_a_study_counts_both_phases(capsys: pytest.CaptureFixture[str]) -> None:
    write_study(
        {**STUDY, "space": {"optimizer.lr": [0.1, 0.3]}, "seeds": {"tuning": [100, 101, 102], "evaluation": [0, 1]}}
    )
    text = said(capsys, "study", "mine", "--estimate=100")
    assert "18 runs to train" in text  # twelve to tune, two rows sharing theirs, then each of three rows at two seeds


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "--estimate=fast"], "is no rate"),
        (["train", "--estimate", "1200"], "write --estimate=1200"),
        (["train", "--estimate", "--cfg", "job"], "give one of the two"),
        (["train", "--estimate=9", "model=timm", "model.name=resnet81"], "timm has no such model"),
        (["study", "regularizers", "--estimate", "--plan"], "give one of the two"),
    ],
)
def test_a_wrong_request_is_one_sentence(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert part in captured.err
    assert len(captured.err.strip().splitlines()) == 1
