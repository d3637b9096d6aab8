"""How are 5,000 runs listed at once? What was read of a run that is over is kept beside the runs and read no more.

A hidden file in the results folder holds it, an entry per run with the sizes and times of the run's files. An entry
that does not fit them is read anew, a damaged index is no index, and nothing but a list is ever answered from one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neumann.store.files import read_json, replace_file

NAME = ".runs-index.json"
FORMAT = 1


class Index:
    """What is known of the runs in one results folder."""

    def __init__(self, output: Path) -> None:
        self._output = output
        found = read_json(output / NAME)
        good = isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found.get("runs"), dict)
        self._runs: dict[str, Any] = found["runs"] if good else {}  # type: ignore[index]
        self._changed = False

    def row(self, folder: Path, stamp: Sequence[int]) -> dict[str, Any] | None:
        """Return what a list shows of ``folder``, where its files are those that it was read from."""
        entry = self._entry(folder)
        row = entry.get("row")
        return row if entry.get("stamp") == list(stamp) and isinstance(row, dict) else None

    def config(self, folder: Path) -> dict[str, Any] | None:
        """Return the configuration of a run for which `row` has just answered."""
        config = self._entry(folder).get("config")
        return config if isinstance(config, dict) else None

    def add(self, folder: Path, stamp: Sequence[int], row: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Remember a run that changes no more, or only together with its files."""
        self._runs[self._key(folder)] = {"stamp": list(stamp), "row": dict(row), "config": dict(config)}
        self._changed = True

    def drop(self, folder: Path) -> None:
        """Forget a run, which is changing."""
        self._changed = self._runs.pop(self._key(folder), None) is not None or self._changed

    def save(self, folders: Sequence[Path]) -> None:
        """Write what has changed, less what is not among ``folders`` any more; without an index it works as well."""
        there = {self._key(folder) for folder in folders}
        if gone := self._runs.keys() - there:
            self._runs = {key: entry for key, entry in self._runs.items() if key not in gone}
        if self._changed or gone:
            with contextlib.suppress(OSError):  # somebody else's folder, or a full disk
                content = json.dumps({"format": FORMAT, "runs": self._runs}, separators=(",", ":"))
                replace_file(self._output / NAME, content.encode())

    def _entry(self, folder: Path) -> dict[str, Any]:
        entry = self._runs.get(self._key(folder))
        return entry if isinstance(entry, dict) else {}

    def _key(self, folder: Path) -> str:
        return str(folder)[len(str(self._output)) :]
