"""The last two checkpoints of a run, as bytes that are never unpickled here; one of them is whole at every moment."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from neumann.store import claim
from neumann.store.files import opened, replace_file, sync_folder

T = TypeVar("T")
DAMAGED = ".damaged"  # the suffix that a damaged checkpoint gets


def previous(path: Path) -> Path:
    """Return where the checkpoint before ``path`` stays until the next is written."""
    return path.with_name(f"previous{path.suffix}")


def write_checkpoint(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` and keep the checkpoint that was there as `previous`.

    Raises NotWritten, and Lost where another process has taken the run over: it goes on from these files.
    """
    claim.require(path.parent)
    if path.exists():
        before = previous(path)
        before.unlink(missing_ok=True)
        try:
            os.link(path, before)  # a second name, not a move: the last one stays until the new one has its name
            sync_folder(path.parent)
        except OSError:  # a file system without links
            replace_file(before, path.read_bytes())
    replace_file(path, content)


def read_checkpoint(path: Path, decode: Callable[[BinaryIO], T]) -> tuple[Path, T] | None:
    """Return the newest checkpoint that is whole as (its file, its value), or None where there is none.

    ``decode`` makes the value from the file and raises ValueError where it is damaged. A damaged file is renamed,
    with a warning that says where the run goes on instead.
    """
    for file, then in ((path, "the run goes on from the one before"), (previous(path), "the run begins again")):
        if not file.exists():
            continue
        try:
            with opened(file) as opened_file:
                return file, decode(opened_file)
        except (OSError, ValueError) as error:
            if file == path and not previous(path).exists():
                then = "the run begins again"
            warnings.warn(f"{file} is damaged ({error}) and is left aside: {then}", stacklevel=2)
            with contextlib.suppress(OSError):  # else the next checkpoint would be kept beside a damaged one
                os.replace(file, file.with_suffix(DAMAGED))
    return None


def remove_checkpoints(path: Path, *, but_the_last: bool) -> None:
    """Remove what only an unfinished run needs: all checkpoints, or all ``but_the_last``."""
    if not but_the_last:
        path.unlink(missing_ok=True)
    for file in (previous(path), path.with_suffix(DAMAGED), previous(path).with_suffix(DAMAGED)):
        file.unlink(missing_ok=True)
