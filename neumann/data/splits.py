"""Which example is training, validation or test? A stratified cut by a constant seed, the same on every machine.

Own arithmetic rather than scikit-learn's, for two reasons: this module must not import it (a signature costs
milliseconds), and here the test part does not move when the validation fraction does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Examples:
    """Every example of a data set in its fixed order: ``labels`` int64 [N], and three sorted index arrays into it.

    ``paths`` are the image files, [N], relative to ``root`` with forward slashes; both are empty for embedded data.
    """

    labels: Indices
    train: Indices
    validation: Indices
    test: Indices
    root: str = ""
    paths: tuple[str, ...] = field(default=(), repr=False)

    def digest(self) -> str:
        """Return 12 hex digits of the assignment of examples to splits."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            digest.update(f"{len(part)}:".encode() + part.astype("<i8").tobytes())
        return digest.hexdigest()[:12]


def stratified(labels: Indices, totals: tuple[int, ...], seed: int) -> list[Indices]:
    """Cut one part of about each of ``totals`` examples from ``labels``; return the parts, then what remains.

    Every class is shared out in proportion, gives at least one example to each part and keeps at least one. The parts
    before one do not depend on its total. Raises ValueError where a class has fewer than ``len(totals) + 1`` examples.
    """
    sizes = np.bincount(labels)
    if sizes.min() <= len(totals):
        raise ValueError("a class is too small to be cut")
    shares, left = [], sizes.copy()
    for number, total in enumerate(totals):
        share = _share_out(left, total, reserve=len(totals) - number)
        shares.append(share)
        left -= share
    parts: list[list[Indices]] = [[] for _ in range(len(totals) + 1)]
    for label in range(len(sizes)):
        members = np.flatnonzero(labels == label)
        members = members[order(len(members), (seed, label))]
        ends = np.cumsum([share[label] for share in shares])
        for part, chunk in zip(parts, np.split(members, ends), strict=True):
            part.append(chunk)
    return [np.sort(np.concatenate(part)) for part in parts]


def uniforms(shape: tuple[int, ...], seed: tuple[int, ...]) -> NDArray[np.float32]:
    """Return float32 uniforms in [0, 1), a pure function of ``shape`` and of the whole numbers in ``seed``."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).random(shape, dtype=np.float32)


def order(count: int, seed: tuple[int, ...]) -> Indices:
    """Return a permutation of ``range(count)`` as int64 [count], a pure function of both arguments.

    Sorted uniforms rather than `Generator.permutation`: NumPy keeps its bit generators' streams for good, but reserves
    the right to change what its higher methods make of them.
    """
    keys = np.random.Philox(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)


def _share_out(sizes: Indices, total: int, *, reserve: int) -> Indices:
    """Largest remainders in whole numbers, at least 1 per class and at most its size less ``reserve``."""
    quotas, remainders = np.divmod(sizes * total, sizes.sum())
    most_wanting = np.argsort(-remainders, kind="stable")[: total - int(quotas.sum())]
    quotas[most_wanting] += 1
    clipped: Indices = np.clip(quotas, 1, sizes - reserve)
    return clipped
