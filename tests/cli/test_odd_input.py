"""Input that no file system and no float can take is one sentence, before anything trains."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neumann.cli.main import main as cli
from neumann.errors import UserError, first_line
from neumann.store.claim import current
from neumann.store.records import read_config

LONG = "a" * 300


@pytest.mark.parametrize(
    "word",
    [
        f"seed={'9' * 400}", f"seed={'9' * 5000}", f"optimizer.lr={'9' * 400}", f"optimizer.lr={'9' * 5000}",
        "launch.threads=1000000000000", "launch.parallel=1000000000000", "trainer.max_epochs=1e308",
        "trainer.check_val_every_n_epoch=1e300", "batch.size=" + "9" * 400, "timing.ramp=1e308", f"optimizer.lr={'[' * 2000}1",
    ],
    ids=lambda word: word[:30],
)  # fmt: skip
def test_a_number_that_no_run_can_count_with_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["train", "--cfg", "job", "optimizer=sgd", word]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "word", [f"output={LONG}", f"output={'/'.join(['b' * 200] * 25)}", f"study={LONG}", f"name={LONG}"]
)
def test_a_path_that_is_too_long_names_what_to_shorten(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["train", "optimizer=sgd", "logger=none", word]) == 2
    err = capsys.readouterr().err
    assert "(file name too long): shorten output, study or name" in err
    assert len(err) < 300


@pytest.mark.parametrize("words", [["runs", f"output={LONG}"], ["runs", "show", LONG], ["study", f"./{LONG}"]])
def test_other_commands_meet_such_a_path(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    assert cli(words) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("command", ["runs", "train", "report regularizers", "worker x"])
def test_a_working_directory_that_is_gone(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    here = Path.cwd()
    Path("gone").mkdir()
    os.chdir("gone")
    (here / "gone").rmdir()
    try:
        assert cli(command.split()) == 2
    finally:
        os.chdir(here)
    assert "the working directory cannot be used (no such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "# nothing\n", "1e999", "3", "true", "[1]", "null"])
def test_a_config_that_is_no_configuration_is_named(text: str) -> None:
    Path("config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config.yaml is (not a run's configuration|damaged)"):
        read_config(Path())


def test_a_lease_with_a_number_in_no_digits_of_ours_is_none() -> None:
    for name in ("²", "٣", "-1", "1.5", ""):
        Path(f".claim.{name}").touch()
    assert current(Path()) is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError(101), "KeyError: 101"),
        (RuntimeError("Error(s) in loading state_dict for Net:\n\tMissing key: a\n\tb"), "Error(s) in loading state_dict for Net: Missing key: a"),
        (ValueError("\n\n  one\n two"), "one"),
        (ValueError(), "ValueError"),
        (ValueError("only this:"), "only this:"),
    ],
)  # fmt: skip
def test_the_line_that_stands_for_an_error_says_something(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize("words", ["name=a,b", "checkpoint=last,none", "logger.tags=[a],[b]"])
def test_runs_of_a_sweep_that_are_one_run_are_not_counted_as_two(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["train", "-m", "optimizer=sgd", "seed=0", words]) == 2
    assert "are the same run" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert cli(["train", "-m", "--cfg", "job", "optimizer=sgd", "study=a,b"]) == 0


@pytest.mark.parametrize("words", [["train", "--config-dir", ""], ["runs", "output="], ["runs", "clean", "output="]])
def test_an_empty_folder_is_not_the_working_directory(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(words) == 2
    assert "is empty: name a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("predict x y --topk z", "neumann predict: --topk z is not a whole number"),
        ("evaluate x -b z", "neumann evaluate: --batch-size z is not a whole number"),
        ("curvature x --tolerance z", "neumann curvature: --tolerance z is not a number"),
        ("predict x y --json --csv", "neumann predict: --csv and --json exclude each other"),
        ("train --cfg jobb", "neumann train: --cfg jobb: choose from 'job'"),
        ("train --config-dir", "neumann train: --config-dir takes a value"),
        ("study --budget", "neumann study: --budget takes a value"),
        ("worker", "neumann worker: give FOLDER"),
        ("predict x y --lr=3", "neumann predict takes no --lr=3: choose from --batch-size, --csv"),
        ("runs --jsno", "neumann runs takes no --jsno: did you mean '--json'?"),
        ("train --lr=3", "neumann train takes no --lr=3: a setting has no dashes before it, lr=VALUE"),
        ("study mine --optimizer.lr 3", "takes no --optimizer.lr: a setting has no dashes before it"),
        ("export ''", "the run's name is empty: give a signature's beginning, a name or a path"),
    ],
)
def test_an_option_that_cannot_be_read_is_told_in_words_of_the_command(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli([word.strip("'") for word in words.split()]) == 2
    assert sentence in capsys.readouterr().err


def test_resume_names_why_it_takes_no_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["runs", "resume", "3c1f", "optimizer.lr=3"]) == 2
    assert "takes no 'optimizer.lr=3': with another optimizer.lr it would be another run" in capsys.readouterr().err
