"""Tests of the Slurm worker: the runs that it takes, and its end. Its runs are real; no cluster is needed."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neumann.cli.main import main
from neumann.config import RunSpec, SlurmLaunchConfig, make_specs
from neumann.errors import UserError
from neumann.launch.slurm.folder import JournalReader, JournalWriter, LaunchFolder
from neumann.launch.slurm.worker import _WorkerStart, run_worker
from neumann.search.grid import expand
from neumann.store import find
from neumann.store.files import read_json, write_json
from tests.support import slurm_optimizers
from tests.support.fake_slurm import FakeSlurm

QUICK = ["trainer.max_epochs=2", "batch.size=64", "+model.kwargs.width=8", "logger=none"]


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


def launch(
    *words: str, settings: SlurmLaunchConfig | None = None, place: Path | None = None
) -> tuple[LaunchFolder, list[RunSpec]]:
    """Return a launch as its launcher leaves it; ``place`` gets optimizers that only the launcher could import."""
    dirs = (slurm_optimizers.write(place)[0].removeprefix("--config-dir="),) if place else ()
    specs = make_specs(expand([*QUICK, *words], dirs), dirs)
    folder = LaunchFolder.of(specs)
    folder.make()
    with pytest.MonkeyPatch.context() as patch:
        if place:
            patch.syspath_prepend(str(place))
        folder.write(settings or SlurmLaunchConfig(), specs, 1)
    return folder, specs


def events(folder: LaunchFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.path.glob("journal*")) for line in path.read_text().splitlines()]


def told(folder: LaunchFolder, what: str) -> list[dict[str, Any]]:
    return [event for event in events(folder) if event["what"] == what]


def when(condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    """Call ``act`` in another thread as soon as ``condition`` holds."""

    def watch() -> None:
        deadline = time.monotonic() + 200
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_worker_trains_what_is_left_and_a_second_finds_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    folder, specs = launch(
        "optimizer=sgd", "seed=0,1,2", settings=SlurmLaunchConfig(runs_per_worker=2, cpus_per_task=4)
    )
    held = find(specs[2])
    with held.claim():  # another process trains this one
        assert main(["worker", str(folder.path)]) == 0
        assert "nothing left to train, 2 runs begun" in capfd.readouterr().out
    assert [bool(find(spec).result()) for spec in specs] == [True, True, False]
    record = read_json(find(specs[0]).provenance)
    assert record["attempts"][0]["torch_threads"] == 2  # four cores for two runs
    assert [event["status"] for event in told(folder, "end")] == ["finished", "finished"]
    assert "nothing left" in run_worker(folder)
    assert find(specs[2]).result()  # it is free by now
    assert run_worker(folder) == "nothing left to train"
    assert len(told(folder, "start")) == 3


@pytest.mark.medium
def test_a_run_whose_process_is_gone_is_taken_over_before_its_job_has_been_silent_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, (spec,) = launch("optimizer=sgd")
    other = JournalWriter(folder, "9_0", 1)  # written to just now, so its job seems to live
    other.write("began", gpus=0, host="elsewhere")
    other.write("start", run=spec.signature)
    assert run_worker(folder) == "nothing left to train"  # its process may be about to claim the run
    monkeypatch.setattr("neumann.launch.slurm.worker.CLAIMED_S", 0.0)
    study = spec.folder.parent
    study.mkdir(parents=True, exist_ok=True)
    theirs, another = (study / f".{name}.0abc9def.log" for name in (spec.folder.name, "other-0123456789ab"))
    theirs.write_text("said by the job that was killed", "utf-8")  # on another machine, just now
    another.write_text("said before yesterday", "utf-8")
    os.utime(another, (0, 0))
    with find(spec).claim():
        assert run_worker(folder) == "nothing left to train"
    assert (theirs.exists(), another.exists()) == (True, False)
    assert "1 runs begun" in run_worker(folder)
    assert find(spec).result()
    assert not list(study.glob(".*.log"))
    assert "step 36/36" in (find(spec).path / "output.log").read_text("utf-8")


@pytest.mark.slow
def test_failures_are_tried_twice_and_stop_the_launch_where_they_are_alike(tmp_path: Path) -> None:
    limits = SlurmLaunchConfig(stop_after_failures=3)
    folder, specs = launch("optimizer=mine", "optimizer.ends=raise", "seed=range(0,5)", settings=limits, place=tmp_path)
    os.chdir("/")  # a job may begin anywhere
    why = run_worker(folder, trust=True)
    assert why == "stopped after 3 runs in a row failed alike (launch.stop_after_failures): it broke on purpose"
    assert len({event["run"] for event in told(folder, "start")}) == 3
    assert run_worker(folder, trust=True) == why
    assert len(told(folder, "start")) == 3  # a second worker begins none either
    folder.set_limits(SlurmLaunchConfig(stop_after_failures=None))
    run_worker(folder, trust=True)
    starts = [event["run"] for event in told(folder, "start")]
    assert sorted(starts.count(spec.signature) for spec in specs) == [2] * 5
    assert {event["message"] for event in told(folder, "end")} == {"it broke on purpose"}


def test_what_a_stranger_launched_is_refused_unless_trusted(tmp_path: Path) -> None:
    """Refused as a whole, before a journal calls a run failed, which the launch's own workers would believe."""
    folder, (spec,) = launch("optimizer=mine", place=tmp_path)
    before = [*sys.path]
    with pytest.raises(UserError, match=r"optimizer._target_=.*--trust"):
        run_worker(folder)
    assert sys.path == before  # the launch's import path has a folder with modules of any name
    assert not events(folder)
    assert not find(spec).path.exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["logger=wandb", "logger.mode=online"], r"logger.mode=online .*in your name"),
        (["output=elsewhere"], r"would write to .*elsewhere/default"),
        (["study=other"], None),
    ],
)
def test_a_strangers_launch_neither_feeds_a_server_nor_writes_elsewhere(words: list[str], why: str | None) -> None:
    folder, (spec,) = launch(*words)
    moved = LaunchFolder(Path("runs/.launches/1"))
    moved.path.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder.path, moved.path)
    if why is None:
        moved.refuse_foreign()
        return
    with pytest.raises(UserError, match=f"{why}.*--trust"):
        run_worker(moved)
    assert not spec.folder.exists()


