"""Every test runs offline, on one thread, in a working directory and with a cache of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: kernels for CUDA then run on CPU tensors


@pytest.fixture(scope="session")
def kernel_library(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The C++ kernel, compiled once for all tests; None where there is no compiler."""
    from neumann.optim.kernels import cpu

    folder = tmp_path_factory.mktemp("kernel")
    try:
        cpu.build(folder)
    except OSError:
        return None
    return next(folder.iterdir())


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_library: Path | None) -> None:
    monkeypatch.setenv("NEUMANN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # against a power cut, not a killed process; 2 ms a file otherwise
    monkeypatch.setenv("TERM", "xterm-256color")  # a dumb one, as of many a CI, has no live view to test
    if kernel_library is not None:
        (tmp_path / "cache").mkdir()
        os.link(kernel_library, tmp_path / "cache" / kernel_library.name)
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    monkeypatch.chdir(work)


@pytest.fixture
def python() -> Callable[[str], str]:
    """Run code in a fresh interpreter and return what it printed."""

    def run(code: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}  # where tests.support is found
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
