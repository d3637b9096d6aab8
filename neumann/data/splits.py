"""The three splits of a data set: a stratified cut by a fixed seed, the same on every machine.

The arithmetic is our own rather than scikit-learn's for two reasons: importing that takes a second where a signature
takes milliseconds, and here changing the validation fraction leaves the test split unchanged.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Examples:
    """All N examples of a data set in their fixed order.

    Args:
        labels: their classes, int64 [N].
        train: sorted indices of the training split; ``validation`` and ``test`` likewise.
        validation: see ``train``.
        test: see ``train``.
        root: the folder of the image files; empty for embedded data.
        paths: the image files, [N], relative to ``root`` with forward slashes; empty for embedded data.
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
    """Share ``total`` out over classes of ``sizes`` by largest remainders: at least 1, at most size − ``reserve``."""
    quotas, remainders = np.divmod(sizes * total, sizes.sum())
    most_wanting = np.argsort(-remainders, kind="stable")[: total - int(quotas.sum())]
    quotas[most_wanting] += 1
    clipped: Indices = np.clip(quotas, 1, sizes - reserve)
    return clipped
