"""`neumann cache`: it lists what data and kernels keep, and removes that and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from neumann.cache_folder import cache_folder
from neumann.cli.main import main
from neumann.config.weights import weights_of
from neumann.data import facts
from neumann.data.module import build


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in use, in a folder that holds a user's files as well."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for library in cache_folder().glob("*.so"):
        os.link(library, folder / library.name)
    monkeypatch.setenv("NEUMANN_CACHE", str(folder))
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for file in range(5):
            Image.new("RGB", (4, 4), (file, 90 * number, 0)).save(tmp_path / "set" / name / f"{file}.png")
    data = {"kind": "image_folder", "root": str(tmp_path / "set"), "workers": 0}
    build(data, facts(data), batch_size=2, seed=0)
    (tmp_path / "w.pth").write_bytes(b"weights")
    weights_of({"kwargs": {"checkpoint_path": str(tmp_path / "w.pth")}})
    for own in ("notes.txt", "decoded/notes.txt", "scans/.hidden"):
        (folder / own).write_text("mine")
    return folder


def test_it_lists_what_is_kept(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{filled}: ")
    kinds = {line.split("B  ")[1] for line in lines}
    assert {"decoded images (1)", "scans of image folders (1)", "digests of weights (1)"} <= kinds
    assert ("compiled kernels (1)" in kinds) == bool(list(filled.glob("*.so")))


def test_it_removes_that_and_nothing_else(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (filled / "decoded" / ".0123.pt-left").write_text("x")
    (filled / "decoded" / ".4567.pt-young").write_text("x")
    os.utime(filled / "decoded" / ".0123.pt-left", (0, 0))
    assert main(["cache", "--clear"]) == 0
    assert "files removed, " in capsys.readouterr().out
    left = {str(path.relative_to(filled)) for path in filled.rglob("*") if path.is_file()}
    assert left == {"notes.txt", "decoded/notes.txt", "scans/.hidden", "decoded/.4567.pt-young"}
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{filled}: 0 B\n"


def test_a_folder_that_is_not_there_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEUMANN_CACHE", str(tmp_path / "none"))
    for words in (["cache"], ["cache", "--clear"]):
        assert main(words) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'none'}: 0 B\n{tmp_path / 'none'}: 0 files removed, 0 B\n"
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_removed_is_named(
    filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert main(["cache", "--clear"]) == 1
    assert ".pt cannot be removed (Permission denied)" in capsys.readouterr().out
