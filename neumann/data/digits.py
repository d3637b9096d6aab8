"""scikit-learn's 1,797 embedded handwritten digits, read from its own file.

The file is found without importing scikit-learn, which takes a second, and parsed with NumPy.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neumann.data.splits import Examples, stratified
from neumann.errors import UserError

PIXEL_MAX = 16  # the file's pixels are counts of set bits in 4×4 blocks
VALIDATION = TEST = 300


def read() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images uint8 [1797, 1, 8, 8] with values 0 to 16, and labels int64 [1797].

    Raises UserError where scikit-learn is not installed or its file cannot be read.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise UserError("data=digits reads the digits that come with scikit-learn, which is not installed")
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(io.BytesIO(gzip.decompress(file.read_bytes())), delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"scikit-learn's digits cannot be read from '{file}' ({error})") from error
    return table[:, :64].reshape(-1, 1, 8, 8), table[:, 64].astype(np.int64)


def examples(labels: NDArray[np.int64], split_seed: int) -> Examples:
    """Return the three stratified splits of ``labels`` int64 [1797]: 1,197 training, 300 validation, 300 test."""
    test, validation, train = stratified(labels, (TEST, VALIDATION), split_seed)
    return Examples(labels=labels, train=train, validation=validation, test=test)


def fingerprint(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """Return ``content:`` and the sha256 of pixels and labels."""
    return "content:" + hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
