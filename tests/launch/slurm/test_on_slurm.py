"""Launches on a real Slurm on this machine: workers, time limits, requeues, lost jobs, failures, and ranks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from neumann.store import RunFolder
from neumann.store.files import read_json
from tests.support import slurm_cluster as slurm
from tests.support import slurm_optimizers

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

QUICK = ["batch.size=64", "+model.kwargs.width=8", "logger=none"]
JOBS = ["launch=slurm", "launch.time=20", "launch.grace=50"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    why = slurm.missing()
    if why:
        pytest.skip(why)
    place = tmp_path_factory.mktemp("slurm")
    more = {"NEUMANN_CACHE": str(place / "cache"), "PYTHONPATH": ""}
    with slurm.running(place / "cluster", more) as one:
        yield one


def _hear_ctrl_c() -> None:
    """Let Ctrl-C through, which a shell blocks for tests that it has started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Head:
    """`neumann train -m` as a process on the login node, in a folder of its own."""

    def __init__(self, cluster: slurm.Cluster, place: Path, *words: str) -> None:
        self.place, self.cluster = place, cluster
        self._out = place / "head.out"
        command = [sys.executable, "-m", "neumann", "train", "-m", *JOBS, *QUICK, *words]
        with open(self._out, "wb") as out:
            self.process = subprocess.Popen(
                command,
                env=cluster.env,
                cwd=place,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=_hear_ctrl_c,
            )

    @property
    def said(self) -> str:
        return self._out.read_text()

    def wait(self, seconds: float = 600) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it does not end:\n{self.told()}") from None

    def told(self) -> str:
        """Return output, journals, logs and queue, for the message of a test that fails."""
        journals = [p.read_text()[-2000:] for p in self.place.glob("runs/.launches/*/journal*")]
        logs = [p.read_text()[-2000:] for p in self.place.glob("runs/.launches/*/slurm/*.out")]
        return "\n".join([self.said, *journals, *logs, str(self.cluster.jobs()), self.cluster.logs()])


def events(place: Path) -> list[dict[str, Any]]:
    """Return every line of every journal, in the order of time."""
    lines = [line for path in place.glob("runs/.launches/*/journal*") for line in path.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines), key=lambda event: event["at"])


def folders(place: Path, ending: str = "") -> list[RunFolder]:
    found = [RunFolder(path) for path in sorted((place / "runs/default").glob("digits-*"))]
    return [folder for folder in found if ending in (folder.config.read_text() if folder.config.exists() else "")]


def attempts(folder: RunFolder) -> int:
    record = read_json(folder.provenance)
    return len(record["attempts"]) if record else 0


