"""Small files in the real formats of public data sets."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neumann.data import idx

Pixels = NDArray[np.uint8]


class Python2Pickle:
    """The bytes of a pickle as Python 2 and NumPy 1 wrote those of CIFAR: protocol 2, texts as byte strings."""

    def __init__(self, content: dict[str, object]) -> None:
        self.bytes = b"\x80\x02" + self._of(content) + b"."

    def _of(self, value: object) -> bytes:
        if isinstance(value, dict):
            return b"}(" + b"".join(self._of(key) + self._of(item) for key, item in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(self._of(item) for item in value) + b"e"
        if isinstance(value, str):
            return self._text(value.encode())
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        assert isinstance(value, np.ndarray)
        assert value.dtype == np.uint8
        shape = b"(" + b"".join(self._of(side) for side in value.shape) + b"t"
        kind = b"cnumpy\ndtype\n(" + self._text(b"u1") + b"K\x00K\x01tR"
        order = b"(K\x03" + self._text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + self._text(b"b") + b"tR"
        return made + b"(K\x01" + shape + kind + order + b"\x89" + self._text(value.tobytes()) + b"tb"

    @staticmethod
    def _text(value: bytes) -> bytes:
        return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))) + value


def cifar10(root: Path, per_batch: int = 20, classes: Sequence[str] = ("cat", "dog", "emu", "fox")) -> Path:
    """Write CIFAR-10's files with ``per_batch`` noise images in each of its six batches; return their folder."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        batch = {
            "batch_label": name,
            "labels": [number % len(classes) for number in range(per_batch)],
            "data": random.integers(0, 256, (per_batch, 3072), dtype=np.uint8),
            "filenames": [f"{number}.png" for number in range(per_batch)],
        }
        (folder / name).write_bytes(Python2Pickle(batch).bytes)
    meta = {"num_cases_per_batch": per_batch, "label_names": list(classes), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(Python2Pickle(meta).bytes)
    return folder


def cifar100(root: Path, count: int = 40, classes: Sequence[str] = ("apple", "bear", "crab")) -> Path:
    """Write CIFAR-100's files with ``count`` training and test images each; return their folder."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    for name in ("train", "test"):
        fine = [number % len(classes) for number in range(count)]
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {"fine_labels": fine, "coarse_labels": [0] * count, "data": pixels, "batch_label": name}
        (folder / name).write_bytes(Python2Pickle(batch).bytes)
    (folder / "meta").write_bytes(Python2Pickle({"fine_label_names": list(classes), "coarse_label_names": ["x"]}).bytes)
    return folder


def mnist(folder: Path, train: int = 200, test: int = 20, suffix: str = "") -> Path:
    """Write the four idx files of MNIST or Fashion-MNIST into ``folder``, packed where ``suffix`` is .gz."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(2)
    for part, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = idx.pack(array)
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return folder
