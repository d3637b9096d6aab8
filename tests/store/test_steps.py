"""Step lines: appended once each, given back by a checkpoint, and vouched for by the result."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from neumann.errors import UserError
from neumann.store.steps import STEPS, LoggedLines, read_lines


def logged(folder: Path, *steps: int, text: str = "") -> LoggedLines:
    lines = LoggedLines(folder, STEPS, text)
    for step in steps:
        lines.append({"step": step, "train_loss": float("nan")})
    return lines


TEN = '{"step": 10, "train_loss": null}\n'
TWENTY = TEN.replace("10", "20")


@pytest.mark.parametrize(
    ("there", "warned"),
    [
        (TEN, False),
        (TEN + TWENTY, False),  # after the checkpoint
        (TEN + TWENTY[:9], False),  # cut short by a kill
        ("", True),
        (None, True),
        (TEN[:9], True),
        (TEN + TEN[:3] + TEN, False),
        (TWENTY + TEN, True),
        (TEN.replace("null", "0.1"), True),
    ],
)
def test_a_checkpoint_gives_back_its_lines_once_each(there: str | None, warned: bool, tmp_path: Path) -> None:
    if there is not None:
        (tmp_path / STEPS.file).write_text(there)
    lines = LoggedLines(tmp_path, STEPS, TEN)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lines.restore()
    assert ["its 1 line(s) are restored" in str(one.message) for one in said] == [True] * warned
    assert (tmp_path / STEPS.file).read_text() == TEN
    lines.append({"step": 20, "train_loss": None})
    assert (tmp_path / STEPS.file).read_text() == lines.text == TEN + TWENTY
    assert [line["step"] for line in read_lines(tmp_path, {**lines.finish()})] == [10, 20]


def test_a_run_that_begins_leaves_no_line_of_one_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / STEPS.file).write_text(TEN)
    LoggedLines(tmp_path, STEPS).restore()
    assert (tmp_path / STEPS.file).read_text() == ""
    assert LoggedLines(tmp_path, STEPS).finish() == {}
    (tmp_path / STEPS.file).unlink()
    LoggedLines(tmp_path, STEPS).restore()
    assert not (tmp_path / STEPS.file).exists()
    assert read_lines(tmp_path, None) == []


def test_a_line_goes_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / STEPS.file).symlink_to(tmp_path / "theirs")
    lines = LoggedLines(tmp_path, STEPS)
    lines.restore()
    lines.append({"step": 10, "train_loss": None})
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / STEPS.file).read_text() == TEN


@pytest.mark.parametrize(
    "spoil", [lambda text: text[:-9], lambda text: text + text, lambda text: text.replace("10", "11"), lambda text: ""]
)
def test_lines_that_were_edited_are_written_again_or_refused(spoil: Callable[[str], str], tmp_path: Path) -> None:
    lines = logged(tmp_path, 10, 20)
    (tmp_path / STEPS.file).write_text(spoil(lines.text))
    with pytest.warns(UserWarning, match=r"steps.jsonl is not what was logged, and is written again"):
        result = lines.finish()
    assert list(result) == [STEPS.key]
    assert [line["step"] for line in read_lines(tmp_path, result)] == [10, 20]
    (tmp_path / STEPS.file).write_text(spoil(lines.text))
    with pytest.raises(UserError, match=r"steps.jsonl is not what the run logged: put back what it wrote"):
        read_lines(tmp_path, result)


def test_of_a_run_that_is_not_over_whole_lines_count(tmp_path: Path) -> None:
    (tmp_path / STEPS.file).write_text(f'{TEN}[1]\n{{"step": "x"}}\n{"[" * 9999}\n\n{TWENTY}{TEN[:9]}')
    assert [line["step"] for line in read_lines(tmp_path, None)] == [10, 20]
