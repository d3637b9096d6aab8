"""Standard streams that cost no run: what cannot be written is dropped, closed descriptors are /dev/null.

Warnings are printed as one line each.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from neumann.errors import printable

OURS = str(Path(__file__).resolve().parents[1]) + os.sep


class _Output(io.FileIO):
    """A standard stream's descriptor. A reader that has left, a full disk or a closed terminal is no error.

    descriptor   1 or 2
    needed       the first write that fails raises OSError, for a command whose output is all that it does
    """

    def __init__(self, descriptor: int, *, needed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._needed = needed

    def write(self, data: Any) -> int:
        """Write what can be written, and return the size of ``data`` where nothing can."""
        try:
            return super().write(data)
        except OSError:
            if self._needed:
                self._needed = False  # Python flushes once more at exit
                raise
            return memoryview(data).nbytes


def open_streams(*, stdout_needed: bool = False, line_buffering: bool = False) -> None:
    """Replace sys.stdout and sys.stderr by streams that drop what cannot be written.

    Where a shell has closed a standard descriptor (``>&-``) it becomes /dev/null: the next file that is opened would
    get its number, and whatever is printed would land in that file.

    stdout_needed    the first failing write to sys.stdout raises OSError instead
    line_buffering   flush after each line also where the stream is no terminal
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != descriptor:
                os.dup2(nothing, descriptor)
                os.close(nothing)
            os.set_inheritable(descriptor, True)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - for the life of the process
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        if before is not None:
            before.flush()
        raw = _Output(descriptor, needed=stdout_needed and descriptor == 1)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=before.encoding if before is not None else "utf-8",
            errors=before.errors if before is not None else "backslashreplace",
            line_buffering=line_buffering or descriptor == 2 or raw.isatty(),
        )
        setattr(sys, name, stream)


def warn_in_sentences() -> None:
    """Print every warning of this process from now on as `warning: TEXT`, without the line of code that gave it.

    Where code of another package gave it, its kind and place follow. No text steers the terminal.
    """
    warnings.formatwarning = _sentence


def _sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    place = "" if filename.startswith(OURS) else f" ({category.__name__}, {filename}:{lineno})"
    return f"warning: {printable(' '.join(str(message).split()))}{printable(place)}\n"
