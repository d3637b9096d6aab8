"""`neumann wandb-sweep`: print a sweep as a file for `wandb sweep`."""

from __future__ import annotations

from collections.abc import Sequence

from neumann.cli.arguments import Parser, parsed


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    description = "Print the W&B sweep of what neumann train -m would train, for `wandb sweep FILE`."
    parser = Parser(prog="neumann wandb-sweep", description=description)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as after neumann train -m, or +sweeps=NAME")
    parser.take_help()
    parser.take_config_dirs()
    given = parsed(parser, words)
    if given is not None:
        from neumann.search.wandb import sweep_file

        print(sweep_file(given.overrides, given.config_dirs), end="")
    return 0
