"""Monitor of one launch on a cluster: it submits jobs for the runs or joins those in the queue, and follows them.

It keeps no state that is not also in the launch's folder and in the queue, so it may be stopped at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from filelock import FileLock

from neumann.config import RunSpec, SlurmLaunchConfig
from neumann.errors import Interrupted, UserError
from neumann.launch.protocol import LaunchView, RunOutcome
from neumann.launch.slurm import queue
from neumann.launch.slurm.folder import LIMITS, JournalReader, LaunchFolder
from neumann.launch.slurm.jobs import LaunchJobs, arrays_for, purpose_for
from neumann.launch.slurm.retry_rules import SLURM, LaunchState, RunHistory, ThrottledState, launch_state
from neumann.store.folder import OVER
from neumann.store.lookup import find, finished_result
from neumann.store.scores import diverged_at

TICK_S = 0.5
POLL_S = 10.0  # between two calls of squeue
REFUSED_S = 300.0  # between two tries of jobs that Slurm has refused, where none of the launch's jobs ends meanwhile


class LaunchMonitor:
    """Follows one launch from its submission to its last run.

    settings   what jobs ask for, and how runs are shared out
    folder     of the launch
    specs      the runs that are not over yet
    view       is told of every start and outcome
    say        is called with notes for the user
    check      is called before jobs are submitted for runs, and raises UserError where one cannot be built
    """

    def __init__(
        self,
        settings: SlurmLaunchConfig,
        folder: LaunchFolder,
        specs: Sequence[RunSpec],
        view: LaunchView,
        say: Callable[[str], None],
        check: Callable[[Sequence[RunSpec], LaunchView], None],
    ) -> None:
        self._settings, self._folder, self._view, self._say, self._check = settings, folder, view, say, check
        self._specs = {spec.signature: spec for spec in specs}
        self._outcomes: dict[str, RunOutcome] = {}
        self._journals = JournalReader(folder)
        self._throttled = ThrottledState()
        self._submission = 0
        self._jobs = LaunchJobs()
        self._polled = 0.0
        self._starts_before: dict[str, int] = {}  # {purpose: starts of its runs when jobs were last submitted for it}
        self._refused: dict[str, str] = {}  # {purpose: why Slurm took no job for it}
        self._refused_at = -REFUSED_S
        self._gone_then = 0  # jobs that were gone at that time
        self._shown: set[str] = set()
        self._queue_silent = False

    def run(self) -> list[RunOutcome]:
        """Submit or join, wait, and return an outcome for each run. Raises as `SlurmLauncher.run` does."""
        try:
            self._begin()
            while not self._all_over():
                time.sleep(TICK_S)
        except KeyboardInterrupt:
            raise Interrupted(self._farewell()) from None
        return list(self._outcomes.values())

    def _begin(self) -> None:
        """Submit jobs, or join those of this launch in the queue. Raises UserError as `SlurmLauncher.run` does."""
        if not self._folder.path.exists():  # so no jobs can be joined, and nothing is left of what is refused
            self._check(list(self._specs.values()), self._view)
        self._folder.make()
        with FileLock(self._folder.path / ".submit"):  # the same command twice at the same moment
            jobs = queue.jobs(self._folder.job_name)
            if jobs is None:
                raise UserError("squeue does not answer, so nothing can be submitted: try again when Slurm is up")
            known = self._folder.known_settings()
            living = queue.alive(jobs)
            self._journals.read_on()
            if living and known is not None:
                self._jobs.note(self._folder.jobs())
                self._jobs.answered(jobs, self._journaling())
                self._join(known["launch"], living)
                self._submission = int(known["submission"])
            else:
                self._jobs.answered(jobs)
                self._submission = int(known["submission"]) + 1 if known else 1
                state = self._state()
                if state.spent:
                    raise UserError(str(state.stopped))
                self._check(list(self._specs.values()), self._view)
                self._folder.write(self._settings, list(self._specs.values()), self._submission)
                self._submit(list(self._specs.values()))
                if not self._jobs.of():
                    raise UserError(next(iter(self._refused.values())))

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
        """Submit jobs for ``specs``, and take note of those for which Slurm took none."""
        ids: list[str] = []
        refused: dict[str, str] = {}
        for array in arrays_for(specs, self._settings, self._folder, self._submission):
            try:
                new = queue.submit(self._folder, self._settings, array.functions, array.ranks)
            except queue.Refused as error:  # the other arrays may be smaller, or of a kind that Slurm takes
                new = error.ids
                refused |= dict.fromkeys(array.purposes[len(new) :], str(error))
            taken = dict(zip(new, array.purposes, strict=False))
            self._folder.add_jobs(taken)
            self._jobs.note(taken)
            ids += new
        self._starts_before |= {purpose: self._starts(purpose) for purpose in map(purpose_for, specs)}
        self._polled = time.monotonic()
        if ids:
            numbers = " ".join(queue.short(ids))
            count = sum(purpose_for(spec) not in refused for spec in specs)
            self._say(
                f"submitted: {len(ids)} jobs for {count} runs ({numbers}); Ctrl-C leaves them in the queue, "
                f"'scancel {numbers}' ends them; logs in {self._folder.path / 'slurm'}"
            )
        self._remember(refused, specs)

    def _remember(self, refused: dict[str, str], specs: Sequence[RunSpec]) -> None:
        """Take note of why Slurm took no job for some of ``specs``, by purpose, and tell what was not told before."""
        told = set(self._refused.values())
        purposes = {purpose_for(spec) for spec in specs}
        self._refused = {purpose: why for purpose, why in self._refused.items() if purpose not in purposes} | refused
        self._refused_at, self._gone_then = time.monotonic(), len(self._jobs.gone())
        if not self._jobs.may_live():
            return
        for why in sorted(set(refused.values()) - told):
            count = sum(refused.get(purpose_for(spec)) == why for spec in specs)
            self._say(
                f"{why}; {count} runs have no job yet: Slurm is asked again when a job of this launch has ended, and "
                f"every {REFUSED_S / 60:g} minutes"
            )

    def _all_over(self) -> bool:
        """Take note of new entries and of the queue; return whether every run has an outcome."""
        polled = self._poll()
        state = self._throttled(self._read_on, fresh=polled)
        for signature, spec in self._specs.items():
            if signature not in self._outcomes:
                self._settle(spec, state)
        running = [spec for s, spec in self._specs.items() if s not in self._outcomes and state.history(s).running]
        self._view.tick(running, len(self._specs) - len(self._outcomes) - len(running))
        if polled:
            self._replace_jobs(state)
        return len(self._outcomes) == len(self._specs)

    def _poll(self) -> bool:
        """Ask squeue for the states of the jobs, where it is due; return whether it has answered."""
        if time.monotonic() - self._polled < POLL_S:
            return False
        self._polled = time.monotonic()
        jobs = queue.jobs(self._folder.job_name)
        if jobs is None:
            if not self._queue_silent:
                self._say("squeue does not answer; the jobs are not touched by that, and it is asked again")
            self._queue_silent = True
            return False
        self._queue_silent = False
        self._jobs.note(self._folder.jobs())  # another launcher of the same runs may have submitted some
        self._jobs.answered(jobs, self._journaling())
        return True

    def _journaling(self) -> set[str]:
        """Return the jobs of Slurm that have written a journal; a worker started by hand is in no queue."""
        return {entry.job for entry in self._journals.entries if SLURM.fullmatch(entry.job)}

    def _read_on(self) -> LaunchState:
        self._journals.read_on()
        return self._state()

    def _state(self) -> LaunchState:
        """Return the state by the journals read so far; what a job trained that is gone is lost."""
        alive = self._jobs.not_gone()
        return launch_state(self._journals.entries, asdict(self._settings), self._submission, alive=alive)

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

    def _replace_jobs(self, state: LaunchState) -> None:
        """Decide on the runs that have no job any more: submit jobs again, or give the runs up.

        They are given up where the user has cancelled a job of the launch, and where the jobs for them have ended
        before any of them began.
        """
        open_runs: dict[str, list[RunSpec]] = {purpose_for(spec): [] for spec in self._left()}
        for purpose in [purpose for purpose in open_runs if self._jobs.may_live(purpose)]:
            self._refused.pop(purpose, None)  # another launcher of the same runs was luckier
            del open_runs[purpose]
        for spec in self._left():
            if (left := open_runs.get(purpose_for(spec))) is not None:
                self._finished(spec, state.history(spec.signature))  # another launch may have trained it
                if spec.signature not in self._outcomes and not find(spec).held():
                    left.append(spec)
        cancelled = self._jobs.cancelled()
        again: list[RunSpec] = []
        for purpose, left in open_runs.items():
            if not left:
                continue
            if cancelled:
                self._give_up(left, "interrupted", f"job {' '.join(queue.short(cancelled))} was cancelled", state)
            elif purpose in self._refused or not self._jobs.of(purpose):  # another launcher may have been refused
                again += left if self._may_ask_again() else []
            elif self._starts(purpose) == self._starts_before.get(purpose, 0):
                self._give_up(left, "failed", self._why_none_began(purpose), state)
            else:
                again += left
        if again:
            self._submit_again(again, state)

    def _may_ask_again(self) -> bool:
        """Return whether Slurm may take now what it has refused: a job of the launch has ended, or time has passed."""
        waited = time.monotonic() - self._refused_at > REFUSED_S
        return waited or len(self._jobs.gone()) > self._gone_then or not self._jobs.may_live()

    def _why_none_began(self, purpose: str) -> str:
        jobs = set(self._jobs.of(purpose))
        ends = sorted({self._jobs.states[job] for job in jobs})
        left = [entry for entry in self._journals.entries if entry.what == "left" and entry.job in jobs]
        said = sorted({str(entry.said.get("why")) for entry in left})
        return f"its jobs ended ({', '.join([*ends, *said])}) before any run began: see {self._folder.path / 'slurm'}"

    def _give_up(self, specs: Sequence[RunSpec], status: str, why: str, state: LaunchState) -> None:
        for spec in specs:
            self._end(spec, status, why, state.history(spec.signature))

    def _submit_again(self, left: Sequence[RunSpec], state: LaunchState) -> None:
        """Submit jobs for what is left, unless another launcher of the same runs has done so."""
        with FileLock(self._folder.path / ".submit"):
            jobs = queue.jobs(self._folder.job_name)
            if jobs is None:
                self._jobs.doubt()
                return
            self._jobs.note(self._folder.jobs())
            self._jobs.answered(jobs, self._journaling(), early=True)
            left = [spec for spec in left if not self._jobs.may_live(purpose_for(spec))]
            if not left:  # another launcher of the same runs was faster
                return
            lost = [spec for spec in left if purpose_for(spec) not in self._refused]
            if lost:
                self._say(f"{len(lost)} runs have no job left, and get others")
            self._folder.add_runs(left)
            self._folder.set_gone(self._jobs.gone())
            self._submit(left)
        if not self._jobs.may_live():
            for spec in left:
                if (why := self._refused.get(purpose_for(spec))) is not None:
                    self._give_up([spec], "failed", why, state)

    def _left(self) -> list[RunSpec]:
        return [spec for signature, spec in self._specs.items() if signature not in self._outcomes]

    def _starts(self, purpose: str) -> int:
        """Return how often runs have begun in jobs for ``purpose``."""
        mine = set(self._jobs.of(purpose))
        return sum(entry.what == "start" and entry.job in mine for entry in self._journals.entries)

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
        living = " ".join(queue.short(self._jobs.living()))
        if not living:
            return "stopped"
        return f"detached; jobs {living} stay in the queue and go on ('scancel {living}' ends them)"
