"""fashion14: what lies in the package is what the script makes of the original files, and nothing else."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from neumann.data import facts, idx, make_fashion14
from neumann.data.embedded import FASHION14, FASHION14_IMAGES, FASHION14_LABELS, fashion14
from neumann.errors import UserError

ORIGINALS = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))  # Debian: dataset-fashion-mnist
WITHIN = {  # SHA-256 of the idx files within the .xz
    FASHION14_IMAGES: "16ae39705af0af5346e7ce64bf5de7c865897cbde26e16465a377864b3f372a7",
    FASHION14_LABELS: "a1d5bdaf8596caaf7c7848ad28c880b328f0f3d36df048d3bfc492a779deec12",
}


def inside(name: str) -> bytes:
    return lzma.decompress((FASHION14 / name).read_bytes())


def test_the_embedded_images_are_the_ones_of_the_first_day() -> None:
    assert {name: hashlib.sha256(inside(name)).hexdigest() for name in WITHIN} == WITHIN
    assert sum(file.stat().st_size for file in FASHION14.iterdir()) < 2_000_000
    assert "Permission is hereby granted" in (FASHION14 / "LICENSE").read_text()


@pytest.mark.medium
def test_the_script_makes_them_of_the_original_files() -> None:
    if not ORIGINALS.is_dir():
        pytest.skip(f"the original files are not in {ORIGINALS} ($FASHION_MNIST, or Debian's dataset-fashion-mnist)")
    made = make_fashion14.make(ORIGINALS)
    assert made.keys() == WITHIN.keys()
    for name, content in made.items():
        assert content == inside(name), name


def test_the_script_takes_the_first_of_each_class_and_means_that_round_up(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(make_fashion14, "PER_CLASS", 2)
    random = np.random.default_rng(0)
    labels = np.tile(np.arange(10, dtype=np.uint8), 3)[::-1]
    images, tests = (random.integers(0, 256, (count, 28, 28), dtype=np.uint8) for count in (30, 4))
    written = {
        "train-images-idx3": images,
        "train-labels-idx1": labels,
        "t10k-images-idx3": tests,
        "t10k-labels-idx1": labels[:4],
    }
    for name, array in written.items():
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(idx.pack(array)))
    made = {name: idx.unpack(content) for name, content in make_fashion14.make(tmp_path).items()}
    assert np.array_equal(made[FASHION14_LABELS], [*labels[:20], *labels[:4]])
    kept = np.concatenate([images[:20], tests]).astype(float)
    means = kept.reshape(24, 14, 2, 14, 2).mean((2, 4))
    assert np.array_equal(made[FASHION14_IMAGES], np.floor(means + 0.5))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz' cannot be read \(No such file"):
        make_fashion14.make(tmp_path / "nowhere")


def test_fashion14_is_split_4000_2000_10000_and_balanced() -> None:
    found = facts({"kind": "fashion14"})
    assert (found.train_count, found.validation_count, found.test_count) == (4000, 2000, 10_000)
    assert (found.num_classes, found.channels, found.image_size, found.pixel_max) == (10, 1, (14, 14), 255)
    assert found.in_memory
    assert found.class_names[9] == "Ankle boot"
    examples = found.examples
    for part, each in ((examples.train, 400), (examples.validation, 200), (examples.test, 1000)):
        assert np.bincount(examples.labels[part]).tolist() == [each] * 10
    assert sorted(np.concatenate([examples.train, examples.validation, examples.test])) == list(range(16_000))
    assert examples.test.tolist() == list(range(6000, 16_000))


def test_fashion14_is_the_same_for_good() -> None:
    found, other = facts({"kind": "fashion14"}), facts({"kind": "fashion14", "split_seed": 1})
    assert found.fingerprint == "content:0db1ce2db9c7d607aa453b897ae10ff6a5a581f3cabed3811694f5512f6386d6"
    assert found.split_digest == "8e792cc0d8b5"
    assert other.split_digest != found.split_digest
    assert other.fingerprint == found.fingerprint
    assert np.array_equal(other.examples.test, found.examples.test)


def test_a_label_names_what_is_to_be_seen() -> None:
    """Trousers are narrow and an ankle boot reaches to the edges: labels are not shifted against images."""
    found = fashion14(0)
    lit = (found.images[:, 0] > 40).any(axis=1).sum(axis=1)  # columns that the piece of clothing covers
    width = {name: lit[found.examples.labels == label].mean() for label, name in enumerate(found.class_names)}
    assert width["Trouser"] < min(w for name, w in width.items() if name not in ("Trouser", "Dress")) - 2
