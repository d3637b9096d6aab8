"""The lines that a run appends as it trains: steps.jsonl, and terms.jsonl where its terms are measured.

The first has a line for every `trainer.log_every_n_steps` optimizer steps, the second for every `terms.every`. Lines
are appended without a sync to disk, so that logging costs no step. A checkpoint holds all of them until then, so a run
that goes on has each line once, whatever became of the file; result.json has the digest of the whole file.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from neumann.errors import UserError
from neumann.store.files import append_line, plain, read_file, replace_file, require_absent


class Lines(NamedTuple):
    """A file of lines, and the key of its digest in result.json, which runs without such lines lack."""

    file: str
    key: str


STEPS = Lines("steps.jsonl", "steps_digest")  # results of earlier versions lack it too
TERMS = Lines("terms.jsonl", "terms_digest")
LARGEST = 2**28  # bytes that are read; a million lines take about 200 million


class LoggedLines:
    """The lines of one kind of the run that this process holds; its checkpoint is given them as ``text``.

    Args:
        folder: the run's.
        kind: STEPS or TERMS.
        text: the lines that the run goes on from, "" for a run that begins.
    """

    def __init__(self, folder: Path, kind: Lines, text: str = "") -> None:
        self._path, self._kind, self._content = folder / kind.file, kind, bytearray(text.encode())

    @property
    def text(self) -> str:
        """Return all lines so far."""
        return self._content.decode()

    def restore(self) -> None:
        """Make the file hold these lines and no others: the run takes the steps after them again.

        Warns where they were not there. Raises NotWritten, or Lost where another process has taken the run over.
        """
        there, count = _read(self._path), self._content.count(b"\n")
        if not there.startswith(self._content):
            warnings.warn(
                f"{self._path} is not what was logged until the checkpoint that the run goes on from: its "
                f"{count} line(s) are restored from there",
                stacklevel=3,
            )
        if there != self._content or self._path.is_symlink():
            replace_file(self._path, bytes(self._content))

    def append(self, line: Mapping[str, Any]) -> None:
        """Append a line. Raises NotWritten, or Lost where another process has taken the run over."""
        content = json.dumps(plain(line), allow_nan=False).encode()
        append_line(self._path, content, sync=False)
        self._content += content + b"\n"

    def finish(self) -> dict[str, str]:
        """Write the file again where another process has changed it, and return what result.json says of it."""
        if not self._content:
            return {}
        if _read(self._path) != self._content:
            warnings.warn(f"{self._path} is not what was logged, and is written again", stacklevel=3)
            replace_file(self._path, bytes(self._content))
        return {self._kind.key: _digest(self._content)}


def read_lines(folder: Path, result: Mapping[str, Any] | None, kind: Lines = STEPS) -> list[dict[str, Any]]:
    """Return the lines of a ``kind`` of the run in ``folder``, in the order written; none for a run without them.

    ``result`` is its result where it is over; of a run that is not, lines that are damaged or cut short are left out.
    Raises UserError where they are not those that the run of ``result`` wrote.
    """
    path = folder / kind.file
    content = _read(path)
    if result is not None and kind.key in result and _digest(content) != result[kind.key]:
        raise UserError(
            f"{path} is not what the run logged: put back what it wrote, or train the run again (study=NEW)"
        )
    return [line for line in map(_line, content.split(b"\n")) if line is not None]


def are_those_of(result: Mapping[str, Any], kind: Lines, lines: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether ``lines``, from JSON, are what the run of ``result`` logged of a ``kind``."""
    content = b"".join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines)
    return _digest(content) == result[kind.key] if kind.key in result else not content


def _line(content: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(content, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(line.get("step")) is int else None


def _read(path: Path) -> bytes:
    """Return the file's content, nothing where it is missing or none that a run writes. Raises UserError."""
    try:
        return read_file(path, LARGEST)
    except OSError as error:
        require_absent(path, error)
        return b""


def _digest(content: bytes | bytearray) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
