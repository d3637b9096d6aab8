"""A folder that another user has prepared neither leads a write out of it nor holds up a command that reads it."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import pytest

from neumann.cli.main import main as cli
from neumann.config import RunSpec, make_spec
from neumann.errors import UserError
from neumann.store import RunFolder, find
from neumann.store.files import NotWritten, append_line
from neumann.store.listing import read_row
from neumann.store.records import read_config
from neumann.store.session import session
from neumann.training.checkpoints import FORMAT, decode, encode
from neumann.training.mirror import Mirror
from tests.support.launching import QUICK

SOON_S = 10.0  # a command that would read everything takes minutes, or for ever


@pytest.fixture
def spec() -> RunSpec:
    return make_spec(["optimizer=sgd", *QUICK])


@pytest.fixture
def folder(spec: RunSpec) -> RunFolder:
    found = find(spec)
    found.path.mkdir(parents=True)
    return found


def test_a_line_is_not_appended_through_a_link(folder: RunFolder) -> None:
    folder.measurements.symlink_to(Path("elsewhere").absolute())
    with pytest.raises(NotWritten, match="it is a link, and a run writes in its own folder alone"):
        append_line(folder.measurements, b"{}")
    os.mkfifo(folder.path / "pipe")
    with pytest.raises(NotWritten, match="it is not a regular file"):
        append_line(folder.path / "pipe", b"{}")
    assert not Path("elsewhere").exists()


@pytest.mark.medium
@pytest.mark.parametrize("there", [False, True])
def test_a_run_writes_nothing_through_the_links_of_its_folder(spec: RunSpec, folder: RunFolder, there: bool) -> None:
    names = ("measurements.jsonl", "status.json", "result.json", "provenance.json", "config.yaml", "signed.json")
    for name in (*names, "last.ckpt", "previous.ckpt", "eval-weights.pt", "error.txt"):
        if there and name != "signed.json":  # one that can be read must be the run's
            Path(f"their-{name}").write_text("theirs")
        (folder.path / name).symlink_to(Path(f"their-{name}").absolute())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli(["train", "optimizer=sgd", *QUICK]) == 0
    assert {path.read_text() for path in Path().glob("their-*")} <= {"theirs"}
    assert len(folder.read_measurements()) == 2
    assert not folder.measurements.is_symlink()


def test_wandb_does_not_write_through_a_link() -> None:
    words = ["optimizer=sgd", *QUICK[:-1], "logger.mode=offline"]
    folder = find(make_spec(words))
    folder.path.mkdir(parents=True)
    Path("elsewhere").mkdir()
    (folder.path / "wandb").symlink_to(Path("elsewhere").absolute())
    with pytest.raises(UserError, match=r"wandb is a link: .* remove it, or train with logger=none"):
        Mirror(make_spec(words), folder.path, {}, 1)


def test_aliases_that_stand_for_any_size_are_refused_at_once(folder: RunFolder) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    folder.config.write_text("\n".join(["a0: &a0 [lol]", *levels]))
    began = time.monotonic()
    with pytest.raises(UserError, match="is damaged or not plain data: it has aliases"):
        read_config(folder.path)
    assert time.monotonic() - began < SOON_S
    folder.config.write_text("name: 'a * b'\n")
    assert read_config(folder.path) == {"name": "a * b"}


def test_a_list_reads_the_end_of_the_measurements_alone(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    line = b'{"step": 7, "validation": {"held": {"error": 0.25}}}\n'
    with folder.measurements.open("wb") as file:
        file.truncate(2**40)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + line + b'{"step": 8, "val')
    assert folder.last_measurement() == {"step": 7, "validation": {"held": {"error": 0.25}}}
    row = read_row(folder.path)
    assert (row.step, row.validation) == (7, 0.25)
    began = time.monotonic()
    with pytest.warns(UserWarning, match=r"measurements.jsonl is not read: it is larger than 67,108,864 bytes"):
        assert folder.read_measurements() == []
    assert cli(["runs"]) == 0
    assert time.monotonic() - began < SOON_S
    assert "25.00 %" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["result.json", "status.json", "provenance.json", "signed.json"])
def test_a_record_of_any_size_counts_as_missing(folder: RunFolder, name: str) -> None:
    with (folder.path / name).open("wb") as file:
        file.truncate(2**40)
    assert folder.result() is None
    assert folder.status()["status"] == "pending"
    assert folder.attempts() == []


def test_a_sparse_checkpoint_is_not_read(spec: RunSpec, folder: RunFolder) -> None:
    with folder.last.open("wb") as file:
        file.truncate(200 * 2**30)
    with pytest.warns(UserWarning, match="it is cut short"), session(spec, decode, FORMAT) as held:
        assert held.state is None
    with folder.last.open("wb") as file:
        file.truncate(2**42)
        file.seek(0, os.SEEK_END)
        file.write(encode({})[-73:])
    with pytest.warns(UserWarning, match="more than the memory of this machine"), session(spec, decode, FORMAT) as held:
        assert held.state is None
