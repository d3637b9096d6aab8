"""Process that holds a lease, and whether it still lives, which only its own machine can tell."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Holder:
    """A process, perhaps on another machine."""

    host: str  # name of its machine
    boot: str | None  # names one boot of one machine; None where the system does not tell; so below
    namespace: str | None  # the set of processes in which ``pid`` counts
    pid: int  # process id
    started: int | None  # clock ticks between boot and the process's start: a later process may get its ``pid``
    token: str  # random, of this lease

    @classmethod
    def myself(cls) -> Holder:
        """Return this process as the maker of a new lease."""
        return cls(*_place(), os.getpid(), _started(os.getpid()), secrets.token_hex(16))

    @classmethod
    def read(cls, record: bytes) -> Holder | None:
        """Return the holder that a lease's ``record`` (JSON) names, or None where it cannot be understood."""
        try:
            holder = cls(**json.loads(record))
        except (ValueError, TypeError, RecursionError):
            return None
        texts = (holder.host, holder.token, holder.boot or "", holder.namespace or "")
        numbers = (holder.pid, holder.started or 0)
        known = all(type(text) is str for text in texts) and all(type(number) is int for number in numbers)
        return holder if known and holder.pid > 0 else None

    def seen(self) -> bool | None:
        """Return whether the process lives, or None where this process cannot see it."""
        if (self.host, self.boot, self.namespace) != _place():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):
            pass  # another user's
        started = _started(self.pid)
        return started != 0 and (started is None or self.started is None or started == self.started)


@cache
def _place() -> tuple[str, str | None, str | None]:
    """Return (host, boot, process namespace) of this machine."""
    boot = namespace = None
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return socket.gethostname(), boot, namespace


def _started(pid: int) -> int | None:
    """Return the process's start in clock ticks since boot, 0 for a zombie, None where it cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    ended = fields[0] in "ZX" and int(fields[17]) <= 1  # its first thread may end before one that still writes
    return 0 if ended else int(fields[19])
