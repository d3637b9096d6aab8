"""Images that are equal once decoded: a leak into the test split, a label that is wrong, classes lost in 8 bits."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from neumann.data import facts
from neumann.errors import UserError


def describe(root, **more):
    return facts({"kind": "image_folder", "root": str(root), **more})


SPLITS = {f"{part}/{name}": count for part, count in (("train", 8), ("val", 3), ("test", 4)) for name in ("cat", "dog")}


@pytest.mark.parametrize("kind", ["bytes", "pixels"])
def test_test_images_that_are_trained_on_are_told(make_folder, caplog, kind):
    root = make_folder(SPLITS)
    for number in range(2):
        source = root / "train" / "cat" / f"00{number}.png"
        if kind == "bytes":
            shutil.copy(source, root / "test" / "cat" / f"copy{number}.png")
        else:
            Image.open(source).save(root / "test" / "cat" / f"copy{number}.bmp")
    shutil.copy(root / "val" / "dog" / "000.png", root / "test" / "dog" / "copy.png")
    shutil.copy(root / "val" / "dog" / "001.png", root / "train" / "dog" / "copy.png")
    for kept in ("read", "from the cache"):
        caplog.clear()
        from neumann.data.facts import _tell

        _tell.cache_clear()
        with caplog.at_level(logging.WARNING):
            found = describe(root)
        (said,) = [record.getMessage() for record in caplog.records]
        suffix = {"bytes": "png", "pixels": "bmp"}[kind]
        assert (
            f"2 of 11 test images are training images too, e.g. 'test/cat/copy0.{suffix}' and 'train/cat/000.png'"
            in said
        ), kept
        assert "1 of 11 test images are validation images too, e.g. 'test/dog/copy.png' and 'val/dog/000.png'" in said
        assert "1 of 6 validation images are training images too" in said
        assert "another class" not in said
        assert found.copies == {
            "test_in_train": 2,
            "test_in_validation": 1,
            "validation_in_train": 1,
            "in_two_classes": 0,
        }


def test_copies_in_two_classes_are_told_and_most_refused(make_folder, caplog):
    root = make_folder({"cat": 6, "dog": 6})
    for number in range(2):
        shutil.copy(root / "cat" / f"00{number}.png", root / "dog" / f"copy{number}.png")
    with caplog.at_level(logging.WARNING):
        assert describe(root).copies["in_two_classes"] == 4
    assert "4 images have a copy in another class, e.g. 'cat/000.png' and 'dog/copy0.png'" in caplog.text
    for number in range(2, 6):
        shutil.copy(root / "cat" / f"00{number}.png", root / "dog" / f"copy{number}.png")
    with pytest.raises(UserError, match="cannot be told apart: 12 of 18 images have the same 8-bit pixels"):
        describe(root)


def write(root, kind):
    """Write two classes whose difference is of a kind that 8-bit RGB does not keep."""
    options = {}
    for label, name in enumerate(("one", "two")):
        (root / name).mkdir(parents=True)
        for number in range(6):
            plain = np.full((8, 8), 10 * number, dtype=np.uint8)
            if kind == "16 bits":
                image = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) + number + 100 * label)
            elif kind == "alpha":
                alpha = np.full((8, 8), 100 + 50 * label + number, dtype=np.uint8)
                image = Image.fromarray(np.dstack([plain] * 3 + [alpha]))
            elif kind == "palette":
                image = Image.fromarray(plain).convert("P")
                options = {"transparency": bytes([0] * 128 + [255] * 128 if label else [255] * 128 + [0] * 128)}
            else:
                image = Image.fromarray(np.tril(plain + 9))
                exif = Image.Exif()
                exif[274] = 1 + 2 * label
                options = {"exif": exif}
            image.save(root / name / f"{number}.png", **options)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("16 bits", "12 images have more than 8 bits a channel"),
        ("alpha", "12 images have transparency, which is dropped"),
        ("palette", "images have transparency, which is dropped"),
        ("turn", "6 images have an EXIF orientation, which is not applied"),
    ],
)
def test_classes_that_8_bits_do_not_keep_are_refused(tmp_path, kind, told):
    write(tmp_path / "set", kind)
    with pytest.raises(UserError) as error:
        describe(tmp_path / "set")
    assert "cannot be told apart" in str(error.value)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_what_8_bits_lose_is_told_where_the_classes_stay(make_folder, caplog):
    root = make_folder({"cat": 6, "dog": 6}, mode="RGBA")
    with caplog.at_level(logging.WARNING):
        describe(root)
    assert "12 images have transparency, which is dropped, e.g. 'cat/000.png'" in caplog.text
