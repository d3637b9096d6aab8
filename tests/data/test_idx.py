"""idx files: what is written is read back, torchvision reads the same, and a damaged one is named."""

from __future__ import annotations

import gzip
import lzma

import numpy as np
import pytest
import torch
from torchvision.datasets.mnist import read_image_file

from neumann.data import idx
from neumann.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_files_are_read_plain_and_compressed(tmp_path, suffix, pack):
    file = tmp_path / f"images-idx3-ubyte{suffix}"
    file.write_bytes(pack(idx.pack(IMAGES)))
    assert np.array_equal(idx.read(file), IMAGES)


def test_torchvision_reads_the_same(tmp_path):
    (tmp_path / "images").write_bytes(idx.pack(IMAGES))
    assert torch.equal(read_image_file(str(tmp_path / "images")), torch.from_numpy(IMAGES))


WHOLE = idx.pack(IMAGES)
PACKED = gzip.compress(WHOLE, mtime=0)


@pytest.mark.parametrize(
    ("suffix", "content", "words"),
    [
        ("", b"", "it does not begin as one"),
        ("", b"<html>moved</html>", "it does not begin as one"),
        ("", WHOLE[:-1], "it has 75 bytes and its header asks for 76"),
        ("", WHOLE + b"x", "it has 77 bytes and its header asks for 76"),
        ("", WHOLE[:7], "it has 7 bytes"),
        ("", b"\0\0\x0d" + WHOLE[3:], "its elements are of type 0x0d"),
        (".gz", PACKED[:-9], "ended before"),
        (".gz", WHOLE, "Not a gzipped file"),
        (".gz", PACKED[:30] + b"\xff" * 9 + PACKED[39:], "is not a whole idx file"),
        (".xz", lzma.compress(WHOLE)[:-9], "ended before"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_a_damaged_file_is_one_sentence(tmp_path, suffix, content, words):
    (tmp_path / f"images{suffix}").write_bytes(content)
    with pytest.raises(UserError) as error:
        idx.read(tmp_path / f"images{suffix}")
    assert words in str(error.value)
    assert str(error.value).startswith(f"'{tmp_path / 'images'}{suffix}' is not a whole idx file (")
    assert "\n" not in str(error.value)
