"""The end of the job of a run on several devices. The tests play srun and the training; test_on_slurm.py has both."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from neumann.config import SlurmLaunchConfig, make_specs
from neumann.launch.slurm import rank_job
from neumann.launch.slurm.folder import LaunchFolder, ListedRun
from neumann.launch.slurm.rank_job import BROKEN, RankJob
from neumann.processes.signals import STOP_SIGNALS, raise_at_signals
from tests.support.fake_slurm import FakeSlurm

QUICK = ["trainer.max_epochs=2", "batch.size=64", "logger=none", "trainer.devices=2"]


@pytest.mark.parametrize(
    ("ended", "again"),
    [
        (("interrupted", "stopped at step 3", 3, int(signal.SIGUSR2)), True),
        (("interrupted", "stopped at step 3", 3, int(signal.SIGUSR1)), True),
        (("interrupted", "stopped at step 3", 3, int(signal.SIGTERM)), False),  # scancel, or Slurm requeues by itself
        (("failed", "it broke", 3, None), True),
        (("lost", "another rank vanished", 3, None), True),
        (("finished", None, 36, None), False),
    ],
)
def test_what_puts_the_job_back_into_the_queue(
    ended: tuple[Any, ...], again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{slurm.bin}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_PROCID", "0")
    (spec,) = make_specs([QUICK])
    folder = LaunchFolder.of([spec])
    folder.make()
    folder.write(SlurmLaunchConfig(), [spec], 1)
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    monkeypatch.setattr(rank_job, "_train", lambda listed, threads: ended)
    try:
        if again:
            with pytest.raises(SystemExit):
                RankJob(str(folder.path), 1, spec.signature)()
        else:
            RankJob(str(folder.path), 1, spec.signature)()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ("requeue 7" in slurm.requeued()) == again
    lines = [json.loads(line) for path in folder.path.glob("journal*") for line in path.read_text().splitlines()]
    assert [line["requeued"] for line in lines if line["what"] == "left"] == [again]


@pytest.mark.parametrize(
    "message",
    [
        "rank 0: [../third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:57052: Connection reset by peer",
        "rank 0: [../third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:12467.",
    ],
)
def test_a_rank_that_vanished_is_told_from_one_that_failed(message: str) -> None:
    assert BROKEN.search(message)
    assert not BROKEN.search("rank 0: it broke")


def test_a_signal_that_follows_a_failure_does_not_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """srun sends SIGTERM to every rank once one has failed, rank 0 while it still unwinds or prints its traceback."""
    (spec,) = make_specs([QUICK])

    def breaks(*args: Any, **options: Any) -> None:
        try:
            raise RuntimeError("rank 1: it broke")
        finally:
            signal.raise_signal(signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    monkeypatch.setattr("neumann.training.run.run", breaks)
    monkeypatch.setattr(rank_job.traceback, "print_exc", lambda: signal.raise_signal(signal.SIGTERM))
    try:
        raise_at_signals()
        ended = rank_job._train(ListedRun.of(spec), 1)
        signal.raise_signal(signal.SIGTERM)  # and no other one ends the journal
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended == ("failed", "rank 1: it broke", 0, None)
