"""Tables fit a terminal without cutting what a user needs."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from rich.text import Text

from neumann.fitting import fitted, shortened, table_width

NAMES = ("run", "status", "error")
ROWS = [
    [Text("digits-small_cnn-neumann_literal-no_regularizers-s10"), Text("finished"), Text("12.33 %")],
    [Text("größe-日本-s1"), Text("failed"), Text("")],
]


@pytest.mark.parametrize("width", [120, 80, 60, 40, 31])
def test_names_are_shortened_and_nothing_else_is(width: int) -> None:
    lines = fitted(NAMES, ROWS, width, right=("error",)).plain.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "finished" in lines[1]
    assert lines[1].endswith("12.33 %")
    assert "-s10" in lines[1]  # a name's end tells runs apart
    assert "…" not in lines[1] or table_width(NAMES, ROWS) > width
    assert "failed" in lines[2]


def test_columns_are_left_out_where_shorter_names_do_not_help() -> None:
    text = fitted(NAMES, ROWS, 22, right=("error",), drop=("status",)).plain
    assert "status" not in text
    assert text.splitlines()[1].endswith("12.33 %")
    assert "status" in fitted(NAMES, ROWS, 80, drop=("status",)).plain
    assert fitted(NAMES, [], 80).plain == "run  status  error"


def test_a_name_keeps_its_end() -> None:
    assert shortened("abcdefghijklmnop", 8) == "ab…lmnop"
    assert shortened("short", 8) == "short"
