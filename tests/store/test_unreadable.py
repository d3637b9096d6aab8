"""A file that is there and cannot be read, for want of permission or of a disk that answers, is never a missing one."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from neumann.cli.main import main as cli
from neumann.config import make_spec
from neumann.errors import UserError
from neumann.store import RunFolder, files, find
from neumann.store.files import read_json
from tests.support.launching import QUICK

Refuse = Callable[..., None]
WORDS = ["optimizer=sgd", *QUICK]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Let the system refuse files whose path ends with a name, also to root, who may read everything."""

    def refuse(end: str, code: int = errno.EACCES) -> None:
        opened = os.open

        def opens(path: str | os.PathLike[str], *words: int, **more: int | None) -> int:
            if str(path).endswith(end):
                raise OSError(code, os.strerror(code), str(path))
            return opened(path, *words, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(files.os, "open", opens)

    return refuse


@pytest.mark.parametrize(("code", "why"), [(errno.EACCES, "permission denied"), (errno.EIO, "input/output error")])
def test_what_is_there_and_cannot_be_read_is_not_none(code: int, why: str, refuse: Refuse, tmp_path: Path) -> None:
    assert read_json(tmp_path / "x.json") is None
    (tmp_path / "x.json").mkdir()
    assert read_json(tmp_path / "x.json") is None
    refuse("x.json", code)
    with pytest.raises(UserError, match=rf"x\.json cannot be read: {why}"):
        read_json(tmp_path / "x.json")


@pytest.mark.medium
@pytest.mark.parametrize("name", ["result.json", "signed.json", "provenance.json", "measurements.jsonl"])
def test_no_run_begins_again_over_files_that_it_cannot_read(
    name: str, refuse: Refuse, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["train", *WORDS]) == 0
    folder = find(make_spec(WORDS)).path
    before = contents(folder)
    if name in ("provenance.json", "measurements.jsonl"):  # a run that goes on, to which they matter
        (folder / "result.json").unlink()
        before.pop("result.json")
    refuse(f"/{name}")
    capsys.readouterr()
    assert cli(["train", *WORDS]) == 2
    assert f"{name} cannot be read: permission denied" in capsys.readouterr().err
    after = contents(folder)
    if name == "measurements.jsonl":  # they are read once the attempt is noted
        assert len(json.loads(after.pop("provenance.json"))["attempts"]) == 2
        before.pop("provenance.json")
    assert after == before


@pytest.mark.medium
def test_one_unreadable_run_or_study_is_told_and_the_others_are_listed(
    refuse: Refuse, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(["train", *WORDS]) == 0
    folder = find(make_spec(WORDS)).path
    other = folder.with_name(f"other-{'0' * 12}")
    shutil.copytree(folder, other)
    (Path("runs") / "closed").mkdir()
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scan(path) if Path(path).name != "closed" else _denied(path))
    refuse(f"{other.name}/result.json")
    capsys.readouterr()
    with pytest.warns(UserWarning, match="cannot be read: permission denied") as warned:
        assert cli(["runs"]) == 0
    assert [str(one.message).split("; ")[1] for one in warned] == [
        "its runs, if there are any, are left out",
        f"{other} is left out of the list",
    ]
    assert RunFolder(folder).path.name[-12:] in capsys.readouterr().out


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a run but for its claim, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name[0] != "."}


def _denied(path: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied", str(path))
