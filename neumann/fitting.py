"""Lines and tables for a terminal: names are shortened in their middle, numbers, statuses and paths never are.

Widths are in a terminal's columns, of which a letter of Chinese or Japanese takes two.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from neumann.errors import printable

GAP = 2  # columns between two columns
SHORTEST = 12  # columns of a name


def shortened(name: str, most: int) -> str:
    """Return ``name`` in ``most`` columns: its end, which tells runs apart, keeps twice as many as its beginning."""
    if cell_len(name) <= most:
        return name
    left = (most - 1) // 3
    return f"{_beginning(name, left)}…{_beginning(name[::-1], most - 1 - left)[::-1]}"


def _beginning(text: str, most: int) -> str:
    """Return as many letters of ``text`` as fit ``most`` columns."""
    end = min(len(text), most)
    while cell_len(text[:end]) > most:
        end -= 1
    return text[:end]


def text_of(*parts: str | tuple[str, str]) -> Text:
    """Return ``parts``, texts or (text, style), as one Text. None steers a terminal: it may be another user's."""
    styled = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((printable(text), style) for text, style in styled))


def say(console: Console, *parts: str | tuple[str, str], folded: bool = False) -> None:
    """Print ``parts`` as `text_of` makes them on one line; ``folded`` breaks it at the terminal's width."""
    console.print(text_of(*parts), soft_wrap=not folded)


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return ``text`` in ``width`` columns, with spaces behind it, or before it to align it to the ``right``."""
    space = " " * (width - cell_len(text))
    return f"{space}{text}" if right else f"{text}{space}"


def print_table(
    console: Console,
    names: Sequence[str],
    rows: Sequence[Sequence[Text]],
    *,
    right: Collection[str] = (),
    shortest: int = SHORTEST,
) -> None:
    """Print a table with all its columns. A terminal that is too narrow for them gets a few lines for each row.

    ``shortest`` is how far the first column may be shortened; the others are as in `fitted`.
    """
    if not console.is_terminal:
        console.print(fitted(names, rows, table_width(names, rows), right=right), soft_wrap=True)
        return
    name = max((cell_len(row[0].plain) for row in rows), default=0)
    if table_width(names, rows) - max(0, name - max(shortest, cell_len(names[0]))) <= console.width:
        console.print(fitted(names, rows, console.width, right=right), soft_wrap=True)
    else:
        console.print(stacked(names, rows, console.width), soft_wrap=True)


def stacked(names: Sequence[str], rows: Sequence[Sequence[Text]], width: int) -> Text:
    """Return the first cell of each row, and below it the others, each behind its column's name.

    A line breaks at ``width`` between cells only.
    """
    text = Text(no_wrap=True, overflow="ignore")
    for first, *others in rows:
        text.append_text(first).append("\n")
        room = 0
        for name, cell in zip(names[1:], others, strict=True):
            if not cell.plain:
                continue
            said = Text.assemble((f"{name} ", "dim"), cell)
            need = GAP + cell_len(said.plain)
            if room and need > room:
                text.append("\n")
                room = 0
            text.append(" " * GAP).append_text(said)
            room = (room or width) - need or -1
        text.append("\n")
    text.rstrip()
    return text


def table_width(names: Sequence[str], rows: Sequence[Sequence[Text]]) -> int:
    """Return how many columns of a terminal a table takes."""
    return sum(_widths(names, rows)) + GAP * (len(names) - 1)


def fitted(
    names: Sequence[str],
    rows: Sequence[Sequence[Text]],
    width: int,
    *,
    right: Collection[str] = (),
    drop: Sequence[str] = (),
) -> Text:
    """Return a table in at most ``width`` columns, as long as its first column can be shortened to `SHORTEST`.

    names   of the columns
    rows    their cells
    right   the columns that are aligned to the right
    drop    the columns that are left out where the table is still too wide, in this order
    """
    kept = list(names)
    out = list(drop)
    while True:
        at = [names.index(name) for name in kept]
        cells = [[row[i] for i in at] for row in rows]
        over = table_width(kept, cells) - width
        widths = _widths(kept, cells)
        room = widths[0] - max(SHORTEST, cell_len(kept[0]))
        if over <= room or not out:
            break
        if (name := out.pop(0)) in kept:
            kept.remove(name)
    if over > 0:
        widths[0] = max(widths[0] - over, min(widths[0], SHORTEST))
        cells = [[Text(shortened(row[0].plain, widths[0])), *row[1:]] for row in cells]
    text = Text(no_wrap=True, overflow="ellipsis")
    for row in ([Text(name, style="bold") for name in kept], *cells):
        for i, cell in enumerate(row):
            space = " " * (widths[i] - cell_len(cell.plain))
            parts = (space, cell) if kept[i] in right else (cell, space)
            text.append_text(Text.assemble(*parts, " " * GAP if i + 1 < len(row) else "\n"))
    text.rstrip()
    return text


def _widths(names: Sequence[str], rows: Sequence[Sequence[Text]]) -> list[int]:
    return [max(cell_len(name), *(cell_len(row[i].plain) for row in rows), 0) for i, name in enumerate(names)]
