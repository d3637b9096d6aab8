"""`neumann runs compare`: what differs between two runs, their curves side by side, and the command of each."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from neumann.cli.arguments import Parser, parsed
from neumann.cli.chosen_run import chosen_run, take_output
from neumann.errors import UserError, printable
from neumann.fitting import print_table, say
from neumann.store import comparison, details, records
from neumann.store.comparison import Difference, Pair
from neumann.store.folder import RunFolder
from neumann.store.listing import read_row

HELP = """\
Compares two runs: the settings, the code and the environment in which they differ, their validation errors and
training losses at the epochs that both were evaluated at, and the command that trains each again.

  neumann runs compare RUN RUN [output=FOLDER]

RUN is a path, a name or a signature's beginning, as in neumann runs show. Two runs are one example of each, so the
numbers are exploratory: whether a setting is better is the question of a study, over seeds.
"""
LINES = 12  # of the curves; the others lie between them


def compare(words: Sequence[str], console: Console) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="neumann runs compare", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="RUN", help="and output=FOLDER")
    parser.take_help()
    given = parsed(parser, words)
    if given is None:
        return 0
    output, names = take_output(given.words)
    if len(names) != 2:
        raise UserError("neumann runs compare takes two runs: a signature's beginning, a name or a path of each")
    a, b = (chosen_run(output, name) for name in names)
    if a.resolve() == b.resolve():
        raise UserError(f"{names[0]} and {names[1]} are the same run, {a}")
    one, other = RunFolder(a), RunFolder(b)
    configs = [records.read_config(folder) for folder in (a, b)]
    pairs, alone = comparison.curves(one, other)
    for letter, folder in (("A", a), ("B", b)):
        row = read_row(folder)
        say(console, f"{letter}: {folder}, {row.status}" + (f": {row.message}" if row.message else ""))
    for letter, run in (("A", one), ("B", other)):
        for sentence in details.edited(run):
            say(console, f"{letter}: {sentence}")
    _settings(console, details.differences(configs[1], configs[0]))
    code = comparison.code(one, other)
    if code is None:
        _paragraph(console, "code: at least one of the two has no record of it")
    else:
        _differences(console, "code", code)
    _differences(console, "environment", comparison.environments(one, other))
    _curves(console, pairs, alone)
    _paragraph(
        console,
        "exploratory: one run of each, so a difference may be the seed's; neumann study compares over seeds",
    )
    console.print()
    _commands(console, (a, b))
    return 0


def _settings(console: Console, found: Sequence[Difference]) -> None:
    """Print the settings that differ, and the names of those that change no result."""
    from neumann.config import NOT_SIGNED  # takes a second to import

    idle = [key for key, _, _ in found if any(key == name or key.startswith(f"{name}.") for name in NOT_SIGNED)]
    _differences(console, "settings", [one for one in found if one[0] not in idle])
    if idle:
        say(console, f"and what changes no result: {', '.join(idle)}")


def _differences(console: Console, what: str, found: Sequence[Difference]) -> None:
    if not found:
        _paragraph(console, f"{what}: the same")
        return
    console.print()
    print_table(console, (what, "A", "B"), [[Text(printable(cell)) for cell in one] for one in found])


def _curves(console: Console, pairs: Sequence[Pair], alone: int) -> None:
    if not pairs:
        _paragraph(console, "curves: no epoch at which both runs were evaluated")
        return
    every = -(-len(pairs) // LINES)
    shown = pairs[::-1][::every][::-1]  # the last one is among them
    rows = []
    for pair in shown:
        a, b = pair.errors
        difference = f"{100 * (b - a):+.2f}".replace("-", "−")
        losses = ("–" if loss is None else f"{loss:.4f}" for loss in pair.losses)
        cells = (f"{pair.epoch:g}", f"{100 * a:.2f}", f"{100 * b:.2f}", difference, *losses)
        rows.append([Text(cell) for cell in cells])
    _paragraph(console, "validation error at the eval point in %, B − A in percentage points, training loss in nats")
    names = ("epoch", "A", "B", "B − A", "loss A", "loss B")
    print_table(console, names, rows, right=names)
    if every > 1:
        say(console, f"{len(shown)} of the {len(pairs)} evaluations of both")
    if alone:
        say(console, f"{alone} {'evaluation' if alone == 1 else 'evaluations'} of one run alone left out")


def _commands(console: Console, folders: Sequence[Path]) -> None:
    """Print the command that trains each run again."""
    from neumann.config.repeat import words_of

    for letter, folder in zip("AB", folders, strict=True):
        words = words_of(records.read_record(folder))
        unknown = f"no command is known, as its data is not here or it is another version's: see {folder}/config.yaml"
        say(console, f"{letter}: {unknown if words is None else shlex.join(['neumann', 'train', *words])}")


def _paragraph(console: Console, text: str) -> None:
    console.print()
    say(console, text)
