"""The fixture of a fake Slurm, for tests that need no real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.fake_slurm import FakeSlurm


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    one = FakeSlurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{one.bin}{os.pathsep}{os.environ['PATH']}")
    return one
