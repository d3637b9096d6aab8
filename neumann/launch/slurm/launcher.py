"""How do many runs train on a Slurm cluster? Workers share them out, while the launcher on the login node looks on.

The launcher holds nothing: what it knows is in the launch's folder and in the queue. So it may be stopped at any time,
and the same command finds the jobs again by their name instead of submitting them twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from types import TracebackType

from filelock import FileLock

from neumann.config import RunSpec, SlurmLaunchConfig
from neumann.errors import Interrupted, UserError
from neumann.launch.local import Outcome, View
from neumann.launch.slurm import queue
from neumann.launch.slurm.folder import LIMITS, Journals, LaunchFolder, ranks_of
from neumann.launch.slurm.rank_job import RankJob
from neumann.launch.slurm.retry_rules import LaunchState, Paced, Standing, state_of
from neumann.launch.slurm.worker import Worker
from neumann.store.folder import OVER
from neumann.store.lookup import find, finished_result
from neumann.store.scores import diverged_at

TICK_S = 0.5
POLL_S = 10.0  # between questions to squeue
GONE_LOOKS = 2  # at a queue without our jobs, before they are believed to be gone: the journals may lag behind


class SlurmLauncher:
    """Trains runs on a cluster, as a context manager with the same `run` as `neumann.launch.local.Launcher`."""

    first = "waiting for Slurm"

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
        """Nothing: the jobs are the queue's."""

    def run(self, specs: Sequence[RunSpec], view: View) -> list[Outcome]:
        """Have what is not over yet trained by jobs, wait for them, and return the outcomes in the order of ``specs``.

        Where jobs of the same launch are in the queue, it joins them. Raises UserError where Slurm refuses or the
        jobs were asked for with other settings, and Interrupted at Ctrl-C, which leaves the jobs where they are.
        """
        unique = {_key(spec): spec for spec in reversed(specs)}
        outcomes: dict[tuple[str, str], Outcome] = {}
        missing = []
        for key, spec in reversed(unique.items()):
            result = finished_result(spec)
            if result is None:
                missing.append(spec)
                continue
            outcomes[key] = Outcome(spec, result["status"], result, None, True, 0.0, find(spec).path)
            view.done(outcomes[key])
        twice = [spec for spec in missing if sum(spec.signature == other.signature for other in missing) > 1]
        if twice:
            raise UserError(f"launch=slurm trains a run once, and {twice[0].name} is to lie in two folders: ask twice")
        if missing:
            watch = _Watch(self.settings, LaunchFolder.of(list(unique.values())), missing, view, self._say)
            outcomes |= {_key(outcome.spec): outcome for outcome in watch.run()}
        return [replace(outcomes[_key(spec)], spec=spec) for spec in specs]


