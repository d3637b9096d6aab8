"""Where do the runs of a sweep or a study train? On this machine or on a cluster, by the file of conf/launch."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.text import Text

from neumann.config import LaunchConfig, LocalLaunchConfig, RunSpec, SlurmLaunchConfig
from neumann.launch.local import LocalLauncher, Outcome, View


class Launcher(Protocol):
    """What every launcher can do; what its `run` raises is told there.

    ``first`` is what happens until a run begins, ``parallel`` how many train at once where all is well.
    """

    first: str
    parallel: int

    def __enter__(self) -> Launcher:
        """Get ready."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind on this machine."""

    def run(self, specs: Sequence[RunSpec], view: View) -> list[Outcome]:
        """Train what is not over yet and return the outcomes in the order of ``specs``; may be called again."""


def make_launcher(launch: LaunchConfig, console: Console) -> Launcher:
    """Return the launcher that ``launch`` asks for. Raises UserError where this machine cannot be one."""
    if isinstance(launch, SlurmLaunchConfig):
        from neumann.launch.slurm.launcher import SlurmLauncher

        return SlurmLauncher(launch, lambda text: console.print(Text(text), soft_wrap=True))
    assert isinstance(launch, LocalLaunchConfig), launch
    return LocalLauncher(launch)
