"""The dialogue of a run with its files: found or begun, in a fixed order of writes, and recorded however it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from neumann.cli.main import main
from neumann.config import RunSpec, make_spec
from neumann.errors import UserError
from neumann.store import RunFolder, find, finished_result
from neumann.store.claim import Claimed, Lost
from neumann.store.files import NotWritten, read_json, write_json
from neumann.store.session import Follower, Measurement, Session, session
from tests.support.forged_leases import forge, leases

FORMAT = 4
HARDWARE = {"device": "cpu", "ranks": [{"host": "here", "device": "cpu"}], "torch_threads": 1, "cuda": None}
RESULT = {"status": "finished", "step": 36, "validation": {}}


def decode(file: BinaryIO) -> Any:
    return json.loads(file.read())  # raises ValueError where it is damaged, as the real one does


def opened(spec: RunSpec) -> Any:
    return session(spec, decode, FORMAT)


def state(spec: RunSpec, step: int, measurements: Sequence[Measurement] = ()) -> bytes:
    known = {"format": FORMAT, "signature": spec.signature, "global_step": step, "measurements": list(measurements)}
    return json.dumps(known).encode()


def nothing() -> None:
    pass


def spec_of(*words: str) -> RunSpec:
    return make_spec(["optimizer=sgd", "logger=none", *words])


def train(spec: RunSpec, *steps: int, end: Callable[[Session], None] = lambda held: None) -> None:
    """Train an attempt as far as ``steps``, each with a measurement and a checkpoint; then ``end`` it."""
    with opened(spec) as held:
        held.begin(HARDWARE)
        with held.training(0, nothing):
            for step in steps:
                held.measured({"step": step})
                held.checkpoint(state(spec, step, held.measurements))
            end(held)


def times(folder: RunFolder) -> dict[str, int]:
    """Return when each file but the leases was changed."""
    return {path.name: path.stat().st_mtime_ns for path in folder.path.glob("[!.]*")}


def test_a_run_is_begun_goes_on_and_is_found_when_it_is_over() -> None:
    spec = spec_of("checkpoint=eval_weights")
    train(spec, 18, end=lambda held: held.interrupted(20))
    folder = find(spec)
    assert folder.path == spec.folder
    assert folder.status() | {"time": 0, "pid": 0, "host": ""} == {
        "status": "interrupted", "attempt": 1, "step": 20, "time": 0, "pid": 0, "host": "",
    }  # fmt: skip
    folder.append_measurement({"step": 27})  # after the checkpoint, so it will be measured again
    (folder.path / ".last.ckpt.0123.tmp").write_bytes(b"half")
    with opened(spec) as held:
        assert held.result is None
        assert held.state == json.loads(state(spec, 18, [{"step": 18}]))
        held.begin(HARDWARE)
        assert (held.attempt, held.measurements) == (2, [{"step": 18}])
        assert not list(folder.path.glob(".*.tmp"))
        assert [record["attempt"] for record in folder.attempts()] == [1, 2]
        assert folder.attempts()[-1] == json.loads(json.dumps(held.record))
        assert held.record["device"] == "cpu"
        with held.training(18, nothing):
            assert (folder.status()["status"], folder.status()["step"]) == ("running", 18)
            held.measured({"step": 36})
            held.checkpoint(state(spec, 36))
            assert (folder.path / "previous.ckpt").read_bytes() == state(spec, 18, [{"step": 18}])
            written = held.finish({**RESULT, "signature": spec.signature}, b"weights")
        assert written["eval_weights"] == "eval-weights.pt"
    assert folder.eval_weights.read_bytes() == b"weights"
    assert folder.result() == written
    assert folder.status()["status"] == "finished"
    assert {path.name for path in folder.path.glob("*.ckpt")} == set()
    assert [m["step"] for m in folder.read_measurements()] == [18, 36]
    before = times(folder)
    with opened(spec) as held:
        assert held.result == written
    assert times(folder) == before


@pytest.mark.parametrize(("keep", "left"), [("last", {"last.ckpt"}), ("eval_weights", set()), ("none", set())])
def test_the_checkpoint_that_a_finished_run_keeps_is_a_setting(keep: str, left: set[str]) -> None:
    spec = spec_of(f"checkpoint={keep}")
    train(spec, 18, 36, end=lambda held: held.finish(RESULT, None) and None)
    assert {path.name for path in find(spec).path.glob("*.ckpt")} == left


def finished(spec: RunSpec) -> RunFolder:
    train(spec, 18, 36, end=lambda held: held.finish({**RESULT, "signature": spec.signature}, None) and None)
    return find(spec)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"step": 36', '"step": 18'),
        ('"finished"', '"diverged"'),
        ('"validation": {}', '"validation": {"held": {"error": 0.01}}'),
        ('"validation"', '"note": "mine", "validation"'),
    ],
)
def test_a_result_that_was_edited_is_refused_and_kept(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_of()
    folder = finished(spec)
    assert finished_result(spec) == folder.result()
    assert "message" not in folder.status()
    edit(folder.path / "result.json", old, new)
    with pytest.raises(UserError, match=r"result.json is not what the run wrote: put back .*, or move it away"):
        finished_result(spec)
    assert folder.status()["message"] == "result.json is not what the run wrote"
    assert main(["runs", f"output={folder.path.parent.parent}"]) == 0
    assert f"{folder.path.name}: result.json is not what the run wrote, and train and report" in capsys.readouterr().out
    assert new in (folder.path / "result.json").read_text()


@pytest.mark.parametrize("gone", [["digest"], ["digest", "measurements_digest", "steps_digest"]])
def test_a_result_whose_digests_were_taken_away_is_refused(gone: list[str]) -> None:
    spec = spec_of()
    folder = finished(spec)
    result = folder.result()
    assert result is not None
    assert "code" in result
    write_json(folder.path / "result.json", {key: value for key, value in result.items() if key not in gone})
    with pytest.raises(UserError, match=r"result.json is not what the run wrote"):
        finished_result(spec)


@pytest.mark.parametrize(
    "lines", [["18"], ["36", "18"], ["18", "18", "36"], ["18", "37"], [], ["18", "x", "36"]], ids=" ".join
)
def test_a_finished_curve_that_was_edited_is_refused(lines: list[str]) -> None:
    folder = finished(spec_of())
    result = folder.result()
    assert result is not None
    assert folder.curve(result) == [{"step": 18}, {"step": 36}]
    folder.measurements.write_text("".join(f'{{"step": {line}}}\n' for line in lines))
    with pytest.raises(UserError, match=r"measurements.jsonl is not what the run measured"):
        folder.curve(result)


def test_a_curve_that_was_edited_while_the_run_went_on_is_written_again() -> None:
    spec = spec_of()

    def end(held: Session) -> None:
        edit(find(spec).measurements, "18", "19")
        held.finish({**RESULT, "signature": spec.signature}, None)

    with pytest.warns(UserWarning, match=r"measurements.jsonl is not what was measured, and is written again"):
        train(spec, 18, 36, end=end)
    result = find(spec).result()
    assert result is not None
    assert find(spec).curve(result) == [{"step": 18}, {"step": 36}]


def attempts_of(spec: RunSpec, *changes: tuple[str, str]) -> list[dict[str, Any]]:
    """Interrupt a run, make ``changes`` to provenance.json (none: remove it), go on, and return its attempts."""

    def stop(held: Session) -> None:
        known = {"format": FORMAT, "signature": spec.signature, "global_step": 18}
        held.checkpoint(json.dumps({**known, "measurements": held.measurements, "attempts": held.attempts}).encode())
        held.interrupted(18)

    train(spec, 18, end=stop)
    folder = find(spec)
    for old, new in changes:
        edit(folder.provenance, old, new)
    if not changes:
        folder.provenance.unlink()
    train(spec)
    return folder.attempts()


@pytest.mark.parametrize("changes", [[], [('"neumann": "', '"neumann": "0')], [('"attempt": 1', '"attempt": 7')]])
def test_a_checkpoint_vouches_for_the_attempts_that_led_to_it(changes: list[tuple[str, str]]) -> None:
    with pytest.warns(UserWarning, match=r"provenance.json does not record the attempts that led to the checkpoint"):
        first, second = attempts_of(spec_of(), *changes)
    assert (first["attempt"], second["attempt"], second["step"]) == (1, 2, 18)
    assert first["code"] == second["code"]


@pytest.mark.parametrize(
    ("status", "recorded", "number"),
    [
        (None, None, 1),
        (2, None, 3),  # provenance.json is lost
        (None, [1, 2], 3),  # status.json is lost
        (None, [3], 4),  # and the first records
        (5, [1, 2], 6),
        (1, [1, 2], 3),
        (None, [None, None], 3),  # records without a number count too
    ],
)
def test_no_attempt_takes_the_number_of_another(
    status: int | None, recorded: list[int | None] | None, number: int
) -> None:
    spec = spec_of("checkpoint=none")
    train(spec)
    folder = find(spec)
    for path, content in (
        (folder.path / "status.json", {"status": "interrupted", "attempt": status} if status else None),
        (folder.provenance, {"attempts": [{"attempt": one} for one in recorded]} if recorded else None),
    ):
        path.unlink()
        if content:
            write_json(path, content)
    train(spec)
    assert folder.status()["attempt"] == folder.attempts()[-1]["attempt"] == number


def test_a_run_that_goes_on_with_another_library_or_device_says_so() -> None:
    spec = spec_of()
    train(spec, 18)
    attempts = find(spec).attempts()
    attempts[0]["code"]["torch"] = "1.0"
    attempts[0]["device"] = "A GPU"
    write_json(find(spec).provenance, {"attempts": attempts})
    with (
        pytest.warns(UserWarning, match="torch has changed since the first 18 steps of the run were trained"),
        pytest.warns(
            UserWarning, match="the first 18 steps of the run were trained on A GPU, and it goes on .* on cpu"
        ),
    ):
        train(spec, end=lambda held: held.finish({**RESULT, "signature": spec.signature}, None) and None)
    result = find(spec).result()
    assert result is not None
    assert len(result["code"]) == 2


def test_without_checkpoints_a_run_begins_again() -> None:
    spec = spec_of("checkpoint=none")
    train(spec, 18)
    with opened(spec) as held:
        assert held.state is None


def test_a_kill_before_the_result_leaves_all_that_is_needed_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()

    def killed(self: RunFolder, result: object) -> None:
        raise SystemExit

    monkeypatch.setattr(RunFolder, "write_result", killed)
    with pytest.raises(SystemExit):
        train(spec, 18, 36, end=lambda held: held.finish(RESULT, b"weights") and None)
    assert find(spec).eval_weights.exists()
    with opened(spec) as held:
        assert held.result is None
        assert held.state is not None
        assert held.state["global_step"] == 36


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [UserError("refused"), KeyboardInterrupt()], ids=["refused", "Ctrl-C"])
@pytest.mark.parametrize("when", ["found", "begun"])
def test_a_new_run_that_does_not_train_leaves_nothing(error: BaseException, when: str) -> None:
    spec = spec_of()

    def refused() -> None:
        with opened(spec) as held:
            if when == "begun":
                held.begin(HARDWARE)
            raise error

    with pytest.raises(type(error)):
        refused()
    assert not Path("runs").exists()
    Path("runs", "default").mkdir(parents=True)  # the user's own, although empty
    with pytest.raises(type(error)):
        refused()
    assert list(Path("runs").rglob("*")) == [Path("runs", "default")]


def test_a_run_that_was_there_before_stays() -> None:
    spec = spec_of()
    train(spec, 18, end=lambda held: held.failed(19, "it broke", "Traceback", None))
    with pytest.raises(UserError), opened(spec) as held:
        fail(UserError("refused"))
    assert (find(spec).status()["status"], find(spec).status()["attempt"]) == ("failed", 1)
    with pytest.raises(KeyboardInterrupt), opened(spec) as held:
        fail(KeyboardInterrupt())
    assert (find(spec).status()["status"], find(spec).status()["attempt"]) == ("interrupted", 1)
    assert find(spec).last.read_bytes() == state(spec, 18, [{"step": 18}])
    with opened(spec) as held:
        assert held.state is not None


def test_what_breaks_before_training_is_recorded() -> None:
    spec = spec_of()
    with pytest.raises(RuntimeError) as caught, opened(spec):
        fail(RuntimeError("out of memory\nand more"))
    folder = find(spec)
    assert (folder.status()["status"], folder.status()["message"]) == ("failed", "out of memory")
    assert "RuntimeError: out of memory" in folder.error.read_text()
    assert caught.value.__notes__ == [f"traceback in {folder.error}"]
    train(spec, 18)
    assert not folder.error.exists()


def test_another_process_may_not_open_it() -> None:
    spec = spec_of()
    with opened(spec), pytest.raises(Claimed), opened(spec):
        pass
    assert not find(spec).held()


@pytest.mark.parametrize("change", [{"format": FORMAT - 1}, {"signature": "0" * 12}])
def test_another_runs_checkpoint_is_refused_and_kept(change: dict[str, Any]) -> None:
    spec = spec_of()
    train(spec, 18)
    other = json.dumps(json.loads(state(spec, 18)) | change).encode()
    find(spec).last.write_bytes(other)
    with pytest.raises(UserError, match=r"last.ckpt is not a checkpoint of this run: move it away"), opened(spec):
        pass
    assert find(spec).last.read_bytes() == other


def test_a_damaged_checkpoint_is_left_aside_for_the_one_before() -> None:
    spec = spec_of()
    train(spec, 18, 36)
    folder = find(spec)
    folder.last.write_bytes(b"{")
    with pytest.warns(UserWarning, match="the run goes on from the one before"), opened(spec) as held:
        found = held.state
    assert found is not None
    assert found["global_step"] == 18
    assert (folder.path / "last.damaged").read_bytes() == b"{"
    (folder.path / "previous.ckpt").write_bytes(b"{")
    with pytest.warns(UserWarning, match="the run begins again"), opened(spec) as held:
        assert held.state is None


WRITES: dict[str, Callable[[Session], object]] = {
    "begin": lambda held: held.begin(HARDWARE),
    "measured": lambda held: held.measured({"step": 2}),
    "checkpoint": lambda held: held.checkpoint(b"{}"),
    "finish": lambda held: held.finish(RESULT, b"weights"),
    "finish without weights": lambda held: held.finish(RESULT, None),
    "interrupted": lambda held: held.interrupted(2),
    "failed": lambda held: held.failed(2, "it broke", "Traceback"),
}


@pytest.mark.medium
@pytest.mark.parametrize("what", WRITES)
def test_a_session_that_was_taken_over_writes_nothing_more(what: str) -> None:
    spec = spec_of()
    with opened(spec) as held:
        held.begin(HARDWARE)
        with held.training(0, nothing):
            held.measured({"step": 1})
            held.checkpoint(state(spec, 1))
            forge(held.path, number=leases(held.path)[-1] + 1)
            before = {path: path.read_bytes() for path in held.path.iterdir()}
            with pytest.raises(Lost, match="was taken over by another process while this one was cut off"):
                WRITES[what](held)
    assert {path: path.read_bytes() for path in spec.folder.iterdir()} == before


def test_training_hears_of_a_takeover(monkeypatch: pytest.MonkeyPatch) -> None:
    from neumann.store import claim
    from tests.support.launching import wait_for

    monkeypatch.setattr(claim, "HEARTBEAT_S", 0.02)
    heard: list[str] = []
    with opened(spec_of()) as held:
        held.begin(HARDWARE)
        with held.training(0, lambda: heard.append("lost")):
            forge(held.path, number=leases(held.path)[-1] + 1)
            wait_for(lambda: heard, 10)
    assert heard == ["lost"]


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()
    with opened(spec) as held:
        held.begin(HARDWARE)
        monkeypatch.setattr("os.fsync", lambda handle: fail(OSError(28, "No space left on device")))
        with pytest.raises(NotWritten, match=r"last.ckpt cannot be written \(no space left on device\)"):
            held.checkpoint(state(spec, 1))
        monkeypatch.undo()


def test_of_several_ranks_the_first_error_is_recorded(tmp_path: Path) -> None:
    spec = spec_of()
    with opened(spec) as held:
        held.begin(HARDWARE)
        other = held.follower()
        assert isinstance(other, Follower)
        assert (other.path, other.attempt, other.measurements) == (held.path, 1, [])
        with held.training(0, nothing), other.training(0, nothing):
            before = {path: path.read_bytes() for path in held.path.iterdir()}
            other.measured({"step": 1})
            other.checkpoint(b"{}")
            other.interrupted(1)
            assert other.finish(RESULT, None) == RESULT
            assert {path: path.read_bytes() for path in held.path.iterdir()} == before
            other.failed(1, "it broke", "Traceback of rank 1", rank=1)
            held.failed(1, "connection closed", "Traceback of rank 0", rank=0)
    folder = find(spec)
    assert folder.error.read_text() == "rank 1: it broke\n\nTraceback of rank 1"
    assert folder.status()["message"] == "rank 1: it broke"
    assert read_json(folder.path / "status.json")["status"] == "failed"
