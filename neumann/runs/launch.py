"""How do many runs train beside each other? Each in a process of its own, and none is another's problem.

A run that is over is returned at once, a run that another launcher is training is waited for, a run that fails is one
line of the table, and Ctrl-C leaves every run where the same command goes on. Never imports torch: the children do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

from neumann.config import LaunchConfig, RunSpec
from neumann.errors import Interrupted, UserError
from neumann.runs.folder import RunFolder
from neumann.runs.forks import Child, Forks
from neumann.runs.reuse import find

TICK_S = 0.25
POLL_S = 1.0  # between two looks at runs that another process is training

Key = tuple[Path, str]  # where its results are filed, and its signature


@dataclass(frozen=True)
class Outcome:
    """How a run ended: finished, diverged, failed or interrupted."""

    spec: RunSpec
    status: str
    result: dict[str, Any] | None  # content of result.json where there is one
    message: str | None  # one line: why it failed
    reused: bool  # it was finished before this launch, or meanwhile by another one
    seconds: float  # wall time of the job in this launch, 0.0 where reused
    folder: Path


class View(Protocol):
    """What a person sees; every method is called from the launching thread."""

    def started(self, spec: RunSpec) -> None:
        """A run has a process."""

    def done(self, outcome: Outcome) -> None:
        """A run is over, in whatever way; once for each that was asked for."""

    def tick(self, running: Sequence[RunSpec], waiting: int) -> None:
        """About four times a second."""


class Launcher:
    """Trains runs in processes of their own, ``parallel`` at once on ``threads`` threads each.

    The fork server starts with the first run that has to be trained, and stays for later calls of `run`.
    """

    def __init__(self, settings: LaunchConfig) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.parallel: int = settings.parallel or (1 if _gpu_is_here() else cores)
        self.threads: int = settings.threads or max(1, cores // self.parallel)
        self._forks = Forks()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._forks.close()

    def run(self, specs: Sequence[RunSpec], view: View) -> list[Outcome]:
        """Train what is not over and return how each of ``specs`` ended, in their order.

        Raises Interrupted where a signal stopped the launch, after every child has left a state to go on from.
        """
        with _listening() as signals:
            return _Launch(specs, view, self.parallel, self.threads, self._forks, signals).run()


class _Launch:
    """One call of `Launcher.run`."""

    def __init__(
        self, specs: Sequence[RunSpec], view: View, parallel: int, threads: int, forks: Forks, signals: list[int]
    ) -> None:
        self._specs, self._view, self._forks, self._signals = specs, view, forks, signals
        self._parallel, self._threads = parallel, threads
        self._asked_for: dict[Key, list[int]] = {}
        for number, spec in enumerate(specs):
            self._asked_for.setdefault(_key(spec), []).append(number)
        self._outcomes: dict[int, Outcome] = {}
        self._waiting: deque[RunSpec] = deque()
        self._elsewhere: deque[RunSpec] = deque()  # another process trains them
        self._looked = 0.0
        self._children: list[Child] = []
        self._stopping = self._killing = False

    def run(self) -> list[Outcome]:
        try:
            for spec in (self._specs[numbers[0]] for numbers in self._asked_for.values()):
                if not self._reuse(spec):
                    self._waiting.append(spec)
            if self._waiting:
                self._forks.warm_up()
            while self._children or ((self._waiting or self._elsewhere) and not self._signals):
                self._start()
                self._pause()
                self._obey()
                for child in [c for c in self._children if wait([c.ended], 0)]:
                    self._end(child)
                self._view.tick([child.spec for child in self._children], len(self._waiting) + len(self._elsewhere))
        except BaseException:
            self._stopping = True
            self._leave()
            raise
        if self._signals:
            over = sum(o.status in ("finished", "diverged") for o in self._outcomes.values())
            raise Interrupted(f"stopped with {over} of {len(self._specs)} runs finished")
        return [self._outcomes[number] for number in range(len(self._specs))]

    def _start(self) -> None:
        """Start what there is room for, once the server is warm."""
        if not self._waiting and self._elsewhere and time.monotonic() - self._looked > POLL_S:
            self._looked = time.monotonic()
            for spec in list(self._elsewhere):
                if self._reuse(spec):
                    self._elsewhere.remove(spec)
                elif not find(spec).held():
                    self._elsewhere.remove(spec)
                    self._waiting.append(spec)
        while self._waiting and len(self._children) < self._parallel and not self._signals and self._forks.is_warm(0):
            spec = self._waiting.popleft()
            if self._reuse(spec):
                continue
            try:
                self._children.append(Child(spec, self._threads))
            except (OSError, EOFError) as error:
                self._over(spec, "failed", f"no process can be started: {error}")
            else:
                self._view.started(spec)

    def _pause(self) -> None:
        if self._children:
            wait([child.ended for child in self._children], TICK_S)
        elif self._waiting and not self._forks.is_warm(TICK_S):
            return
        elif self._elsewhere and not self._waiting:
            time.sleep(TICK_S)

    def _obey(self) -> None:
        """Pass a signal on: the first asks every child to stop, a second Ctrl-C kills them."""
        if self._signals and not self._stopping:
            self._stopping = True
            for child in self._children:
                child.signal(signal.SIGTERM)
        if signal.SIGINT in self._signals[1:] and not self._killing:
            self._killing = True
            for child in self._children:
                child.kill()

    def _leave(self) -> None:
        """Stop the children after an error of our own, and wait for them."""
        for child in self._children:
            child.signal(signal.SIGTERM)
        while self._children:
            wait([child.ended for child in self._children], TICK_S)
            self._obey()
            for child in [c for c in self._children if wait([c.ended], 0)]:
                self._children.remove(child)
                child.collect()
                child.close(_folder(child.spec))

    def _end(self, child: Child) -> None:
        """Make an ended child an outcome."""
        self._children.remove(child)
        report, code = child.collect()
        spec, folder, seconds = child.spec, _folder(child.spec), time.monotonic() - child.began
        claimed = report is not None and report.ended == "claimed"
        child.close(None if claimed else folder)
        if claimed and folder.result() is None:
            self._elsewhere.append(spec)
            return
        message = None if report is None else report.message
        status = "failed"
        if folder.result() is not None:
            status = "finished"
        elif (report is not None and report.ended == "interrupted") or (report is None and self._stopping):
            status, message = "interrupted", message or "stopped"
        else:
            message = message or _why(code)
            _mark_failed(folder, message, died=report is None)
        self._over(spec, status, message, seconds)

    def _reuse(self, spec: RunSpec) -> bool:
        """Return whether the run is over already, after having taken note of it."""
        try:
            over = find(spec).result() is not None
        except UserError as error:
            self._over(spec, "failed", str(error))
            return True
        if over:
            self._over(spec, "finished", None)
        return over

    def _over(self, spec: RunSpec, status: str, message: str | None, seconds: float | None = None) -> None:
        folder = _folder(spec)
        result = folder.result() if status == "finished" else None
        if result is not None and result["status"] == "diverged":
            status, message = "diverged", f"the training loss was no longer finite at step {result['step']}"
        reused = result is not None and seconds is None
        outcome = Outcome(spec, status, result, message, reused, seconds or 0.0, folder.path)
        for number in self._asked_for[_key(spec)]:
            self._outcomes[number] = replace(outcome, spec=self._specs[number])
            self._view.done(self._outcomes[number])


def _key(spec: RunSpec) -> Key:
    return spec.folder.parent, spec.signature


def _folder(spec: RunSpec) -> RunFolder:
    try:
        return find(spec)
    except UserError:
        return RunFolder(spec.folder)


def _why(code: int) -> str:
    """Return why a process ended that could not say it."""
    if code >= 0:
        return f"its process left with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
    return f"killed by signal {-code} ({name})" + ("; out of memory?" if -code == signal.SIGKILL else "")


def _mark_failed(folder: RunFolder, message: str, *, died: bool) -> None:
    """Write the status that the run could not write itself, where it has left a folder."""
    if not folder.path.exists():
        return
    with contextlib.suppress(UserError), folder.claim():  # another process may be at it again
        before = folder.status()
        if died or before["status"] != "failed":
            kept = {key: before[key] for key in ("attempt", "step") if key in before}
            folder.set_status("failed", message=message, **kept)


def _gpu_is_here() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


@contextlib.contextmanager
def _listening() -> Iterator[list[int]]:
    """Note the signals that ask to stop, within the block; outside the main thread Python allows no handler."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
