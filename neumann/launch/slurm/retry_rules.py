"""Rules by which runs on a cluster are tried again, and by which a launch stops.

A job applies them to the journals and launch.json; the launcher also asks squeue which jobs are gone. The same
failure twice is final; a vanished node is not. A run that a time limit or preemption stopped may go on for ever, as
long as every attempt gets further than the last.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neumann.launch.slurm.folder import JournalEntry
from neumann.store.folder import OVER

HEARTBEAT_S = 15.0  # between two lines of a job's journal at most, so that it counts as alive
SLURM = re.compile(r"\d+(_\d+)?")  # names of Slurm's jobs; a worker started by hand has another
REST = 19.0  # seconds between two readings of the journals, for each second that a reading takes
SILENT_S = 90.0  # a job that has not written for so long counts as gone


@dataclass
class RunAttempt:
    """One attempt of one job at a run.

    job       the job
    began     seconds since 1970
    status    None while it runs, "lost" where its job vanished, else the run's status
    message   why it has this status, or None
    step      the step that a further attempt would go on from
    seconds   wall time of training
    ended     seconds since 1970; 0 while it runs
    """

    job: str
    began: float
    status: str | None = None
    message: str | None = None
    step: int = 0
    seconds: float = 0.0
    ended: float = 0.0


@dataclass
class RunHistory:
    """The attempts at a run in one submission, and why no further one is made; None where one may be."""

    attempts: list[RunAttempt] = field(default_factory=list)
    given_up: str | None = None

    @property
    def status(self) -> str | None:
        """Return the status of the last attempt; None where there is none or it runs."""
        return self.attempts[-1].status if self.attempts else None

    @property
    def running(self) -> bool:
        """Return whether a job trains the run."""
        return any(attempt.status is None for attempt in self.attempts)

    @property
    def open(self) -> bool:
        """Return whether a worker may try the run."""
        return self.given_up is None and not self.running and self.status not in OVER


@dataclass(frozen=True)
class LaunchState:
    """The state of a launch, as its journals tell it.

    histories   by signature, of the runs that were attempted
    gpu_hours   used by all jobs of the launch
    stopped     the sentence that says why no run is started any more, or None
    spent       True where the GPU-hours are used up, so that the runs that train have to leave as well
    """

    histories: dict[str, RunHistory]
    gpu_hours: float
    stopped: str | None
    spent: bool = False

    def history(self, signature: str) -> RunHistory:
        """Return the history of one run, an empty one where it was not attempted."""
        return self.histories.get(signature) or RunHistory()


def launch_state(
    entries: Sequence[JournalEntry],
    limits: Mapping[str, Any],
    submission: int,
    *,
    alive: Iterable[str] | None = None,
    gone: Iterable[str] = (),
    now: float | None = None,
) -> LaunchState:
    """Return the state of a launch.

    entries      of all its journals
    limits       the launch's settings, of which `neumann.launch.slurm.folder.LIMITS` are read
    submission   whose attempts and failures count; GPU-hours count over all submissions
    alive        the jobs that are not gone by the queue; None: a job is alive while it writes and is not ``gone``
    gone         jobs that have ended, whatever their journals say
    now          seconds since 1970; None: the clock's
    """
    now = time.time() if now is None else now
    alive, gone = None if alive is None else set(alive), set(gone)
    histories: dict[str, RunHistory] = {}
    hours = 0.0
    by_job: dict[tuple[int, str], list[JournalEntry]] = {}
    for entry in entries:
        by_job.setdefault((entry.submission, entry.job), []).append(entry)
    for (number, job), lines in by_job.items():
        known = alive is not None and SLURM.fullmatch(job)  # the queue knows nothing of a worker started by hand
        dead = job not in (alive or ()) if known else job in gone or now - lines[-1].at > SILENT_S
        sessions = _sessions(lines)
        for i, session in enumerate(sessions):
            gpus = session[0].said.get("gpus", 0) if session[0].what == "began" else 0
            hours += gpus * (session[-1].at - session[0].at) / 3600
            if number == submission:
                over = dead or i + 1 < len(sessions) or session[-1].what == "left"
                _file_attempts(session, histories, over)
    failures: list[tuple[str, RunAttempt]] = []
    for signature, history in histories.items():
        history.attempts.sort(key=lambda attempt: attempt.began)
        history.given_up = _why_given_up(history.attempts, int(limits["max_attempts"]))
        failures += [(signature, attempt) for attempt in history.attempts if attempt.status in (*OVER, "failed")]
    stopped = _why_stopped(sorted(failures, key=lambda pair: pair[1].ended), limits.get("stop_after_failures"))
    ceiling = limits.get("gpu_hours")
    spent = ceiling is not None and hours >= ceiling
    if spent:
        stopped = (
            f"the jobs of this launch have used {hours:.2f} GPU-hours, and launch.gpu_hours={ceiling:g} allows no "
            "more: raise it to go on"
        )
    return LaunchState(histories, hours, stopped, spent)


class ThrottledState:
    """A launch's state, read again only when it is due: with thousands of runs a reading takes 0.1 s and more."""

    def __init__(self) -> None:
        self._state: LaunchState | None = None
        self._due = 0.0

    def __call__(self, read: Callable[[], LaunchState], *, fresh: bool = False) -> LaunchState:
        """Return ``read()``, cached so that reading takes at most 5 % of the time; ``fresh`` forces a read."""
        began = time.monotonic()
        if self._state is None or fresh or began >= self._due:
            self._state = read()
            self._due = time.monotonic() + REST * (time.monotonic() - began)
        return self._state

    def expire(self) -> None:
        """Have the next call read the state, since an attempt has ended that the rules must count first."""
        self._due = 0.0


