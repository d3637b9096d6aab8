"""The folder for what can be computed again: decoded images, compiled kernels. It may be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $NEUMANN_CACHE where it is set, else the user's cache folder of this system; it need not exist yet.

    On Linux the latter is $XDG_CACHE_HOME/neumann, or ~/.cache/neumann, also where `platformdirs` is not installed:
    the optimizers work beside torch alone.
    """
    if chosen := os.environ.get("NEUMANN_CACHE"):
        return Path(chosen).expanduser()
    try:
        import platformdirs
    except ImportError:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neumann"
    return platformdirs.user_cache_path("neumann")
