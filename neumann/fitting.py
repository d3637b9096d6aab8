"""Tables that fit a terminal: names are shortened in their middle, numbers, statuses and paths never are."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.text import Text

GAP = 2  # columns between two columns
SHORTEST = 12  # characters of a name


def shortened(name: str, most: int) -> str:
    """Return ``name`` in ``most`` characters: its end, which tells runs apart, keeps twice as many as its beginning."""
    left = (most - 1) // 3
    return name if len(name) <= most else f"{name[:left]}…{name[left + 1 - most :]}"


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
