"""Names of folders that are splits, and those that only read as one."""

from __future__ import annotations

import re
from collections.abc import Iterable

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
# in names such as train_set, seg_test, val2017 or Testing Data
WORDS = {
    *SPLITS,
    *("trn", "trainset", "trainval", "trains", "tst", "testset", "tests", "valset", "dev", "devset", "eval"),
    *("evaluation", "holdout", "heldout"),
}


def reads_as_split(name: str) -> bool:
    """Return whether a word of ``name`` is a split's."""
    return any(word in WORDS for word in re.split(r"[^a-z]+", name.lower()))


def splits_among(names: Iterable[str]) -> list[str]:
    """Return, sorted, those of ``names`` that read as splits; empty where fewer than two do."""
    found = sorted(name for name in names if reads_as_split(name))
    return found if len(found) > 1 else []
