"""What does one job of a launch do? It pulls runs that nobody trains from the launch's folder, until none is left.

It imports PyTorch once, in a fork server, and trains every run in a fresh process. Shortly before its time limit Slurm
sends SIGUSR2: the runs write a checkpoint and leave, and the job puts itself back into the queue where work is left.
SIGTERM comes from scancel, or from a preemption after which Slurm requeues by itself: the runs leave, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neumann.errors import UserError, first_line
from neumann.launch.fork_server import ForkServer
from neumann.launch.gpus import visible
from neumann.launch.process_pool import TICK_S, ProcessPool
from neumann.launch.run_process import RunProcesses
from neumann.launch.slurm.folder import Journal, Journals, LaunchFolder, ListedRun, this_job
from neumann.launch.slurm.queue import without_slurm
from neumann.launch.slurm.retry_rules import BEAT_S, LaunchState, Paced, state_of
from neumann.processes.signals import listening
from neumann.store.folder import OVER, make_folder

SETTLE_S = 2.0  # a signal to the job may have reached its runs as well, and they need not be asked twice
LATER_S = 1.0  # until a run that somebody held is looked at again
CLAIMED_S = 60.0  # after its start at the latest, a run's folder is held
LOOKS = 3  # at runs that others hold, before there is nothing left to do here
KILL_WAIT_S = 20.0  # Slurm's KillWait is 30 s unless its owner changed it
REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)  # the time limit is near, or preemption
LEAVE = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Worker:
    """What submitit pickles for a job: which launch, and at which submission of it."""

    folder: str
    submission: int

    def __call__(self) -> str:
        """Work, and return why it ended. Leaves by SystemExit where the job has put itself back into the queue."""
        return work(LaunchFolder(Path(self.folder)), submission=self.submission, trust=True)


def work(folder: LaunchFolder, *, submission: int | None = None, trust: bool = False) -> str:
    """Train runs of the launch in this process's children and return why there is nothing more to do here.

    ``trust`` allows optimizers from outside the known packages, which the launch's owner has named. Raises UserError
    where the folder is none of a launch.
    """
    settings = folder.settings()
    job, requeued = this_job(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    in_slurm = "SLURM_JOB_ID" in os.environ
    go_to(settings)
    journal = Journal(folder, job, submission or int(settings["submission"]))
    shift = _Shift(folder, settings, journal, submission or int(settings["submission"]), trust=trust)
    print(f"job {job} of the launch {folder.path}" + (f", requeued {requeued} times" if requeued else ""), flush=True)
    signals: list[int] = []
    with listening(signals.append), without_slurm():  # not SIGCONT, which Slurm sends before SIGTERM: it means nothing
        why = shift.work(signals)
    again = in_slurm and bool(signals) and signals[0] in REQUEUE and shift.more_to_do()
    journal.write("left", why=why, requeued=again)
    print(f"job {job} leaves: {why}" + ("; back into the queue" if again else ""), flush=True)
    if again:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
        raise SystemExit(0)  # Slurm ends this process anyway
    return why


def go_to(settings: Mapping[str, Any]) -> None:
    """Work where the launch was asked for, with the modules that could be imported there. Raises UserError."""
    try:
        os.chdir(settings["cwd"])
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"the launch was asked for in {settings['cwd']}, which cannot be entered here ({reason})"
        ) from None
    sys.path.extend(folder for folder in settings.get("path", []) if folder not in sys.path)


@dataclass
class _Shift:
    """One session of a worker."""

    folder: LaunchFolder
    settings: Mapping[str, Any]
    journal: Journal
    submission: int
    trust: bool = False
    _jobs: ProcessPool = field(default_factory=ProcessPool)
    _training: dict[RunProcesses, tuple[ListedRun, int]] = field(default_factory=dict)  # with the slot that it takes
    _over: set[str] = field(default_factory=set)
    _later: dict[str, float] = field(default_factory=dict)  # monotonic seconds
    _begun: int = 0
    _beat: float = 0.0

    def __post_init__(self) -> None:
        self._journals = Journals(self.folder)
        self._paced = Paced()
        launch = self.settings["launch"]
        self._slots = int(launch["runs_per_worker"])
        self._threads = max(1, int(launch["cpus_per_task"]) // self._slots)
        self._grace = float(launch["grace"])
        self._gpus = int(launch["gpus_per_node"] or 0)
        runs = [listed for listed in self.folder.runs() if listed.alone]
        start = hash_of(self.journal.job) % max(1, len(runs))  # workers begin at different ends
        self._runs = runs[start:] + runs[:start]
        self._server = ForkServer()

    def work(self, signals: list[int]) -> str:
        """Train until nothing is left or a signal asks to leave; return which it was."""
        self.journal.write("began", gpus=self._gpus, host=os.uname().nodename)
        self._beat = time.monotonic()
        looks = 0
        while self._next(self._state()) is None:  # then PyTorch is imported for nothing
            looks += 1
            if not self._later or looks > LOOKS:
                return "nothing left to train"
            time.sleep(LATER_S)
        with _deaf():
            self._server.warm_up()
        try:
            return self._loop(signals)
        except UserError as error:
            return str(error)
        finally:
            self._stop(signals, at_once=True)  # nobody is left, unless something here is broken
            self._server.close()

    def more_to_do(self) -> bool:
        """Return whether a further session of this job would have work, as far as this one can tell."""
        state = self._state(fresh=True)
        if state.stopped is not None or not self._begun:  # a limit too short to begin in is not tried for ever
            return False
        return any(state.standing(run.signature).open and run.folder().result() is None for run in self._runs)

    def _loop(self, signals: list[int]) -> str:
        looks = 0
        while True:
            if signals:
                self._stop(signals)
                return f"{signal.Signals(signals[0]).name}, with {self._begun} runs begun"
            state = self._state()
            if state.spent:
                self._stop(signals)
            if state.stopped and not len(self._jobs):
                return state.stopped
            idle = not self._fill(state, signals)
            if idle and not len(self._jobs):
                held = bool(self._later)
                looks += 1
                if not held or looks > LOOKS:
                    return f"nothing left to train, {self._begun} runs begun"
                time.sleep(LATER_S)
                continue
            looks = 0
            self._wait()

    def _fill(self, state: LaunchState, signals: list[int]) -> bool:
        """Start runs in the free slots; return whether there was one to start, or would be once the server is warm."""
        found = False
        while self._has_room() and not signals and not state.stopped:
            listed = self._next(state)
            if listed is None:
                return found
            found = True
            if not self._server.is_warm():
                return found
            self._start(listed)
            state = self._state()
        return found

    def _has_room(self) -> bool:
        return len(self._training) < self._slots and self._jobs.closing <= self._slots  # slow mirrors must not pile up

    def _next(self, state: LaunchState) -> ListedRun | None:
        """Return a run that nobody trains, those first that were tried least."""
        mine = {listed.signature for listed, _ in self._training.values()}
        now = time.monotonic()
        fresh = sorted(
            (
                run
                for run in self._runs
                if run.signature not in self._over | mine
                and self._later.get(run.signature, 0) <= now
                and (state.standing(run.signature).open or self._abandoned(run, state))
            ),
            key=lambda run: len(state.standing(run.signature).attempts),
        )
        for run in fresh:
            folder = run.folder()
            self._later.pop(run.signature, None)
            if folder.result() is not None:
                self._over.add(run.signature)
            elif folder.held():
                self._later[run.signature] = time.monotonic() + LATER_S
            else:
                return run
        return None

    def _abandoned(self, run: ListedRun, state: LaunchState) -> bool:
        """Return whether the process that trained ``run`` is seen to be gone, before its job's silence tells it."""
        standing = state.standing(run.signature)
        if not standing.running or standing.given_up is not None:
            return False
        recent = any(
            attempt.status is None and time.time() - attempt.began < CLAIMED_S for attempt in standing.attempts
        )
        return not recent and not run.folder().held()

    def _start(self, listed: ListedRun) -> None:
        self._begun += 1
        self.journal.write("start", run=listed.signature)
        slot = min(set(range(self._slots)) - {taken for _, taken in self._training.values()})
        try:
            spec = listed.spec(trust=self.trust)
            make_folder(spec.folder.parent)
            job = RunProcesses(spec, self._threads, self._gpus_of(slot))
        except (UserError, OSError, EOFError) as error:
            self.journal.write("end", run=listed.signature, status="failed", message=first_line(error))
            return
        self._jobs.add(job)
        self._training[job] = listed, slot

    def _gpus_of(self, slot: int) -> list[str]:
        """Return what a run sees of the job's GPUs: one of them, which others may share."""
        gpus = visible() if self._gpus else []
        return [gpus[slot % len(gpus)]] if gpus else []

    def _wait(self) -> None:
        """Return when a run is over, at the latest after a tick; then write what became of it."""
        if not len(self._jobs):
            self._server.is_warm(TICK_S)
        self._reap()
        if time.monotonic() - self._beat > BEAT_S:
            self._beat = time.monotonic()
            self.journal.write("beat")

    def _reap(self, *, asked: bool = False) -> None:
        for job in self._jobs.wait():
            listed, _ = self._training.pop(job)
            status, message, result = job.reap()
            step = (result or listed.folder().status()).get("step", 0)
            if listed.record["config"]["checkpoint"]["keep"] == "none" and result is None:
                step = 0  # the next attempt begins at the start
            if status in OVER:
                self._over.add(listed.signature)
            elif status == "claimed":
                self._later[listed.signature] = time.monotonic() + LATER_S
            elif asked and status == "failed":  # a signal to the whole job reaches its helpers too, such as decoders
                status = "interrupted"
            seconds = round(job.seconds(), 1)
            self.journal.write("end", run=listed.signature, status=status, message=message, step=step, seconds=seconds)

    def _stop(self, signals: list[int], *, at_once: bool = False) -> None:
        """Have every run write a checkpoint and leave, and kill those that cannot in time."""
        if not len(self._jobs):
            return
        requeue = not signals or signals[0] in REQUEUE
        patience = max(1.0, 0.75 * self._grace if requeue else min(KILL_WAIT_S, 0.75 * self._grace))
        began = time.monotonic()
        due = [(0.0, True)] if at_once else [(SETTLE_S if signals else 0.0, False), (patience, True)]
        while len(self._jobs):
            while due and time.monotonic() - began >= due[0][0]:
                _, now = due.pop(0)
                self._jobs.stop(at_once=now)
            self._reap(asked=True)

    def _state(self, *, fresh: bool = False) -> LaunchState:
        return self._paced(self._look, fresh=fresh)

    def _look(self) -> LaunchState:
        self._journals.look()
        settings = self.folder.known() or self.settings  # they may have been changed since
        return state_of(self._journals.events, settings["launch"], self.submission, gone=settings.get("gone", ()))


def hash_of(text: str) -> int:
    """Return a number that is the same on every machine."""
    return int.from_bytes(text.encode()[-6:], "little") * 2654435761 % 2**32


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Have what starts in the block ignore Slurm's signals, which may reach every process of a job: only runs may act
    on them, and they set handlers of their own."""
    numbers = (signal.SIGTERM, *REQUEUE)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
