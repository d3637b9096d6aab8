"""How do many runs train at once? Each in a fresh process from a fork server, with exactly its own specification.

The server has imported PyTorch, Lightning, timm and W&B once, so a job starts in a fraction of a second instead of the
ten that a fresh interpreter takes. A job, and every rank of it, gets a `RunSpec`, never a command line, so nobody can
re-execute somebody else's overrides. This module never imports torch.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from neumann.config import LocalLaunchConfig, RunSpec
from neumann.errors import Interrupted, UserError
from neumann.launch.fork_server import ForkServer
from neumann.launch.gpus import GpuPool, chosen
from neumann.launch.process_pool import TICK_S, ProcessPool
from neumann.launch.run_process import RunProcesses
from neumann.processes.ranks import world_size
from neumann.processes.signals import listening
from neumann.store.folder import make_folder
from neumann.store.lookup import find, finished_result

ELSEWHERE_S = 1.0  # between looks at runs that another launcher is training

Key = tuple[Path, str]  # where its results are filed, and its signature


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


class LocalLauncher:
    """Trains runs on this machine, ``parallel`` devices at once, as a context manager.

    The fork server warms up from the first moment that something has to be trained, and not at all otherwise.
    """

    first = "importing PyTorch"

    def __init__(self, settings: LocalLaunchConfig) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.gpus = GpuPool(chosen(settings.devices), settings.runs_per_device)
        if settings.runs_per_device > 1 and not len(self.gpus):
            raise UserError(f"launch.runs_per_device={settings.runs_per_device}: there is no NVIDIA GPU here to share")
        self.parallel: int = settings.parallel or len(self.gpus) or cores
        self._threads, self._cores = settings.threads, cores
        self._server = ForkServer()

    def threads(self, spec: RunSpec) -> int:
        """Return torch's threads in each process of ``spec``: what was asked for, or the cores shared out."""
        return self._threads or max(1, self._cores // max(self.parallel, world_size(spec)))

    def __enter__(self) -> LocalLauncher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def run(self, specs: Sequence[RunSpec], view: View) -> list[Outcome]:
        """Train what is not over yet and return the outcomes in the order of ``specs``; may be called again.

        A signature that comes twice is trained once. A failing run does not stop the others. Raises UserError where
        results cannot be written, and Interrupted, when every job has left, where a signal asked to stop (see
        `neumann.processes.signals`): jobs write a checkpoint then. A second signal kills them.
        """
        for spec in specs:
            if (nodes := spec.config.trainer.num_nodes) > 1:
                raise UserError(
                    f"trainer.num_nodes={nodes}: this machine is one node, so start the ranks of one run with srun or "
                    "torchrun on each, or the whole launch with launch=slurm"
                )
            if len(self.gpus) and (wanted := spec.config.trainer.devices) > len(self.gpus.names):
                raise UserError(
                    f"trainer.devices={wanted}: the launch has {len(self.gpus.names)} GPUs, see launch.devices"
                )
        signals: list[int] = []
        with listening(signals.append):
            launch = _Launch(self, self._server, view, signals)
            unique: dict[Key, RunSpec] = {}
            for spec in specs:
                unique.setdefault(_key(spec), spec)
            outcomes = launch.run(list(unique.values()))
            if signals:
                finished = sum(_key(spec) in outcomes and outcomes[_key(spec)].result is not None for spec in specs)
                raise Interrupted(f"stopped with {finished} of {len(specs)} runs finished")
        return [replace(outcomes[_key(spec)], spec=spec) for spec in specs]


class _Launch:
    """One call of `LocalLauncher.run`."""

    def __init__(self, launcher: LocalLauncher, server: ForkServer, view: View, signals: list[int]) -> None:
        self._launcher, self._server, self._view, self._signals = launcher, server, view, signals
        self._outcomes: dict[Key, Outcome] = {}
        self._waiting: deque[RunSpec] = deque()
        self._elsewhere: list[RunSpec] = []  # another process trains them
        self._looked = 0.0
        self._jobs = ProcessPool()
        self._obeyed = 0

    def run(self, specs: Sequence[RunSpec]) -> dict[Key, Outcome]:
        """Return the outcome of each run; fewer, where a signal came."""
        self._waiting.extend(spec for spec in specs if not self._is_over(spec))
        if not self._waiting:
            return self._outcomes
        for folder in {spec.folder.parent for spec in self._waiting}:
            make_folder(folder)
        self._server.warm_up()
        try:
            while len(self._jobs) or ((self._waiting or self._elsewhere) and not self._signals):
                self._look_elsewhere()
                self._start()
                self._view.tick([job.spec for job in self._jobs.training], len(self._waiting) + len(self._elsewhere))
                self._wait()
        except BaseException:
            self._signals.append(signal.SIGTERM)
            while len(self._jobs):
                self._wait()
            raise
        return self._outcomes

    def _start(self) -> None:
        while self._waiting and self._room_for(self._waiting[0]) and not self._signals:
            if not self._server.is_warm():
                return
            gpus = self._launcher.gpus.take(world_size(self._waiting[0]))
            if gpus is None:
                return
            spec = self._waiting.popleft()
            if self._is_over(spec):  # another launcher was faster
                self._launcher.gpus.give_back(gpus)
                continue
            try:
                self._jobs.add(RunProcesses(spec, self._launcher.threads(spec), gpus))
            except (OSError, EOFError) as error:
                self._launcher.gpus.give_back(gpus)
                self._done(Outcome(spec, "failed", None, f"no process for it: {error}", False, 0.0, find(spec).path))
                continue
            self._view.started(spec)

    def _room_for(self, spec: RunSpec) -> bool:
        """Return whether ``spec`` may start beside what is running; one on several devices counts as several."""
        if self._jobs.closing > self._launcher.parallel:  # slow mirrors must not pile up
            return False
        taken = sum(world_size(job.spec) for job in self._jobs.training)
        return not taken or taken + world_size(spec) <= self._launcher.parallel

    def _look_elsewhere(self) -> None:
        """Take back what another process was training, where that is over or given up."""
        if self._waiting or time.monotonic() - self._looked < ELSEWHERE_S:
            return
        self._looked = time.monotonic()
        free = [spec for spec in self._elsewhere if self._is_over(spec) or not find(spec).held()]
        for spec in free:
            self._elsewhere.remove(spec)
        self._waiting.extend(spec for spec in free if _key(spec) not in self._outcomes)

    def _wait(self) -> None:
        """Return when a job is over, at the latest after a tick; then take note of it and of signals."""
        if self._waiting and not len(self._jobs):
            self._server.is_warm(TICK_S)
        elif self._elsewhere and not len(self._jobs):
            time.sleep(TICK_S)
        for job in self._jobs.wait():
            self._launcher.gpus.give_back(job.gpus)
            status, message, result = job.reap()
            if status == "claimed":
                self._elsewhere.append(job.spec)
            else:
                folder = find(job.spec).path
                self._done(Outcome(job.spec, status, result, message, False, job.seconds(), folder))
        if len(self._signals) > self._obeyed:
            self._obeyed = len(self._signals)
            self._jobs.stop(at_once=self._obeyed > 1)

    def _is_over(self, spec: RunSpec) -> bool:
        result = finished_result(spec)
        if result is not None:
            self._done(Outcome(spec, result["status"], result, None, True, 0.0, find(spec).path))
        return result is not None

    def _done(self, outcome: Outcome) -> None:
        self._outcomes[_key(outcome.spec)] = outcome
        self._view.done(outcome)


def _key(spec: RunSpec) -> Key:
    return spec.folder.parent, spec.signature
