"""Confusion counts of a run's test: of each class, how many of its images were taken for which.

They are those of the point that counts, and lie beside result.json, which names the file's digest: a line for every
pair of classes that has images, `class,predicted,images`, by class index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumann.errors import UserError
from neumann.store.files import read_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pairs = NDArray[np.int64]  # [pairs, (class, predicted, images)]

FILE = "test-confusion.csv"
KEY = "test_confusion"  # of result.json; results of earlier versions, and of diverged runs, lack it
HEADER = "class,predicted,images"


def pack(pairs: Pairs, point: str) -> tuple[bytes, dict[str, Any]]:
    """Return the content of the file, and what result.json says of it; ``point`` is the one that was scored."""
    lines = [HEADER, *(",".join(map(str, row)) for row in pairs.tolist())]
    content = ("\n".join(lines) + "\n").encode()
    return content, {"file": FILE, "point": point, "n": int(pairs[:, 2].sum()), "digest": _digest(content)}


def read(folder: Path, result: Mapping[str, Any]) -> Pairs | None:
    """Return the counts of the run of ``result``, None where it has none.

    Raises UserError where the file is not what the run wrote.
    """
    import numpy as np

    described = result.get(KEY)
    if described is None:
        return None
    path = folder / FILE
    spoilt = UserError(f"{path} is missing or not what the run wrote: put it back, or train the run again (study=NEW)")
    try:
        content = read_file(path)
    except OSError:
        raise spoilt from None
    if not isinstance(described, Mapping) or described.get("digest") != _digest(content):
        raise spoilt
    try:
        header, *lines = content.decode().splitlines()
        pairs = np.array([[int(cell) for cell in line.split(",")] for line in lines], np.int64).reshape(-1, 3)
    except ValueError:
        raise spoilt from None
    if header != HEADER or not len(pairs) or (pairs < 0).any():
        raise spoilt
    return pairs


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