def test_a_launch_whose_record_leads_out_of_its_folder_is_refused() -> None:
    folder, (spec,) = launch()
    (line,) = (folder.path / "runs.jsonl").read_text().splitlines()
    for change in ({"study": "/tmp/out"}, {"study": "runs/../../out"}, {"study": "runs/a/b"}):
        (folder.path / "runs.jsonl").write_text(json.dumps(json.loads(line) | change) + "\n")
        with pytest.raises(UserError, match=r"would write to .*--trust"):
            run_worker(folder)
    assert not spec.folder.exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("launch.json", lambda text: text.replace('"cwd"', '"dwc"')),
        ("launch.json", lambda text: text.replace('"grace": 120', '"grace": "long"')),
        ("launch.json", lambda text: text.replace('"grace"', '"graze"')),
        ("launch.json", lambda text: text.replace('"submission": 1', '"submission": "x"')),
        ("launch.json", lambda text: "[]"),
        ("runs.jsonl", lambda text: "[1]\n"),
        ("runs.jsonl", lambda text: text.replace('"ranks": [', '"ranks": 3, "x": [')),
        ("runs.jsonl", lambda text: text[: len(text) // 2]),
    ],
)
def test_a_damaged_launch_is_a_sentence(name: str, damage: Callable[[str], str]) -> None:
    folder, _ = launch()
    path = folder.path / name
    text = path.read_text()
    assert text != damage(text)
    path.write_text(damage(text))
    with pytest.raises(UserError, match=r"launch.json|is not a list of runs"):
        run_worker(folder)


def test_pipes_and_links_in_a_launch_are_neither_waited_for_nor_followed(tmp_path: Path) -> None:
    folder, _ = launch()
    os.mkfifo(folder.path / "journal-001-x.jsonl")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder.path / "journal-001-me.jsonl").symlink_to(victim)
    JournalWriter(folder, "me", 1).write("began")
    assert victim.read_text() == "mine"
    assert not [entry for entry in JournalReader(folder).read_on() if entry.job == "x"]
    (folder.path / "runs.jsonl").unlink()
    os.mkfifo(folder.path / "runs.jsonl")
    with pytest.raises(UserError, match="is not a list of runs"):
        run_worker(folder)


