"""The room in /dev/shm, through which processes that decode hand over their images; in a full one they wait for ever.

It is 64 MB in a container of Docker's unless it is started with another ``--shm-size``.
"""

from __future__ import annotations

import math
import os

PLACE = "/dev/shm"
READY = 2  # batches that each process of a DataLoader works ahead, torch's default


def free() -> float:
    """Return the free bytes of /dev/shm; inf where a system has none."""
    try:
        found = os.statvfs(PLACE)
    except (OSError, AttributeError):
        return math.inf
    return found.f_bavail * found.f_frsize


def needed(workers: int, batch: int) -> int:
    """Return the bytes that ``workers`` fill with batches of ``batch`` bytes, with the one that is being used."""
    return (READY * workers + 1) * batch if workers else 0


def fitting(workers: int, batch: int) -> int:
    """Return the largest number of processes up to ``workers`` whose batches of ``batch`` bytes have room."""
    while workers and needed(workers, batch) > free():
        workers -= 1
    return workers
