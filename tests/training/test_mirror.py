"""Tests of W&B through the real client, offline: the file that `wandb sync` would upload, for every ending of a run."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import wandb

from neumann.cli.main import main
from neumann.config import make_spec
from neumann.errors import Interrupted, UserError
from neumann.store import confusion, find
from neumann.store.steps import read_lines
from neumann.store.vouching import with_curve
from neumann.training.mirror import replay
from neumann.training.stopping import Stop
from tests.support.offline_wandb import read_offline
from tests.support.quick_runs import Train, quick


def shown(run: dict[str, Any]) -> dict[str, Any]:
    """Return what a user sees of a run, without the client's own clocks and its random addresses of a table."""

    def plain(row: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in row.items() if not (k.startswith("_") or k.endswith("artifact_path"))}

    return {
        **run,
        "history": [plain(row) for row in run["history"]],
        **{k: plain(run[k]) for k in ("summary", "config")},
    }


@pytest.mark.medium
def test_a_finished_run_is_whole_on_the_mirror_and_replayed_as_it_was(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789012345678901234567890123456789")
    norms = ("trainer.track_grad_norm=true", "trainer.track_update_norm=true")
    words = ("optimizer=neumann", "study=table4", "seed=2", "trainer.log_every_n_steps=10", *norms)
    result, folder = train("logger=wandb", *words)
    (run,) = read_offline(folder)
    signature = result["signature"]
    assert (run["id"], run["group"], run["job_type"]) == (f"{signature}-1", "table4", "train")
    assert (run["name"], run["project"]) == ("digits-small_cnn-neumann-s2", "neumann")
    assert run["exit"] == 0
    assert run["config"]["optimizer"]["alpha"] == 1e-7
    assert run["config"]["signature"] == signature
    assert run["config"]["provenance"]["packages"]["torch"]
    assert run["metrics"]["*"] == "step"
    assert run["metrics"]["by_examples/*"] == "examples"
    evaluated = [row for row in run["history"] if "validation/base/error" in row]
    assert [row["step"] for row in evaluated] == [18, 36]
    assert [row["examples"] for row in evaluated] == [18 * 64, 36 * 64]
    for row, measurement in zip(evaluated, folder.read_measurements(), strict=True):
        for point in ("held", "base", "average"):
            assert row[f"validation/{point}/error"] == measurement["validation"][point]["error"]
            assert row[f"by_examples/validation/{point}/loss"] == measurement["validation"][point]["loss"]
    stepped = [row for row in run["history"] if "train/loss" in row]
    assert [row["step"] for row in stepped] == [10, 20, 30, 36]
    for row, line in zip(stepped, read_lines(folder.path, result), strict=True):
        for key in ("lr", "momentum", "examples_per_second", "grad_norm", "update_norm"):
            assert row[f"train/{key}"] == line[key]
        assert row["train/loss"] == line["train_loss"]
    assert run["config"]["command"].startswith("neumann train ")
    words = shlex.split(run["config"]["command"])[2:]
    assert make_spec(words).signature == signature
    assert run["summary"]["final/test/base/error"] == result["test"]["base"]["error"]
    assert run["summary"]["final/test/base/n"] == 300
    assert run["summary"]["objective"] == result["validation"]["base"]["error"]
    assert run["summary"]["status"] == "finished"
    for path in folder.path.rglob("*"):  # no secret in any file
        assert path.is_dir() or b"0123456789012345678901234567890123456789" not in path.read_bytes()
    (confused,) = [row for row in run["history"] if any(key.startswith("test/confusion") for key in row)]
    assert (confused["step"], confused["examples"]) == (36, 36 * 64)
    (table,) = folder.path.glob("wandb/offline-run-*/files/media/table/test/confusion*.table.json")
    counts = {(actual, answer): images for actual, answer, images in json.loads(table.read_text())["data"] if images}
    pairs = confusion.read(folder.path, result)
    assert pairs is not None
    assert counts == {(str(actual), str(answer)): images for actual, answer, images in pairs.tolist()}
    assert main(["runs", "mirror", str(folder.path), "--to", "wandb"]) == 0
    said = capsys.readouterr().out
    assert f"W&B run {signature}-1 of project neumann, offline" in said
    assert "it was mirrored before (offline-run-" in said
    runs = read_offline(folder)
    assert [shown(one) for one in runs] == [shown(run)] * 2
    folders = [str(path) for path in folder.path.glob("wandb/offline-run-*")]
    assert sum(path in said for path in folders) == 1


def test_edited_measurements_are_not_replayed() -> None:
    spec = make_spec(["logger=wandb"])
    folder = find(spec)
    folder.path.mkdir(parents=True)
    measured = [{"step": 18}, {"step": 36}]
    result = with_curve({"status": "finished", "attempts": 1}, measured)
    folder.measurements.write_text("".join(f"{json.dumps(one)}\n" for one in measured[:1]))
    with pytest.raises(UserError, match=r"measurements.jsonl is not what the run measured"):
        replay(spec, folder, result)


@pytest.mark.medium
def test_no_process_is_forked_while_the_service_starts(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker forked between a program's pipe and its start held the pipe, and the run waited for its own worker."""
    order: list[str] = []
    started, forked = threading.Event(), threading.Event()
    original = subprocess.Popen.__init__

    def slow_start(self: Any, args: Any, **options: Any) -> None:
        service = "--port-filename" in args
        if service:
            started.set()
            forked.wait(1)  # a fork that is let through comes within this second
        original(self, args, **options)
        order.extend(["service"] * service)

    def fork() -> None:
        started.wait(60)
        if (child := os.fork()) == 0:
            os._exit(0)
        order.append("fork")
        forked.set()
        os.waitpid(child, 0)

    monkeypatch.setattr(subprocess.Popen, "__init__", slow_start)
    wandb.teardown()  # the service of tests before this one
    thread = threading.Thread(target=fork)
    thread.start()
    train("logger=wandb")
    thread.join()
    assert order == ["service", "fork"]


@pytest.mark.medium
def test_every_way_out_finishes_the_mirror(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Stop.on_train_batch_end

    def stop_once(self: Stop, *words: Any) -> None:
        if words[-1] == 20:
            monkeypatch.setattr(Stop, "on_train_batch_end", original)
            signal.raise_signal(signal.SIGINT)
        original(self, *words)

    monkeypatch.setattr(Stop, "on_train_batch_end", stop_once)
    with pytest.raises(Interrupted):
        train("logger=wandb", "optimizer=sgd")
    folder = find(quick("logger=wandb", "optimizer=sgd"))
    (first,) = read_offline(folder)
    assert first["exit"] == 130
    assert first["summary"]["status"] == "interrupted"
    result, _ = train("logger=wandb", "optimizer=sgd")
    _, second = sorted(read_offline(folder), key=lambda run: run["id"])
    assert second["id"] == f"{result['signature']}-2"
    rows = [(row["step"], "train/loss" in row) for row in second["history"]]
    # replayed, then gone on: whole by itself; a line comes before the evaluation, and the confusion matrix last. The
    # losses are the evaluations', which are closer together than the lines
    assert rows == [(18, True), (36, False), (36, True), (36, False)]
    assert second["exit"] == 0


@pytest.mark.medium
def test_a_failure_finishes_the_mirror_too(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(self: Stop, *words: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Stop, "on_train_batch_end", breaks)
    with pytest.raises(RuntimeError, match="broken"):
        train("logger=wandb", "optimizer=sgd")
    (run,) = read_offline(find(quick("logger=wandb", "optimizer=sgd")))
    assert run["exit"] == 1
    assert run["summary"]["status"] == "failed"


@pytest.mark.medium
def test_a_client_that_cannot_start_costs_a_warning_and_no_run(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**settings: Any) -> None:
        raise wandb.Error("no room")

    monkeypatch.setattr(wandb, "init", refuse)
    words = ["logger=wandb", "optimizer=sgd"]
    with pytest.warns(UserWarning, match="is not mirrored"):
        result, _ = train(*words, "trainer.max_epochs=1")
    assert result["status"] == "finished"

    def stop(self: Stop, *words: Any) -> None:
        self.request(signal.SIGINT)
        original(self, *words)

    original = Stop.on_train_batch_end
    monkeypatch.setattr(Stop, "on_train_batch_end", stop)
    with pytest.raises(Interrupted), pytest.warns(UserWarning, match="is not mirrored"):
        train(*words, "trainer.max_epochs=3")


@pytest.mark.medium
def test_the_surroundings_do_not_change_what_is_mirrored(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    extra = tmp_path / "extra.yaml"
    extra.write_text("wandb_version: 1\noptimizer:\n  value: another\n", encoding="utf-8")
    given = {"RUN_ID": "abc", "PROJECT": "theirs", "NAME": "theirs", "RUN_GROUP": "theirs", "JOB_TYPE": "theirs"}
    given |= {"TAGS": "theirs", "RESUME": "must", "FORK_FROM": "abc?_step=3", "CONFIG_PATHS": str(extra)}
    given |= {"MODE": "foo", "DIR": "/nowhere", "IGNORE_GLOBS": "*"}
    for name, value in given.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    result, folder = train("logger=wandb", "optimizer=sgd", "trainer.max_epochs=1", "study=ours")
    (run,) = read_offline(folder)
    assert (run["id"], run["group"], run["job_type"]) == (f"{result['signature']}-1", "ours", "train")
    assert (run["name"], run["project"]) == (folder.path.name.rpartition("-")[0], "neumann")
    assert run["config"]["optimizer"]["momentum"] == 0.9
    assert run["exit"] == 0


@pytest.mark.medium
def test_no_mirror_writes_none(train: Train) -> None:
    _, folder = train("logger=none", "optimizer=sgd", "trainer.max_epochs=1")
    assert not (folder.path / "wandb").exists()
    assert not Path("wandb").exists()


def test_online_without_a_network_is_told_before_training(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "neumann.training.wandb_run.why_unreachable", lambda address: f"{address} cannot be reached: no route"
    )
    monkeypatch.setattr(wandb, "login", None)  # it would try for a minute
    with pytest.raises(
        UserError, match=r"^logger.mode=online: W&B cannot log in \(https://.* cannot be reached: no route\)"
    ):
        train("logger=wandb", "logger.mode=online")
    assert not Path("runs").exists()
