"""Per-image correctness of a run's test: for each evaluation point, a bit an image, in the order of the test split.

Two runs on one split are compared with it image by image: most of the spread between seeds is the test set's size. It
lies beside result.json, which names the rows, their length and the digest of the file.
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

    Right = Mapping[str, NDArray[np.bool_]]  # by "test.POINT" or "test_recalibrated.POINT", as in result.json

FILE = "test-correct.bin"
KEY = "test_correct"  # of result.json; results of earlier versions lack it


def pack(right: Right) -> tuple[bytes, dict[str, Any]]:
    """Return the content of the file, and what result.json says of it. Every row has the same number of images."""
    import numpy as np

    content = b"".join(np.packbits(row).tobytes() for row in right.values())
    (count,) = {len(row) for row in right.values()}
    return content, {"file": FILE, "rows": list(right), "n": count, "digest": _digest(content)}


def read(folder: Path, result: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
    """Return {"test.POINT": whether the network was right on each image of the test split} of the run of ``result``.

    Raises UserError where the result is of an earlier version or diverged, and where the file is not what the run
    wrote.
    """
    import numpy as np

    described = result.get(KEY)
    if described is None:
        why = "it diverged" if result.get("status") == "diverged" else "it was trained by an earlier version"
        raise UserError(
            f"{folder} has no answers by image, because {why}: study=NEW trains the same configuration again"
        )
    path = folder / FILE
    spoilt = UserError(f"{path} is missing or not what the run wrote: put it back, or train the run again (study=NEW)")
    match described:
        case {"rows": list() as rows, "n": int() as count, "digest": str() as digest} if rows and count > 0:
            pass
        case _:
            raise spoilt
    try:
        content = read_file(path)
    except OSError:
        raise spoilt from None
    wide = -(-count // 8)
    if len(content) != wide * len(rows) or _digest(content) != digest:
        raise spoilt
    packed = np.frombuffer(content, np.uint8).reshape(len(rows), wide)
    bits = np.unpackbits(packed, axis=1, count=count).astype(bool)
    found = {str(name): row for name, row in zip(rows, bits, strict=True)}
    if any(int((~row).sum()) != _wrong(result, name) for name, row in found.items()):
        raise spoilt
    return found


def _wrong(result: Mapping[str, Any], name: str) -> int | None:
    split, _, point = name.partition(".")
    scores = result.get(split)
    score = scores.get(point) if isinstance(scores, Mapping) else None
    return score.get("wrong") if isinstance(score, Mapping) else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
