"""The folder for what can be computed again: decoded images, compiled kernels. It may be deleted at any time."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Return $NEUMANN_CACHE where it is set, else the user's cache folder of this system; it need not exist yet.

    That is $XDG_CACHE_HOME/neumann, or what `platformdirs` says: ~/.cache/neumann on Linux, and wherever it is not
    installed, since the optimizers work beside torch alone. Where the home folder is missing or cannot be written, it
    is a folder among the temporary files.
    """
    chosen = _expanded(os.environ.get("NEUMANN_CACHE", ""))
    if chosen is not None:
        return chosen
    given = _expanded(os.environ.get("XDG_CACHE_HOME", ""))
    if given is not None and given.is_absolute():  # the standard has relative ones ignored
        return given / "neumann"
    try:
        home = Path.home()
    except RuntimeError:  # a container that runs as a user of no name
        return _temporary()
    if not home.is_absolute():
        return _temporary()
    if sys.platform != "linux":
        with contextlib.suppress(ImportError):
            import platformdirs

            return platformdirs.user_cache_path("neumann")
    folder = home / ".cache" / "neumann"
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    # of a container's user, / is often the home
    return folder if there == folder or os.access(there, os.W_OK) else _temporary()


def _expanded(text: str) -> Path | None:
    """Return ``text`` as a path, ~ replaced; None for no text, and where ~ stands for no folder."""
    try:
        return Path(text).expanduser() if text.strip() else None
    except RuntimeError:
        return None


@functools.cache
def _temporary() -> Path:
    """Return this user's folder among the temporary files.

    Code is loaded from it, and anybody may make a folder of that name, so one that another user can write to is not
    taken: a new one then serves this process.
    """
    folder = Path(tempfile.gettempdir()) / f"neumann-cache-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="neumann-cache-"))
    own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    if stat.S_ISDIR(found.st_mode) and own and not found.st_mode & 0o022:
        return folder
    return Path(tempfile.mkdtemp(prefix="neumann-cache-"))
