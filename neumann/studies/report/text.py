"""Texts that several tables of a report share: labels, and Markdown that GitHub shows as it is."""

from __future__ import annotations

import re

from neumann.studies.numbers import DASH, printable
from neumann.studies.results import Results, StudyResults


def label_of(results: Results, key: str) -> str:
    """Return the label of row ``key``, or the key itself where there is no such row."""
    return next((printable(row.label) for row in results.rows if row.key == key), printable(key))


def reference_label(results: Results) -> str:
    """Return the label of the row that all others are compared with, of a batch-size study at their own batch."""
    if isinstance(results, StudyResults) and results.cells:
        return f"{printable(results.cells[results.reference].label)} at the same batch"
    return label_of(results, results.reference)


def markdown(text: object) -> str:
    """Return ``text`` as one line that GitHub shows as it is, in a table too."""
    line = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)


def joined(mean: str, bounds: str) -> str:
    """Return a mean with its interval, alone where there is none."""
    return mean if bounds == DASH else f"{mean} {bounds}"
