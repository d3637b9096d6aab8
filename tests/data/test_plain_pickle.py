"""Pickles of plain data are read as Python reads them; one that asks for anything else executes nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from neumann.data import plain_pickle
from neumann.errors import UserError
from tests.support.data_files import Python2Pickle

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)
CONTENT = {"labels": [0, 1, 2, 3], "data": PIXELS, "batch_label": "one of five"}


def same(found: dict[str, object]) -> None:
    assert found.keys() == CONTENT.keys()
    assert found["labels"] == CONTENT["labels"]
    assert np.array_equal(found["data"], PIXELS)
    assert plain_pickle.text(found["batch_label"]) == "one of five"


def test_what_python_2_wrote_is_read_as_python_reads_it(tmp_path):
    (tmp_path / "batch").write_bytes(Python2Pickle(CONTENT).bytes)
    same(plain_pickle.load(tmp_path / "batch"))
    same(pickle.loads(Python2Pickle(CONTENT).bytes, encoding="latin1"))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_python_3_writes_is_read(tmp_path, protocol, order):
    (tmp_path / "batch").write_bytes(
        pickle.dumps(CONTENT | {"data": np.array(PIXELS, order=order), "none": b""}, protocol)
    )
    read = plain_pickle.load(tmp_path / "batch")
    assert read.pop("none") == b""
    same(read)


class Evil:
    def __init__(self, call, *given):
        self.call, self.given = call, given

    def __reduce__(self):
        return self.call, self.given


@pytest.mark.parametrize(
    ("call", "given"),
    [(os.system, ("touch {}/done",)), (eval, ("open('{}/done', 'w')",)), (Path.touch, ())],
    ids=["system", "eval", "method"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_a_file_is_executed(tmp_path, call, given, protocol):
    given = tuple(text.format(tmp_path) for text in given) or (tmp_path / "done",)
    content = pickle.dumps({"data": Evil(call, *given)}, protocol)
    pickle.loads(content)
    (tmp_path / "done").unlink()
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(UserError, match=r"batch' is not a whole file of plain data \(it asks for .*no use for\)$"):
        plain_pickle.load(tmp_path / "batch")
    assert not (tmp_path / "done").exists()


WHOLE = Python2Pickle(CONTENT).bytes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Ran out of input"),
        (WHOLE[:-1], "Ran out of input"),
        (WHOLE[:100], "is not a whole file of plain data"),
        (b"<html>moved</html>", "is not a whole file of plain data"),
        (b"\x80\x02]q\x00.", "is not a dictionary"),
        (pickle.dumps({"data": PIXELS.astype(np.float32)}, 4), "an array of f4, not of unsigned bytes"),
        (pickle.dumps({"data": np.array([object], dtype=object)}, 4), "an array of O8, not of unsigned bytes"),
        (WHOLE.replace(b"numpy\nndarray", b"_codecs\nencode"), "an array of an unknown class"),
        (WHOLE.replace(b"(J\x04\x00\x00\x00J\x06", b"(J\x05\x00\x00\x00J\x06"), "cannot reshape"),
        (b"\x80\x02r\xff\xff\xff\xff.", "is not a whole file of plain data"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_a_damaged_file_is_one_sentence(tmp_path, content, words):
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(UserError) as error:
        plain_pickle.load(tmp_path / "batch")
    assert words in str(error.value)
    assert str(error.value).startswith(f"'{tmp_path / 'batch'}' is not a")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"batch' cannot be read \(No such file"):
        plain_pickle.load(tmp_path / "batch")
