"""A run on several devices or nodes of a cluster: a Slurm job of its own, in which srun starts a process per rank."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neumann.errors import Interrupted, UserError, ending_of
from neumann.launch.slurm.folder import JournalReader, JournalWriter, LaunchFolder, ListedRun, this_job
from neumann.launch.slurm.retry_rules import HEARTBEAT_S, LaunchState, launch_state
from neumann.launch.slurm.worker import LEAVE, enter_launch
from neumann.processes.signals import StoppedBySignal, ignore_signals, raise_at_signals

BROKEN = re.compile(r"Connection (closed|reset)|Read error|Socket closed|NCCL communicator was aborted")
RANK_ZERO_WAIT_S = 5.0  # for rank 0 to learn from a broken connection that another rank failed, and to write why


@dataclass(frozen=True)
class RankJob:
    """Callable that submitit pickles for a run on several devices; each rank that srun starts calls it.

    folder       the path of the launch's folder
    submission   the number of the submission
    run          the run's signature
    """

    folder: str
    submission: int
    run: str

    def __call__(self) -> str:
        """Train as the rank that srun started here, and return the status.

        Raises SystemExit in a rank that failed, and in rank 0 where the job has requeued itself.
        """
        folder = LaunchFolder(Path(self.folder))
        settings = folder.settings()
        enter_launch(settings, trust=True)
        listed = next(listed for listed in folder.runs() if listed.signature == self.run)
        raise_at_signals()  # until the run listens itself; submitit's own handlers would requeue the job
        if os.environ.get("SLURM_PROCID", "0") != "0":
            status, *_ = _train(listed, int(settings["launch"]["cpus_per_task"]))
            ignore_signals()
            if status == "failed":
                time.sleep(RANK_ZERO_WAIT_S)
                raise SystemExit(1)  # srun ends the others
            return status
        return _RankZero(folder, settings, self.submission, listed).train()


@dataclass
class _RankZero:
    """Rank 0's process, which writes the job's journal and requeues the job.

    folder       of the launch
    settings     the content of its launch.json when the job began
    submission   that the job belongs to
    listed       the run
    """

    folder: LaunchFolder
    settings: Mapping[str, Any]
    submission: int
    listed: ListedRun

    def __post_init__(self) -> None:
        self._job = this_job()
        self._journal = JournalWriter(self.folder, self._job, self.submission)
        self._journals = JournalReader(self.folder)

    def train(self) -> str:
        """Train the run once, requeue the job where it may be tried again, and return the status."""
        processes, nodes = self.listed.ranks
        gpus = processes * nodes if self.settings["launch"]["gpus_per_node"] else 0
        self._journal.write("began", gpus=gpus, host=os.uname().nodename)
        signature = self.listed.signature
        stopped = self._state().stopped
        if stopped is not None:
            self._journal.write("left", why=stopped)
            self._end_ranks()
            return stopped
        self._journal.write("start", run=signature)
        began = time.monotonic()
        with self._heartbeat():
            status, message, step, asked = _train(self.listed, int(self.settings["launch"]["cpus_per_task"]))
        ignore_signals()  # srun ends all ranks where one has failed, and what follows must be written
        seconds = round(time.monotonic() - began, 1)
        self._journal.write("end", run=signature, status=status, message=message, step=step, seconds=seconds)
        state = self._state()
        wanted = status in ("failed", "lost") or (status == "interrupted" and asked not in LEAVE)
        again = wanted and state.stopped is None and state.history(signature).open
        self._journal.write("left", why=status, requeued=again)
        if again:
            subprocess.run(["scontrol", "requeue", self._job], check=True, timeout=60)
            raise SystemExit(0)  # Slurm ends this process anyway
        return status

    def _state(self) -> LaunchState:
        self._journals.read_on()
        settings = self.folder.known_settings() or self.settings
        return launch_state(self._journals.entries, settings["launch"], self.submission, gone=settings.get("gone", ()))

    @contextlib.contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Write a heartbeat every `HEARTBEAT_S` in the block, and end every rank when the GPU-hours are used up."""
        over = threading.Event()

        def write_heartbeats() -> None:
            while not over.wait(HEARTBEAT_S):
                self._journal.write("beat")
                if self._state().spent:
                    self._end_ranks()
                    return

        thread = threading.Thread(target=write_heartbeats, name="neumann-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _end_ranks(self) -> None:
        """Ask every rank to write a checkpoint and leave, as Slurm does before the time limit."""
        subprocess.run(["scancel", "--signal=USR2", self._job], check=False, timeout=60)


def _train(listed: ListedRun, threads: int) -> tuple[str, str | None, int, int | None]:
    """Train the run as one rank of a group; return (status, message, step, the signal that asked it to stop).

    The status is "lost" where another rank vanished: it was killed, or its node failed.
    """
    from rich.console import Console

    from neumann.processes.ranks import RankPlace
    from neumann.training.run import run

    try:
        spec = listed.spec(trust=True)
        console = Console(file=sys.stdout, width=120)
        result = run(spec, console, threads=threads, ranks=RankPlace.from_environment())
    except BaseException as error:  # noqa: BLE001 - the journal tells it, and the run's folder holds the traceback
        ignore_signals()  # srun sends SIGTERM to all ranks once one has failed: it must not end the record of this one
        error = _first_of(error)
        status, message = ending_of(error)
        if isinstance(error, UserError | KeyboardInterrupt):  # before its first step
            return status, message, 0, getattr(error, "signal", None)
        recorded = listed.folder().status()
        step = int(recorded.get("step", 0))
        if isinstance(error, Interrupted | SystemExit):
            return status, message, step, getattr(error, "signal", None)
        traceback.print_exc()
        if recorded["status"] == "failed":
            message = str(recorded["message"])  # of the rank that failed first
        if message.startswith("rank 0: ") and BROKEN.search(message):
            return "lost", f"another rank vanished while it trained (node failure, or killed): {message}", step, None
        return status, message, step, None
    return str(result["status"]), None, int(result["step"]), None


def _first_of(error: BaseException) -> BaseException:
    """Return the failure that a stop signal interrupted while it was on its way here; else ``error`` itself."""
    if isinstance(error, StoppedBySignal) and isinstance(error.__context__, Exception):
        return error.__context__
    return error
