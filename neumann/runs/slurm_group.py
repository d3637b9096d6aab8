"""How does one run train on several devices or nodes of a cluster? As a job of its own, a rank per task of srun."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neumann.errors import Interrupted, UserError, first_line
from neumann.runs.folder import Claimed
from neumann.runs.slurm_folder import Journal, Journals, LaunchFolder, Listed, this_job
from neumann.runs.slurm_rules import BEAT_S, State, state_of
from neumann.runs.worker import go_to


@dataclass(frozen=True)
class Group:
    """What submitit pickles for such a job; srun calls it once per rank."""

    folder: str
    submission: int
    run: str  # signature

    def __call__(self) -> str:
        """Train as the rank that srun started here, and return the status. Raises what stopped the run."""
        folder = LaunchFolder(Path(self.folder))
        settings = folder.settings()
        go_to(settings)
        listed = next(listed for listed in folder.runs() if listed.signature == self.run)
        if os.environ.get("SLURM_PROCID", "0") != "0":
            return _train(listed)[0]
        return _First(folder, settings, self.submission, listed).work()


@dataclass
class _First:
    """The first rank's process, which keeps the journal and requeues the job."""

    folder: LaunchFolder
    settings: Mapping[str, Any]
    submission: int
    listed: Listed

    def __post_init__(self) -> None:
        self._job = this_job()
        self._journal = Journal(self.folder, self._job, self.submission)
        self._journals = Journals(self.folder)

    def work(self) -> str:
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
        with self._beating():
            status, message, step = _train(self.listed)
        seconds = round(time.monotonic() - began, 1)
        self._journal.write("end", run=signature, status=status, message=message, step=step, seconds=seconds)
        state = self._state()
        again = status == "interrupted" and state.stopped is None and state.standing(signature).open
        self._journal.write("left", why=status, requeued=again)
        if again:
            subprocess.run(["scontrol", "requeue", self._job], check=True, timeout=60)
            raise SystemExit(0)  # Slurm ends this process anyway
        return status

    def _state(self) -> State:
        self._journals.look()
        limits = (self.folder.known() or self.settings)["launch"]
        return state_of(self._journals.events, limits, self.submission)

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """Write a beat now and then, and end every rank where the GPU-hours are used up."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_S):
                self._journal.write("beat")
                if self._state().spent:
                    self._end_ranks()
                    return

        thread = threading.Thread(target=beat, name="neumann-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _end_ranks(self) -> None:
        """Ask every rank to write a checkpoint and leave, as Slurm does before the time limit."""
        subprocess.run(["scancel", "--signal=USR2", self._job], check=False, timeout=60)


def _train(listed: Listed) -> tuple[str, str | None, int]:
    """Return (status, message, step) of the run, trained as one rank of a group."""
    from rich.console import Console

    from neumann.training.run import run

    try:
        result = run(listed.spec(trust=True), Console(file=sys.stdout, width=120))
    except Claimed as error:
        return "claimed", str(error), 0
    except Interrupted as stop:
        return "interrupted", str(stop), int(listed.folder().status().get("step", 0))
    except UserError as error:
        return "failed", str(error), 0
    except Exception as error:  # noqa: BLE001 - the journal tells it, and the run's folder holds the traceback
        return "failed", first_line(error), int(listed.folder().status().get("step", 0))
    return str(result["status"]), None, int(result["step"])
