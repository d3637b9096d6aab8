"""The table of runs that `neumann runs` prints, whole on any terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from neumann.errors import printable
from neumann.fitting import SHORTEST, padded, shortened, stacked
from neumann.store.folder import STYLES
from neumann.store.listing import Row

COLUMNS = ("study", "name", "status", "step", "validation", "test", "seed", "age", "differs in", "signature")
RIGHT = ("step", "validation", "test", "seed", "age")
DROPPED = ("age", "step", "seed", "study")  # from a terminal that is too narrow, in this order; a name has its seed


def table(rows: Sequence[Row], width: int | None = None) -> Text:
    """Return the rows under each other, without rich's table, which takes long to measure the cells of 5,000 rows.

    Where ``width`` is too few columns, some of the table's are left out and names are shortened in their middle; a
    status, an error and a signature never are. A terminal that is narrower still gets a few lines for each row.
    """
    cells = [
        (
            printable(row.study),
            printable(row.name),
            row.status,
            steps(row),
            percent(row.validation),
            percent(row.test),
            "" if row.seed is None else str(row.seed),
            age(row.time),
            _differs(row),
            row.signature,
        )
        for row in rows
    ]
    columns = {name: [name, *column] for name, *column in zip(COLUMNS, *cells, strict=True)}
    below: list[str] = []  # what a row differs in, on a line of its own
    if not any(columns["differs in"][1:]):
        del columns["differs in"]
    widths = {name: max(map(cell_len, column)) for name, column in columns.items()}
    if width is not None:
        for name in DROPPED:
            if _wide(widths) > width and not (name == "study" and len({row.study for row in rows}) > 1):
                del columns[name], widths[name]
        if _wide(widths) > width and "differs in" in columns:
            below = columns.pop("differs in")
            del widths["differs in"]
        if _wide(widths) > width:
            most = widths["name"] = max(SHORTEST, widths["name"] - (_wide(widths) - width))
            columns["name"] = [shortened(name, most) for name in columns["name"]]
        if _wide(widths) > width:
            return _stacked(rows, cells, width)
    text = Text(no_wrap=True, overflow="ignore")
    for i, line in enumerate(zip(*columns.values(), strict=True)):
        for name, cell in zip(columns, line, strict=True):
            style = "bold" if i == 0 else STYLES.get(rows[i - 1].status, "") if name == "status" else ""
            text.append(padded(cell, widths[name], right=name in RIGHT), style)
            text.append("\n" if name == COLUMNS[-1] else "  ")
        if i and below and below[i]:
            text.append(f"  {below[i]}\n", "dim")
    text.rstrip()
    return text


def _stacked(rows: Sequence[Row], cells: Sequence[Sequence[str]], width: int) -> Text:
    """Return a few lines for each row: its name, and what else tells runs apart, behind its column's name."""
    names = ("name", *(name for name in COLUMNS if name not in ("name", *DROPPED)))
    at = [COLUMNS.index(name) for name in names]
    lines = [
        [Text(line[i], STYLES.get(row.status, "") if COLUMNS[i] == "status" else "") for i in at]
        for row, line in zip(rows, cells, strict=True)
    ]
    return stacked(names, lines, width)


def _wide(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + 2 * (len(widths) - 1)


def _differs(row: Row) -> str:
    said = [f"{key.removeprefix('optimizer.')}={value}" for key, value in row.differs.items()]
    more = f" +{len(said) - 3}" if len(said) > 3 else ""
    return printable(" ".join(said[:3]) + more)


def print_runs(rows: Sequence[Row], console: Console) -> None:
    """Print the table, as wide as it is where there is no terminal."""
    if console.is_terminal:
        console.print(table(rows, console.width), overflow="ignore", crop=False)
    else:
        print(table(rows).plain, file=console.file)


def steps(row: Row) -> str:
    """Return the steps that a run has taken, of how many."""
    return f"{row.step}/{row.total if row.total is not None else '?'}"


def percent(error: float | None) -> str:
    """Return an error (a fraction) in percent, nothing for None."""
    return "" if error is None else f"{100 * error:.2f} %"


def age(then: float) -> str:
    """Return how long ago ``then`` is, in Unix seconds, in the largest unit of which it is one."""
    seconds = max(0.0, time.time() - then)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
