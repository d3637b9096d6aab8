"""Atomic writes: a kill or a full disk leaves the old file or the new one, and nothing between."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from neumann.errors import UserError
from neumann.store import claim

ABSENT = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EFBIG, errno.ENXIO, errno.ENAMETOOLONG
}  # fmt: skip
LARGEST = 2**25  # bytes of a file that is read whole; Python reads JSON of this size in half a second


class NotWritten(OSError):  # noqa: N818 - named for what the user reads
    """A file could not be written and is as it was before; the message is one sentence."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise NotWritten, with one sentence on ``path``, for any OSError within the block, or Lost as `claim.require`."""
    try:
        yield
    except NotWritten:
        raise
    except OSError as error:
        claim.require(path.parent)  # where the folder itself is gone, that is the reason
        reason = (error.strerror or str(error)).lower()
        sentence = NotWritten(f"{path} cannot be written ({reason}): what was written before it stands")
        sentence.errno = error.errno
        sentence.add_note("once that is mended, the same command goes on")
        raise sentence from error


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary name beside ``path``, sync it and rename it.

    Raises NotWritten, and Lost where ``path`` lies in a run's folder that another process has taken over from this one.
    """
    with writing(path), _whole(path, content) as temporary:
        claim.require(path.parent)
        os.replace(temporary, path)
        sync_folder(path.parent)


def create_file(path: Path, content: bytes) -> bool:
    """Write ``path`` whole and return True; where another process was faster, leave its file and return False.

    Raises as `replace_file` does.
    """
    with writing(path), _whole(path, content) as temporary:
        claim.require(path.parent)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        sync_folder(path.parent)
    return True


@contextmanager
def _whole(path: Path, content: bytes) -> Iterator[Path]:
    """Yield the path of a temporary file beside ``path`` with ``content``, synced to disk; it is removed afterwards."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: bytes, *, sync: bool = True) -> None:
    """Append ``line`` and sync it unless told not to; a line before it that a kill has cut short stays one of its own.

    Raises NotWritten, having taken back what was written of the line, and Lost as `replace_file` does. A link is not
    followed: in another user's folder it may lead to any file of ours.
    """
    claim.require(path.parent)
    with writing(path), open(to_append(path), "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        cut = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        content = b"\n" * cut + line + b"\n"
        try:
            while content:
                content = content[file.write(content) :]
            if sync:
                os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def to_append(path: Path) -> int:
    """Return a descriptor that appends to ``path``, which is made where it is missing; the caller closes it.

    Raises OSError, also for a link, which may lead to any file of ours, and for anything but a regular file.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, and a run writes in its own folder alone", str(path))
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return handle


def sync_folder(folder: Path) -> None:
    """Sync the names in ``folder`` to disk, where the system can: else a power cut may undo a rename."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def plain(value: Any) -> Any:
    """Return ``value`` with every nan and inf as None, since JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. Raises as `replace_file` does."""
    replace_file(path, (json.dumps(plain(value), indent=2, allow_nan=False) + "\n").encode())


def read_file(path: Path, largest: int = LARGEST) -> bytes:
    """Return a file's content. Raises OSError as `opened` does, and for a file of more than ``largest`` bytes."""
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > largest:
            raise OSError(errno.EFBIG, f"it is larger than {largest:,} bytes", str(path))
        return file.read()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Hold ``path`` open for reading. Raises OSError, also for anything but a regular file.

    The folder may be another user's: a pipe in it must not be waited for, nor a device be read to its end.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        yield file


def read_json(path: Path, largest: int = LARGEST) -> Any | None:
    """Return the file's value, None where it is missing, damaged or too large; nan and inf become None.

    Raises UserError as `require_absent` does.
    """
    try:
        return json.loads(read_file(path, largest), parse_constant=lambda _: None)
    except OSError as error:
        require_absent(path, error)
        return None
    except (ValueError, RecursionError):  # deep nesting is damage too
        return None


def require_absent(path: Path, error: OSError) -> None:
    """Return where ``error`` says that ``path`` is missing, or nothing that a run writes, such as a pipe.

    Raises UserError where the system refuses to read it, for want of permission or of a disk that answers: what it
    holds may be a finished result, and must not count as none.
    """
    if error.errno not in ABSENT:
        raise UserError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