def _sessions(lines: Sequence[JournalEntry]) -> list[list[JournalEntry]]:
    """Return a job's entries, split where it was requeued and began again."""
    sessions: list[list[JournalEntry]] = []
    for line in lines:
        if line.what == "began" or not sessions:
            sessions.append([])
        sessions[-1].append(line)
    return sessions


def _file_attempts(session: Sequence[JournalEntry], histories: dict[str, RunHistory], over: bool) -> None:
    """Add the attempts of a session to ``histories``; where it is ``over``, those without an end are lost."""
    begun: dict[str, RunAttempt] = {}
    for entry in session:
        run = entry.said.get("run")
        if entry.what == "start" and run is not None:
            begun[run] = RunAttempt(entry.job, entry.at)
            histories.setdefault(run, RunHistory()).attempts.append(begun[run])
        elif entry.what == "end" and run in begun:
            attempt = begun.pop(run)
            attempt.status, attempt.message = str(entry.said.get("status")), entry.said.get("message")
            attempt.step, attempt.seconds = int(entry.said.get("step") or 0), float(entry.said.get("seconds") or 0)
            attempt.ended = entry.at
            if attempt.status == "claimed":  # another process trains it, so this was no attempt
                histories[run].attempts.remove(attempt)
    if over:
        for attempt in begun.values():
            attempt.status, attempt.ended = "lost", session[-1].at
            attempt.message = f"job {attempt.job} vanished while it trained (node failure, or killed from outside)"


def without_numbers(message: str | None) -> str:
    """Return ``message`` with # for each number: times, ports and addresses differ between failures that are alike."""
    return re.sub(r"\d+", "#", message or "")


def _why_given_up(attempts: Sequence[RunAttempt], most: int) -> str | None:
    """Return why a run is not tried again, or None; ``most`` is launch.max_attempts."""
    failed = [attempt for attempt in attempts if attempt.status == "failed"]
    if len(failed) > 1 and without_numbers(failed[-1].message) == without_numbers(failed[-2].message):
        return f"failed twice alike: {failed[-1].message}"
    counted, furthest = 0, 0
    for attempt in attempts:
        further = attempt.status == "interrupted" and attempt.step > furthest
        furthest = max(furthest, attempt.step)
        counted += attempt.status in ("failed", "lost", "interrupted") and not further
    if counted >= most:
        last = attempts[-1]
        return f"{counted} attempts, and launch.max_attempts={most}: {last.message or last.status}"
    return None


def _why_stopped(ended: Sequence[tuple[str, RunAttempt]], most: int | None) -> str | None:
    """Return why the launch stops: ``most`` different runs in a row failed with one message. None where it goes on."""
    if most is None:
        return None
    runs: set[str] = set()
    message: str | None = None
    for signature, attempt in ended:
        if attempt.status != "failed" or (runs and without_numbers(attempt.message) != without_numbers(message)):
            runs = set()
        if attempt.status == "failed":
            message = attempt.message
            runs.add(signature)
            if len(runs) >= most:
                return f"stopped after {most} runs in a row failed alike (launch.stop_after_failures): {message}"
    return None
