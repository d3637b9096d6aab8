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
        stat_digest: of the names, sizes and times of its files; "" for an embedded set.
    """

    images: NDArray[np.uint8]
    examples: Examples
    class_names: tuple[str, ...]
    split_rule: str
    test_is: str
    pixel_max: int = 255
    told: tuple[str, ...] = ()
    stat_digest: str = ""

    def fingerprint(self) -> str:
        """Return ``content:`` and the SHA-256 of pixels and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(self.examples.labels.astype(np.uint8).tobytes())
        return f"content:{digest.hexdigest()}"

    def copies(self) -> list[list[int]]:
        """Return the groups of images whose pixels are equal, as indices."""
        rows = np.ascontiguousarray(self.images).reshape(len(self.images), -1)
        pad = np.zeros((len(rows), -rows.shape[1] % 8), dtype=np.uint8)
        words = np.concatenate([rows, pad], axis=1).view("<u8")
        # equal rows have equal sums; the few others that have them too are told apart by their bytes
        factors = np.random.Philox(np.random.SeedSequence(0)).random_raw(words.shape[1]) | np.uint64(1)
        sums = words @ factors
        _, inverse, counts = np.unique(sums, return_inverse=True, return_counts=True)
        groups: dict[bytes, list[int]] = {}
        for index in np.flatnonzero(counts[inverse] > 1).tolist():
            groups.setdefault(rows[index].tobytes(), []).append(index)
        return [group for group in groups.values() if len(group) > 1]
