"""`neumann report`: write the report of a study, or with --runs the page of any finished runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from neumann.cli import study
from neumann.cli.arguments import Parser, parsed
from neumann.cli.chosen_run import take_output
from neumann.errors import UserError
from neumann.folders import folder_of

RUNS = "--runs"
HELP = """\
Writes one page on any finished runs, without a study: grouped by all settings but the seed, with what differs as
columns, mean and interval of the validation error, every seed, learning curves and the commands that train the runs
again. Nothing was fixed before these runs were seen, so the page says that it is exploratory and has no verdicts.

  neumann report --runs runs/mine                  all runs of a folder
  neumann report --runs 'runs/mine/*-sgd-*'        by their paths, as a glob
  neumann report --runs '*-sgd-*' '*-adam-*'       by their names, looked for in ./runs or output=FOLDER
  neumann report --runs experiments/NAME/results/full/runs.jsonl.gz    those of an archive

The page goes into a folder of its own beside the runs, exploratory-report..., and is written anew when the same command
is given again. Runs on different images or splits are refused, and so is a selection of which none is over.
"""


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    if any(word == RUNS or word.startswith(f"{RUNS}=") for word in words):
        return _runs(words)
    return study.report(words)


def _runs(words: Sequence[str]) -> int:
    parser = Parser(
        prog="neumann report --runs", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(RUNS, action="store_true", help="the runs that the patterns name, and no study")
    parser.add_argument("words", nargs="*", metavar="PATTERN", help="and output=FOLDER")
    parser.add_argument("--against", metavar="ROW", help="the row that others are compared with (the first)")
    parser.add_argument("--to", metavar="FOLDER", help="where to; nothing else is overwritten")
    parser.take_help()
    # --runs=PATTERN is what --runs PATTERN is
    split = [
        part for word in words for part in ([RUNS, word[len(RUNS) + 1 :]] if word.startswith(f"{RUNS}=") else [word])
    ]
    given = parsed(parser, split)
    if given is None:
        return 0
    output, patterns = take_output(given.words)
    if not patterns:
        raise UserError("neumann report --runs takes patterns: paths, folders of runs, or names as in neumann runs")
    if given.to == "":
        raise UserError("--to is empty: name a folder")
    from neumann.studies.sweep_report import report

    return report(
        patterns,
        output=output,
        given_output=str(output) if len(patterns) < len(given.words) else None,
        to=None if given.to is None else Path(folder_of("--to", given.to)),
        against=given.against,
        console=Console(),
    )
