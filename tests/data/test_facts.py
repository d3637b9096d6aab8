"""facts(): digits, settings, fingerprints, and what it may not import."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import neumann
from neumann.cache_folder import cache_folder
from neumann.data import embedded, facts, scan, settings, splits
from neumann.errors import UserError
from tests.support.data_files import cifar10

CONF = Path(neumann.__file__).parent.parent / "conf" / "data"


def test_digits_are_split_1197_300_300_and_balanced():
    found = facts({"kind": "digits"})
    assert (found.train_count, found.validation_count, found.test_count) == (1197, 300, 300)
    assert found.in_memory
    assert (found.num_classes, found.channels, found.image_size, found.pixel_max) == (10, 1, (8, 8), 16)
    examples = found.examples
    for part in (examples.train, examples.validation, examples.test):
        shares = np.bincount(examples.labels[part]) / len(part)
        assert np.abs(shares - np.bincount(examples.labels) / 1797).max() < 0.004
    assert sorted(np.concatenate([examples.train, examples.validation, examples.test])) == list(range(1797))


@pytest.mark.slow
def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    images, labels = embedded.read_digits()
    reference = load_digits()
    assert np.array_equal(images[:, 0], reference.images)
    assert np.array_equal(labels, reference.target)


def test_split_seed_moves_the_split_and_nothing_else():
    one, other = facts({"kind": "digits"}), facts({"kind": "digits", "split_seed": 1})
    assert one == facts({"kind": "digits", "split_seed": 0})
    assert one.split_digest != other.split_digest
    assert one.fingerprint == other.fingerprint


def test_digits_split_is_the_same_for_good():
    assert facts({"kind": "digits"}).split_digest == "ce044f826eb1"


def test_record_is_plain_json(make_folder):
    root = make_folder({"cat": 6, "dog": 6})
    for data in ({"kind": "digits"}, {"kind": "image_folder", "root": str(root)}):
        record = facts(data).as_record()
        assert json.loads(json.dumps(record)) == record
        assert {"fingerprint", "split_rule", "test_is", "split_digest", "class_names"} <= record.keys()


@pytest.mark.medium
def test_facts_import_no_torch(make_folder):
    root = make_folder({"cat": 6, "dog": 6})
    code = (
        "import sys; from neumann.data import facts; facts({'kind': 'digits'});"
        f"facts({{'kind': 'image_folder', 'root': {str(root)!r}}});"
        "facts({'kind': 'fashion14'});"
        f"facts({{'kind': 'cifar10', 'root': {str(cifar10(root.parent).parent)!r}, 'download': True}});"
        "print(sorted({'torch', 'torchvision', 'sklearn', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(settings.KINDS))
def test_yaml_has_the_settings_and_their_defaults(name):
    text = (CONF / f"{name}.yaml").read_text()
    given = OmegaConf.to_container(OmegaConf.create(text))
    assert given.pop("kind") == name
    assert given == dataclasses.asdict(settings.KINDS[name]())
    assert text.startswith("# ")
    assert f": neumann train data={name}" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "data.kind"),
        ({"kind": "digitz"}, "did you mean 'digits'"),
        ({"kind": "digits", "split_sed": 1}, "did you mean 'split_seed'"),
        ({"kind": "digits", "split_seed": -1}, "data.split_seed"),
        ({"kind": "digits", "split_seed": True}, "data.split_seed"),
        ({"kind": "digits", "augmentation": "crop_flop"}, "did you mean 'crop_flip'"),
        ({"kind": "digits", "augmentation": "crop_flip"}, "use crop"),
        ({"kind": "digits", "augmentation": "random_resized_crop"}, "use crop"),
        ({"kind": "fashion14", "augmentation": "random_resized_crop"}, "too little of a 14×14 image: use crop_flip"),
        ({"kind": "fake", "image_size": None}, "noise has none of its own"),
        ({"kind": "fake", "image_size": 0}, "data.image_size=0 is not a size"),
        ({"kind": "fake", "num_classes": 1}, "data.num_classes=1 is out of range"),
        ({"kind": "fake", "channels": 0}, "data.channels=0 is out of range"),
        ({"kind": "fake", "test_count": 0}, "data.test_count=0 is out of range"),
        ({"kind": "cifar10"}, "data.root is missing"),
        ({"kind": "cifar10", "root": "x", "mean": [0.5]}, "data.mean"),
        ({"kind": "cifar10", "root": "x", "val_fraction": 1}, "data.val_fraction"),
        ({"kind": "cifar10", "root": "x", "download": "yes"}, "data.download"),
        ({"kind": "mnist", "root": "x", "augmentation": "crop_flip"}, "a mirrored digit is not a digit: use crop"),
        ({"kind": "fashion14", "root": "x"}, "data.kind=fashion14 has no setting 'root'"),
        ({"kind": "image_folder"}, "data.root is missing"),
        ({"kind": "image_folder", "root": None}, "data.root is missing"),
        ({"kind": "image_folder", "root": "???"}, "data.root is missing"),
        ({"kind": "image_folder", "root": "/no/such/place"}, "'/no/such/place' does not exist"),
        ({"kind": "image_folder", "root": __file__}, "is not a folder"),
        ({"kind": "image_folder", "root": "x", "channels": 2}, "data.channels"),
        ({"kind": "image_folder", "root": "x", "val_fraction": 0}, "data.val_fraction"),
        ({"kind": "image_folder", "root": "x", "test_fraction": 1.5}, "data.test_fraction"),
        ({"kind": "image_folder", "root": "x", "image_size": [1, 2, 3]}, "data.image_size"),
        ({"kind": "image_folder", "root": "x", "image_size": "big"}, "data.image_size"),
        ({"kind": "image_folder", "root": "x", "in_memory": "yes"}, "data.in_memory"),
        ({"kind": "image_folder", "root": "x", "mean": [0.5]}, "data.mean"),
        ({"kind": "image_folder", "root": "x", "mean": [0.5] * 3}, "both or neither"),
        ({"kind": "image_folder", "root": "x", "mean": [0.5] * 3, "std": [0.5, 0, 1]}, "data.std"),
        (
            {"kind": "image_folder", "root": "x", "mean": [123, 117, 104], "std": [58, 57, 57]},
            "[0.4824, 0.4588, 0.4078]",
        ),
        ({"kind": "image_folder", "root": "x", "mean": [0.5] * 3, "std": [58, 57, 57]}, "data.std=[58.0, 57.0, 57.0]"),
        ({"kind": "image_folder", "root": "x", "mean": [-1] * 3, "std": [1] * 3}, "data.mean"),
        ({"kind": "image_folder", "root": "x", "workers": -1}, "data.workers"),
    ],
)
def test_wrong_settings_are_one_sentence(data, words):
    with pytest.raises(UserError) as error:
        facts(data)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def _folder(root: Path) -> dict[str, str]:
    return {"kind": "image_folder", "root": str(root)}


def bitmap(seed: int, side: int = 4) -> bytes:
    """Return the bytes of a BMP file, which no version of an image library decides about."""
    row = b"".join(bytes((seed * 7 + x * 3 + c) % 256 for c in range(3)) for x in range(side))
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, len(row) * side, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(row) * side, 0, 0, 54) + head + row * side


@pytest.mark.parametrize(
    ("layout", "content", "names_and_sizes", "splits_"),
    [
        ({"cat": 9, "dog": 9}, "1fbecdef074d7af3", "3ed29605b492016d", "de0c35222ea8"),
        (
            {"train/cat": 9, "train/dog": 9, "test/cat": 3, "test/dog": 3},
            *("8bcf38f282132e29", "58d912d5f82e29fc", "1163b2f87188"),
        ),
        ({"cat/a": 4, "cat/b": 5, "été": 9}, "02c855657a027232", "492565f62576bfc6", "de0c35222ea8"),
    ],
)
def test_fingerprints_of_ordinary_folders_are_the_same_for_good(
    tmp_path, monkeypatch, layout, content, names_and_sizes, splits_
):
    names = [f"{folder}/{number}.bmp" for folder, count in layout.items() for number in range(count)]
    for seed, name in enumerate(names):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(bitmap(seed))
    found = facts(_folder(tmp_path / "set"))
    assert found.fingerprint.startswith(f"content:{content}")
    assert found.split_digest == splits_
    monkeypatch.setattr(scan, "CONTENT_LIMIT", 10)
    monkeypatch.setenv("NEUMANN_CACHE", str(tmp_path / "another"))
    assert facts(_folder(tmp_path / "set")).fingerprint.startswith(f"names-sizes:{names_and_sizes}")


@pytest.mark.parametrize("limit", [1 << 30, 100])
def test_an_image_that_is_cut_short_is_met_at_the_start(make_folder, monkeypatch, limit):
    monkeypatch.setattr(scan, "CONTENT_LIMIT", limit)
    root = make_folder({"train/cat": 6, "train/dog": 6, "test/cat": 2, "test/dog": 2}, suffix=".jpg", size=(40, 40))
    file = root / "test" / "dog" / "001.jpg"
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(UserError, match="not a readable image"):
        facts(_folder(root) | {"in_memory": False})


def test_fingerprint_ignores_times_and_place(make_folder, tmp_path):
    root = make_folder({"cat": 6, "dog": 6})
    before = facts(_folder(root))
    assert before.fingerprint.startswith("content:")
    os.utime(root / "cat" / "000.png", (1, 1))
    assert facts(_folder(root)) == before
    shutil.copytree(root, tmp_path / "elsewhere")
    assert facts(_folder(tmp_path / "elsewhere")) == before


def test_fingerprint_sees_one_byte_and_a_new_name(make_folder):
    root = make_folder({"cat": 6, "dog": 6})
    before = facts(_folder(root)).fingerprint
    file = root / "cat" / "000.png"
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[-5] ^= 1  # in the checksum of the last chunk: the header stays that of an image
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time as they were
    changed = facts(_folder(root)).fingerprint
    assert changed != before
    file.rename(root / "cat" / "zzz.png")
    assert facts(_folder(root)).fingerprint not in (before, changed)


@pytest.mark.medium
def test_large_folders_are_told_apart_by_names_and_sizes(make_folder, monkeypatch):
    monkeypatch.setattr(scan, "CONTENT_LIMIT", 100)
    root = make_folder({"cat": 6, "dog": 6})
    found = facts(_folder(root))
    assert found.fingerprint.startswith("names-sizes:")
    (root / "dog" / "005.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"005\.png"):
        facts(_folder(root))


def test_an_unchanged_folder_is_not_read_again(make_folder, monkeypatch):
    root = make_folder({"cat": 6, "dog": 6})
    before = facts(_folder(root))
    monkeypatch.setattr(scan, "_look", lambda *_, **__: pytest.fail("a file was opened"))
    assert facts(_folder(root)) == before


def test_a_damaged_or_unwritable_scan_cache_costs_one_notice(make_folder, monkeypatch, caplog, tmp_path):
    root = make_folder({"cat": 6, "dog": 6})
    before = facts(_folder(root))
    (kept,) = (cache_folder() / "scans").glob("*.json")
    kept.write_text('{"version": 2')
    assert facts(_folder(root)) == before
    assert len(caplog.records) == 1
    assert facts(_folder(root)) == before
    assert len(caplog.records) == 1  # it was written anew
    kept.write_text(kept.read_text().replace('"copies": []', '"copies": [[3, 99]]'))
    assert facts(_folder(root)) == before
    assert "not among the files" in caplog.records[-1].getMessage()
    caplog.records.pop()
    monkeypatch.setenv("NEUMANN_CACHE", str(root / "cat" / "000.png" / "no-folder"))
    assert facts(_folder(root)) == before
    assert len(caplog.records) == 2


def test_stratified_parts_are_exact_and_independent_of_later_ones():
    labels = np.repeat(np.arange(7), [2000, 31, 5, 3, 400, 9, 50])
    test, validation, train = splits.stratified(labels, (500, 200), seed=4)
    again, _, _ = splits.stratified(labels, (500, 50), seed=4)
    assert np.array_equal(test, again)
    assert len(np.unique(np.concatenate([test, validation, train]))) == len(labels)
    for part in (test, validation, train):
        assert np.bincount(labels[part], minlength=7).min() >= 1
    assert not np.array_equal(test, splits.stratified(labels, (500, 200), seed=5)[0])
