"""Runs under way in a launcher or Slurm worker: training, or over with the W&B mirror still finishing."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing import connection

from neumann.launch.run_processes import RunProcesses

TICK_S = 0.25


class ProcessPool:
    """Runs with living processes. A run stays in the pool until all of its processes have exited."""

    def __init__(self) -> None:
        self._training: list[RunProcesses] = []
        self._closing: list[RunProcesses] = []

    def __len__(self) -> int:
        return len(self._training) + len(self._closing)

    @property
    def training(self) -> Sequence[RunProcesses]:
        """The runs that are not over."""
        return tuple(self._training)

    @property
    def closing(self) -> int:
        """The number of runs that are over and whose processes have not all exited."""
        return len(self._closing)

    def add(self, run: RunProcesses) -> None:
        """Take note of a run whose processes have just been started."""
        self._training.append(run)

    def wait(self) -> list[RunProcesses]:
        """Return the runs that are over since the last call, to be reaped; waits for one for at most `TICK_S`."""
        if len(self):
            waitables = [one for run in (*self._training, *self._closing) for one in run.waitables()]
            connection.wait(waitables, timeout=TICK_S)
        settled = [run for run in self._training if run.settled()]
        self._training = [run for run in self._training if run not in settled]
        self._closing = [run for run in (*self._closing, *settled) if not run.exited()]
        return settled

    def stop(self, *, at_once: bool) -> None:
        """Ask every run to write a checkpoint and leave; ``at_once`` kills them and all that they have started."""
        for run in (*self._training, *self._closing):
            run.stop(at_once=at_once)
