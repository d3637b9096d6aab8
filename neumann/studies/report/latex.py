"""tables.tex: the tables of a report in LaTeX, for a paper that has booktabs.

Characters that pdfLaTeX does not know are written as its commands; any other is left as it is, which XeLaTeX, LuaLaTeX
and, for European letters, pdfLaTeX set.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from neumann.studies.numbers import printable
from neumann.studies.report.claims import claims_table, paper_table
from neumann.studies.report.outcomes import outcome_tables
from neumann.studies.report.scaling import scaling_tables
from neumann.studies.report.tables import main_table
from neumann.studies.report.text import TextTable
from neumann.studies.results import StudyResults

COMMANDS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": r"\ensuremath{-}", "×": r"\ensuremath{\times}", "–": "--",
    "±": r"\ensuremath{\pm}", "∞": r"\ensuremath{\infty}", "≤": r"\ensuremath{\le}", "≥": r"\ensuremath{\ge}",
    "†": r"\dag{}", "‡": r"\ddag{}", "…": r"\dots{}", "∝": r"\ensuremath{\propto}", "√": r"\ensuremath{\surd}",
    "’": "'", "‘": "`", "→": r"\ensuremath{\to}", "‖": r"\ensuremath{\Vert}", "²": r"\ensuremath{^2}",
    "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip
LATIN = {
    "Alpha": "A", "Beta": "B", "Epsilon": "E", "Zeta": "Z", "Eta": "H", "Iota": "I", "Kappa": "K", "Mu": "M", "Nu": "N",
    "Omicron": "O", "Rho": "P", "Tau": "T", "Chi": "X", "omicron": "o",
}  # fmt: skip


def latex_tables(results: StudyResults) -> str:
    """Return every table of the report as a table environment, in the order of the page."""
    paper = paper_table(results)
    tables = [*scaling_tables(results), claims_table(results), *([paper] if paper else []), main_table(results)]
    tables += outcome_tables(results)
    head = f"% {_line(results.title)}, budget {_line(results.budget)}. Needs \\usepackage{{booktabs}}.\n"
    return head + "\n".join(_environment(results.name, table) for table in tables)


def _environment(study: str, table: TextTable) -> str:
    label = re.sub(r"[^A-Za-z0-9-]+", "-", f"{study}-{table.name}")
    columns = "".join("l" if i in table.words else "r" for i in range(len(table.header)))
    lines = [
        r"\begin{table}", r"\centering\small", rf"\caption{{{latex(table.caption)}}}", rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _row(table.header), r"\midrule", *map(_row, table.body),
        r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    # a row that opened with a bracket would be read as an argument of the \\ before it
    return "{}" + " & ".join(map(latex, cells)) + r" \\"


def latex(text: object) -> str:
    """Return ``text`` as one line of LaTeX that shows it as it is."""
    return "".join(COMMANDS.get(letter) or _greek(letter) for letter in printable(text))


def _greek(letter: str) -> str:
    name = unicodedata.name(letter, "")
    found = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", name)
    if found is None:
        return letter
    word = found[2].lower().replace("lamda", "lambda")
    if found[1] == "CAPITAL":
        word = word.capitalize()
    if word in LATIN:  # LaTeX has no command for a letter that looks like a Latin one
        return LATIN[word]
    return rf"\ensuremath{{\{word}}}"


def _line(text: str) -> str:
    return printable(text).replace("%", "percent")
