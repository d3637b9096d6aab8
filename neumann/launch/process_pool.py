"""The runs under way in a launcher or a worker: those that train, and those that only end their mirrors."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing import connection

from neumann.launch.run_process import RunProcesses

TICK_S = 0.25


class ProcessPool:
    """The jobs of a launcher or a worker. One is under way until all of its processes have ended."""

    def __init__(self) -> None:
        self._training: list[RunProcesses] = []
        self._closing: list[RunProcesses] = []

    def __len__(self) -> int:
        return len(self._training) + len(self._closing)

    @property
    def training(self) -> Sequence[RunProcesses]:
        """Those whose runs are not over."""
        return tuple(self._training)

    @property
    def closing(self) -> int:
        """The number of those whose runs are over and whose processes have not all ended."""
        return len(self._closing)

    def add(self, job: RunProcesses) -> None:
        """Take note of a job that has just been started."""
        self._training.append(job)

    def wait(self) -> list[RunProcesses]:
        """Return the jobs whose runs are over since the last call, to be reaped; waits for one at most a tick."""
        if len(self):
            waitables = [one for job in (*self._training, *self._closing) for one in job.waitables()]
            connection.wait(waitables, timeout=TICK_S)
        settled = [job for job in self._training if job.settled()]
        self._training = [job for job in self._training if job not in settled]
        self._closing = [job for job in (*self._closing, *settled) if not job.over()]
        return settled

    def stop(self, *, at_once: bool) -> None:
        """Ask every run to write a checkpoint and leave; ``at_once`` kills them all and what they have started."""
        for job in (*self._training, *self._closing):
            job.stop(at_once=at_once)
