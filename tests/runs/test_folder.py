"""A run's files: whole or not there, one writer at a time, nothing secret."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neumann.config import make_spec
from neumann.errors import UserError
from neumann.runs import RunFolder, find, finished_result
from neumann.runs.files import read_json, replace_file, write_json
from neumann.runs.provenance import git_state, provenance


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1.0, "bad": float("nan"), "deep": [{"x": float("inf")}]})
    assert read_json(path) == {"a": 1.0, "bad": None, "deep": [{"x": None}]}

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        replace_file(path, b"half")
    with pytest.raises(OSError, match="disk full"):
        RunFolder(tmp_path).write_result({"status": "finished"})
    assert read_json(path) == {"a": 1.0, "bad": None, "deep": [{"x": None}]}
    assert list(tmp_path.glob(".*.tmp")) == []


def test_measurements_survive_a_cut_and_rewind(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_measurements() == []
    for step in (10, 20, 30):
        folder.append_measurement({"step": step, "loss": float("nan") if step == 20 else 1.5})
    with open(folder.measurements, "a") as file:
        file.write('{"step": 40, "lo')  # a kill while writing
    assert [m["step"] for m in folder.read_measurements()] == [10, 20, 30]
    assert folder.read_measurements()[1]["loss"] is None
    assert [m["step"] for m in folder.rewind_measurements(20)] == [10, 20]
    folder.append_measurement({"step": 25})
    assert [m["step"] for m in folder.read_measurements()] == [10, 20, 25]


def test_only_a_good_result_is_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.result() is None
    (tmp_path / "result.json").write_text('{"status": "fini')
    assert folder.result() is None
    folder.write_result({"status": "failed"})
    assert folder.result() is None
    for status in ("finished", "diverged"):
        folder.write_result({"status": status})
        assert folder.result() == {"status": status}


HOLD = """
import sys, time
from pathlib import Path
from neumann.runs import RunFolder
folder = RunFolder(Path(sys.argv[1]))
with folder.claim():
    folder.set_status("running")
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_holds_a_run_and_its_death_frees_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"being trained right now by process {holder.pid}"), folder.claim():
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with folder.claim():
            assert folder.status()["status"] == "running"  # as the dead one left it
    finally:
        holder.kill()
        holder.wait()


def test_heartbeat_moves_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neumann.runs.folder.HEARTBEAT_S", 0.02)
    folder = RunFolder(tmp_path)
    folder.set_status("running")
    status = tmp_path / "status.json"
    os.utime(status, (0, 0))
    with folder.heartbeat():
        deadline = time.time() + 10
        while status.stat().st_mtime == 0 and time.time() < deadline:
            time.sleep(0.01)
    assert status.stat().st_mtime > 0


@pytest.mark.parametrize("output", ["file", "/proc/neumann"])
def test_an_unwritable_results_folder_is_one_sentence(output: str, tmp_path: Path) -> None:
    (tmp_path / "work" / "file").write_text("in the way")
    folder = find(make_spec([f"output={output}"]))
    pattern = r"the results folder .* cannot be written \(.*\): name another with output=FOLDER"
    with pytest.raises(UserError, match=pattern) as caught, folder.claim():
        pass
    assert "\n" not in str(caught.value)


def test_a_run_is_found_by_its_signature_under_any_name() -> None:
    named = make_spec(["name=first", "optimizer=sgd"])
    folder = RunFolder(named.folder)
    folder.path.mkdir(parents=True)
    write_json(folder.signed, named.signed())
    folder.write_result({"status": "finished", "step": 1})
    again = make_spec(["optimizer=sgd"])
    assert again.folder != named.folder
    assert find(again).path == named.folder
    assert finished_result(again) == {"status": "finished", "step": 1}
    assert finished_result(make_spec(["optimizer=sgd", "seed=1"])) is None
    write_json(folder.signed, {**named.signed(), "results_version": -1})
    with pytest.raises(UserError, match="has this run's signature and another configuration"):
        find(again)


def test_provenance_names_code_packages_and_host_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    record = provenance()
    assert record["packages"]["torch"]
    assert record["packages"]["neumann"]
    assert record["host"]["cores"] >= 1
    assert "very-secret" not in str(record)


def test_the_diff_hash_follows_what_is_not_committed(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words],
            check=True,
            capture_output=True,
        )

    assert git_state(tmp_path) is None
    git("init")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-m", "one")
    clean = git_state(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert clean["diff_sha256"] is None
    hashes = set()
    for name, text in (("code.py", "x = 2\n"), ("code.py", "x = 3\n"), ("new.py", "y = 1\n"), ("new.py", "y = 2\n")):
        (tmp_path / name).write_text(text)
        state = git_state(tmp_path)
        assert state is not None
        assert state["commit"] == clean["commit"]
        hashes.add(state["diff_sha256"])
    assert len(hashes) == 4
    assert None not in hashes
