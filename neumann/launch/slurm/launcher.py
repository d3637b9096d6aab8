"""Launcher on a Slurm cluster: it submits jobs from the login node and watches them until every run is over.

The launcher keeps no state of its own: all is in the launch's folder and in the queue. So it may be stopped at any
time, and the same command finds the jobs by their name instead of submitting them twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from neumann.config import RunSpec, SlurmLaunchConfig
from neumann.errors import Interrupted, UserError
from neumann.launch.protocol import LaunchView, RunOutcome, run_key
from neumann.launch.slurm import queue
from neumann.launch.slurm.folder import LIMITS, JournalReader, LaunchFolder, ranks_of
from neumann.launch.slurm.rank_job import RankJob
from neumann.launch.slurm.retry_rules import LaunchState, RunHistory, ThrottledState, launch_state
from neumann.launch.slurm.worker import WorkerJob
from neumann.store.folder import OVER
from neumann.store.lookup import find, finished_result
from neumann.store.scores import diverged_at

TICK_S = 0.5
POLL_S = 10.0  # between two calls of squeue
GONE_POLLS = 2  # answers without our jobs, before they count as gone: the journals may lag behind the queue


class SlurmLauncher:
    """Trains runs on a Slurm cluster; a `neumann.launch.Launcher`.

    settings   what jobs ask for, and how runs are shared out
    say        is called with notes for the user: what was submitted or joined

    Raises UserError where no job can be submitted from this machine.
    """

    preparation = "waiting for Slurm"

    def __init__(self, settings: SlurmLaunchConfig, say: Callable[[str], None]) -> None:
        queue.check()
        self.settings = settings
        self.parallel = settings.workers * settings.runs_per_worker
        self._say = say

    def __enter__(self) -> SlurmLauncher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the jobs in the queue: they need no launcher."""

    def run(self, specs: Sequence[RunSpec], view: LaunchView) -> list[RunOutcome]:
        """Have jobs train the runs that are not over yet, and return the outcomes in the order of ``specs``.

        Where jobs of the same launch are in the queue, it joins them. Raises Interrupted at Ctrl-C, which leaves the
        jobs in the queue, and UserError where Slurm refuses, where the jobs in the queue have other settings, and where
        one run is to lie in two folders.
        """
        unique = {run_key(spec): spec for spec in reversed(specs)}
        outcomes: dict[tuple[Path, str], RunOutcome] = {}
        missing = []
        for key, spec in reversed(unique.items()):
            outcome = RunOutcome.of_result(spec)
            if outcome is None:
                missing.append(spec)
                continue
            outcomes[key] = outcome
            view.done(outcome)
        twice = [spec for spec in missing if sum(spec.signature == other.signature for other in missing) > 1]
        if twice:
            raise UserError(f"launch=slurm: {twice[0].name} is to lie in two folders: use a command for each folder")
        if missing:
            folder = LaunchFolder.of(list(unique.values()))
            monitor = _LaunchMonitor(self.settings, folder, missing, view, self._say)
            outcomes |= {run_key(outcome.spec): outcome for outcome in monitor.run()}
        return [replace(outcomes[run_key(spec)], spec=spec) for spec in specs]


