"""Odd values, missing parts and vanished folders end in a sentence, not in a traceback or a wrong reason."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from neumann.cli.main import main as cli
from neumann.config import make_spec
from neumann.errors import UserError
from neumann.launch.run_logs import LEFT, STALE_S, file_stale_logs, new_log
from neumann.processes.ranks import RankPlace
from neumann.store import RunFolder, find
from neumann.store.claim import Lost
from neumann.store.files import write_json
from neumann.training.checkpoints import decode, encode
from neumann.training.run import run
from tests.support.forged_leases import forge
from tests.support.launching import QUICK

SCORE = {"loss": 0.1, "error": 0.02, "wrong": 6, "n": 300}
RESULT = {
    "status": "finished",
    "signature": "0" * 12,
    "step": 36,
    "validation": {"held": SCORE},
    "test": {"held": SCORE},
}
ODD: list[dict[str, Any]] = [
    {"step": "x"}, {"step": None}, {"step": True}, {"examples": []}, {"train_seconds": "long"}, {"validation": [1]},
    {"validation": {"held": 3}}, {"validation": {"held": {"error": "small"}}}, {"test": {"held": {"error": 10**400}}},
    {"validation": {"held": {**SCORE, "n": {}}}}, {"eval_weights": 7}, {"epoch": 10**400}, {"attempts": 1.5},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_a_result_with_a_value_that_no_run_writes_counts_as_damaged(
    odd: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(Path(f"runs/default/odd-{'0' * 12}"))
    folder.path.mkdir(parents=True)
    write_json(folder.path / "result.json", RESULT)
    assert folder.result() == RESULT
    text = json.dumps(RESULT | odd)
    (folder.path / "result.json").write_text(text)
    assert folder.result() is None
    assert cli(["runs"]) == 0
    assert cli(["runs", "show", "odd"]) == 0
    assert "Traceback" not in capsys.readouterr().err
    folder.write_result(RESULT)
    assert (folder.path / "result.json.damaged").read_text() == text  # never overwritten


@pytest.mark.parametrize(
    "provenance", ["[]", '{"attempts": 3}', '{"attempts": [1, null, {"step": "x", "code": 7, "git": "g"}]}', "nan"]
)
def test_an_odd_provenance_is_read_as_far_as_it_is_one(provenance: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(Path(f"runs/default/odd-{'0' * 12}"))
    folder.path.mkdir(parents=True)
    write_json(folder.path / "result.json", RESULT)
    folder.provenance.write_text(provenance)
    assert all(isinstance(attempt, dict) for attempt in folder.attempts())
    assert cli(["runs", "show", "odd"]) == 0


def test_an_odd_measurement_is_shown_as_far_as_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(Path(f"runs/default/odd-{'0' * 12}"))
    folder.path.mkdir(parents=True)
    scores = {"held": {"error": 10**400}, "base": 3}
    folder.measurements.write_text(json.dumps({"step": 3, "epoch": 10**400, "lr": 1e309, "validation": scores}))
    assert cli(["runs"]) == 0
    assert cli(["runs", "show", "odd"]) == 0


@pytest.mark.medium
def test_a_checkpoint_that_lacks_a_part_is_damaged_and_one_that_does_not_fit_is_a_sentence() -> None:
    words = ["optimizer=sgd", *QUICK, "checkpoint=last"]
    assert cli(["train", *words]) == 0
    folder = find(make_spec(words))
    first = folder.result()
    state = decode(io.BytesIO(folder.last.read_bytes()))
    (folder.path / "result.json").unlink()
    folder.last.write_bytes(encode({key: value for key, value in state.items() if key not in ("census", "rng")}))
    with pytest.warns(UserWarning, match="it lacks rng, census, or has another|it lacks census, rng, or has another"):
        assert cli(["train", *words]) == 0
    assert first is not None
    assert folder.result()["test"] == first["test"]  # type: ignore[index]
    (folder.path / "result.json").unlink()
    folder.last.write_bytes(encode({**state, "progress": {**state["progress"], "step": 18}, "optimizer_states": [{}]}))
    with pytest.raises(UserError, match="the checkpoint, although undamaged, does not fit this run"):
        run(make_spec(words))


@pytest.mark.medium
def test_a_folder_that_is_renamed_in_mid_run_is_not_said_to_be_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(["optimizer=sgd", *QUICK])
    folder = find(spec)
    real = RunFolder.append_measurement

    def rename(self: RunFolder, measurement: Any) -> None:
        if folder.path.exists():
            folder.path.rename("elsewhere")
        real(self, measurement)

    monkeypatch.setattr(RunFolder, "append_measurement", rename)
    with (
        warnings.catch_warnings(),
        pytest.raises(Lost, match=r"was removed or renamed while its run was being trained"),
    ):
        run(spec)
    assert not folder.path.exists()
    shutil.rmtree("elsewhere")


@pytest.mark.medium
def test_a_run_that_kept_no_weights_says_so_where_they_are_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optimizer=sgd", *QUICK]
    assert cli(["train", *words, "checkpoint=none"]) == 0
    assert cli(["train", *words, "checkpoint=none"]) == 0
    assert capsys.readouterr().err == ""
    for many in ([], ["-m"]):
        assert cli(["train", *many, *words]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert "has no eval-weights.pt: what is kept was decided when the run was trained; study=NEW trains" in said
    assert cli(["train", *words, "study=again"]) == 0
    assert cli(["train", *words, "study=again"]) == 0
    assert capsys.readouterr().err == ""


def test_logs_of_killed_launchers_are_filed() -> None:
    study = Path("runs/default")
    study.mkdir(parents=True)
    kinds = ("left", "logged", "older", "gone", "held", "new", "over", "over_held")
    names = {kind: f"{kind}-{i:012x}" for i, kind in enumerate(kinds)}
    logs = {kind: study / f".{name}.{'123' if kind == 'left' else '0abc9def'}.log" for kind, name in names.items()}
    for kind, log in logs.items():
        log.write_text(f"said by {kind}", "utf-8")
        if kind not in ("new", "over", "over_held"):
            os.utime(log, (time.time() - 2 * STALE_S,) * 2)
        if kind != "gone":
            (study / names[kind]).mkdir()
    for kind in ("logged", "older"):
        (study / names[kind] / "output.log").write_text("of another attempt", "utf-8")
    os.utime(study / names["older"] / "output.log", (0, 0))
    for kind in ("over", "over_held"):
        write_json(study / names[kind] / "result.json", {"status": "finished", "signature": names[kind][-12:]})
    for kind in ("held", "over_held"):
        forge(study / names[kind])
    (study / ".notes.log").write_text("the user's", "utf-8")
    os.utime(study / ".notes.log", (0, 0))
    file_stale_logs(study, names["gone"][-12:])
    assert [kind for kind, log in logs.items() if not log.exists()] == ["gone"]
    file_stale_logs(study)
    assert {kind for kind, log in logs.items() if log.exists()} == {"held", "new", "over_held"}
    assert (study / ".notes.log").exists()
    said = {
        kind: (study / names[kind] / "output.log").read_text("utf-8") for kind in ("left", "logged", "older", "over")
    }
    assert said == {
        "left": "said by left",
        "logged": "of another attempt",
        "older": "said by older",
        "over": "said by over",
    }


def test_processes_of_two_machines_with_one_id_have_logs_of_their_own() -> None:
    study = Path("runs/default")
    study.mkdir(parents=True)
    theirs = new_log(study / "a-0123456789ab")
    theirs.write_text("said by theirs", "utf-8")
    assert new_log(study / "a-0123456789ab") != theirs
    assert theirs.read_text("utf-8") == "said by theirs"
    assert all(LEFT.fullmatch(path.name) for path in study.iterdir())


def test_an_interactive_shell_of_srun_gets_its_own_reason() -> None:
    shell = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
    place = RankPlace.from_environment(shell)
    assert place is not None
    with pytest.raises(UserError, match=r"SLURM_STEP_NUM_TASKS=4 .*env -u SLURM_STEP_NUM_TASKS neumann"):
        place.check(make_spec())
    assert RankPlace.from_environment(shell | {"SLURM_STEP_NUM_TASKS": "four"}) is None


def test_an_unreadable_parent_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.stat

    def stat(path: Any, *given: Any, **more: Any) -> os.stat_result:  # root, as in a container, may read everything
        if str(path).startswith("locked/"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *given, **more)

    monkeypatch.setattr(os, "stat", stat)
    assert cli(["runs", "output=locked/runs"]) == 2
    assert "locked/runs cannot be read: permission denied" in capsys.readouterr().err
    assert cli(["runs", "show", "locked/runs"]) == 2
    assert "locked/runs cannot be read: permission denied" in capsys.readouterr().err
