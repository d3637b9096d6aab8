"""What is under way in this process? Jobs that train, and jobs whose runs are over and that still end their mirrors."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing import connection

from neumann.runs.job import Job

TICK_S = 0.25


class Jobs:
    """The jobs of a launcher or a worker. One is under way until all of its processes have ended."""

    def __init__(self) -> None:
        self._training: list[Job] = []
        self._closing: list[Job] = []

    def __len__(self) -> int:
        return len(self._training) + len(self._closing)

    @property
    def training(self) -> Sequence[Job]:
        """Those whose runs are not over."""
        return tuple(self._training)

    @property
    def closing(self) -> int:
        """The number of those whose runs are over and whose processes have not all ended."""
        return len(self._closing)

    def add(self, job: Job) -> None:
        """Take note of a job that has just been started."""
        self._training.append(job)

    def wait(self) -> list[Job]:
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