class _LaunchMonitor:
    """Follows one launch from its submission to its last run.

    settings   what jobs ask for, and how runs are shared out
    folder     of the launch
    specs      the runs that are not over yet
    view       is told of every start and outcome
    say        is called with notes for the user
    """

    def __init__(
        self,
        settings: SlurmLaunchConfig,
        folder: LaunchFolder,
        specs: Sequence[RunSpec],
        view: LaunchView,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._folder, self._view, self._say = settings, folder, view, say
        self._specs = {spec.signature: spec for spec in specs}
        self._outcomes: dict[str, RunOutcome] = {}
        self._journals = JournalReader(folder)
        self._throttled = ThrottledState()
        self._submission = 0
        self._jobs: dict[str, str] = {}  # {job: state} of squeue's last answer
        self._mine: set[str] = set()  # jobs of this submission; the queue remembers earlier ones for a while
        self._polled = 0.0
        self._polls_without_jobs = 0
        self._starts_before = 0  # starts of runs when jobs were last submitted
        self._shown: set[str] = set()
        self._queue_silent = False

    def run(self) -> list[RunOutcome]:
        """Submit or join, wait, and return an outcome for each run."""
        try:
            self._begin()
            while not self._all_over():
                time.sleep(TICK_S)
        except KeyboardInterrupt:
            raise Interrupted(self._farewell()) from None
        return list(self._outcomes.values())

    def _begin(self) -> None:
        """Submit jobs, or join those of this launch in the queue. Raises UserError as `SlurmLauncher.run` does."""
        self._folder.make()
        with FileLock(self._folder.path / ".submit"):  # the same command twice at the same moment
            jobs = queue.jobs(self._folder.job_name)
            if jobs is None:
                raise UserError("squeue does not answer, so nothing can be submitted: try again when Slurm is up")
            self._jobs = jobs
            self._mine |= set(queue.alive(jobs))
            known = self._folder.known_settings()
            living = queue.alive(jobs)
            self._journals.read_on()
            if living and known is not None:
                self._join(known["launch"], living)
                self._submission = int(known["submission"])
            else:
                self._submission = int(known["submission"]) + 1 if known else 1
                state = self._state()
                if state.spent:
                    raise UserError(str(state.stopped))
                self._folder.write(self._settings, list(self._specs.values()), self._submission)
                self._submit(list(self._specs.values()))

    def _join(self, theirs: dict[str, object], living: Sequence[str]) -> None:
        """Go on with the jobs that are in the queue. Raises UserError where their settings are not those of now."""
        mine = asdict(self._settings)
        other = [key for key in mine if key not in LIMITS and mine[key] != theirs.get(key)]
        numbers = " ".join(queue.short(living))
        if other:
            raise UserError(
                f"jobs {numbers} are in the queue for these runs with launch.{other[0]}={theirs.get(other[0])}: "
                f"keep that setting, or end them with 'scancel {numbers}' first"
            )
        self._folder.set_limits(self._settings)
        self._say(f"joined: {len(living)} of its jobs are in the queue already ({numbers})")

    def _submit(self, specs: Sequence[RunSpec]) -> None:
        """Submit workers for the runs that one process trains, and a job of its own for every other run."""
        self._starts_before = self._starts()
        ids: list[str] = []
        refused: queue.Refused | None = None
        for functions, ranks in self._job_arrays(specs):
            try:
                ids += queue.submit(self._folder, self._settings, functions, ranks)
            except queue.Refused as error:  # the other arrays may be smaller, or of a kind that Slurm takes
                ids += error.ids
                refused = error
        if refused is not None and not ids:
            raise refused
        if refused is not None:
            self._say(f"{refused}; the runs without a job get one when the others are over")
        self._jobs = dict.fromkeys(ids, "PENDING")
        self._mine |= set(ids)
        self._polled = time.monotonic()
        numbers = " ".join(queue.short(ids))
        self._say(
            f"submitted: {len(ids)} jobs for {len(specs)} runs ({numbers}); Ctrl-C leaves them in the queue, "
            f"'scancel {numbers}' ends them; logs in {self._folder.path / 'slurm'}"
        )

    def _job_arrays(self, specs: Sequence[RunSpec]) -> Iterator[tuple[list[Callable[[], Any]], tuple[int, int]]]:
        """Yield what the jobs of each array call, and the ranks of each job (processes on each node, nodes)."""
        alone = [spec for spec in specs if ranks_of(spec) == (1, 1)]
        if alone:
            slots = -(-len(alone) // self._settings.runs_per_worker)
            workers = min(self._settings.workers, slots, queue.max_array_size())
            yield [WorkerJob(str(self._folder.path), self._submission)] * workers, (1, 1)
        shapes: dict[tuple[int, int], list[RunSpec]] = {}
        for spec in specs:
            if ranks_of(spec) != (1, 1):
                shapes.setdefault(ranks_of(spec), []).append(spec)
        for ranks, its in shapes.items():
            yield [RankJob(str(self._folder.path), self._submission, spec.signature) for spec in its], ranks

    def _all_over(self) -> bool:
        """Take note of new entries and of the queue; return whether every run has an outcome."""
        self._poll()
        state = self._throttled(self._read_on, fresh=self._polls_without_jobs >= GONE_POLLS)
        for signature, spec in self._specs.items():
            if signature not in self._outcomes:
                self._settle(spec, state)
        running = [spec for s, spec in self._specs.items() if s not in self._outcomes and state.history(s).running]
        self._view.tick(running, len(self._specs) - len(self._outcomes) - len(running))
        if self._polls_without_jobs >= GONE_POLLS:
            self._after_all_jobs(state)
        return len(self._outcomes) == len(self._specs)

    def _poll(self) -> None:
        """Ask squeue for the states of the jobs, where it is due."""
        if time.monotonic() - self._polled < POLL_S:
            return
        self._polled = time.monotonic()
        jobs = queue.jobs(self._folder.job_name)
        if jobs is None:
            if not self._queue_silent:
                self._say("squeue does not answer; the jobs are not touched by that, and it is asked again")
            self._queue_silent = True
            return
        self._queue_silent = False
        self._jobs = {**dict.fromkeys(self._jobs, "COMPLETED"), **jobs}  # a job that the queue forgot has ended
        self._mine |= set(queue.alive(jobs))
        self._polls_without_jobs = 0 if queue.alive(self._jobs) else self._polls_without_jobs + 1

    def _read_on(self) -> LaunchState:
        self._journals.read_on()
        return self._state()

    def _state(self) -> LaunchState:
        """Return the state by the journals read so far; without jobs in the queue, those that still run are lost."""
        jobs = queue.alive(self._jobs) if self._polls_without_jobs >= GONE_POLLS else None
        return launch_state(self._journals.entries, asdict(self._settings), self._submission, alive=jobs)

    def _settle(self, spec: RunSpec, state: LaunchState) -> None:
        """Give the run its outcome, where it is over or given up."""
        history = state.history(spec.signature)
        if history.attempts and spec.signature not in self._shown:
            self._shown.add(spec.signature)
            self._view.started(spec)
        if history.status in OVER:
            self._finished(spec, history)
        elif history.given_up is not None and not history.running:
            self._end(spec, "failed", history.given_up, history)
        elif state.stopped is not None and not history.running:
            status = "failed" if history.status == "failed" else "interrupted"
            own = history.attempts[-1].message if status == "failed" else None
            self._end(spec, status, f"{own}; {state.stopped}" if own else state.stopped, history)

    def _after_all_jobs(self, state: LaunchState) -> None:
        """Decide on the runs without an outcome when no job is left: submit jobs again, or give the runs up.

        They are given up where the user cancelled a job, and where no run began since the last submission.
        """
        for spec in self._left():
            self._finished(spec, state.history(spec.signature))  # another launch may have trained it
        left = [spec for spec in self._left() if not find(spec).held()]
        if not left:
            return
        cancelled = sorted(job for job in self._mine if self._jobs.get(job) == "CANCELLED")
        logs = self._folder.path / "slurm"
        if cancelled:
            why = f"job {' '.join(queue.short(cancelled))} was cancelled"
        elif self._starts() == self._starts_before:
            ends = sorted({str(end) for job, end in self._jobs.items() if job in self._mine})
            said = sorted({str(entry.said.get("why")) for entry in self._journals.entries if entry.what == "left"})
            why = f"its jobs ended ({', '.join([*ends, *said])}) before any run began: see {logs}"
        else:
            self._submit_again(left)
            return
        for spec in left:
            status = "failed" if not cancelled else "interrupted"
            self._end(spec, status, why, state.history(spec.signature))

    def _submit_again(self, left: Sequence[RunSpec]) -> None:
        """Submit jobs for what is left, unless another launcher of the same runs has done so."""
        with FileLock(self._folder.path / ".submit"):
            self._polls_without_jobs, self._polled = 0, 0.0
            jobs = queue.jobs(self._folder.job_name)
            if jobs is None or queue.alive(jobs):  # another launcher of the same runs was faster
                return
            self._say(f"{len(left)} runs have no job left, and get others")
            self._folder.set_gone({entry.job for entry in self._journals.entries})
            self._submit(left)

    def _left(self) -> list[RunSpec]:
        return [spec for signature, spec in self._specs.items() if signature not in self._outcomes]

    def _starts(self) -> int:
        return sum(entry.what == "start" for entry in self._journals.entries)

    def _finished(self, spec: RunSpec, history: RunHistory) -> None:
        """Give a run that is over its outcome, once its result can be read."""
        result = finished_result(spec)
        if result is None:  # a network file system may show the journal before the result
            return
        message = None
        if result["status"] == "diverged":
            message = diverged_at(result)
        self._end(spec, result["status"], message, history, result)

    def _end(
        self,
        spec: RunSpec,
        status: str,
        message: str | None,
        history: RunHistory,
        result: dict[str, object] | None = None,
    ) -> None:
        seconds = sum(attempt.seconds for attempt in history.attempts)
        reused = result is not None and not history.attempts
        outcome = RunOutcome(spec, status, result, message, reused, seconds, find(spec).path)
        self._outcomes[spec.signature] = outcome
        self._view.done(outcome)

    def _farewell(self) -> str:
        living = " ".join(queue.short(queue.alive(self._jobs)))
        if not living:
            return "stopped"
        return f"detached; jobs {living} stay in the queue and go on ('scancel {living}' ends them)"
