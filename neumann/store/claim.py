"""Leases on run folders: one process at a time may write to one, also where several machines share the file system.

A lease is a numbered file in the folder, ``.claim.7``, that names the process which holds it. The highest number
counts. The protocol needs one thing of a file system: that making a file which exists fails, which network file systems
give too; locks they often lack. A process that finds lease 7 given back or dead tries to make lease 8, and one process
alone succeeds. So no process removes or replaces a lease that it has not judged itself, and a process that was slow to
judge 7 finds that 8 is there.

A lease is dead when its process is seen to be gone (same machine, same process namespace), and alive as long as that
process is there, even if it is stopped. Seen from elsewhere, it is dead when its file has not been touched for
`LEASE_S` seconds by the clock of the file system. A holder that was cut off for so long (a suspended machine) finds out
before its next write.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from neumann.errors import UserError
from neumann.store.lease_holder import Holder

HEARTBEAT_S = 15.0  # between two touches of a held lease
LEASE_S = 6 * HEARTBEAT_S
PREFIX = ".claim."
CLOCK_S = 30.0  # between two looks at a file system's clock, since a list of runs judges thousands of leases
HELD, FREE = b"held\n", b"free\n"  # the first line of a lease; of one length, so that a full disk cannot prevent FREE
TRIES = 100
NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)


class Claimed(UserError):  # noqa: N818 - the user did nothing wrong
    """Another process is training the run right now."""

    status = "claimed"


class Lost(Claimed):
    """This process held the run and was cut off for longer than a lease lasts; another has taken the run over."""


@dataclass(frozen=True)
class Lease:
    """A lease as it was read: its number, if it is ``free`` (given back), and when it was last touched (Unix seconds).

    ``holder`` is None where the file cannot be understood; then its age alone counts.
    """

    number: int
    free: bool
    touched: float
    holder: Holder | None

    def why_dead(self, now: Callable[[], float]) -> str | None:
        """Return why the lease is dead, or None where it is alive. ``now`` is the file system's clock, in seconds."""
        if self.free:
            return "it was given back"
        seen = self.holder.seen() if self.holder is not None else None
        if seen is not None:
            return None if seen else f"its process {self.holder.pid} is gone"  # type: ignore[union-attr]
        silent = abs(now() - self.touched)  # also of a time in the future: the clock was set back
        where = self.holder.host if self.holder is not None else "its process"
        return f"no sign of life from {where} for {silent:.0f} s" if silent >= LEASE_S else None


def current(folder: Path) -> Lease | None:
    """Return the lease that counts in ``folder``, or None where there is no lease or no folder. Raises OSError."""
    for _ in range(TRIES):
        number = _highest(folder)
        if number == 0:
            return None
        with contextlib.suppress(FileNotFoundError):  # a later lease has come, and this one is removed
            return _read(folder, number)
    return None


def file_system_time(folder: Path) -> float:
    """Return the time by the clock that dates the files of ``folder``, in seconds; ours where it cannot be read."""
    now = time.monotonic()
    try:
        device = os.stat(folder).st_dev
        offset, asked = _CLOCKS.get(device, (0.0, -CLOCK_S))
        if now - asked >= CLOCK_S:
            offset = touch_probe(folder) - now
            _CLOCKS[device] = offset, now
    except OSError:
        return time.time()
    return now + offset


_CLOCKS: dict[int, tuple[float, float]] = {}  # by file system: its time less ours, and when it was read


def touch_probe(folder: Path) -> float:
    """Make a file, remove it and return its modification time. Raises OSError where the folder cannot be written."""
    path = folder / f".probe-{secrets.token_hex(8)}"
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.write(handle, b".")  # a full disk may still take an empty file
        os.utime(path)  # without times, so that the file system sets its own
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[Claim]:
    """Hold ``folder`` within the block. Raises Claimed where it is held, and OSError where it cannot be written."""
    claim = Claim(folder, _take(folder))
    _MINE[claim.key] = claim
    try:
        claim.keep_alive()
        yield claim
    finally:
        claim.end()
        if _MINE.get(claim.key) is claim:
            del _MINE[claim.key]


class Claim:
    """A lease that this process holds, renewed every `HEARTBEAT_S` seconds by a thread of its own.

    That thread calls ``when_lost`` once, where it finds that another process has taken the folder over.
    """

    def __init__(self, folder: Path, lease: Lease) -> None:
        assert lease.holder is not None
        self.key = os.path.realpath(folder)
        self._folder, self._number, self._token = Path(self.key), lease.number, lease.holder.token
        self._file = self._folder / f"{PREFIX}{lease.number}"
        self._pid = os.getpid()
        self._over = threading.Event()
        self._heartbeat = threading.Thread(target=self._renew, name="neumann-heartbeat", daemon=True)
        self.when_lost: Callable[[], None] | None = None

    def keep_alive(self) -> None:
        """Begin to renew the lease."""
        self._heartbeat.start()

    def lost(self) -> bool:
        """Return whether another process has taken the folder over; a disk that does not answer does not count."""
        try:
            lease = _read(self._folder, self._number)
            mine = not lease.free and lease.holder is not None and lease.holder.token == self._token
            return not mine or _highest(self._folder) != self._number
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False

    def end(self) -> None:
        """Give the lease back. In a forked child of the process that took it, do nothing."""
        if os.getpid() != self._pid:
            return
        self._over.set()
        self._heartbeat.join()
        with contextlib.suppress(OSError):
            if not self.lost():
                _give_back(self._file)

    def _renew(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self._file)
            if self.lost():
                if self.when_lost is not None:
                    self.when_lost()
                return


