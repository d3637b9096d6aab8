"""Where does what was once computed from a folder's images stay? In a cache folder that may vanish at any time.

Nothing here ever breaks a run: a cache that cannot be written or read back costs time and one notice, no more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: two runs then do the same work twice
    fcntl = None  # type: ignore[assignment]

ABSENT = (FileNotFoundError, NotADirectoryError, PermissionError)  # no cache to read is no damage to report
log = logging.getLogger(__name__)


def folder(*below: str) -> Path:
    """Return the cache folder, or one below it: $NEUMANN_CACHE, else $XDG_CACHE_HOME/neumann, else ~/.cache/neumann."""
    if own := os.environ.get("NEUMANN_CACHE"):
        return Path(own).expanduser().joinpath(*below)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home, "neumann", *below)


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write a temporary file beside ``path`` and rename it; a failure is one notice, not an error."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        os.close(handle)
        temporary = Path(name)
        save(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        log.warning("the cache '%s' cannot be written, so the next run works it out again (%s)", path, error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the advisory lock beside ``path``, so that several runs started at once do its work once.

    The system frees it when its holder ends, however it ends. Where there is no such lock, the work is done unlocked.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = stack.enter_context(path.with_name(path.name + ".lock").open("w"))
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
