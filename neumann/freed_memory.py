"""What a process does with memory that it has freed and will ask for again at once, as training does in every step."""

from __future__ import annotations

import ctypes
import os
import platform

# glibc's malloc.h: parameters of mallopt
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
CHOSEN_BY = {  # variables
    "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"
}  # fmt: skip


_kept = False  # whether `keep_freed_memory` has taken effect in this process


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
    # M_MMAP_THRESHOLD would reach blocks of up to 32 MiB only, the activations of 500 images of 32 × 32; and to set
    # the other alone would stop glibc from raising that threshold by itself
    global _kept
    _kept = bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
    return _kept


def give_back_freed_memory() -> None:
    """Give back what `keep_freed_memory` keeps, after work that needs more than a step does; else it does nothing."""
    if _kept:
        ctypes.CDLL(None).malloc_trim(0)
