"""`neumann runs pack`: write the finished runs of a study into its archive, a small file to commit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

from neumann.cli.arguments import Parser, parsed
from neumann.errors import UserError
from neumann.fitting import say

HELP = """\
Writes the finished runs of a study into one small file beside it, experiments/NAME/results/BUDGET/runs.jsonl.gz:
configuration, result, measurements and provenance of each, and no weights. Commit it: where that file is,
neumann study and neumann report count its runs as finished.

  neumann runs pack NAME                    the runs in ./runs/NAME
  neumann runs pack NAME --budget small     those of a budget of the study, into results/small
  neumann runs pack NAME output=FOLDER      of another results folder

Runs that are in the file already stay there. A run that it holds with another result is refused. It exits with 0, with
2 for wrong input and where nothing is finished.
"""


def pack(words: Sequence[str], console: Console) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="neumann runs pack", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a study in ./experiments or a path")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="what cannot change a result, such as output=FOLDER"
    )
    parser.add_argument("-b", "--budget", default="full", help="full, or one that the study names, such as small")
    parser.take_help()
    parser.take_config_dirs()
    given = parsed(parser, words)
    if given is None:
        return 0
    if given.name is None:
        raise UserError("neumann runs pack takes a study: a name in ./experiments, or the path of its study.yaml")
    from neumann.studies import archived
    from neumann.studies.plan import load_study, refuse_package
    from neumann.studies.run import checked

    study = load_study(given.name, given.budget, checked(given.overrides), given.config_dirs)
    refuse_package(study, "neumann runs pack")
    packed = archived.pack(study)
    runs = f"{packed.runs} run{'' if packed.runs == 1 else 's'}"
    added = f"{packed.added} of them new" if packed.added else "all there before, so it is left as it is"
    say(
        console,
        f"{packed.file}: {runs}, {added}; {packed.size / 1024:.0f} KiB, {packed.size / packed.runs / 1024:.1f} a run",
    )
    if packed.missing:
        say(console, f"{packed.missing} runs of the study are not over yet: {study.command('study')}")
    return 0
