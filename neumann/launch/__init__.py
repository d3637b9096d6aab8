"""Launchers: many runs trained at once, on this machine or on a cluster, as the file of conf/launch says."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from neumann.config import LaunchConfig, LocalLaunchConfig, SlurmLaunchConfig
from neumann.errors import printable
from neumann.launch.local import LocalLauncher
from neumann.launch.protocol import Launcher, LaunchView, RunOutcome

__all__ = ["LaunchView", "Launcher", "RunOutcome", "make_launcher"]


def make_launcher(launch: LaunchConfig, console: Console) -> Launcher:
    """Return the launcher that ``launch`` asks for; it prints notes on its jobs to ``console``.

    Raises UserError where this machine lacks what that launcher needs.
    """
    if isinstance(launch, SlurmLaunchConfig):
        from neumann.launch.slurm.launcher import SlurmLauncher

        return SlurmLauncher(launch, lambda text: console.print(Text(printable(text)), soft_wrap=True))
    assert isinstance(launch, LocalLaunchConfig), launch
    return LocalLauncher(launch)