@pytest.mark.parametrize(("number", "requeues"), [(signal.SIGUSR2, True), (signal.SIGTERM, False)])
@pytest.mark.slow
def test_a_signal_of_slurm_costs_no_step(
    number: int, requeues: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeSlurm
) -> None:
    words = ["optimizer=mine", "optimizer.ends=slow", "trainer.max_epochs=60"]
    folder, (spec,) = launch(*words, settings=SlurmLaunchConfig(grace=60), place=tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_NTASKS", "1")  # Lightning would take the job for its own
    thread = when(lambda: find(spec).read_measurements(), lambda: os.kill(os.getpid(), number))
    if requeues:
        with pytest.raises(SystemExit) as left:
            run_worker(folder, submission=1, trust=True)
        assert left.value.code == 0
    else:
        assert "SIGTERM" in run_worker(folder, submission=1, trust=True)
    thread.join()
    assert os.environ["SLURM_NTASKS"] == "1"
    (end,) = told(folder, "end")
    assert end["status"] == "interrupted"
    assert end["step"] > 0
    assert find(spec).last.exists()
    assert fake.requeued() == ("requeue 12\n" if requeues else "")
    assert told(folder, "left")[0]["requeued"] == requeues
    (tmp_path / "go").touch()
    assert "nothing left" in run_worker(folder, submission=1, trust=True)
    assert find(spec).result()
    assert len(read_json(find(spec).provenance)["attempts"]) == 2


@pytest.mark.medium
def test_gpu_hours_end_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neumann.launch.slurm.worker.HEARTBEAT_S", 0.2)
    limits = SlurmLaunchConfig(gpus_per_node=1, gpu_hours=1000)
    words = ["optimizer=mine", "optimizer.ends=slow", "trainer.max_epochs=60", "seed=0,1"]
    folder, specs = launch(*words, settings=limits, place=tmp_path)
    spent = SlurmLaunchConfig(gpus_per_node=1, gpu_hours=1e-9)
    thread = when(lambda: any(find(spec).read_measurements() for spec in specs), lambda: folder.set_limits(spent))
    why = run_worker(folder, trust=True)
    thread.join()
    assert "launch.gpu_hours=1e-09 allows no more" in why
    assert [event["status"] for event in told(folder, "end")] == ["interrupted"]
    assert len(told(folder, "start")) == 1


@pytest.mark.medium
def test_runs_of_a_worker_share_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neumann.launch.slurm.worker.visible_gpus", lambda: ["3", "5", "6"])
    cases = (("seed=0,1,2,3", 3, [["3"], ["5"], ["6"], ["3"]]), ("seed=4,5,6,7", None, [[], [], [], []]))
    for grid, gpus, expected in cases:
        seen: list[list[str]] = []

        class Started:
            def __init__(self, spec: RunSpec, threads: int, gpus: list[str], seen: list[list[str]] = seen) -> None:
                seen.append(gpus)

        settings = SlurmLaunchConfig(gpus_per_node=gpus, runs_per_worker=4, cpus_per_task=8)
        folder, _ = launch(grid, settings=settings)
        start = _WorkerStart(folder, folder.settings(), JournalWriter(folder, "7", 1), 1)
        monkeypatch.setattr("neumann.launch.slurm.worker.RunProcesses", Started)
        monkeypatch.setattr("neumann.launch.fork_server.ForkServer.is_warm", lambda self: True)
        start._fill(start._state(), [])
        assert seen == expected


def test_a_folder_that_is_none_of_a_launch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder of a launch"):
        run_worker(LaunchFolder(tmp_path))
    folder, _ = launch("seed=0")
    (folder.path / "runs.jsonl").write_text('{"signature": "x"}\n')
    with pytest.raises(UserError, match="is not a list of runs"):
        run_worker(folder)
    assert main(["worker", str(tmp_path)]) == 2
    assert main(["worker"]) == 2


def test_a_place_that_is_not_here_is_no_place_to_train() -> None:
    folder, _ = launch("seed=0")
    settings = folder.settings()
    write_json(folder.path / "launch.json", {**settings, "cwd": "/not/here"})
    with pytest.raises(UserError, match="the launch was asked for in /not/here, which cannot be entered here"):
        run_worker(folder)


def test_a_journal_that_is_cut_short_is_read_on_later() -> None:
    folder, _ = launch("seed=0")
    from neumann.launch.slurm.folder import JournalReader

    path = folder.path / "journal-001-7_0.jsonl"
    path.write_text('{"what": "began", "at": 1}\nnot json\n{"what": "sta')
    journals = JournalReader(folder)
    assert [event.what for event in journals.read_on()] == ["began"]
    with open(path, "a") as file:
        file.write('rt", "at": 2, "run": "a"}\n')
    assert [(event.what, event.job, event.said) for event in journals.read_on()] == [("start", "7_0", {"run": "a"})]
    assert journals.read_on() == []
    assert len(journals.entries) == 2