_MINE: dict[str, Claim] = {}  # by the folder's real path


def mine(path: Path) -> Claim | None:
    """Return this process's claim on the folder that ``path`` is or lies in, even if it was lost since; else None."""
    if not _MINE:
        return None
    real = os.path.realpath(path)
    return next((claim for key, claim in _MINE.items() if real == key or real.startswith(key + os.sep)), None)


def require(path: Path) -> None:
    """Raise Lost where ``path`` lies in a folder that this process claimed and another has taken over since.

    In a process that never claimed the folder this does nothing: a report may write to one.
    """
    claim = mine(path)
    if claim is not None and claim.lost():
        if not os.path.isdir(claim.key):
            raise Lost(f"{claim.key} was removed or renamed while its run was being trained, which has stopped")
        raise Lost(f"{claim.key} was taken over by another process while this one was cut off: it has stopped writing")


def _take(folder: Path) -> Lease:
    """Make the lease that counts from now on. Raises Claimed, and OSError where ``folder`` cannot be written."""
    holder = Holder.myself()
    for _ in range(TRIES):
        folder.mkdir(parents=True, exist_ok=True)  # `neumann runs clean` may have removed it
        here = os.open(folder, os.O_RDONLY)  # the folder itself: another may get its name meanwhile
        try:
            found = current(folder)
            if found is not None and found.why_dead(lambda: touch_probe(folder)) is None:
                who = f"process {found.holder.pid} on {found.holder.host}" if found.holder else "another process"
                raise Claimed(f"{folder} is being trained right now by {who}: wait for it or stop it")
            number = found.number + 1 if found is not None else 1
            if not _make(folder, here, number, holder):
                continue  # another process was faster
            # Listed twice, since a list may miss a file that comes while it is made.
            latest = max(_highest(folder), _highest(folder))
            same = os.path.samestat(os.fstat(here), os.stat(folder))
            if latest != number or not same:  # this process was slow: the dead lease has had successors since
                os.unlink(f"{PREFIX}{number}", dir_fd=here)
                continue
            _clear(folder, number)
            return Lease(number, False, time.time(), holder)
        except FileNotFoundError:  # a faster process removed the folder, or the file that was to become the lease
            continue
        finally:
            os.close(here)
    raise Claimed(f"{folder} is wanted by several processes at once: try again")


def _make(folder: Path, here: int, number: int, holder: Holder) -> bool:
    """Make lease ``number`` in the folder that is open as ``here``; return False where there is one already."""
    name, temporary = f"{PREFIX}{number}", f"{PREFIX}{holder.token}"
    content = HELD + json.dumps(asdict(holder)).encode()
    try:
        _write_new(temporary, here, content)
        try:
            os.link(temporary, name, src_dir_fd=here, dst_dir_fd=here)
        except FileExistsError:  # or the link was made, and the answer got lost on the network
            return os.stat(temporary, dir_fd=here).st_nlink == 2
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            try:
                _write_new(name, here, content)
            except FileExistsError:
                return False
        return True
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=here)


def _write_new(name: str, here: int, content: bytes) -> None:
    handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=here)
    try:
        if os.write(handle, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)


def _clear(folder: Path, number: int) -> None:
    """Mark the predecessor of lease ``number`` as given back, in its own file, and remove older and unfinished ones.

    The predecessor's number stays taken, so that a process which judged the lease before it cannot make it anew.
    """
    for name in os.listdir(folder):
        rest = name.removeprefix(PREFIX)
        if rest == name or rest == str(number):
            continue
        with contextlib.suppress(OSError):
            if rest == str(number - 1):
                _give_back(folder / name)
            elif not (rest.isascii() and rest.isdigit()) or int(rest) < number:
                os.unlink(folder / name)


def _give_back(file: Path) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_NOFOLLOW)  # a link in a foreign folder may lead to any file of ours
    try:
        os.pwrite(handle, FREE, 0)
    finally:
        os.close(handle)


def _highest(folder: Path) -> int:
    """Return the highest number of a lease, 0 where there is none or no folder."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return 0
    numbers = (name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))
    return max((int(number) for number in numbers if number.isascii() and number.isdigit()), default=0)


def _read(folder: Path, number: int) -> Lease:
    """Read a lease. Raises OSError. Opening the file makes a network file system ask the server for its age."""
    handle = os.open(folder / f"{PREFIX}{number}", os.O_RDONLY | os.O_NONBLOCK)
    try:
        content, touched = os.read(handle, 4096), os.fstat(handle).st_mtime
    finally:
        os.close(handle)
    state, _, record = content.partition(b"\n")
    return Lease(number, state + b"\n" == FREE, touched, Holder.read(record))
