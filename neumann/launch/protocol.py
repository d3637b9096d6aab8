"""Protocols of a launch: the launcher, the outcome that it reports for each run, and the view that it keeps informed.

Two launchers follow it: `neumann.launch.local.LocalLauncher` trains on this machine, and
`neumann.launch.slurm.launcher.SlurmLauncher` on a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

from neumann.config import RunSpec
from neumann.store.lookup import find, finished_result


@dataclass(frozen=True)
class RunOutcome:
    """Outcome of one run of a launch.

    spec      the run
    status    finished, diverged, failed or interrupted
    result    the content of its result.json; None where the run is not over
    message   one line that says why the run has this status; None where there is nothing to say
    reused    True where this launch did not train it: it was over before, or another launcher trained it meanwhile
    seconds   wall time of its processes in this launch
    folder    its run folder
    """

    spec: RunSpec
    status: str
    result: dict[str, Any] | None
    message: str | None
    reused: bool
    seconds: float
    folder: Path

    @classmethod
    def of_result(cls, spec: RunSpec) -> Self | None:
        """Return the outcome of a run whose result is there already, else None. Raises UserError as `find` does."""
        result = finished_result(spec)
        return None if result is None else cls(spec, result["status"], result, None, True, 0.0, find(spec).path)


class LaunchView(Protocol):
    """View that shows a launch to its user. The launcher calls every method from its own thread."""

    def label(self, spec: RunSpec) -> str:
        """Return what a run is called."""

    def started(self, spec: RunSpec) -> None:
        """Take note of a run that has just been started."""

    def done(self, outcome: RunOutcome) -> None:
        """Take note of a run that has an outcome, trained by this launch or over before."""

    def tick(self, running: Sequence[RunSpec], waiting: int) -> None:
        """Refresh, a few times a second: ``running`` train now, ``waiting`` runs have not begun."""


class Launcher(Protocol):
    """Protocol of a launcher, which trains many runs; a context manager.

    preparation   what the launcher does before the first run can begin, such as "importing PyTorch"
    parallel      the largest number of one-device runs at once
    """

    preparation: str
    parallel: int

    def __enter__(self) -> Self:
        """Return the launcher."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave no process behind on this machine."""

    def run(self, specs: Sequence[RunSpec], view: LaunchView) -> list[RunOutcome]:
        """Train the runs that are not over yet and return the outcomes in the order of ``specs``.

        It may be called again. The launchers say what they raise.
        """


@runtime_checkable
class Checks(Protocol):
    """Protocol of a launcher that can build configurations without training a run."""

    def check(self, specs: Sequence[RunSpec], label: Callable[[RunSpec], str]) -> None:
        """Raise UserError where one of ``specs`` cannot be built; ``label`` says what a run is called there."""


def run_key(spec: RunSpec) -> tuple[Path, str]:
    """Return the identity of a run within a launch: the folder of its study, and its signature."""
    return spec.folder.parent, spec.signature
