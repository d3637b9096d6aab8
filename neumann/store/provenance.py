"""Provenance of a result: the code, packages and machine that a reader needs to know to repeat it."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from neumann.cores import cores

PACKAGES = (
    *("neumann", "torch", "torchvision", "pytorch-lightning", "timm", "hydra-core", "omegaconf", "wandb"),
    *("numpy", "pillow", "scikit-learn"),
)


def provenance() -> dict[str, Any]:
    """Return plain data on code, packages and host; training adds the devices, for which it asks torch.

    No environment variable is recorded: they hold secrets.
    """
    return {
        "git": git_state(Path(__file__).resolve().parents[2]),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "processor": _processor(),
            "cores": cores(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_state(root: Path) -> dict[str, Any] | None:
    """Return the checkout's commit and a hash of what is not committed, or None where ``root`` is not a checkout."""
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> bytes:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=True, timeout=30).stdout

    try:
        commit = git("rev-parse", "HEAD").decode().strip()
        changes = git("diff", "HEAD", "--", ".")
        for name in sorted(git("ls-files", "--others", "--exclude-standard", "-z").decode().split("\0")):
            path = root / name
            if name and path.is_file():
                changes += name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "diff_sha256": hashlib.sha256(changes).hexdigest()[:16] if changes else None}
