"""Folders as a user names them: ``~`` is a home folder, and an address is no folder."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from neumann.errors import UserError

VARIABLE = re.compile(r"\$(?:\w+|\{\w+\})")  # of a shell
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
LOCAL = "file://"  # opens the address of a file of this machine


def folder_of(key: str, text: str) -> str:
    """Return the path of the folder that ``text`` means, with a home folder in place of ``~`` or ``~user``.

    ``key`` is the setting, for the message. Raises UserError for an address (s3://...) and a shell's variable ($HOME),
    which would become a folder of that name, for a home folder that is not known, and as `check_letters` does.
    """
    if ADDRESS.match(text):
        raise UserError(f"{key}={text} is an address, and only a folder can be used: mount it and give its path")
    check_letters(key, text)
    if (variable := _no_folder(text)) is not None:
        raise UserError(
            f"{key}={text}: '{variable}' is not replaced here, and no folder has that name: leave the single quotes "
            "out, so that the shell replaces it, or write the whole path"
        )
    path = os.path.expanduser(text)
    if path.startswith("~") and text.startswith("~"):
        raise UserError(f"{key}={text}: no home folder of that name is known, so write the whole path (./~ for itself)")
    return path


def is_for_a_shell(text: str) -> bool:
    """Return whether a shell would make another text of ``text``, or it is a local file's address.

    So a text that need not be a folder is one for `folder_of`.
    """
    return text.startswith(("~", LOCAL)) or VARIABLE.search(text) is not None


def _no_folder(text: str) -> str | None:
    """Return the first variable in ``text`` that no file or folder is named after, None where there is none."""
    for variable in VARIABLE.finditer(text):
        end = text.find("/", variable.end())
        if not os.path.exists(os.path.expanduser(text if end < 0 else text[:end])):
            return variable[0]
    return None


def check_letters(key: str, text: str) -> None:
    """Raise UserError where no file can have ``text`` of ``key``, in its name, as the locale lacks a letter."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise UserError(
            f"{key}={text}: this locale writes the names of files in {sys.getfilesystemencoding()}, which lacks a "
            "letter of it: set LC_ALL=C.UTF-8"
        ) from None


@contextlib.contextmanager
def left_out_if_refused(paths: Iterable[Path]) -> Iterator[None]:
    """Remove what a block makes of ``paths`` and the folders above, where UserError or Ctrl-C leaves them empty."""
    missing = {folder for path in paths for folder in (path, *path.parents) if not folder.exists()}
    try:
        yield
    except (UserError, KeyboardInterrupt):
        for folder in sorted(missing, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):  # it holds something, or was never made
                folder.rmdir()
        raise
