"""Real short runs on a disk that is full, with a claim that is lost, and in a folder that another user has prepared."""

from __future__ import annotations

import io
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from rich.console import Console

from neumann.cli.main import main as cli
from neumann.config import make_spec
from neumann.store import RunFolder, claim, find, finished_result
from neumann.store.claim import Lost
from neumann.store.files import read_json
from neumann.training.run import run
from tests.support.forged_leases import ELSEWHERE, forge, leases
from tests.support.launching import LONG, QUICK, wait_for

pytestmark = pytest.mark.medium

SMALL = 60_000  # bytes that a file may have; a checkpoint of this network has 143,000


def full_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, SMALL))


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.slow
def test_a_run_that_finds_no_room_says_so_and_goes_on_later(many: bool) -> None:
    words = ["optimizer=sgd", *QUICK[:2], "+model.kwargs.width=16", "logger=none"]
    command = [sys.executable, "-m", "neumann", "train", *(["-m"] if many else []), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, preexec_fn=full_disk)
    assert done.returncode == 1, done.stderr
    said = done.stdout if many else done.stderr
    folder = find(make_spec(words))
    assert f"failed: {'' if not many else folder.path.name[:-13] + ': '}" in said
    assert "last.ckpt cannot be written (file too large): what was written before it stands" in said
    assert "Traceback" not in said
    assert folder.status()["status"] == "failed"
    assert finished_result(make_spec(words)) is None
    assert len(folder.read_measurements()) == 1
    assert not list(folder.path.glob(".*.tmp"))
    assert not folder.held()
    assert cli(["train", *words]) == 0
    assert folder.status()["status"] == "finished"
    assert folder.status()["attempt"] == 2


def test_a_run_that_has_lost_its_claim_stops_and_writes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "HEARTBEAT_S", 0.05)
    torch.set_num_threads(1)
    spec = make_spec(["optimizer=sgd", *LONG])
    folder = find(spec)
    before: dict[str, bytes] = {}

    def another_machine() -> None:
        wait_for(lambda: len(folder.read_measurements()) > 2)
        forge(folder.path, ELSEWHERE, number=leases(folder.path)[-1] + 1)
        for name in ("status.json", "provenance.json"):
            before[name] = (folder.path / name).read_bytes()

    thread = threading.Thread(target=another_machine)
    thread.start()
    with pytest.raises(Lost, match="was taken over by another process while this one was cut off"):
        run(spec, Console(file=io.StringIO()))
    thread.join()
    assert {name: (folder.path / name).read_bytes() for name in before} == before
    assert read_json(folder.path / "status.json")["status"] == "running"
    assert not folder.error.exists()
    assert folder.result() is None
    assert folder.held()  # by the other


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("name", ["last.ckpt", "previous.ckpt"])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_checkpoint_of_another_user_executes_nothing(name: str, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    words = ["optimizer=sgd", *QUICK, "checkpoint=last"]
    assert cli(["train", *words]) == 0
    folder = find(make_spec(words))
    shutil.copytree(folder.path, Path("theirs/study") / folder.path.name)
    theirs = RunFolder(Path("theirs/study") / folder.path.name)
    for file in ("result.json", "status.json", "last.ckpt", "previous.ckpt"):
        (theirs.path / file).unlink(missing_ok=True)
    if kind == "pickle":
        (theirs.path / name).write_bytes(pickle.dumps(Bomb()))
    else:
        from neumann.training.checkpoints import FORMAT, encode

        state = {"format": FORMAT, "signature": folder.path.name[-12:], "state_dict": Bomb()}
        (theirs.path / name).write_bytes(encode(state))
    assert b"touch executed" in (theirs.path / name).read_bytes()
    with pytest.warns(UserWarning, match=r"is damaged .* and is left aside: the run begins again"):
        assert cli(["runs", "resume", str(theirs.path)]) == 0
    assert not Path("executed").exists()
    ours, again = folder.result(), theirs.result()
    assert ours is not None
    assert again is not None
    assert again["test"] == ours["test"]


def test_a_resumed_run_goes_on_in_its_own_folder() -> None:
    torch.set_num_threads(1)
    words = ["optimizer=sgd", *QUICK, "checkpoint=last", "study=mine", "name=first"]
    spec = make_spec(words)
    assert cli(["train", *words]) == 0
    folder = find(spec)
    first = folder.result()
    (folder.path / "result.json").unlink()
    Path("runs").rename("moved")
    assert cli(["runs", "resume", "first", "moved"]) == 0
    again = RunFolder(Path("moved/mine") / folder.path.name).result()
    assert first is not None
    assert again is not None
    assert (again["test"], again["attempts"]) == (first["test"], 2)
    assert not Path("runs").exists()
