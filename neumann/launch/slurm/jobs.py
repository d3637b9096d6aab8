"""Jobs of a launch: which runs each of them is for, and which have ended, by squeue's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neumann.config import RunSpec, SlurmLaunchConfig
from neumann.launch.slurm import queue
from neumann.launch.slurm.folder import LaunchFolder, ranks_of
from neumann.launch.slurm.rank_job import RankJob
from neumann.launch.slurm.worker import WorkerJob

WORKERS = "workers"  # what a job is for that takes any run of one process; another job is for one run, by signature
GONE_POLLS = 2  # answers in which a job does not live, before it counts as gone: its journal may lag behind the queue


@dataclass(frozen=True)
class JobArray:
    """Jobs that are submitted together.

    purposes    what each job is for: `WORKERS`, or a run's signature
    functions   what each job calls
    ranks       of each job: processes on each node, and nodes
    """

    purposes: Sequence[str]
    functions: Sequence[Callable[[], Any]]
    ranks: tuple[int, int]


def purpose_for(spec: RunSpec) -> str:
    """Return what a job has to be for that trains ``spec``."""
    return WORKERS if ranks_of(spec) == (1, 1) else spec.signature


def arrays_for(
    specs: Iterable[RunSpec], settings: SlurmLaunchConfig, folder: LaunchFolder, submission: int
) -> Iterator[JobArray]:
    """Yield an array of workers for the runs that one process trains, and arrays of a job each for the others."""
    place, alone = str(folder.path), 0
    shapes: dict[tuple[int, int], list[str]] = {}
    for spec in specs:
        if purpose_for(spec) == WORKERS:
            alone += 1
        else:
            shapes.setdefault(ranks_of(spec), []).append(spec.signature)
    if alone:
        workers = min(settings.workers, -(-alone // settings.runs_per_worker), queue.max_array_size())
        yield JobArray([WORKERS] * workers, [WorkerJob(place, submission)] * workers, (1, 1))
    for ranks, runs in shapes.items():
        yield JobArray(runs, [RankJob(place, submission, run) for run in runs], ranks)


class LaunchJobs:
    """The jobs of one submission. Others of the same name are known too: the queue remembers ended ones for a while."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}  # {job: state} of squeue's last answer
        self._purposes: dict[str, str | None] = {}  # of this submission's jobs; None: no launcher has recorded it
        self._absent: dict[str, int] = {}  # {job: answers in a row in which it did not live}

    def note(self, purposes: Mapping[str, str]) -> None:
        """Take note of what jobs of this submission are for: `WORKERS`, or a run's signature."""
        self._purposes |= purposes
        for job in purposes:
            self.states.setdefault(job, "PENDING")

    def answered(self, answer: Mapping[str, str], journaling: Iterable[str] = (), *, early: bool = False) -> None:
        """Take note of squeue's answer.

        answer       {job: state} of all jobs of the launch's name
        journaling   the jobs that have written a journal; one that the queue has forgotten has ended
        early        the answer comes too soon after the last one to count towards `GONE_POLLS`
        """
        before = {job: state if state in queue.ENDED else "COMPLETED" for job, state in self.states.items()}
        self.states = {**dict.fromkeys(journaling, "COMPLETED"), **before, **answer}
        living = set(queue.alive(answer))
        self._purposes |= dict.fromkeys(living - self._purposes.keys())
        step = 0 if early else 1
        self._absent = {job: 0 if job in living else self._absent.get(job, 0) + step for job in self.states}

    def doubt(self) -> None:
        """Ask for further answers before any job counts as gone."""
        self._absent.clear()

    def living(self) -> list[str]:
        """Return the jobs that lived at squeue's last answer."""
        return queue.alive(self.states)

    def not_gone(self) -> list[str]:
        """Return the jobs that live, and those that may: too few answers without them have come."""
        return [job for job in self.states if self._absent.get(job, 0) < GONE_POLLS]

    def gone(self) -> list[str]:
        """Return the jobs that have ended."""
        return [job for job in self.states if self._absent.get(job, 0) >= GONE_POLLS]

    def of(self, purpose: str | None = None) -> list[str]:
        """Return the jobs of this submission that are, or may be, for ``purpose``; None: all."""
        return [job for job, its in self._purposes.items() if purpose is None or its in (purpose, None)]

    def may_live(self, purpose: str | None = None) -> bool:
        """Return whether a job of this submission lives, or may, that is for ``purpose``; None: for anything."""
        return not set(self.of(purpose)).isdisjoint(self.not_gone())

    def cancelled(self) -> list[str]:
        """Return the jobs of this submission that were cancelled, as by scancel."""
        return sorted(job for job in self._purposes if self.states.get(job) == "CANCELLED")