def until(condition: Callable[[], object], head: Head, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in time:\n{head.told()}"
        time.sleep(0.2)


def test_workers_share_a_sweep_and_a_run_that_fails_is_tried_twice(cluster: slurm.Cluster, tmp_path: Path) -> None:
    chosen = slurm_optimizers.write(tmp_path)
    grid = ["optimizer.ends=well,raise", "seed=0,1,2", "trainer.max_epochs=2"]
    words = [*chosen, *grid, "launch.workers=2", "launch.runs_per_worker=2", "launch.cpus_per_task=2"]
    head = Head(cluster, tmp_path, *words)
    assert head.wait() == 1, head.told()
    assert "submitted: 2 jobs for 6 runs" in head.said
    assert head.said.count("failed twice alike: it broke on purpose") >= 3, head.said
    good, bad = folders(tmp_path, "ends: well"), folders(tmp_path, "ends: raise")
    assert [len(good), len(bad)] == [3, 3]
    assert all(folder.result() for folder in good)
    assert [attempts(folder) for folder in good] == [1, 1, 1]
    assert [attempts(folder) for folder in bad] == [2, 2, 2]
    assert all("RuntimeError" in folder.error.read_text() for folder in bad)
    until(lambda: not cluster.jobs("running,pending"), head)
    told = events(tmp_path)
    assert len({event["run"] for event in told if event["what"] == "start"}) == 6
    assert sum(event["what"] == "began" for event in told) == 2  # as many queue waits as workers, not as runs
    for folder in good:
        assert read_json(folder.provenance)["attempts"][0]["torch_threads"] == 1  # two cores for two runs
    # a few files: for the launch, for each worker, and for each run
    launch = next((tmp_path / "runs/.launches").iterdir())
    assert len([path for path in launch.rglob("*") if path.is_file()]) <= 4 + 4 * 2
    # the failure is mended: the same command trains what is left, as a new submission
    module = tmp_path / "cluster_optimizers.py"
    module.write_text(module.read_text().replace('self.ends == "raise"', "False"))
    again = Head(cluster, tmp_path, *words)
    assert again.wait() == 0, again.told()
    assert "submitted: 2 jobs for 3 runs" in again.said
    assert [attempts(folder) for folder in good] == [1, 1, 1]
    assert all(folder.result() for folder in bad)


def test_a_time_limit_a_lost_job_and_ctrl_c_cost_no_step(cluster: slurm.Cluster, tmp_path: Path) -> None:
    words = [*slurm_optimizers.write(tmp_path), "optimizer.ends=slow", "trainer.max_epochs=100", "launch.workers=1"]
    head = Head(cluster, tmp_path, *words)
    until(lambda: any(folder.read_measurements() for folder in folders(tmp_path)), head)
    (folder,) = folders(tmp_path)
    job = re.search(r"submitted: 1 jobs for 1 runs \((\d+)\)", head.said).group(1)  # type: ignore[union-attr]

    # Ctrl-C leaves the job; the same command joins it, and other settings for it are refused
    os.killpg(head.process.pid, signal.SIGINT)
    assert head.wait(60) == 130, head.said
    assert f"jobs {job} stay in the queue" in head.said
    assert cluster.jobs()[job] == "RUNNING"
    other = Head(cluster, tmp_path, *words, "launch.mem=100M")
    assert other.wait(120) == 2, other.said
    assert f"jobs {job} are in the queue for these runs with launch.mem=None" in " ".join(other.said.split())
    head = Head(cluster, tmp_path, *words)
    until(lambda: f"joined: 1 of its jobs are in the queue already ({job})" in head.said, head)

    # Slurm's own limit comes: the run writes a checkpoint, the job is requeued and goes on from there
    elapsed = int(time.time() - next(event["at"] for event in events(tmp_path) if event["what"] == "began"))
    cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={elapsed // 60 + 1}")
    until(lambda: any(event.get("requeued") for event in events(tmp_path)), head)
    cut = next(event for event in events(tmp_path) if event["what"] == "end")
    assert cut["status"] == "interrupted"
    assert cut["step"] > 0
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    steps = len(folder.read_measurements())
    until(lambda: attempts(folder) == 2 and len(folder.read_measurements()) > steps, head)
    assert [m["step"] for m in folder.read_measurements()] == [
        18 * (i + 1) for i in range(len(folder.read_measurements()))
    ]

    # the job vanishes as with its node: no status is written, and the launcher submits another
    until(lambda: cluster.jobs()[job] == "RUNNING", head)
    cluster.kill(job)
    until(lambda: "1 runs have no job left, and get others" in head.said, head)
    (tmp_path / "go").touch()
    assert head.wait() == 0, head.told()
    assert folder.result()["step"] == 1800  # type: ignore[index]
    assert attempts(folder) == 3
    assert [m["step"] for m in folder.read_measurements()] == [18 * (i + 1) for i in range(100)]


def test_two_ranks_train_as_a_job_of_their_own_and_go_on_after_a_signal_and_a_loss(
    cluster: slurm.Cluster, tmp_path: Path
) -> None:
    two = [*slurm_optimizers.write(tmp_path), "trainer.accelerator=cpu", "trainer.max_epochs=100"]
    head = Head(cluster, tmp_path, *two, "trainer.devices=2,1", "optimizer.ends=slow,second")
    of_two = lambda: [f for f in folders(tmp_path, "ends: slow") if "devices: 2" in f.config.read_text()]  # noqa: E731
    until(lambda: any(folder.read_measurements() for folder in of_two()), head)
    (folder,) = of_two()
    said = re.search(r"submitted: 4 jobs for 4 runs \((\d+) \d+\)", head.said)
    assert said, head.said
    start = next(event for event in events(tmp_path) if event.get("run") and event["run"] in folder.path.name)

    def job() -> str:
        journals = [p for p in tmp_path.glob("runs/.launches/*/journal*") if start["run"] in p.read_text()]
        return max(journals, key=lambda p: p.stat().st_mtime).stem.split("-")[2]

    cluster.ask("scancel", "--signal=USR2", job())  # as before the time limit, or at preemption
    until(lambda: any(event.get("requeued") for event in events(tmp_path)), head)
    steps = len(folder.read_measurements())
    until(lambda: attempts(folder) == 2 and len(folder.read_measurements()) > steps, head)

    # the job vanishes: its run gets another while the worker goes on with a run of one process
    workers = {one for one in cluster.jobs("running") if one.startswith(f"{said.group(1)}_")}
    assert workers, head.told()
    cluster.kill(cluster.ask("squeue", "--noheader", "--format=%A", f"--jobs={job()}").strip())
    until(lambda: "1 runs have no job left, and get others" in head.said, head)
    assert workers & cluster.jobs("running").keys(), head.told()
    until(lambda: attempts(folder) == 3, head)
    (tmp_path / "go").touch()
    assert head.wait() == 1, head.told()
    result, record = folder.result(), read_json(folder.provenance)
    assert result is not None
    assert (result["status"], result["step"]) == ("finished", 1800)
    assert [len(attempt["ranks"]) for attempt in record["attempts"]] == [2, 2, 2]
    assert [m["step"] for m in folder.read_measurements()] == [18 * (i + 1) for i in range(100)]
    (broken,) = [f for f in folders(tmp_path, "ends: second") if "devices: 2" in f.config.read_text()]
    assert "failed twice alike: rank 1: it broke on one rank" in " ".join(head.said.split())
    assert "it broke on one rank" in broken.error.read_text()
    assert attempts(broken) == 2
    assert sum(one.result() is not None for one in folders(tmp_path)) == 3
