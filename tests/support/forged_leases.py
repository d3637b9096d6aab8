"""Leases as another machine would leave them in a run's folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from neumann.store import claim
from neumann.store.lease_holder import Holder

ELSEWHERE = Holder("another-machine", "another-boot", "pid:[1]", 1, 1, "its-token")


def leases(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix(".claim.")) for path in folder.glob(".claim.*"))


def forge(folder: Path, holder: Holder | bytes = ELSEWHERE, *, number: int = 1, silent: float = 0.0) -> Path:
    """Write a lease of ``holder`` that was last touched ``silent`` seconds ago."""
    folder.mkdir(exist_ok=True)
    path = folder / f".claim.{number}"
    path.write_bytes(holder if isinstance(holder, bytes) else claim.HELD + json.dumps(asdict(holder)).encode())
    then = claim.file_system_time(folder) - silent
    os.utime(path, (then, then))
    return path
