"""A data set that is one array of images, read whole: the embedded sets and torchvision's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neumann.data.splits import Examples


@dataclass(frozen=True, eq=False)
class ArraySet:
    """All N images of a data set with their labels and splits.

    Args:
        images: uint8 [N, C, H, W].
        examples: the labels, and which images are in which split.
        class_names: the classes' names, by label.
        split_rule: how the splits were made, as a sentence.
        test_is: what the test split is, as a sentence.
        pixel_max: the value of a full pixel.
        told: what a user is told of it, once.
    """

    images: NDArray[np.uint8]
    examples: Examples
    class_names: tuple[str, ...]
    split_rule: str
    test_is: str
    pixel_max: int = 255
    told: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return ``content:`` and the SHA-256 of pixels and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(self.examples.labels.astype(np.uint8).tobytes())
        return f"content:{digest.hexdigest()}"
