"""Noise as images: uniform bytes, each image a pure function of (seed, its number), so that none has to be stored."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from neumann.data.splits import Examples

VERSION = 1  # of the noise: raise it when the same seed gives other bytes
MEAN = 0.5  # of uniform bytes, in units of 255
STD = math.sqrt((256**2 - 1) / 12) / 255


def image(index: int, *, seed: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return image ``index`` as uint8 of ``shape`` (C, H, W)."""
    count = math.prod(shape)
    # random_raw, because NumPy keeps its bit generators' streams for good and not what its higher methods make of them
    words = np.random.Philox(key=np.array([seed, index], dtype=np.uint64)).random_raw(-(-count // 8))
    return words.astype("<u8").view(np.uint8)[:count].reshape(shape)


def examples(counts: tuple[int, int, int], num_classes: int) -> Examples:
    """Return the splits of ``counts`` (training, validation, test) images, one after the other; labels take turns."""
    ends = np.cumsum(counts)
    train, validation, test = np.split(np.arange(ends[-1], dtype=np.int64), ends[:-1])
    return Examples(
        labels=np.arange(ends[-1], dtype=np.int64) % num_classes, train=train, validation=validation, test=test
    )


def fingerprint(*, seed: int, shape: tuple[int, int, int], count: int, num_classes: int) -> str:
    """Return ``noise:`` and the SHA-256 of all that the images and labels follow from."""
    return "noise:" + hashlib.sha256(repr((VERSION, seed, shape, count, num_classes)).encode()).hexdigest()
