"""Texts that several tables of a report share: labels, tables of text, and Markdown that GitHub shows as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from neumann.studies.numbers import DASH, printable
from neumann.studies.results import Results, StudyResults


@dataclass(frozen=True)
class TextTable:
    """A table of a report as text, from which Markdown and LaTeX are made.

    ``name`` tells it from the report's others; ``words`` are the columns that hold words and are set to the left, the
    first one among them.
    """

    name: str
    caption: str
    header: Sequence[str]
    body: Sequence[Sequence[str]]
    words: tuple[int, ...] = (0,)


def label_of(results: Results, key: str) -> str:
    """Return the label of row ``key``, or the key itself where there is no such row."""
    return next((printable(row.label) for row in results.rows if row.key == key), printable(key))


def reference_label(results: Results) -> str:
    """Return the label of the row that all others are compared with, of a study across a factor at their own level."""
    if isinstance(results, StudyResults) and results.cells:
        cell = results.cells[results.reference]
        return f"{printable(cell.label)} at the same {printable(cell.factor)}"
    return label_of(results, results.reference)


def markdown(text: object) -> str:
    """Return ``text`` as one line that GitHub shows as it is, in a table too."""
    line = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)


def markdown_rows(table: TextTable) -> str:
    """Return the rows of ``table`` in GitHub-flavoured Markdown, without its caption."""
    align = ["---" if i in table.words else "---:" for i in range(len(table.header))]
    rows = [[markdown(cell) for cell in table.header], align]
    rows += [[markdown(cell) for cell in line] for line in table.body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def joined(mean: str, bounds: str) -> str:
    """Return a mean with its interval, alone where there is none."""
    return mean if bounds == DASH else f"{mean} {bounds}"
