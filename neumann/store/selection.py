"""Runs by patterns: paths, folders that hold runs, names, beginnings of signatures, and archives."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from neumann.errors import UserError, did_you_mean, printable
from neumann.folders import folder_of
from neumann.store.archive import NAME
from neumann.store.listing import find_folders, is_called
from neumann.store.records import RUN

MARKS = re.compile(r"[*?\[]")  # by which a text is a pattern
SIGNATURE = re.compile(r"[0-9a-f]{4,12}")  # its beginning; fewer digits name a run by chance


@dataclass(frozen=True)
class Selection:
    """What patterns have chosen: ``folders`` of runs, each once and in the order of their paths, and ``archives``.

    ``patterns`` are those that led to any, since a shell's expansion of one may name the folders of reports too.
    """

    folders: tuple[Path, ...]
    archives: tuple[Path, ...]
    patterns: tuple[str, ...]


def select(patterns: Sequence[str], output: Path) -> Selection:
    """Return the runs that ``patterns`` name.

    A pattern is the path of a run, of a folder of runs (a study's or a whole results folder) or of an archive, a glob
    of such paths, or what `neumann runs` takes, which is looked for in ``output``: a name as a glob, the name of a
    study, the beginning of a signature. Folders that hold no run, as those of reports, are passed over, since a shell
    may have expanded the pattern. Raises UserError for a pattern to which nothing fits, and where there is no run.
    """
    folders: dict[Path, Path] = {}
    archives: dict[Path, Path] = {}
    used: dict[str, None] = {}
    for pattern in patterns:
        if not pattern:
            raise UserError("a pattern of --runs is empty: give a path, a folder of runs or a name")
        for path in _fitting(folder_of("--runs", pattern), output):
            if path.is_dir():
                for folder in _runs_in(path):
                    folders.setdefault(folder.resolve(), folder)
                    used[pattern] = None
                path = path / NAME
            if path.name.endswith(".jsonl.gz") and path.is_file():
                archives.setdefault(path.resolve(), path)
                used[pattern] = None
    if not folders and not archives:
        raise UserError(f"there is no run in {printable(' '.join(patterns))}")
    return Selection(_ordered(folders.values()), _ordered(archives.values()), tuple(used))


def _ordered(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(sorted(paths, key=str))


def _fitting(pattern: str, output: Path) -> list[Path]:
    """Return the paths that ``pattern`` names. Raises UserError where there is none."""
    path = Path(pattern)
    if path.exists():  # a name may hold * or [
        return [path]
    if os.sep in pattern:
        found = [Path(one) for one in sorted(glob.glob(pattern))] if MARKS.search(pattern) else []
        if not found:
            raise UserError(f"no folder fits {printable(pattern)}")
        return found
    if (output / pattern).is_dir():
        return [output / pattern]
    runs = find_folders(output)
    found = [folder for folder in runs if is_called(folder, [pattern])]
    if not found and SIGNATURE.fullmatch(pattern):
        found = [folder for folder in runs if folder.name.rpartition("-")[2].startswith(pattern)]
    if not found:
        names = {RUN.sub(r"\1", folder.name) for folder in runs} | {folder.parent.name for folder in runs}
        raise UserError(f"no run in {printable(output)} fits {printable(pattern)}: {did_you_mean(pattern, names)}")
    return found


def _runs_in(path: Path) -> list[Path]:
    return [path] if RUN.fullmatch(path.resolve().name) else find_folders(path)
