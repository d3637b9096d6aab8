"""Real small image folders, and a cache of their own for every test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUMANN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _global_rng_untouched():
    """No code of neumann.data may draw from torch's or NumPy's global streams."""
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    yield
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write {class folder: number of images} as noise images; returns the root."""

    def make(
        layout: Mapping[str, int],
        *,
        root: str = "images",
        suffix: str = ".png",
        size: tuple[int, int] | list[tuple[int, int]] = (16, 16),
        mode: str = "RGB",
    ) -> Path:
        random = np.random.default_rng(0)
        sizes = size if isinstance(size, list) else [size]
        for folder, count in layout.items():
            (tmp_path / root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                height, width = sizes[number % len(sizes)]
                pixels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
                image = Image.fromarray(pixels, "RGBA").convert(mode)
                image.save(tmp_path / root / folder / f"{number:03}{suffix}")
        return tmp_path / root

    return make
