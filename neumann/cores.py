"""The number of processors that this process may use, which in a container is seldom all that the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cores() -> int:
    """Return how many cores this process may use: by its affinity, and by the quota of its cgroup, rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(count, _quota())))


def _quota() -> float:
    """Return the cores that the Linux cgroups (v1 or v2) of this process and those above leave it; inf for no limit."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return math.inf
    found = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += [_of_v2(folder) for folder in _upwards(CGROUPS, path)]
        elif "cpu" in controllers.split(","):
            # by all controllers, as the kernel mounts them, or by this one alone, as systems link to it
            for mounted in (controllers, "cpu"):
                found += [_of_v1(folder) for folder in _upwards(CGROUPS / mounted, path)]
    return min(found)


def _upwards(mounted: Path, path: str) -> list[Path]:
    """Return the folders of a cgroup and of those above it. In a container only ``mounted`` itself may be there."""
    inner = PurePosixPath(path).relative_to("/") if path.startswith("/") else PurePosixPath(path)
    return [mounted / above for above in (inner, *inner.parents)]


def _of_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _of_v1(folder: Path) -> float:
    try:
        quota, period = (
            int((folder / f"cpu.cfs_{what}_us").read_text(encoding="utf-8")) for what in ("quota", "period")
        )
        return quota / period if quota > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
