"""The command `neumann report --runs`: the page of any finished runs, without a study."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from neumann.errors import UserError, printable
from neumann.fitting import say
from neumann.processes.beside import beside
from neumann.store.files import read_json, write_json
from neumann.store.folder import make_folder
from neumann.store.new_folder import check_free
from neumann.store.selection import Selection, select
from neumann.store.vouching import is_edited, sealed
from neumann.studies import stamp
from neumann.studies.notes import print_notes
from neumann.studies.report import preload
from neumann.studies.sweep import EXPLORATORY, SweepResults, group, results
from neumann.studies.sweep_commands import repeat_words
from neumann.studies.sweep_runs import read_runs

MARK = "sweep.json"  # says that a folder is the report of a sweep, and of which runs
FOLDER = "exploratory-report"  # no study's report is called so: those are report-BUDGET
PAGE = "report.html"
LONGEST = 60  # characters of patterns in the name of a folder
SPELT = 3  # patterns in it; more are the names of runs, as a shell expands a pattern


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
    patterns = chosen.patterns
    folder = to if to is not None else _folder(chosen, patterns, output)
    command = _command(patterns, given_output, to, against)
    made_of = _digest(chosen, command)  # before the runs are read, of which others may end meanwhile
    mark = _checked_mark(folder, patterns)
    if _is_unchanged(folder, mark, made_of):
        _print_end(console, folder, mark["answer"], mark["notes"])
        return 0
    found = _results(chosen, patterns, command, against)
    from neumann.studies.report.sweep_page import print_main_table, render

    make_folder(folder, "--to")
    mark = {"what": EXPLORATORY, "patterns": list(patterns)}
    write_json(folder / MARK, mark)
    written = render(found, folder)
    notes = [note for note in (found.incomplete, *found.notes) if note]
    if found.incomplete is None:  # a process may take a run up or leave it and no file tells
        outputs = [[path.name, stamp.sum_of(path)] for path in written]
        write_json(
            folder / MARK,
            sealed({**mark, "inputs": made_of, "outputs": outputs, "answer": found.answer, "notes": notes}),
        )
    print_main_table(console, found)
    _print_end(console, folder, found.answer, notes)
    return 0


def _print_end(console: Console, folder: Path, answer: str, notes: Sequence[str]) -> None:
    print_notes(notes)
    say(console, answer, folded=True)
    say(console, (EXPLORATORY, "bold"))
    say(console, f"report: {folder / PAGE}")


def _results(chosen: Selection, patterns: Sequence[str], command: str, against: str | None) -> SweepResults:
    runs, left_out = read_runs(chosen)
    if not runs:
        raise UserError(
            f"none of these runs can be used: {printable(left_out[0].folder)}: {printable(left_out[0].why)}"
        )
    groups, columns = group(runs)
    words = beside(repeat_words, groups, columns.keys)
    preload()  # meanwhile
    return results(
        groups,
        columns,
        left_out,
        name=_name(chosen, patterns),
        patterns=patterns,
        against=against,
        words=words(),
        again=command,
    )


def _digest(chosen: Selection, command: str) -> str:
    """Return the digest of the command, this package, its configuration, and the records of the runs."""
    files = [*stamp.code_files(), *sorted((stamp.PACKAGE / "conf").rglob("*.yaml")), *chosen.archives]
    seen = [*stamp.states(files), *stamp.states(stamp.records_of(chosen.folders))]
    return hashlib.sha256(repr((command, list(map(str, chosen.folders)), seen)).encode()).hexdigest()


def _is_unchanged(folder: Path, mark: Mapping[str, Any], made_of: str) -> bool:
    """Return whether the page in ``folder`` is whole and was made of the same."""
    if mark.get("inputs") != made_of or is_edited(mark):
        return False
    try:
        return all(stamp.sum_of(folder / name) == content for name, content in mark["outputs"])
    except (KeyError, TypeError, ValueError, OSError):
        return False


def _checked_mark(folder: Path, patterns: Sequence[str]) -> dict[str, Any]:
    """Return what the page that is in ``folder`` says of itself, nothing where the folder is free.

    Raises UserError where it holds anything but the page of the same patterns, which is written anew.
    """
    mark = read_json(folder / MARK) if folder.is_dir() else None
    if isinstance(mark, dict) and mark.get("what") == EXPLORATORY:
        if mark.get("patterns") == list(patterns):
            return mark
        raise UserError(f"{printable(folder)} is the page of other runs: name another folder with --to")
    check_free(folder)
    return {}


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
    if len(patterns) > SPELT:
        return f"{FOLDER}-{_sum_of(patterns)}"
    last = [pattern.rstrip(os.sep).rpartition(os.sep)[2] for pattern in patterns]
    words = [word for text in last if (word := re.sub(r"[^\w.=,-]+", "", text).strip("-."))]
    name = "-".join([FOLDER, *words])
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{_sum_of(patterns)}"
    return name


def _sum_of(patterns: Sequence[str]) -> str:
    return hashlib.sha256(repr(list(patterns)).encode()).hexdigest()[:6]


def _name(chosen: Selection, patterns: Sequence[str]) -> str:
    studies = dict.fromkeys(path.absolute().parent.name for path in chosen.folders)
    return printable(next(iter(studies)) if len(studies) == 1 else " ".join(patterns))


def _command(patterns: Sequence[str], output: str | None, to: Path | None, against: str | None) -> str:
    words = ["neumann", "report", "--runs", *patterns, *([f"output={output}"] if output else [])]
    words += ["--against", against] if against else []
    words += ["--to", str(to)] if to else []
    return shlex.join(words)
