"""Small image folders that a small network learns: each class has a colour of its own, under noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (160, 160, 60))
CLASSES = ("cat", "dog", "emu")


def coloured(
    root: Path, classes: Sequence[str] = CLASSES, *, count: int = 30, sizes: Sequence[tuple[int, int]] = ((12, 12),)
) -> Path:
    """Write ``count`` PNG files for each of ``classes`` into ``root``, of ``sizes`` in turn; return ``root``."""
    random = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            height, width = sizes[number % len(sizes)]
            noise = random.normal(0, 110, (height, width, 3)) + random.normal(0, 60, 3)
            pixels = np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03}.png")
    return root
