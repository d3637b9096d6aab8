"""Slurm worker: a job that takes runs which no process trains from the launch's folder, until none is left.

It imports PyTorch once, in a fork server, and trains every run in a fresh process. Shortly before its time limit Slurm
sends SIGUSR2: the runs write a checkpoint and leave, and the job requeues itself where runs are left. SIGTERM comes
from scancel, or from a preemption after which Slurm requeues the job: the runs leave, and the worker does no more.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neumann.errors import UserError, first_line
from neumann.launch.fork_server import ForkServer
from neumann.launch.process_pool import TICK_S, ProcessPool
from neumann.launch.run_logs import file_stale_logs
from neumann.launch.run_processes import RunProcesses
from neumann.launch.slurm.folder import JournalReader, JournalWriter, LaunchFolder, ListedRun, this_job
from neumann.launch.slurm.queue import without_slurm
from neumann.launch.slurm.retry_rules import HEARTBEAT_S, LaunchState, ThrottledState, launch_state
from neumann.processes.signals import listening
from neumann.store.folder import OVER, make_folder
from neumann.visible_gpus import visible_gpus

SETTLE_S = 2.0  # a signal to the job may have reached its runs as well, and they need not be asked twice
LATER_S = 1.0  # until a run that another process held is looked at again
CLAIMED_S = 60.0  # after its start at the latest, a run's folder is held
LOOKS = 3  # at runs that other processes hold, before the worker leaves
KILL_WAIT_S = 20.0  # Slurm's KillWait is 30 s by default
REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)  # the time limit is near, or preemption
LEAVE = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class WorkerJob:
    """Callable that submitit pickles for a worker's job.

    folder       the path of the launch's folder
    submission   the number of the submission
    """

    folder: str
    submission: int

    def __call__(self) -> str:
        """Train runs and return why the worker leaves. Raises SystemExit where the job has requeued itself."""
        return run_worker(LaunchFolder(Path(self.folder)), submission=self.submission, trust=True)


def run_worker(folder: LaunchFolder, *, submission: int | None = None, trust: bool = False) -> str:
    """Train runs of the launch in children of this process, and return why it leaves.

    folder       of the launch
    submission   that this worker belongs to; None: the last one
    trust        the folder is this user's own: allow what `LaunchFolder.refuse_foreign` refuses, and its import path

    Raises UserError where there is no launch in the folder, its working directory is not on this machine or it may not
    do what it asks for, and SystemExit where the job has requeued itself.
    """
    settings = folder.settings()
    job, requeued = this_job(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    in_slurm = "SLURM_JOB_ID" in os.environ
    enter_launch(settings, trust=trust)
    if not trust:
        folder.refuse_foreign()
    submission = submission or int(settings["submission"])
    start = _WorkerStart(folder, settings, JournalWriter(folder, job, submission), submission, trust=trust)
    print(f"job {job} of the launch {folder.path}" + (f", requeued {requeued} times" if requeued else ""), flush=True)
    signals: list[int] = []
    with listening(signals.append), without_slurm():  # not SIGCONT, which Slurm sends before SIGTERM: it means nothing
        why = start.train(signals)
    again = in_slurm and bool(signals) and signals[0] in REQUEUE and start.has_more_to_do()
    start.journal.write("left", why=why, requeued=again)
    print(f"job {job} leaves: {why}" + ("; back into the queue" if again else ""), flush=True)
    if again:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
        raise SystemExit(0)  # Slurm ends this process anyway
    return why


def enter_launch(settings: Mapping[str, Any], *, trust: bool) -> None:
    """Change to the launch's working directory, and with ``trust`` add its sys.path to ours.

    Raises UserError where the directory cannot be entered on this machine.
    """
    try:
        os.chdir(settings["cwd"])
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"the launch was asked for in {settings['cwd']}, which cannot be entered here ({reason})"
        ) from None
    if trust:
        sys.path.extend(folder for folder in settings.get("path", []) if folder not in sys.path)


@dataclass
class _WorkerStart:
    """One start of a worker's job, to its end or requeue.

    folder       of the launch
    settings     the content of its launch.json when the job began
    journal      of this job
    submission   that this job belongs to
    trust        allow optimizers from outside the known packages
    """

    folder: LaunchFolder
    settings: Mapping[str, Any]
    journal: JournalWriter
    submission: int
    trust: bool = False
    _pool: ProcessPool = field(default_factory=ProcessPool)
    _training: dict[RunProcesses, tuple[ListedRun, int]] = field(default_factory=dict)  # with the slot that it takes
    _over: set[str] = field(default_factory=set)  # signatures
    _later: dict[str, float] = field(default_factory=dict)  # monotonic seconds from which a held run is looked at again
    _begun: int = 0
    _heartbeat_at: float = 0.0

    def __post_init__(self) -> None:
        self._journals = JournalReader(self.folder)
        self._throttled = ThrottledState()
        launch = self.settings["launch"]
        self._slots = int(launch["runs_per_worker"])
        self._threads = max(1, int(launch["cpus_per_task"]) // self._slots)
        self._grace = float(launch["grace"])
        self._gpus = int(launch["gpus_per_node"] or 0)
        runs = [listed for listed in self.folder.runs() if listed.alone]
        start = hash_of(self.journal.job) % max(1, len(runs))  # workers begin at different ends
        self._runs = runs[start:] + runs[:start]
        self._server = ForkServer()

    def train(self, signals: list[int]) -> str:
        """Train until no run is left or ``signals`` has one that asks to leave; return why it ended."""
        self.journal.write("began", gpus=self._gpus, host=os.uname().nodename)
        self._heartbeat_at = time.monotonic()
        for study in {listed.folder().path.parent for listed in self._runs}:
            file_stale_logs(study)
        looks = 0
        while self._next(self._state()) is None:  # without a run, PyTorch would be imported in vain
            looks += 1
            if not self._later or looks > LOOKS:
                return "nothing left to train"
            time.sleep(LATER_S)
        self._server.warm_up()
        try:
            return self._loop(signals)
        except UserError as error:
            return str(error)
        finally:
            self._stop(signals, at_once=True)  # no run is left, unless an exception has come
            self._server.close()

    def has_more_to_do(self) -> bool:
        """Return whether a further start of this job would find runs to train, as far as this one knows."""
        state = self._state(fresh=True)
        if state.stopped is not None or not self._begun:  # a time limit too short for any run must not requeue for ever
            return False
        return any(state.history(run.signature).open and not run.is_over() for run in self._runs)

    def _loop(self, signals: list[int]) -> str:
        looks = 0
        while True:
            if signals:
                self._stop(signals)
                return f"{signal.Signals(signals[0]).name}, with {self._begun} runs begun"
            state = self._state()
            if state.spent:
                self._stop(signals)
            if state.stopped and not len(self._pool):
                return state.stopped
            idle = not self._fill(state, signals)
            if idle and not len(self._pool):
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
        return len(self._training) < self._slots and self._pool.closing <= self._slots  # slow mirrors must not pile up

    def _next(self, state: LaunchState) -> ListedRun | None:
        """Return a run that no process trains, of several the one with the fewest attempts."""
        mine = {listed.signature for listed, _ in self._training.values()}
        now = time.monotonic()
        fresh = sorted(
            (
                run
                for run in self._runs
                if run.signature not in self._over | mine
                and self._later.get(run.signature, 0) <= now
                and (state.history(run.signature).open or self._abandoned(run, state))
            ),
            key=lambda run: len(state.history(run.signature).attempts),
        )
        for run in fresh:
            folder = run.folder()
            self._later.pop(run.signature, None)
            if run.is_over():
                self._over.add(run.signature)
            elif folder.held():
                self._later[run.signature] = time.monotonic() + LATER_S
            else:
                return run
        return None

    def _abandoned(self, run: ListedRun, state: LaunchState) -> bool:
        """Return whether no process holds a run that another job trains: known sooner than by that job's silence."""
        history = state.history(run.signature)
        if not history.running or history.given_up is not None:
            return False
        recent = any(attempt.status is None and time.time() - attempt.began < CLAIMED_S for attempt in history.attempts)
        return not recent and not run.folder().held()

    def _start(self, listed: ListedRun) -> None:
        self._begun += 1
        self.journal.write("start", run=listed.signature)
        slot = min(set(range(self._slots)) - {taken for _, taken in self._training.values()})
        try:
            spec = listed.spec(trust=self.trust)
            make_folder(spec.folder.parent)
            run = RunProcesses(spec, self._threads, self._gpus_of(slot))
        except (UserError, OSError, EOFError) as error:
            self.journal.write("end", run=listed.signature, status="failed", message=first_line(error))
            self._throttled.expire()
            return
        self._pool.add(run)
        self._training[run] = listed, slot

    def _gpus_of(self, slot: int) -> list[str]:
        """Return the GPU that a run in ``slot`` sees, which others may share; an empty list without GPUs."""
        gpus = visible_gpus() if self._gpus else []
        return [gpus[slot % len(gpus)]] if gpus else []

    def _wait(self) -> None:
        """Wait for the end of a run, at most for a tick, and write the ends and the heartbeat into the journal."""
        if not len(self._pool):
            self._server.is_warm(TICK_S)
        self._reap()
        if time.monotonic() - self._heartbeat_at > HEARTBEAT_S:
            self._heartbeat_at = time.monotonic()
            self.journal.write("beat")

    def _reap(self) -> None:
        for run in self._pool.wait():
            listed, _ = self._training.pop(run)
            status, message, result = run.reap()
            step = (result or listed.folder().status()).get("step", 0)
            if listed.record["config"]["checkpoint"]["keep"] == "none" and result is None:
                step = 0  # without a checkpoint the next attempt begins at the start
            if status in OVER:
                self._over.add(listed.signature)
            elif status == "claimed":
                self._later[listed.signature] = time.monotonic() + LATER_S
            seconds = round(run.seconds(), 1)
            self.journal.write("end", run=listed.signature, status=status, message=message, step=step, seconds=seconds)
            if status not in OVER:
                self._throttled.expire()

    def _stop(self, signals: list[int], *, at_once: bool = False) -> None:
        """Ask every run to write a checkpoint and leave, and kill those that are not gone in time.

        In time: within three quarters of launch.grace, or of Slurm's KillWait where the signal was SIGTERM.
        """
        if not len(self._pool):
            return
        requeue = not signals or signals[0] in REQUEUE
        patience = max(1.0, 0.75 * self._grace if requeue else min(KILL_WAIT_S, 0.75 * self._grace))
        began = time.monotonic()
        due = [(0.0, True)] if at_once else [(SETTLE_S if signals else 0.0, False), (patience, True)]
        while len(self._pool):
            while due and time.monotonic() - began >= due[0][0]:
                _, now = due.pop(0)
                self._pool.stop(at_once=now)
            self._reap()

    def _state(self, *, fresh: bool = False) -> LaunchState:
        return self._throttled(self._read_on, fresh=fresh)

    def _read_on(self) -> LaunchState:
        self._journals.read_on()
        settings = self.folder.known_settings() or self.settings  # the launcher may have changed the limits since
        return launch_state(self._journals.entries, settings["launch"], self.submission, gone=settings.get("gone", ()))


def hash_of(text: str) -> int:
    """Return a number below 2³² that follows from the end of ``text``, the same on every machine."""
    return int.from_bytes(text.encode()[-6:], "little") * 2654435761 % 2**32
