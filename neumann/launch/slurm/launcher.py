"""Launcher on a Slurm cluster: it submits jobs from the login node and watches them until every run is over.

The launcher keeps no state of its own: all is in the launch's folder and in the queue. So it may be stopped at any
time, and the same command finds the jobs by their name instead of submitting them twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from neumann.config import RunSpec, SlurmLaunchConfig
from neumann.errors import UserError
from neumann.launch.build_check import BuildCheck
from neumann.launch.fork_server import ForkServer
from neumann.launch.protocol import LaunchView, RunOutcome, run_key
from neumann.launch.run_logs import file_stale_logs
from neumann.launch.slurm import queue
from neumann.launch.slurm.folder import LaunchFolder
from neumann.launch.slurm.monitor import TICK_S, LaunchMonitor


class SlurmLauncher:
    """Trains runs on a Slurm cluster; a `neumann.launch.Launcher`.

    settings   what jobs ask for, and how runs are shared out
    say        is called with notes for the user: what was submitted or joined

    Raises UserError where no job can be submitted from this machine.
    """

    preparation = "waiting for Slurm"

    def __init__(self, settings: SlurmLaunchConfig, say: Callable[[str], None]) -> None:
        queue.check()
        self.settings = settings
        self.parallel = settings.workers * settings.runs_per_worker
        self._say = say
        self._server = ForkServer()
        self._build_check, self._without_torch = BuildCheck(self._server, here=False), False

    def __enter__(self) -> SlurmLauncher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the jobs in the queue: they need no launcher."""
        self._server.close()

    def run(self, specs: Sequence[RunSpec], view: LaunchView) -> list[RunOutcome]:
        """Have jobs train the runs that are not over yet, and return the outcomes in the order of ``specs``.

        Where jobs of the same launch are in the queue, it joins them. Raises Interrupted at Ctrl-C, which leaves the
        jobs in the queue, and UserError where Slurm refuses, where the jobs in the queue have other settings, where one
        run is to lie in two folders, and where a model, optimizer or schedule cannot be built; no job is submitted
        then.
        """
        for study in {spec.folder.parent for spec in specs}:
            file_stale_logs(study)
        unique = {run_key(spec): spec for spec in reversed(specs)}
        outcomes: dict[tuple[Path, str], RunOutcome] = {}
        missing = []
        for key, spec in reversed(unique.items()):
            outcome = RunOutcome.of_result(spec)
            if outcome is None:
                missing.append(spec)
                continue
            outcomes[key] = outcome
            view.done(outcome)
        twice = [spec for spec in missing if sum(spec.signature == other.signature for other in missing) > 1]
        if twice:
            raise UserError(f"launch=slurm: {twice[0].name} is to lie in two folders: use a command for each folder")
        if missing:
            folder = LaunchFolder.of(list(unique.values()))
            monitor = LaunchMonitor(self.settings, folder, missing, view, self._say, self._check)
            outcomes |= {run_key(outcome.spec): outcome for outcome in monitor.run()}
        return [replace(outcomes[run_key(spec)], spec=spec) for spec in specs]

    def check(
        self, specs: Sequence[RunSpec], label: Callable[[RunSpec], str], proceed: Callable[[], bool] = lambda: True
    ) -> None:
        """Build every distinct configuration before jobs wait for it, here, where the data's facts were read too.

        ``label`` says what a run is called, and ``proceed`` is called while it takes time. Raises UserError where one
        cannot be built. A machine that cannot import PyTorch, for which launch.setup may have lines, builds none.
        """
        if self._without_torch:
            return
        self._server.warm_up()
        try:
            while not self._server.is_warm(TICK_S):
                proceed()
        except UserError:
            self._without_torch = True
            self._say("PyTorch cannot be imported here, so a wrong value is found when its run's turn comes")
            return
        self._build_check(specs, label, proceed)

    def _check(self, specs: Sequence[RunSpec], view: LaunchView) -> None:
        def proceed() -> bool:
            view.tick([], len(specs))
            return True

        self.check(specs, view.label, proceed)
