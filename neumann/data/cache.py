"""Cache of what was computed from a folder's images: atomic writes and locks in a folder that may vanish any time.

A cache never breaks a run: one that cannot be written or read back costs time and one notice.
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

ABSENT = (FileNotFoundError, NotADirectoryError, PermissionError)  # a missing cache is not a damaged one
log = logging.getLogger(__name__)


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Have ``save`` write a temporary file beside ``path``, then rename it; a failure is one notice, not an error."""
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
    """Hold the advisory lock beside ``path``, so that of several runs started at once only one does the work.

    The operating system frees the lock when the process that holds it ends. Without such locks (Windows, some network
    file systems) the block runs unlocked.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = stack.enter_context(path.with_name(path.name + ".lock").open("w"))
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
