"""A folder that is there whole or not at all, and never takes the place of another."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neumann.errors import UserError, printable
from neumann.store.files import sync_folder


def check_free(path: Path, option: str = "--to") -> None:
    """Raise UserError where something other than an empty folder is at ``path``, which ``option`` can change."""
    if path.is_dir() and not path.is_symlink():
        try:
            empty = not any(path.iterdir())
        except OSError as error:
            raise _unwritable(path, error, option) from error
        if empty:
            return
    if os.path.lexists(path):
        raise UserError(f"{printable(path)} is there already, and nothing is overwritten: name another with {option}")


def free_beside(path: Path) -> Path:
    """Return ``path``, or where something is there the first of ``path-2``, ``path-3``, … that is free."""
    number, found = 2, path
    while os.path.lexists(found):
        found, number = path.with_name(f"{path.name}-{number}"), number + 1
    return found


@contextmanager
def new_folder(path: Path, option: str = "--to") -> Iterator[Path]:
    """Yield a folder to fill, which becomes ``path`` at the end of the block and is removed after an exception.

    ``option`` of the command names the folder. Raises UserError as `check_free` does, and where it cannot be written.
    """
    path = path.absolute()
    check_free(path, option)
    hidden = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        hidden.mkdir(parents=True)
        try:
            yield hidden
            for file in hidden.iterdir():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            check_free(path, option)
            os.rename(hidden, path)  # over an empty folder at most: the system refuses one that is not
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error, option) from error


def _unwritable(path: Path, error: OSError, option: str) -> UserError:
    reason = (error.strerror or str(error)).lower()
    return UserError(f"{printable(path)} cannot be written ({reason}): name another folder with {option}")
