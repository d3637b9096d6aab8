"""Cache of a results folder's list: what was read of each finished run, so 5,000 runs are listed at once.

It is a hidden file in the results folder, with an entry per run, keyed by the inodes, sizes and times of the run's
files. A run whose files differ from its entry is read anew; a damaged index is ignored. Only lists read it. It is
written only where the folder belongs to this user, and holds only runs that have signed what they are: a list of a
folder that holds no results leaves nothing there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neumann.errors import UserError
from neumann.store.files import read_json, replace_file

NAME = ".runs-index.json"
FORMAT = 1
LARGEST = 2**28  # bytes; 5,000 runs take about 20 million


class Index:
    """Cache of the list of one results folder, ``output``."""

    def __init__(self, output: Path) -> None:
        self._output = output
        found = None
        with contextlib.suppress(UserError):  # an unreadable cache is none
            found = read_json(output / NAME, LARGEST)
        good = isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found.get("runs"), dict)
        self._runs: dict[str, Any] = found["runs"] if good else {}  # type: ignore[index]
        self._changed = False

    def row(self, folder: Path, stamp: Sequence[int]) -> dict[str, Any] | None:
        """Return the row of ``folder``, or None where ``stamp``, its files' inodes, sizes and times, has changed."""
        entry = self._entry(folder)
        row = entry.get("row")
        return row if entry.get("stamp") == list(stamp) and isinstance(row, dict) else None

    def config(self, folder: Path) -> dict[str, Any] | None:
        """Return the configuration of a run for which `row` has just answered."""
        config = self._entry(folder).get("config")
        return config if isinstance(config, dict) else None

    def add(self, folder: Path, stamp: Sequence[int], row: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Remember a run whose row follows from its files alone."""
        self._runs[self._key(folder)] = {"stamp": list(stamp), "row": dict(row), "config": dict(config)}
        self._changed = True

    def drop(self, folder: Path) -> None:
        """Forget a run that is under way."""
        self._changed = self._runs.pop(self._key(folder), None) is not None or self._changed

    def save(self, folders: Sequence[Path]) -> None:
        """Write the index where it has changed, without runs that are not among ``folders`` any more."""
        there = {self._key(folder) for folder in folders}
        if gone := self._runs.keys() - there:
            self._runs = {key: entry for key, entry in self._runs.items() if key not in gone}
        if self._changed or gone:
            with contextlib.suppress(OSError):  # a read-only folder, or a full disk: lists work without an index
                if self._output.stat().st_uid != os.geteuid():  # not root either, whose file would be in the way there
                    return
                content = json.dumps({"format": FORMAT, "runs": self._runs}, separators=(",", ":"))
                replace_file(self._output / NAME, content.encode())

    def _entry(self, folder: Path) -> dict[str, Any]:
        entry = self._runs.get(self._key(folder))
        return entry if isinstance(entry, dict) else {}

    def _key(self, folder: Path) -> str:
        return str(folder)[len(str(self._output)) :]
