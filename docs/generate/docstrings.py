"""A griffe extension that turns the reStructuredText of docstrings into Markdown, which the site is made of.

``help(Neumann)`` and Sphinx keep what they have: docstrings here are written as torch writes its own.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from typing import Any

import griffe


def markdown(text: str) -> str:
    """Return a docstring's roles, formulas, tables and literal blocks as Markdown."""
    text = re.sub(r"^=+(?: +=+)+\n(?:.+\n)*=+(?: +=+)*(?=\n|$)", _table, text, flags=re.MULTILINE)
    text = re.sub(r":(?:class|func|meth|attr|mod|data|exc):`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r"^( *)\.\. math::\n+((?:\1 +.*\n|\n)+)", _formula, text, flags=re.MULTILINE)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    # <output> in prose would be an HTML tag; within backticks and in code it is none
    kept = r"(`+)[^`]*\1|^    .*$"
    return re.sub(rf"{kept}|<(?=[a-z])", lambda m: "&lt;" if m[0] == "<" else m[0], text, flags=re.MULTILINE)


def _formula(match: re.Match[str]) -> str:
    lines = textwrap.dedent(match[2]).strip().splitlines()
    kept = "\n".join(line for line in lines if r"\rule" not in line)
    return f"$$\n{kept}\n$$\n\n"


def _table(match: re.Match[str]) -> str:
    border, *lines = match[0].splitlines()
    starts = [column.start() for column in re.finditer("=+", border)]
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("="):
            continue
        cuts = [0, *(i for i in starts[1:] if line[i - 1 : i].isspace()), len(line)]  # a cell may run over several
        cells = [line[a:b].strip().replace("|", "\\|") for a, b in itertools.pairwise(cuts)]
        cells += [""] * (len(starts) - len(cells))
        if cells[0] or not rows:
            rows.append(cells)
        else:  # a line that goes on
            rows[-1] = [f"{before} {more}".strip() for before, more in zip(rows[-1], cells, strict=True)]
    rows.insert(1, ["---"] * len(starts))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class Docstrings(griffe.Extension):
    """Rewrites every docstring of the package as it is loaded."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
