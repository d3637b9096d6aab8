"""Make fashion14 from the original files of Fashion-MNIST: python -m neumann.data.make_fashion14 FOLDER.

FOLDER holds the four files train-images-idx3-ubyte.gz and so on, as https://github.com/zalandoresearch/fashion-mnist
offers them and Debian's package dataset-fashion-mnist installs them in /usr/share/datasets/fashion-mnist. Kept are
the first 600 training images of each class, in their order, and after them all 10,000 test images. A pixel is the mean
(a + b + c + d + 2) // 4 of 2×2 pixels, so halves round up, in whole numbers alone.

The files inside the .xz are the same bytes on every machine; another version of liblzma may compress them otherwise.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neumann.data import idx
from neumann.data.embedded import FASHION14, FASHION14_IMAGES, FASHION14_LABELS, FASHION14_TRAIN
from neumann.errors import UserError

CLASSES = 10
PER_CLASS = FASHION14_TRAIN // CLASSES


def make(folder: Path) -> dict[str, bytes]:
    """Return {name of an embedded file: its bytes before compression}, made of the original files in ``folder``.

    Raises UserError for an original that is missing or damaged.
    """
    images, labels = _pair(folder, "train")
    test_images, test_labels = _pair(folder, "t10k")
    kept = np.sort(np.concatenate([np.flatnonzero(labels == label)[:PER_CLASS] for label in range(CLASSES)]))
    chosen = np.concatenate([images[kept], test_images])
    return {
        FASHION14_IMAGES: idx.pack(halved(chosen)),
        FASHION14_LABELS: idx.pack(np.concatenate([labels[kept], test_labels])),
    }


def halved(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return ``images`` uint8 [N, H, W] at half their size, by means of 2×2 pixels whose halves round up."""
    wide = images.astype(np.uint16)
    sums = wide[:, ::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, ::2] + wide[:, 1::2, 1::2]
    return ((sums + 2) // 4).astype(np.uint8)


def _pair(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return idx.read(folder / f"{name}-images-idx3-ubyte.gz"), idx.read(folder / f"{name}-labels-idx1-ubyte.gz")


def main(words: list[str]) -> None:
    """Write the embedded files, and print what they measure."""
    if len(words) != 1:
        sys.exit(str(__doc__).splitlines()[0])
    try:
        made = make(Path(words[0]))
    except UserError as error:
        sys.exit(str(error))
    for name, content in made.items():
        packed = lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)
        (FASHION14 / name).write_bytes(packed)
        print(f"{FASHION14 / name}: {len(packed):,} bytes for {len(content):,}")


if __name__ == "__main__":
    main(sys.argv[1:])