class _Watch:
    """One launch, from its submission to its last run."""

    def __init__(
        self,
        settings: SlurmLaunchConfig,
        folder: LaunchFolder,
        specs: Sequence[RunSpec],
        view: View,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._folder, self._view, self._say = settings, folder, view, say
        self._specs = {spec.signature: spec for spec in specs}
        self._outcomes: dict[str, Outcome] = {}
        self._journals = Journals(folder)
        self._paced = Paced()
        self._submission = 0
        self._jobs: dict[str, str] = {}  # what squeue said last
        self._mine: set[str] = set()  # those of this submission; the queue remembers earlier ones for a while
        self._asked = 0.0
        self._gone = 0
        self._seen = 0  # starts of runs when jobs were last submitted
        self._shown: set[str] = set()
        self._silent = False

    def run(self) -> list[Outcome]:
        """Submit or join, wait, and return an outcome for each run."""
        try:
            self._begin()
            while not self._over():
                time.sleep(TICK_S)
        except KeyboardInterrupt:
            raise Interrupted(self._farewell()) from None
        return list(self._outcomes.values())

    def _begin(self) -> None:
        self._folder.make()
        with FileLock(self._folder.path / ".submit"):  # the same command twice at the same moment
            jobs = queue.jobs(self._folder.job_name)
            if jobs is None:
                raise UserError("squeue does not answer, so nothing can be submitted: try again when Slurm is up")
            self._jobs = jobs
            self._mine |= set(queue.alive(jobs))
            known = self._folder.known()
            living = queue.alive(jobs)
            self._journals.look()
            if living and known is not None:
                self._join(known["launch"], living)
                self._submission = int(known["submission"])
            else:
                self._submission = int(known["submission"]) + 1 if known else 1
                spent = self._state()
                if spent.spent:
                    raise UserError(str(spent.stopped))
                self._folder.write(self._settings, list(self._specs.values()), self._submission)
                self._submit(list(self._specs.values()))

    def _join(self, theirs: dict[str, object], living: Sequence[str]) -> None:
        """Go on with jobs that are in the queue already. Raises UserError where they are not as asked for now."""
        mine = asdict(self._settings)
        other = [key for key in mine if key not in LIMITS and mine[key] != theirs.get(key)]
        numbers = " ".join(queue.short(living))
        if other:
            raise UserError(
                f"jobs {numbers} are in the queue for these runs with launch.{other[0]}={theirs.get(other[0])}: "
                f"leave it so, or end them with 'scancel {numbers}' first"
            )
        self._folder.set_limits(self._settings)
        self._say(f"joined: {len(living)} of its jobs are in the queue already ({numbers})")

    def _submit(self, specs: Sequence[RunSpec]) -> None:
        """Submit workers for what one process trains, and a job for every other run."""
        self._seen = self._starts()
        ids: list[str] = []
        alone = [spec for spec in specs if ranks_of(spec) == (1, 1)]
        if alone:
            slots = -(-len(alone) // self._settings.runs_per_worker)
            workers = min(self._settings.workers, slots, queue.max_array_size())
            worker = Worker(str(self._folder.path), self._submission)
            ids += queue.submit(self._folder, self._settings, [worker] * workers)
        shapes: dict[tuple[int, int], list[RunSpec]] = {}
        for spec in specs:
            if ranks_of(spec) != (1, 1):
                shapes.setdefault(ranks_of(spec), []).append(spec)
        for ranks, its in shapes.items():
            groups = [RankJob(str(self._folder.path), self._submission, spec.signature) for spec in its]
            ids += queue.submit(self._folder, self._settings, groups, ranks)
        self._jobs = dict.fromkeys(ids, "PENDING")
        self._mine |= set(ids)
        self._asked = time.monotonic()
        numbers = " ".join(queue.short(ids))
        self._say(
            f"submitted: {len(ids)} jobs for {len(specs)} runs ({numbers}); Ctrl-C leaves them in the queue, "
            f"'scancel {numbers}' ends them; logs in {self._folder.path / 'slurm'}"
        )

    def _over(self) -> bool:
        """Take note of what has happened and return whether every run has an outcome."""
        self._poll()
        state = self._paced(self._look, fresh=self._gone >= GONE_LOOKS)
        for signature, spec in self._specs.items():
            if signature not in self._outcomes:
                self._settle(spec, state)
        running = [spec for s, spec in self._specs.items() if s not in self._outcomes and state.standing(s).running]
        self._view.tick(running, len(self._specs) - len(self._outcomes) - len(running))
        if self._gone >= GONE_LOOKS:
            self._after_all_jobs(state)
        return len(self._outcomes) == len(self._specs)

    def _poll(self) -> None:
        if time.monotonic() - self._asked < POLL_S:
            return
        self._asked = time.monotonic()
        jobs = queue.jobs(self._folder.job_name)
        if jobs is None:
            if not self._silent:
                self._say("squeue does not answer; the jobs are not touched by that, and it is asked again")
            self._silent = True
            return
        self._silent = False
        self._jobs = {**dict.fromkeys(self._jobs, "COMPLETED"), **jobs}  # one that the queue has forgotten has ended
        self._mine |= set(queue.alive(jobs))
        self._gone = 0 if queue.alive(self._jobs) else self._gone + 1

    def _look(self) -> LaunchState:
        self._journals.look()
        return self._state()

    def _state(self) -> LaunchState:
        jobs = queue.alive(self._jobs) if self._gone >= GONE_LOOKS else None  # else a job is alive while it writes
        return state_of(self._journals.events, asdict(self._settings), self._submission, alive=jobs)

    def _settle(self, spec: RunSpec, state: LaunchState) -> None:
        """Give the run its outcome, where it is over or given up."""
        standing = state.standing(spec.signature)
        if standing.attempts and spec.signature not in self._shown:
            self._shown.add(spec.signature)
            self._view.started(spec)
        if standing.status in OVER:
            self._finished(spec, standing)
        elif standing.given_up is not None and not standing.running:
            self._end(spec, "failed", standing.given_up, standing)
        elif state.stopped is not None and not standing.running:
            status = "failed" if standing.status == "failed" else "interrupted"
            own = standing.attempts[-1].message if status == "failed" else None
            self._end(spec, status, f"{own}; {state.stopped}" if own else state.stopped, standing)

    def _after_all_jobs(self, state: LaunchState) -> None:
        """Decide on what no job is left for: submit again after a loss, unless somebody wanted it so."""
        for spec in self._left():
            self._finished(spec, state.standing(spec.signature))  # another launch may have trained it
        left = [spec for spec in self._left() if not find(spec).held()]
        if not left:
            return
        cancelled = sorted(job for job in self._mine if self._jobs.get(job) == "CANCELLED")
        logs = self._folder.path / "slurm"
        if cancelled:
            why = f"job {' '.join(queue.short(cancelled))} was cancelled"
        elif self._starts() == self._seen:
            ends = sorted({str(end) for job, end in self._jobs.items() if job in self._mine})
            said = sorted({str(event.said.get("why")) for event in self._journals.events if event.what == "left"})
            why = f"its jobs ended ({', '.join([*ends, *said])}) before any run began: see {logs}"
        else:
            self._again(left)
            return
        for spec in left:
            status = "failed" if not cancelled else "interrupted"
            self._end(spec, status, why, state.standing(spec.signature))

    def _again(self, left: Sequence[RunSpec]) -> None:
        with FileLock(self._folder.path / ".submit"):
            self._gone, self._asked = 0, 0.0
            jobs = queue.jobs(self._folder.job_name)
            if jobs is None or queue.alive(jobs):  # another launcher of the same runs was faster
                return
            self._say(f"{len(left)} runs have no job left, and get others")
            self._folder.set_gone({event.job for event in self._journals.events})
            self._submit(left)

    def _left(self) -> list[RunSpec]:
        return [spec for signature, spec in self._specs.items() if signature not in self._outcomes]

    def _starts(self) -> int:
        return sum(event.what == "start" for event in self._journals.events)

    def _finished(self, spec: RunSpec, standing: Standing) -> None:
        result = finished_result(spec)
        if result is None:  # its journal may be seen before its result, on a network file system
            return
        message = None
        if result["status"] == "diverged":
            message = diverged_at(result)
        self._end(spec, result["status"], message, standing, result)

    def _end(
        self,
        spec: RunSpec,
        status: str,
        message: str | None,
        standing: Standing,
        result: dict[str, object] | None = None,
    ) -> None:
        seconds = sum(attempt.seconds for attempt in standing.attempts)
        reused = result is not None and not standing.attempts
        outcome = Outcome(spec, status, result, message, reused, seconds, find(spec).path)
        self._outcomes[spec.signature] = outcome
        self._view.done(outcome)

    def _farewell(self) -> str:
        living = " ".join(queue.short(queue.alive(self._jobs)))
        if not living:
            return "stopped"
        return f"detached; jobs {living} stay in the queue and go on ('scancel {living}' ends them)"


def _key(spec: RunSpec) -> tuple[str, str]:
    return str(spec.folder.parent), spec.signature
