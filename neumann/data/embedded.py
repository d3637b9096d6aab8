"""The embedded data sets, which need no download: scikit-learn's digits, and Fashion-MNIST at 14×14 pixels.

The digits lie in scikit-learn, whose file is found without importing it, which takes a second. fashion14 lies beside
this module, made by `neumann.data.make_fashion14`.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neumann.data import idx
from neumann.data.array_set import ArraySet
from neumann.data.splits import Examples, stratified
from neumann.errors import UserError

DIGITS_PIXEL_MAX = 16  # the file's pixels are counts of set bits in 4×4 blocks
DIGITS_VALIDATION = DIGITS_TEST = 300
FASHION14 = Path(__file__).parent / "fashion14"
FASHION14_IMAGES, FASHION14_LABELS = "images-idx3-ubyte.xz", "labels-idx1-ubyte.xz"
FASHION14_TRAIN = 6_000  # images of the original training set, which come first; 10,000 test images follow
FASHION14_VALIDATION = 2_000
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
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


def digits(split_seed: int) -> ArraySet:
    """Return the digits, cut by ``split_seed`` into 1,197 training, 300 validation and 300 test images."""
    images, labels = read_digits()
    test, validation, train = stratified(labels, (DIGITS_TEST, DIGITS_VALIDATION), split_seed)
    return ArraySet(
        images=images,
        examples=Examples(labels=labels, train=train, validation=validation, test=test),
        class_names=tuple("0123456789"),
        split_rule=f"300 test and 300 validation images of all 1,797, stratified, by split seed {split_seed}",
        test_is="300 images cut from the whole set",
        pixel_max=DIGITS_PIXEL_MAX,
    )


def fashion14(split_seed: int) -> ArraySet:
    """Return fashion14: 4,000 training and 2,000 validation images, cut by ``split_seed``, and 10,000 test images."""
    images = idx.read(FASHION14 / FASHION14_IMAGES)
    labels = idx.read(FASHION14 / FASHION14_LABELS).astype(np.int64)
    validation, train = stratified(labels[:FASHION14_TRAIN], (FASHION14_VALIDATION,), split_seed)
    test = np.arange(FASHION14_TRAIN, len(labels))
    return ArraySet(
        images=images[:, None],
        examples=Examples(labels=labels, train=train, validation=validation, test=test),
        class_names=FASHION_CLASSES,
        split_rule=(
            "all 10,000 test images of Fashion-MNIST; 2,000 validation images of the first 600 of each class of its "
            f"training images, stratified, by split seed {split_seed}"
        ),
        test_is="all 10,000 test images of Fashion-MNIST, at 14×14 pixels",
    )
