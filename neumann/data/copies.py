"""Images that are equal once decoded: in two splits the test error is too good, in two classes a label is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from neumann.data.eight_bits import counted
from neumann.data.splits import Examples
from neumann.errors import UserError

PAIRS = (("test", "train"), ("test", "validation"), ("validation", "train"))  # the first one's errors are too good
SPLIT = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Copies:
    """Counts of images with an equal one elsewhere, and what a user is told of them.

    Args:
        test_in_train: test images that are training images too; other pairs of splits likewise.
        in_two_classes: images that another class has too.
        told: a sentence for each kind that there is.
    """

    test_in_train: int
    test_in_validation: int
    validation_in_train: int
    in_two_classes: int
    told: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Return the counts by name."""
        return {name: value for name, value in vars(self).items() if name != "told"}


def find_copies(
    groups: Sequence[Sequence[int]], examples: Examples, *, name: Callable[[int], str], of: str, lost: str = ""
) -> Copies:
    """Return what ``groups`` of equal images are, among ``examples``.

    ``name`` is what a user calls an image, ``of`` what the set is called, and ``lost`` what 8 bits have lost of it.

    Raises UserError where more than half of all images have an equal one in another class: what tells the classes apart
    is not in the pixels.
    """
    total = len(examples.labels)
    homes = np.empty(total, dtype=object)
    for part in SPLIT:
        homes[getattr(examples, part)] = part
    counts = {f"{a}_in_{b}": 0 for a, b in PAIRS}
    of_pair: dict[str, tuple[str, str]] = {}
    in_two_classes, of_classes = 0, ("", "")
    for group in map(list, groups):
        at = {part: [index for index in group if homes[index] == part] for part in SPLIT}
        for a, b in PAIRS:
            if at[a] and at[b]:
                counts[f"{a}_in_{b}"] += len(at[a])
                of_pair.setdefault(f"{a}_in_{b}", (name(at[a][0]), name(at[b][0])))
        labels = examples.labels[group]
        if len(set(labels.tolist())) > 1:
            in_two_classes += len(group)
            one, other = next((a, b) for a, b in combinations(group, 2) if examples.labels[a] != examples.labels[b])
            of_classes = of_classes if of_classes[0] else (name(one), name(other))
    if 2 * in_two_classes > total:
        raise UserError(
            f"the classes of '{of}' cannot be told apart: {in_two_classes} of {total} images have the same "
            f"8-bit pixels as one of another class, e.g. {_both(of_classes)}{lost}: remove the copies, or convert the "
            "files to 8-bit images that differ"
        )
    told = [
        f"{counts[pair]} of {len(getattr(examples, pair.split('_')[0]))} {SPLIT[pair.split('_')[0]]} images are "
        f"{SPLIT[pair.split('_')[2]]} images too, e.g. {_both(named)}, so {pair.split('_')[0]} errors are too good"
        for pair, named in of_pair.items()
    ]
    if in_two_classes:
        told.append(f"{counted(in_two_classes, 'have a copy in another class')}, e.g. {_both(of_classes)}")
    return Copies(**counts, in_two_classes=in_two_classes, told=tuple(told))


def _both(paths: tuple[str, str]) -> str:
    return f"'{paths[0]}' and '{paths[1]}'"
