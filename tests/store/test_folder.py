"""A run's files: whole or not there, one writer at a time, nothing secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from neumann.config import make_spec
from neumann.errors import UserError
from neumann.store import RunFolder, find, finished_result
from neumann.store.files import read_json, replace_file, write_json
from neumann.store.provenance import git_state, provenance


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
    measured = [{"step": 10, "loss": 1.5}, {"step": 20, "loss": float("nan")}]
    assert [m["step"] for m in folder.restore_measurements(measured)] == [10, 20]
    folder.append_measurement({"step": 25})
    assert [m["step"] for m in folder.read_measurements()] == [10, 20, 25]


@pytest.mark.parametrize(
    "cut", ['{"step": 40, "lo', '{"step": 40}', "\xff{", '"a word"', '{"no": "step"}', "[" * 100_000]
)
def test_what_is_appended_does_not_stick_to_a_damaged_line(cut: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_measurement({"step": 30})
    with open(folder.measurements, "a", encoding="latin-1") as file:
        file.write(cut)
    for step in (50, 60):
        folder.append_measurement({"step": step})
    whole = [40] if cut.endswith("40}") else []
    assert [m["step"] for m in folder.read_measurements()] == [30, *whole, 50, 60]
    assert folder.measurements.read_bytes().count(b"\n") == 4


MEASURED = [{"step": step, "validation": {"held": {"error": 0.1 / step, "n": 300}}} for step in (1, 2, 3)]
WHOLE = [json.dumps(one) for one in MEASURED]
CHANGED = {
    "cut short": WHOLE[:2],
    "emptied": [],
    "doubled": [WHOLE[0], *WHOLE],
    "edited": [WHOLE[0], WHOLE[1].replace("300", "3000"), WHOLE[2]],
    "turned round": WHOLE[::-1],
    "damaged in its middle": [WHOLE[0], WHOLE[1][:9], WHOLE[2]],
    "led by a damaged line": ["{", *WHOLE],
}


@pytest.mark.parametrize("lines", [*CHANGED.values(), None], ids=[*CHANGED, "removed"])
def test_a_curve_is_what_the_checkpoint_says(lines: list[str] | None, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    if lines is not None:
        folder.measurements.write_text("".join(f"{line}\n" for line in lines))
    with pytest.warns(
        UserWarning, match=r"measurements.jsonl is not what was measured .* its 3 line\(s\) are restored"
    ):
        assert folder.restore_measurements(MEASURED) == MEASURED
    assert folder.read_measurements() == MEASURED


@pytest.mark.parametrize("end", ["", '{"step": 4, "l', '{"step": 4}\n', '{"step": 4}\n{"step": 5}\n{"st'])
def test_what_every_kill_leaves_is_restored_without_a_word(end: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.measurements.write_text("".join(f"{line}\n" for line in WHOLE) + end)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert folder.restore_measurements(MEASURED) == MEASURED
    assert folder.read_measurements() == MEASURED


def test_only_a_good_result_is_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.result() is None
    for damage in ('{"status": "fini', "", "null", "[]", '{"status": ["finished"]}', '{"a":' * 100_000):
        (tmp_path / "result.json").write_text(damage)
        assert folder.result() is None
    folder.write_result({"status": "failed"})
    assert folder.result() is None
    for status in ("finished", "diverged"):
        folder.write_result({"status": status})
        assert folder.result() == {"status": status}


def test_a_damaged_result_is_kept_beside_its_successor(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"status": "finished", "test')
    folder = RunFolder(tmp_path)
    folder.write_result({"status": "finished", "step": 2})
    assert folder.result() == {"status": "finished", "step": 2}
    assert (tmp_path / "result.json.damaged").read_text() == '{"status": "finished", "test'
    folder.write_result({"status": "finished", "step": 3})
    assert (tmp_path / "result.json.damaged").exists()


def test_the_status_is_a_valid_one_whatever_the_file_says(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.status() == {"status": "pending"}
    for damage in ("", "{", "[1]", '{"status": "great"}', '{"status": ["failed"]}', "\x00\xff", "[" * 100_000):
        (tmp_path / "status.json").write_text(damage, encoding="latin-1")
        assert folder.status() == {"status": "pending"}
    folder.append_measurement({"step": 3})
    assert folder.status() == {"status": "interrupted", "message": "its status.json is missing or damaged"}
    write_json(tmp_path / "status.json", {"status": "failed", "attempt": "many", "step": None, "message": {"a": 1}})
    assert folder.status() == {"status": "failed"}
    write_json(tmp_path / "status.json", {"status": "finished", "attempt": 2})
    assert folder.status()["status"] == "pending"  # its result is lost, so it is to be trained again
    assert folder.status()["message"] == "its result.json is missing or damaged"
    assert folder.status()["attempt"] == 2
    folder.set_status("running", attempt=2)
    folder.write_result({"status": "finished"})
    assert folder.status()["status"] == "finished"  # a kill between the two files loses nothing


LIMITED = """
import resource, signal, sys
from pathlib import Path
from neumann.store import RunFolder
from neumann.store.files import NotWritten
folder = RunFolder(Path(sys.argv[1]))
for step in range(3): folder.append_measurement({"step": step})
folder.set_status("running")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))
for write in (lambda: folder.append_measurement({"step": 3, "x": "y" * 100}), lambda: folder.write_result({"status": "finished", "x": "y" * 100})):
    try:
        write()
    except NotWritten as error:
        print(error)
"""


def test_a_write_that_finds_no_room_leaves_what_was_there(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names = ["measurements.jsonl", "result.json"]
    assert done.stdout.splitlines() == [
        f"{tmp_path / name} cannot be written (file too large): what was written before it stands" for name in names
    ]
    folder = RunFolder(tmp_path)
    assert folder.measurements.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n'  # not half a line
    assert {path.name for path in tmp_path.glob("*.*")} == {"measurements.jsonl", "status.json"}
    folder.append_measurement({"step": 3})
    assert [m["step"] for m in folder.read_measurements()] == [0, 1, 2, 3]


@pytest.mark.medium
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
    result = {"status": "finished", "signature": named.signature, "step": 1, "validation": {}}
    folder.write_result(result)
    again = make_spec(["optimizer=sgd"])
    assert again.folder != named.folder
    assert find(again).path == named.folder
    assert finished_result(again) == result
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
