"""Launcher on this machine: several runs at once, each in processes from a fork server.

The fork server has imported PyTorch, Lightning, timm and W&B once, so a run starts in a fraction of a second instead of
the ten that a fresh interpreter takes. Every process of a run, one a rank, gets the run's `RunSpec` and never a command
line, so none can execute the overrides of another run. This module never imports torch.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from neumann.config import LocalLaunchConfig, RunSpec
from neumann.cores import cores
from neumann.errors import Interrupted, UserError
from neumann.launch.build_check import BuildCheck
from neumann.launch.fork_server import ForkServer
from neumann.launch.gpus import GpuPool, chosen_gpus
from neumann.launch.process_pool import TICK_S, ProcessPool
from neumann.launch.progress import print_note
from neumann.launch.protocol import LaunchView, RunOutcome, run_key
from neumann.launch.run_logs import file_stale_logs
from neumann.launch.run_processes import RunProcesses
from neumann.processes.ranks import world_size
from neumann.processes.signals import listening
from neumann.store.folder import make_folder
from neumann.store.lookup import find

SAME_S = 2.0  # `timeout` and clusters send a signal to a process and to its group: that is one request
SLOW_S = 10.0  # after a request to leave, until the user is told that runs have not left
ELSEWHERE_S = 1.0  # between looks at runs that another launcher is training


class LocalLauncher:
    """Trains up to ``parallel`` runs at once on this machine; a run on d devices counts d. A `neumann.launch.Launcher`.

    The fork server starts to import PyTorch when the first run has to be trained, and not at all otherwise. Raises
    UserError for GPUs that are not there.
    """

    preparation = "importing PyTorch"

    def __init__(self, settings: LocalLaunchConfig) -> None:
        self.gpus = GpuPool(chosen_gpus(settings.devices), settings.runs_per_device)
        if settings.runs_per_device > 1 and not len(self.gpus):
            raise UserError(f"launch.runs_per_device={settings.runs_per_device}: there is no GPU here to share")
        self.parallel: int = settings.parallel or len(self.gpus) or cores()
        self._threads, self._cores = settings.threads, cores()
        self._server = ForkServer()
        self.check = BuildCheck(self._server, self.gpus.names)

    def threads(self, spec: RunSpec) -> int:
        """Return torch's threads in each process of ``spec``: launch.threads, or an equal share of the cores."""
        return self._threads or max(1, self._cores // max(self.parallel, world_size(spec)))

    def __enter__(self) -> LocalLauncher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def run(self, specs: Sequence[RunSpec], view: LaunchView) -> list[RunOutcome]:
        """Train the runs that are not over yet and return the outcomes in the order of ``specs``.

        It may be called again. A run that is named twice is trained once; one that fails does not stop the others. At a
        signal that asks to stop (`neumann.processes.signals`) every run writes a checkpoint and leaves; a second
        signal kills them. Raises Interrupted after such a signal, once every run has left, and UserError where results
        cannot be written, a run needs more nodes or GPUs than the launch has, or its model, optimizer or schedule
        cannot be built; no run is started then.
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
        last = -SAME_S

        def heard(number: int) -> None:
            nonlocal last
            again = number != signal.SIGINT and time.monotonic() - last < SAME_S
            if not again:
                signals.append(number)
            last = time.monotonic()

        with listening(heard):
            unique: dict[tuple[Path, str], RunSpec] = {}
            for spec in specs:
                unique.setdefault(run_key(spec), spec)
            outcomes = _Scheduler(self, self._server, view, signals).run(list(unique.values()))
            if signals:
                over = {key for key, outcome in outcomes.items() if outcome.result is not None}
                finished = sum(run_key(spec) in over for spec in specs)
                raise Interrupted(f"stopped with {finished} of {len(specs)} runs finished")
        return [replace(outcomes[run_key(spec)], spec=spec) for spec in specs]


class _Scheduler:
    """Starts the runs of one call of `LocalLauncher.run` while there is room for them, until all are over.

    launcher   says how many runs fit, and hands out GPUs and threads
    server     makes the processes
    view       is told of every start and outcome
    signals    numbers of the signals received so far, appended by their handler: the first stops, the second kills
    """

    def __init__(self, launcher: LocalLauncher, server: ForkServer, view: LaunchView, signals: list[int]) -> None:
        self._launcher, self._server, self._view, self._signals = launcher, server, view, signals
        self._outcomes: dict[tuple[Path, str], RunOutcome] = {}
        self._waiting: deque[RunSpec] = deque()
        self._elsewhere: list[RunSpec] = []  # another launcher trains them
        self._looked_elsewhere = 0.0
        self._pool = ProcessPool()
        self._obeyed = 0  # signals
        self._stopped_at: float | None = None  # when the runs were asked to leave, until that is told to take long

    def run(self, specs: Sequence[RunSpec]) -> dict[tuple[Path, str], RunOutcome]:
        """Return the outcome of each run under its `run_key`; where a signal came, some have none."""
        for folder in {spec.folder.parent for spec in specs}:
            file_stale_logs(folder)
        self._waiting.extend(spec for spec in specs if not self._is_over(spec))
        if not self._waiting:
            return self._outcomes
        self._server.warm_up()
        self._launcher.check(self._waiting, self._view.label, self._tells_no_stop)
        for folder in {spec.folder.parent for spec in self._waiting}:  # nothing is left of a launch that is refused
            make_folder(folder)
        try:
            while len(self._pool) or ((self._waiting or self._elsewhere) and not self._signals):
                self._look_elsewhere()
                self._start()
                self._view.tick([run.spec for run in self._pool.training], len(self._waiting) + len(self._elsewhere))
                self._wait()
        except BaseException:
            self._signals.append(signal.SIGTERM)
            while len(self._pool):
                self._wait()
            raise
        return self._outcomes

    def _tells_no_stop(self) -> bool:
        """Refresh the view before the first run; return whether no signal has come."""
        self._view.tick([], len(self._waiting))
        return not self._signals

    def _start(self) -> None:
        """Start waiting runs in their order until the next one finds no room."""
        while self._waiting and self._has_room(self._waiting[0]) and not self._signals:
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
                self._pool.add(RunProcesses(spec, self._launcher.threads(spec), gpus))
            except (OSError, EOFError) as error:
                self._launcher.gpus.give_back(gpus)
                message = f"no process could be started for it: {error}"
                self._done(RunOutcome(spec, "failed", None, message, False, 0.0, find(spec).path))
                continue
            self._view.started(spec)

    def _has_room(self, spec: RunSpec) -> bool:
        """Return whether ``spec`` may start beside the runs that train; one on several devices counts as several."""
        if self._pool.closing > self._launcher.parallel:  # slow mirrors must not pile up
            return False
        taken = sum(world_size(run.spec) for run in self._pool.training)
        return not taken or taken + world_size(spec) <= self._launcher.parallel

    def _look_elsewhere(self) -> None:
        """Take back the runs of other launchers that are over or that no process holds any more."""
        if self._waiting or time.monotonic() - self._looked_elsewhere < ELSEWHERE_S:
            return
        self._looked_elsewhere = time.monotonic()
        free = [spec for spec in self._elsewhere if self._is_over(spec) or not find(spec).held()]
        for spec in free:
            self._elsewhere.remove(spec)
        self._waiting.extend(spec for spec in free if run_key(spec) not in self._outcomes)

    def _wait(self) -> None:
        """Wait for the end of a run, at most for a tick; then take note of ends and obey new signals."""
        if self._waiting and not len(self._pool):
            self._server.is_warm(TICK_S)
        elif self._elsewhere and not len(self._pool):
            time.sleep(TICK_S)
        for run in self._pool.wait():
            self._launcher.gpus.give_back(run.gpus)
            status, message, result = run.reap()
            if status == "claimed":
                self._elsewhere.append(run.spec)
            else:
                folder = find(run.spec).path
                reused = result is not None and not run.made_result()  # another launcher was faster
                seconds = 0.0 if reused else run.seconds()
                self._done(RunOutcome(run.spec, status, result, message, reused, seconds, folder))
        if len(self._signals) > self._obeyed:
            self._obeyed = len(self._signals)
            self._stopped_at = time.monotonic()
            self._pool.stop(at_once=self._obeyed > 1)
        is_slow = self._stopped_at is not None and time.monotonic() - self._stopped_at > SLOW_S
        if self._obeyed == 1 and is_slow and self._pool.training:
            self._stopped_at = None
            print_note(
                f"{len(self._pool.training)} of the runs have not left yet: each finishes a step and writes a "
                "checkpoint; a second Ctrl-C or signal kills them, and loses what came after their last checkpoint"
            )

    def _is_over(self, spec: RunSpec) -> bool:
        outcome = RunOutcome.of_result(spec)
        if outcome is not None:
            self._done(outcome)
        return outcome is not None

    def _done(self, outcome: RunOutcome) -> None:
        self._outcomes[run_key(outcome.spec)] = outcome
        self._view.done(outcome)
