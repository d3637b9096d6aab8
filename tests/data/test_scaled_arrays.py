"""Array sets at another size, in memory and streamed; read once for all processes of a machine; copies in them told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

from neumann.data import arrays, facts, idx, torchvision_sets
from neumann.data.array_set import ArraySet
from neumann.data.checked_settings import parse
from neumann.data.module import ImageData, build
from neumann.data.splits import Examples
from tests.support import data_files

PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3, "augmentation": "none", "workers": 0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    data_files.cifar10(tmp_path)
    data_files.mnist(tmp_path / "MNIST" / "raw")
    return tmp_path


def cifar(root: Path, **more: Any) -> dict[str, Any]:
    return {"kind": "cifar10", "root": str(root), "workers": 0} | more


def module(data: dict[str, Any]) -> ImageData:
    return build(data, facts(data), batch_size=8, eval_batch_size=8, seed=0)


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
@pytest.mark.parametrize("size", [None, 24, [40, 48]])
def test_arrays_in_memory_and_streamed_are_the_same(root, augmentation, size):
    batches = []
    for in_memory in (True, False):
        data = cifar(root, augmentation=augmentation, image_size=size, in_memory=in_memory, interpolation="bicubic")
        assert facts(data).in_memory is in_memory
        made = module(data)
        batches.append([*made.train_dataloader(), *made.test_dataloader()])
    for (a, x), (b, y) in zip(*batches, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [0.8, 1.0])
def test_evaluation_is_torchvisions_resize_and_centre_crop(root, interpolation, crop_pct):
    data = cifar(root, image_size=48, interpolation=interpolation, crop_pct=crop_pct, **PLAIN)
    found = facts(data)
    assert (found.interpolation, found.crop_pct) == (interpolation, crop_pct)
    assert (found.as_record()["interpolation"], found.as_record()["crop_pct"]) == (interpolation, crop_pct)
    images = next(iter(build(data, found, batch_size=8, eval_batch_size=20, seed=0).test_dataloader()))[0]
    originals = torchvision_sets.read(parse(data)).images[found.examples.test]
    for ours, original in zip(images, originals, strict=True):
        image = Image.fromarray(original.transpose(1, 2, 0))
        scaled = functional.resize(image, round(48 / crop_pct), InterpolationMode(interpolation))
        theirs = np.asarray(functional.center_crop(scaled, 48)).transpose(2, 0, 1)
        assert np.array_equal((ours * 255).round().numpy(), theirs)


def test_statistics_are_the_training_splits_at_its_own_size_wherever_images_are_held(root):
    own = module(cifar(root))
    for more in ({"in_memory": False}, {"image_size": 24}, {"image_size": 24, "in_memory": False}):
        made = module(cifar(root, **more))
        assert (made.mean, made.std) == (own.mean, own.std)


def test_a_large_scaled_set_is_streamed(root, monkeypatch):
    monkeypatch.setattr(sys.modules["neumann.data.facts"], "MEMORY_LIMIT", 120 * 3 * 40 * 40)
    assert facts(cifar(root, image_size=40)).in_memory
    assert not facts(cifar(root, image_size=41)).in_memory


def test_each_size_interpolation_and_cut_is_kept_apart(root):
    seen = set()
    for more in (
        {},
        {"image_size": 24},
        {"image_size": 24, "interpolation": "bicubic"},
        {"image_size": 24, "crop_pct": 1.0},
    ):
        made = module(cifar(root, **PLAIN, **more))
        seen.add(next(iter(made.test_dataloader()))[0].numpy().tobytes())
    assert len(seen) == 4


def test_one_process_of_a_machine_reads_the_files_and_all_map_the_same_pages(root, monkeypatch):
    data = cifar(root)
    found = facts(data)
    first = build(data, found, batch_size=8, seed=0)
    monkeypatch.setattr(arrays, "read", lambda _: pytest.fail("the files are read again"))
    monkeypatch.setattr(torchvision_sets, "read", lambda _: pytest.fail("the files are read again"))
    second = build(data, found, batch_size=8, seed=0)
    maps = Path("/proc/self/maps")
    if maps.exists():
        kept = next((root / "cache" / "decoded").glob("*.pt"))
        assert sum(str(kept) in line for line in maps.read_text().splitlines()) >= 2
    for (a, _), (b, _) in zip(first.train_dataloader(), second.train_dataloader(), strict=True):
        assert torch.equal(a, b)


def test_an_array_whose_file_changed_under_a_kept_one_is_refused(root):
    data = {"kind": "mnist", "root": str(root)}
    found = facts(data)
    build(data, found, batch_size=8, seed=0)
    file = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    pixels = idx.read(file).copy()
    pixels[0, 0, 0] ^= 1
    file.write_bytes(idx.pack(pixels))
    with pytest.raises(Exception, match="have changed since the command began"):
        build(data, found, batch_size=8, seed=0)


def test_copies_in_an_array_are_told_and_counted(root, caplog):
    folder = root / "MNIST" / "raw"
    train, test = (idx.read(folder / f"{part}-images-idx3-ubyte").copy() for part in ("train", "t10k"))
    test[:5] = train[:5]
    train[7] = train[6]  # of the next class
    (folder / "train-images-idx3-ubyte").write_bytes(idx.pack(train))
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx.pack(test))
    found = facts({"kind": "mnist", "root": str(root)})
    assert found.copies["test_in_train"] + found.copies["test_in_validation"] == 5
    assert found.copies["in_two_classes"] >= 2
    assert "so test errors are too good" in caplog.text
    assert "images have a copy in another class, e.g. 'image 6' and 'image 7'" in caplog.text


@pytest.mark.parametrize("side", [1, 2, 7])
def test_copies_are_found_exactly(side):
    images = np.random.default_rng(0).integers(0, 2, (200, 1, side, side), dtype=np.uint8)
    none = np.arange(0)
    found = ArraySet(images, Examples(np.zeros(200, dtype=np.int64), none, none, none), ("a",), "", "").copies()
    expected: dict[bytes, list[int]] = {}
    for index, image in enumerate(images):
        expected.setdefault(image.tobytes(), []).append(index)
    assert sorted(found) == sorted(group for group in expected.values() if len(group) > 1)


def test_digits_and_fashion14_have_no_copies():
    for kind in ("digits", "fashion14"):
        assert not any(facts({"kind": kind}).copies.values())


@pytest.mark.medium
def test_timm_is_imported_for_pretrained_models_alone(root):
    code = (
        "import sys; from neumann.config import make_spec;"
        f"make_spec(['data=cifar10', 'data.root={root}', 'batch.size=4', 'model=timm', 'model.name=test_vit']);"
        "print(sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
