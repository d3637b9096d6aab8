"""The members of tar files: where they lie, and every way in which a file can be damaged."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from neumann.data import tars
from neumann.errors import UserError


def tar(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


FILES = {"a.jpg": b"first", "b/" + "long" * 40 + ".jpg": b"x" * 1000, "ü.jpg": b""}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_lie_where_they_are_said_to(tmp_path, form):
    path = tar(tmp_path / "x.tar", FILES, form)
    content = path.read_bytes()
    found = tars.members(path)
    assert {one.name: content[one.offset : one.offset + one.size] for one in found} == FILES


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[: 512 + 100], "it is cut short"),  # within the first member's bytes
        (lambda content: content[:1024], "its end is missing"),  # between two members, which tarfile takes for whole
        (lambda content: content[: 1024 + 200], "it is cut short"),  # within a header
        (lambda content: content[:1024] + b"\x07" * 512 + content[1536:], "at byte 1,024 is no header"),
        (lambda content: b"not a tar file", "is not a whole tar file"),
        (lambda content: b"", "is not a whole tar file"),
        (gzip.compress, "is compressed, so no image in it can be read by itself: unpack it once with gunzip"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, damage, words):
    path = tar(tmp_path / "x.tar", {"a.jpg": b"a" * 400, "b.jpg": b"b" * 400})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as error:
        tars.members(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("one.tar", ["one.tar"]),
        ("s-{008..010}.tar", ["s-008.tar", "s-009.tar", "s-010.tar"]),
        ("s-{8..10}.tar", ["s-8.tar", "s-9.tar", "s-10.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("odd{.tar", ["odd{.tar"]),
    ],
)
def test_patterns_are_webdatasets(pattern, names):
    assert list(tars.expand(pattern)) == names
