"""How do many runs train at once? Each in a fresh process from a fork server, with exactly its own specification.

The server has imported PyTorch, Lightning, timm and W&B once, so a job starts in a fraction of a second instead of the
ten that a fresh interpreter takes. A job gets a `RunSpec`, never a command line, so no rank or worker can re-execute
somebody else's overrides. This module never imports torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

from neumann.config import LaunchConfig, RunSpec
from neumann.errors import Interrupted
from neumann.runs.folder import make_folder
from neumann.runs.job import Job, warm_up
from neumann.runs.reuse import find, finished_result

TICK_S = 0.25
CLAIMED_AGAIN_S = 1.0  # between looks at a run that another launcher is training


@dataclass(frozen=True)
class Outcome:
    """What became of one run. ``status`` is finished, diverged, failed or interrupted; ``message`` says why, in a line.

    ``reused`` is true where this launch did not train it: it was finished before, or by another launcher meanwhile.
    ``seconds`` is the job's wall time in this launch.
    """

    spec: RunSpec
    status: str
    result: dict[str, Any] | None
    message: str | None
    reused: bool
    seconds: float
    folder: Path


class View(Protocol):
    """What a person sees of a launch. Every method is called from the launching thread."""

    def started(self, spec: RunSpec) -> None:
        """Take note of a job that has just been started."""

    def done(self, outcome: Outcome) -> None:
        """Take note of a run that is over, also of those that were over before."""

    def tick(self, running: Sequence[RunSpec], waiting: int) -> None:
        """Refresh, about four times a second."""


class Launcher:
    """Trains runs, ``parallel`` at once with ``threads`` torch threads each, as a context manager.

    The fork server warms up from the first moment that something has to be trained, and not at all otherwise.
    """

    def __init__(self, settings: LaunchConfig) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        has_gpu = Path("/dev/nvidia0").exists()  # asked without torch: a second run would share the device
        self.parallel = settings.parallel or (1 if has_gpu else cores)
        self.threads = settings.threads or max(1, cores // self.parallel)
        self._signals = 0

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def run(self, specs: Sequence[RunSpec], view: View) -> list[Outcome]:
        """Train what is not over yet and return the outcomes in the order of ``specs``; may be called again.

        A signature that comes twice is trained once. A failing run does not stop the others. Raises UserError where
        results cannot be written, and Interrupted, when every job has left, where SIGINT or SIGTERM asked to stop: jobs
        write a checkpoint then. A second signal kills them.
        """
        unique = {spec.signature: spec for spec in specs}
        outcomes: dict[str, Outcome] = {}
        waiting: deque[RunSpec] = deque()
        for spec in unique.values():
            outcome = _already_over(spec)
            if outcome is None:
                waiting.append(spec)
            else:
                outcomes[spec.signature] = outcome
                view.done(outcome)
        if waiting:
            for folder in {spec.folder.parent for spec in waiting}:
                make_folder(folder)
            warm_up(self.threads)
            with self._listening():
                self._train(waiting, outcomes, view)
            if self._signals:
                finished = sum(outcome.result is not None for outcome in outcomes.values())
                raise Interrupted(f"stopped with {finished} of {len(unique)} runs finished")
        return [outcomes[spec.signature] for spec in specs]

    def _train(self, waiting: deque[RunSpec], outcomes: dict[str, Outcome], view: View) -> None:
        running: list[Job] = []
        not_before: dict[str, float] = {}  # runs that another launcher is training, and when to look again
        told = 0
        try:
            while running or (waiting and not self._signals):
                for _ in range(len(waiting)):
                    if self._signals or len(running) >= self.parallel:
                        break
                    spec = waiting.popleft()
                    if not_before.get(spec.signature, 0.0) > time.monotonic():
                        waiting.append(spec)
                        continue
                    outcome = _already_over(spec) if spec.signature in not_before else None
                    if outcome is not None:
                        outcomes[spec.signature] = outcome
                        view.done(outcome)
                        continue
                    running.append(Job(spec, self.threads))
                    view.started(spec)
                view.tick([job.spec for job in running], len(waiting))
                _wait(running)
                for job in [job for job in running if job.over()]:
                    running.remove(job)
                    status, message, result = job.reap()
                    if status == "claimed" and not self._signals:
                        not_before[job.spec.signature] = time.monotonic() + CLAIMED_AGAIN_S
                        waiting.append(job.spec)
                        continue
                    status = "interrupted" if status == "claimed" else status
                    folder = find(job.spec).path
                    outcome = Outcome(job.spec, status, result, message, False, job.seconds(), folder)
                    outcomes[job.spec.signature] = outcome
                    view.done(outcome)
                if self._signals > told:
                    told = self._signals
                    for job in running:
                        job.stop(at_once=told > 1)
        except BaseException:
            for job in running:
                job.stop(at_once=True)
            raise

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Count SIGINT and SIGTERM within the block, where Python allows handlers: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._signals += 1

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _already_over(spec: RunSpec) -> Outcome | None:
    result = finished_result(spec)
    if result is None:
        return None
    return Outcome(spec, result["status"], result, None, True, 0.0, find(spec).path)


def _wait(running: Sequence[Job]) -> None:
    """Return when a job is over, at the latest after a tick."""
    from multiprocessing import connection

    if running:
        connection.wait([job.sentinel for job in running], timeout=TICK_S)
    else:
        time.sleep(TICK_S)
