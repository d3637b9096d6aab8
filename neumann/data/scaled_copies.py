"""Images that a change of size makes equal, although their files are not: a few pixels may not tell classes apart."""

from __future__ import annotations

import hashlib

import torch

from neumann.data import cache
from neumann.data.copies import find_copies
from neumann.data.facts import DataFacts
from neumann.data.resident import Pixels
from neumann.errors import printable


def check_scaled(facts: DataFacts, pixels: Pixels, *, tell: bool) -> None:
    """Look for equal images among ``pixels``, those of ``facts`` at the size of training.

    Where there are more than `neumann.data.facts` found in the files, they are told, if ``tell``. Raises UserError
    where more than half of all images have an equal one in another class.
    """
    height, width = facts.image_size
    paths, where = facts.examples.paths, facts.examples.root or facts.kind
    found = find_copies(
        _equal(pixels),
        facts.examples,
        name=lambda index: paths[index] if paths else f"image {index}",
        of=where,
        lost=f" at data.image_size=[{height},{width}], where a larger one keeps more of them",
    )
    if tell and any(count > facts.copies.get(name, 0) for name, count in found.counts().items()):
        told = printable("; ".join(found.told))
        cache.log.warning("'%s' at %d×%d pixels: %s", printable(where), height, width, told)


def _equal(pixels: Pixels) -> list[list[int]]:
    """Return the groups of equal images, as indices; only those of equal sums are compared."""
    sums = torch.cat([pixels.sums, pixels.squares], 1)
    _, group, sizes = torch.unique(sums, dim=0, return_inverse=True, return_counts=True)
    groups: dict[bytes, list[int]] = {}
    for index in torch.nonzero(sizes[group] > 1).flatten().tolist():
        digest = hashlib.blake2b(pixels.images[index].numpy().tobytes(), digest_size=16).digest()
        groups.setdefault(digest, []).append(index)
    return [members for members in groups.values() if len(members) > 1]
