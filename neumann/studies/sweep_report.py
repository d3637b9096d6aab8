"""The command `neumann report --runs`: the page of any finished runs, without a study."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from neumann.errors import UserError, printable
from neumann.fitting import say
from neumann.store.files import read_json, write_json
from neumann.store.folder import make_folder
from neumann.store.new_folder import check_free
from neumann.store.selection import Selection, select
from neumann.studies.notes import print_notes
from neumann.studies.sweep import EXPLORATORY, group, results
from neumann.studies.sweep_commands import repeat_words
from neumann.studies.sweep_runs import read_runs

MARK = "sweep.json"  # says that a folder is the report of a sweep, and of which runs
FOLDER = "exploratory-report"  # no study's report is called so: those are report-BUDGET
LONGEST = 60  # characters of a pattern in the name of a folder


def report(
    patterns: Sequence[str],
    *,
    output: Path,
    given_output: str | None,
    to: Path | None,
    against: str | None,
    console: Console,
) -> int:
    """Write the page of the runs that ``patterns`` choose, and return 0.

    output         the results folder in which names are looked for, and ``given_output`` as the user wrote it
    to             the folder of the page; None: one of its own beside the runs
    against        the row that others are compared with; None: the first

    Raises UserError for patterns that choose nothing or runs that cannot be one table, and where another thing is in
    the page's folder.
    """
    chosen = select(patterns, output)
    runs, left_out = read_runs(chosen)
    if not runs:
        told = f": {left_out[0].folder}: {left_out[0].why}" if left_out else ""
        raise UserError(f"none of these runs can be used{told}")
    groups, columns = group(runs)
    folder = to if to is not None else _folder(chosen, patterns, output)
    check_place(folder, patterns)
    found = results(
        groups,
        columns,
        left_out,
        name=_name(chosen, patterns),
        patterns=patterns,
        against=against,
        words=repeat_words(groups, columns.keys),
        again=_command(patterns, given_output, to, against),
    )
    from neumann.studies.report.sweep_page import print_main_table, render

    make_folder(folder, "--to")
    write_json(folder / MARK, {"what": EXPLORATORY, "patterns": list(patterns)})
    page = render(found, folder)
    print_main_table(console, found)
    say(console, found.answer, folded=True)
    print_notes([note for note in (found.incomplete, *found.notes) if note])
    say(console, (EXPLORATORY, "bold"))
    say(console, f"report: {page}")
    return 0


def check_place(folder: Path, patterns: Sequence[str]) -> None:
    """Raise UserError where ``folder`` holds anything but the page of the same patterns, which is written anew."""
    mark = read_json(folder / MARK) if folder.is_dir() else None
    if isinstance(mark, dict) and mark.get("what") == EXPLORATORY:
        if mark.get("patterns") == list(patterns):
            return
        raise UserError(f"{printable(folder)} is the page of other runs: name another folder with --to")
    check_free(folder)


def _folder(chosen: Selection, patterns: Sequence[str], output: Path) -> Path:
    """Return the folder of the page: beside the runs, in the folder that holds them all."""
    above = {os.path.abspath(path.parent) for path in chosen.folders}
    if not above:  # an archive lies among files that are committed
        place = output
    elif len(above) == 1:
        place = chosen.folders[0].parent
    else:
        place = Path(os.path.relpath(os.path.commonpath(above)))
    return place / _folder_name(patterns)


def _folder_name(patterns: Sequence[str]) -> str:
    """Return a name that tells pages of different patterns apart: the end of each, without its marks."""
    last = [pattern.rstrip(os.sep).rpartition(os.sep)[2] for pattern in patterns]
    words = [word for text in last if (word := re.sub(r"[^\w.=,-]+", "", text).strip("-."))]
    name = "-".join([FOLDER, *words])
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{hashlib.sha256(repr(list(patterns)).encode()).hexdigest()[:6]}"
    return name


def _name(chosen: Selection, patterns: Sequence[str]) -> str:
    studies = dict.fromkeys(path.absolute().parent.name for path in chosen.folders)
    return printable(next(iter(studies)) if len(studies) == 1 else " ".join(patterns))


def _command(patterns: Sequence[str], output: str | None, to: Path | None, against: str | None) -> str:
    words = ["neumann", "report", "--runs", *patterns, *([f"output={output}"] if output else [])]
    words += ["--against", against] if against else []
    words += ["--to", str(to)] if to else []
    return shlex.join(words)
