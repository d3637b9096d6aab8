"""What a process does with memory that it has freed and will ask for again at once, as training does in every step."""

from __future__ import annotations

import ctypes
import os
import platform

# glibc's malloc.h: parameters of mallopt
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 2**31 - 1  # bytes that may lie free at the end of the heap; mallopt takes an int
LARGEST = 32 * 2**20  # bytes of a block that is taken from the heap; glibc allows no more
CHOSEN_BY = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"}  # variables


def keep_freed_memory() -> bool:
    """Have glibc keep the memory that this process frees, and return whether it does.

    It gives freed memory back to the system as soon as some lies at the end of the heap, and a large block always. A
    step of training frees all of its activations and asks for as much again, which the system then clears page by page.
    The process keeps what it needed at most instead. Nothing is done where the environment chooses otherwise, nor with
    another libc, which has no such setting.
    """
    if not CHOSEN_BY.isdisjoint(os.environ) or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_THRESHOLD, LARGEST), mallopt(M_TRIM_THRESHOLD, KEPT)])
