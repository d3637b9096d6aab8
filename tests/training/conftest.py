"""Short real runs on the digits, in this process."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from neumann.store import RunFolder, find
from tests.support.quick_runs import Train, quick


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def train() -> Train:
    """Train a quick run and return its result and its folder."""

    def run_it(*overrides: str, dirs: tuple[str, ...] = ()) -> tuple[dict[str, Any], RunFolder]:
        from neumann.training.run import run

        spec = quick(*overrides, dirs=dirs)
        result = run(spec, Console(file=io.StringIO()))
        return result, find(spec)

    return run_it


@pytest.fixture
def own_group(tmp_path: Path) -> Callable[[str, str, str], str]:
    """Write a YAML of the user's own and return its config folder."""

    def write(group: str, name: str, text: str) -> str:
        folder = tmp_path / "conf" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
        return str(tmp_path / "conf")

    return write
