"""A finished report is not overwritten by an emptier one, whatever has changed the signatures of its runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from neumann.cli.main import main
from neumann.config import RESULTS_VERSION, signature
from neumann.studies.collect import collect
from neumann.studies.plan import load_study
from tests.support.study_folders import STUDY, finish, write_study

pytestmark = pytest.mark.medium

REPORT = Path("runs/mine/report-full")


def content(*overrides: str) -> dict[str, Any]:
    """Return a study of two rows at one rate, on ten images a class."""
    study = copy.deepcopy(STUDY)
    del study["rows"]["averaged"], study["paper"]
    study["overrides"] = ["data=image_folder", "data.root=images", "trainer.max_epochs=2", "batch.size=4", *overrides]
    return study | {"space": {"optimizer.lr": [0.1]}, "seeds": {"tuning": [100], "evaluation": [0, 1]}}


def shade(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(path)


@pytest.fixture
def finished(capsys: pytest.CaptureFixture[str]) -> dict[str, bytes]:
    """The files of a finished report."""
    for i, name in enumerate(("x", "y")):
        for k in range(10):
            shade(Path("images", name, f"{k}.png"), 100 * i + k)
    write_study(content())
    study = load_study("mine")
    for planned in (*study.tuning(), *(run for row in study.config.rows for run in study.evaluation(row, RATE))):
        finish(planned, 0.02)
    assert main(["report", "mine"]) == 0
    assert "incomplete" not in capsys.readouterr().out
    return files()


RATE = {"optimizer.lr": 0.1}


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in REPORT.iterdir() if path.name != ".stamp.json"}


def add_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    shade(Path("images/x/new.png"), 50)


def raise_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "RESULTS_VERSION", RESULTS_VERSION + 1)
    (REPORT / ".stamp.json").unlink()  # which another version's code would not fit


def change_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(content("recipe.label_smoothing=0.1"))


def add_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(content("+model.kwargs.drop_rate=0.0"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add_an_image, "data.fingerprint was "),
        (raise_the_version, f"results_version was {RESULTS_VERSION} and is {RESULTS_VERSION + 1}"),
        (change_the_study, "recipe.label_smoothing was 0 and is 0.1"),
        (add_a_setting, "model.kwargs.drop_rate was not there and is 0"),
    ],
)
def test_it_is_left_as_it_is_and_says_what_differs(
    change: Callable[[pytest.MonkeyPatch], None],
    said: str,
    finished: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(monkeypatch)
    assert main(["report", "mine"]) == 2
    err = capsys.readouterr().err
    assert "2 of the 2 tuning runs that runs/mine/report-full stands on are not what the study asks for now" in err
    assert said in err
    assert "neumann study mine trains what is missing" in err
    assert files() == finished
    assert main(["report", "mine", "--publish"]) == 2
    assert main(["study", "mine", "--plan"]) == 0
    assert said in capsys.readouterr().out


def test_a_study_that_failed_to_train_leaves_it_too(
    finished: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_an_image(monkeypatch)
    monkeypatch.setattr("neumann.studies.run.Training.__call__", lambda *_: None)
    main(["study", "mine"])
    assert "The report is left as it is: 2 of the 2 tuning runs" in " ".join(capsys.readouterr().out.split())
    assert files() == finished


def test_a_report_that_is_whole_again_takes_its_place(finished: dict[str, bytes]) -> None:
    write_study(content("recipe.label_smoothing=0.1"))
    study = load_study("mine")
    for planned in (*study.tuning(), *(run for row in study.config.rows for run in study.evaluation(row, RATE))):
        finish(planned, 0.03)
    assert main(["report", "mine"]) == 0
    assert files() != finished


def test_more_seeds_are_no_other_study(finished: dict[str, bytes]) -> None:
    write_study(content() | {"seeds": {"tuning": [100], "evaluation": [0, 1, 2]}})
    assert main(["report", "mine"]) == 0
    assert b"This study is not finished" in files()["report.html"]


def test_a_result_that_was_removed_shows(finished: dict[str, bytes]) -> None:
    for run in collect(load_study("mine")).tuning:
        (run.folder.path / "result.json").unlink()
    assert main(["report", "mine"]) == 0
    assert b"This study is not finished" in files()["report.html"]


def test_data_that_moved_is_found_where_it_is_now(
    finished: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images").rename("elsewhere")
    assert main(["report", "mine"]) == 2
    assert "images" in capsys.readouterr().err
    assert files() == finished
    assert main(["report", "mine", "data.root=elsewhere"]) == 0
    assert "incomplete" not in capsys.readouterr().out
