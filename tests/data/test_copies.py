"""Images that are equal once decoded: a leak into the test split, a label that is wrong, classes lost in 8 bits."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from neumann.data import facts
from neumann.data.eight_bits import as_eight_bits
from neumann.data.module import build
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


def only(make_folder, make):
    """Return a folder of two classes whose 12 files are written by ``make(path without suffix, seed)``."""
    root = make_folder({"cat": 0, "dog": 0})
    for seed in range(12):
        make(root / ("cat", "dog")[seed % 2] / f"{seed}", np.random.default_rng(seed))
    return root


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda random: random.random((8, 8), dtype=np.float32), "floating-point numbers, whose full value is not"),
        (lambda random: random.integers(0, 1 << 20, (8, 8), dtype=np.int32), "which is not 0 to 65535"),
        (lambda random: random.integers(-9, 9, (8, 8), dtype=np.int32), "its pixels go from -9 to 8"),
    ],
)
def test_pixels_whose_full_value_is_not_known_are_refused(make_folder, make, told):
    """Of 32-bit integers the upper 8 of 16 bits are noise, and floats would be clipped."""
    root = only(make_folder, lambda path, random: Image.fromarray(make(random)).save(f"{path}.tif"))
    with pytest.raises(UserError) as error:
        describe(root)
    assert told in str(error.value)
    assert "12 of the 12 image files cannot be read" in str(error.value)


def test_deep_integers_within_16_bits_are_scaled(make_folder):
    values = np.arange(64, dtype=np.int32).reshape(8, 8) * 1000
    path = make_folder({"cat": 0}) / "cat" / "a.tif"
    Image.fromarray(values).save(path)
    assert np.array_equal(np.asarray(as_eight_bits(Image.open(path), 1)), values >> 8)


@pytest.mark.parametrize("full", [255, 4095, 65535])
def test_colour_ppm_of_more_than_8_bits_is_told(make_folder, caplog, full):
    def write(path, random):
        depth = ">u2" if full > 255 else ">u1"
        pixels = random.integers(0, full + 1, (8, 8, 3)).astype(depth)
        path.with_suffix(".ppm").write_bytes(f"P6 8 8 {full}\n".encode() + pixels.tobytes())

    with caplog.at_level(logging.WARNING):
        describe(only(make_folder, write))
    assert ("12 images have more than 8 bits a channel" in caplog.text) == (full > 255)


def test_png_files_with_a_wrong_checksum_are_told(make_folder, caplog):
    root = make_folder({"cat": 6, "dog": 6})
    path = root / "cat" / "003.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IEND") - 5] ^= 1  # of the checksum of the pixels, which Pillow does not read
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        describe(root)
    assert "1 image is a PNG file with a wrong checksum or without an end, so its pixels may be wrong" in caplog.text
    assert "e.g. 'cat/003.png'" in caplog.text


def test_a_program_under_an_images_name_is_not_started(make_folder, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    root = make_folder({"cat": 6, "dog": 6})
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (root / "cat" / "000.png").write_bytes(drawing)
    with pytest.raises(UserError, match="EPS is a program that draws: convert it to PNG"):
        describe(root)


def test_large_images_below_the_limit_are_no_warning(make_folder):
    root = make_folder({"cat": 6, "dog": 6})  # 16×16
    code = (
        "import sys; from PIL import Image; from neumann.data import facts; Image.MAX_IMAGE_PIXELS = 200; "
        "facts({'kind': 'image_folder', 'root': sys.argv[1]}); print(Image._decompression_bomb_check((20, 15)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_images_above_the_limit_are_refused(make_folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="exceeds limit of 200 pixels"):
        describe(make_folder({"cat": 6, "dog": 6}))


def colours(root, *, alike: int, apart: int = 0):
    """Write two classes: ``alike`` images of each are equal once grey, ``apart`` are not."""
    red, green = (255, 0, 0), (0, 130, 0)  # 76 both, by Pillow's weights
    for name, pixel in (("red", red), ("green", green)):
        (root / name).mkdir(parents=True)
        for number in range(alike + apart):
            image = Image.new("RGB", (9, 8), pixel)
            image.putpixel((number % 9, number // 9), (0, 0, 0))
            if number >= alike:
                image.putpixel((8, 7), (9, 9, 9) if name == "red" else (200, 200, 200))
            image.save(root / name / f"{number}.png")
    assert len({int(np.asarray(Image.new("RGB", (1, 1), one).convert("L"))[0, 0]) for one in (red, green)}) == 1
    return root


def test_classes_that_grey_does_not_keep_are_refused(tmp_path):
    root = colours(tmp_path / "set", alike=20)
    assert describe(root).copies["in_two_classes"] == 0
    for _ in ("read", "from the cache"):
        with pytest.raises(UserError, match=r"cannot be told apart: 40 of 40 images .*; data.channels=1 drops colours"):
            describe(root, channels=1)


def test_images_that_grey_makes_equal_are_told(tmp_path, caplog):
    root = colours(tmp_path / "set", alike=4, apart=20)
    with caplog.at_level(logging.WARNING):
        assert describe(root, channels=1).copies["in_two_classes"] == 8
    assert "8 images have a copy in another class" in caplog.text
    assert describe(root).copies["in_two_classes"] == 0


def stripes(root, *, alike: int = 20):
    """Write two classes of 16×16 images, of upright and of level stripes; as one pixel, ``alike`` of each are equal."""
    for name in ("upright", "level"):
        (root / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.zeros((16, 16), np.uint8)
            pixels[:, ::2] = 100 + 2 * number + (100 if name == "level" and number >= alike else 0)
            Image.fromarray(pixels if name == "upright" else pixels.T).save(root / name / f"{number:02}.png")
    return root


def data_of(root, **more):
    section = {"kind": "image_folder", "root": str(root), "workers": 0, "crop_pct": 1.0, **more}
    return build(section, facts(section), batch_size=4, seed=0)


def test_classes_that_a_size_does_not_keep_are_refused(tmp_path):
    root = stripes(tmp_path / "set")
    assert describe(root, image_size=1).copies["in_two_classes"] == 0  # their files differ
    for _ in ("decoded", "from the cache"):
        with pytest.raises(
            UserError,
            match=r"cannot be told apart: 40 of 40 images .*, e.g. 'level/00.png' and 'upright/00.png' at data.image_size=\[1,1\]",
        ):
            data_of(root, image_size=1)
    data_of(root, image_size=8)


def test_images_that_a_size_makes_equal_are_told(tmp_path, caplog):
    root = stripes(tmp_path / "set", alike=5)
    with caplog.at_level(logging.WARNING):
        data_of(root)
        data_of(root, image_size=8)
        assert not caplog.records
        data_of(root, image_size=1)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"'{root}' at 1×1 pixels: ")
    assert "10 images have a copy in another class" in said
