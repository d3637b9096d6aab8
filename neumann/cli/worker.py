"""`neumann worker`: train runs of a launch on this machine too, as the jobs of launch=slurm do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neumann.cli.arguments import Parser, parsed


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = Parser(
        prog="neumann worker",
        description="Train runs of a launch in children of this process, until there are none left to train.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the folder of the launch, <output>/.launches/NUMBER")
    parser.take_help()
    parser.add_argument(
        "--trust", action="store_true", help="the launch is your own: allow its optimizers, its server, its folders"
    )
    given = parsed(parser, words)
    if given is None:
        return 0
    from neumann.launch.slurm.folder import LaunchFolder
    from neumann.launch.slurm.worker import run_worker

    run_worker(LaunchFolder(Path(given.folder)), trust=given.trust)
    return 0
