"""Tables fit a terminal without cutting what a user needs."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from neumann.fitting import fitted, padded, print_table, shortened, table_width

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


def test_a_letter_that_takes_two_columns_counts_for_two() -> None:
    assert shortened("日本日本日本日本", 8) == "日…日本"
    assert shortened("日本日本", 8) == "日本日本"
    assert padded("日本", 6) == "日本  "
    assert padded("日本", 6, right=True) == "  日本"
    for most in range(4, 20):
        assert cell_len(shortened("größe-日本-e\u0301-s12345678901", most)) <= most


@pytest.mark.parametrize("width", [120, 60, 40, 20, None])
def test_a_table_that_does_not_fit_has_a_few_lines_for_each_row(width: int | None) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width or 80, force_terminal=width is not None, color_system=None)
    rows = [[row[0], row[1], row[2], Text("0123456789ab")] for row in ROWS]
    print_table(console, (*NAMES, "signature"), rows, right=("error",))
    lines = out.getvalue().splitlines()
    for words in ("finished", "12.33 %", "0123456789ab", "failed"):
        assert any(words in line for line in lines)  # no line breaks inside
    if width == 40:
        assert lines[1:3] == ["  status finished  error 12.33 %", "  signature 0123456789ab"]
        assert lines[3:] == ["größe-日本-s1", "  status failed  signature 0123456789ab"]
    elif width is None:  # a file
        assert len(lines) == 3
        assert ROWS[0][0].plain in lines[1]
    elif width > 40:
        assert len(lines) == 3
        assert max(map(cell_len, lines)) <= width
