"""The random streams of a run, one per axis, each derived from the run's seed.

Two optimizers at seed 3 share initialisation and data order whatever else they draw, so their comparison is paired.
"""

from __future__ import annotations

import hashlib

AXES = ("initialisation", "order", "augmentation", "noise", "evaluation")


def derive(seed: int, axis: str) -> int:
    """Return the 63-bit seed of one stream: ``axis`` is one of `AXES`, ``seed`` is the run's.

    Raises ValueError for another axis: a misspelt one would silently be a stream of its own.
    """
    if axis not in AXES:
        raise ValueError(f"no random stream is called {axis!r}; the streams are {', '.join(AXES)}")
    digest = hashlib.sha256(f"neumann/{axis}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
