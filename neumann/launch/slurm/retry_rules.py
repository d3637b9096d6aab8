"""Which runs of a launch may be tried (again), and when is it over? Decided from journals alone, alike by everybody.

A failure that repeats itself is told from bad luck: the same message twice is final, a vanished node is not. What was
stopped by a time limit or by preemption may go on for ever, as long as every attempt gets further than the last.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neumann.launch.slurm.folder import Event
from neumann.store.folder import OVER

BEAT_S = 15.0
SLURM = re.compile(r"\d+(_\d+)?")  # what jobs are called there
SHARE = 19.0  # seconds between looks for each second that a look takes
SILENT_S = 90.0  # a job that has not written for so long is gone, or as good as gone


@dataclass
class RunAttempts:
    """One attempt at a run by one job. ``status`` is None while it runs, and "lost" where its job vanished."""

    job: str
    began: float
    status: str | None = None
    message: str | None = None
    step: int = 0
    seconds: float = 0.0
    ended: float = 0.0


@dataclass
class Standing:
    """What is known of a run: its attempts in this submission, and why it is given up, if it is."""

    attempts: list[RunAttempts] = field(default_factory=list)
    given_up: str | None = None

    @property
    def status(self) -> str | None:
        """Return the status of the last attempt; None where there is none or it runs."""
        return self.attempts[-1].status if self.attempts else None

    @property
    def running(self) -> bool:
        """Return whether a job trains it."""
        return any(attempt.status is None for attempt in self.attempts)

    @property
    def open(self) -> bool:
        """Return whether a worker may try it."""
        return self.given_up is None and not self.running and self.status not in OVER


@dataclass(frozen=True)
class LaunchState:
    """What is known of a launch. ``stopped`` is the sentence that says why nothing more is started, or None.

    ``spent`` is true where the GPU-hours are used up, so that what runs has to leave as well.
    """

    runs: dict[str, Standing]
    gpu_hours: float
    stopped: str | None
    spent: bool = False

    def standing(self, signature: str) -> Standing:
        """Return what is known of one run."""
        return self.runs.get(signature) or Standing()


def state_of(
    events: Sequence[Event],
    limits: Mapping[str, Any],
    submission: int,
    *,
    alive: Iterable[str] | None = None,
    gone: Iterable[str] = (),
    now: float | None = None,
) -> LaunchState:
    """Return where a launch stands.

    ``limits`` are the launch's settings; attempts and failures count within ``submission``, GPU-hours over all.
    ``alive`` are the jobs that the queue knows; where it is None, a job is alive while it writes, unless it is among
    those that are known to be ``gone``.
    """
    now = time.time() if now is None else now
    alive, gone = None if alive is None else set(alive), set(gone)
    runs: dict[str, Standing] = {}
    hours = 0.0
    by_job: dict[tuple[int, str], list[Event]] = {}
    for event in events:
        by_job.setdefault((event.submission, event.job), []).append(event)
    for (number, job), lines in by_job.items():
        known = alive is not None and SLURM.fullmatch(job)  # the queue knows nothing of a worker started by hand
        dead = job not in (alive or ()) if known else job in gone or now - lines[-1].at > SILENT_S
        sessions = _sessions(lines)
        for i, session in enumerate(sessions):
            gpus = session[0].said.get("gpus", 0) if session[0].what == "began" else 0
            hours += gpus * (session[-1].at - session[0].at) / 3600
            if number == submission:
                over = dead or i + 1 < len(sessions) or session[-1].what == "left"
                _attempts(session, runs, over)
    failures: list[tuple[str, RunAttempts]] = []
    for signature, standing in runs.items():
        standing.attempts.sort(key=lambda attempt: attempt.began)
        standing.given_up = _given_up(standing.attempts, int(limits["max_attempts"]))
        failures += [(signature, attempt) for attempt in standing.attempts if attempt.status in (*OVER, "failed")]
    stopped = _alike(sorted(failures, key=lambda pair: pair[1].ended), limits.get("stop_after_failures"))
    ceiling = limits.get("gpu_hours")
    spent = ceiling is not None and hours >= ceiling
    if spent:
        stopped = (
            f"the jobs of this launch have used {hours:.2f} GPU-hours, and launch.gpu_hours={ceiling:g} allows no "
            "more: raise it to go on"
        )
    return LaunchState(runs, hours, stopped, spent)


class Paced:
    """Looks at a state again when it is due: with thousands of runs that takes a tenth of a second and more."""

    def __init__(self) -> None:
        self._state: LaunchState | None = None
        self._due = 0.0

    def __call__(self, look: Callable[[], LaunchState], *, fresh: bool = False) -> LaunchState:
        """Return what ``look`` returns, or has returned lately: it is called for a twentieth of the time at most."""
        began = time.monotonic()
        if self._state is None or fresh or began >= self._due:
            self._state = look()
            self._due = time.monotonic() + SHARE * (time.monotonic() - began)
        return self._state


def _sessions(lines: Sequence[Event]) -> list[list[Event]]:
    """Return a job's events, split where it was requeued and began again."""
    sessions: list[list[Event]] = []
    for line in lines:
        if line.what == "began" or not sessions:
            sessions.append([])
        sessions[-1].append(line)
    return sessions


def _attempts(session: Sequence[Event], runs: dict[str, Standing], over: bool) -> None:
    """File the attempts of a session, which is ``over`` or still writing."""
    begun: dict[str, RunAttempts] = {}
    for event in session:
        run = event.said.get("run")
        if event.what == "start" and run is not None:
            begun[run] = RunAttempts(event.job, event.at)
            runs.setdefault(run, Standing()).attempts.append(begun[run])
        elif event.what == "end" and run in begun:
            attempt = begun.pop(run)
            attempt.status, attempt.message = str(event.said.get("status")), event.said.get("message")
            attempt.step, attempt.seconds = int(event.said.get("step") or 0), float(event.said.get("seconds") or 0)
            attempt.ended = event.at
            if attempt.status == "claimed":  # somebody else trains it, so this was no attempt
                runs[run].attempts.remove(attempt)
    if over:
        for attempt in begun.values():
            attempt.status, attempt.ended = "lost", session[-1].at
            attempt.message = f"job {attempt.job} vanished while it trained (node failure, or killed from outside)"


def same(message: str | None) -> str:
    """Return ``message`` without its numbers: a time, a port or an address tells no failure from another."""
    return re.sub(r"\d+", "#", message or "")


def _given_up(attempts: Sequence[RunAttempts], most: int) -> str | None:
    """Return why a run is not tried again, or None."""
    failed = [attempt for attempt in attempts if attempt.status == "failed"]
    if len(failed) > 1 and same(failed[-1].message) == same(failed[-2].message):
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


def _alike(ended: Sequence[tuple[str, RunAttempts]], most: int | None) -> str | None:
    """Return why the launch stops where its last ends are failures of ``most`` different runs with one message."""
    if most is None:
        return None
    runs: set[str] = set()
    message: str | None = None
    for signature, attempt in ended:
        if attempt.status != "failed" or (runs and same(attempt.message) != same(message)):
            runs = set()
        if attempt.status == "failed":
            message = attempt.message
            runs.add(signature)
            if len(runs) >= most:
                return f"stopped after {most} runs in a row failed alike (launch.stop_after_failures): {message}"
    return None
