"""The figures of a study: effects, errors, curves, tuning, steps by batch and terms, as SVG, PDF and PNG.

Rows are told apart by place and label first, by line style second and by colour last. Nothing is computed here but
where a mark lies. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from neumann.processes.beside import beside
from neumann.studies.report.figures.curves import curve_figure
from neumann.studies.report.figures.errors import error_figure
from neumann.studies.report.figures.forest import forest_figure
from neumann.studies.report.figures.scaling import scaling_figure
from neumann.studies.report.figures.svg import Drawing, style
from neumann.studies.report.figures.terms import terms_figure
from neumann.studies.report.figures.tuning import tuning_figure
from neumann.studies.results import RowResult, StudyResults

__all__ = ["Drawing", "draw"]


def draw(results: StudyResults) -> dict[str, Drawing]:
    """Return every figure of the study by its name; one without data says so."""
    there = {"scaling": bool(results.scaling), "terms": any(row.terms for row in results.rows)}
    names = [name for name in FIGURES if there.get(name, True)]
    half = ["tuning", "scaling" if results.scaling else "curves"]  # of the work, for another core
    others = beside(_drawn, results, half)
    drawings = _drawn(results, [name for name in names if name not in half]) | others()
    return {name: drawings[name] for name in names}


def _drawn(results: StudyResults, names: Sequence[str]) -> dict[str, Drawing]:
    with style():
        return {name: FIGURES[name](results) for name in names}


def _rows(results: StudyResults, figure: str) -> list[RowResult]:
    wanted = results.figures.get(figure)
    return [row for row in results.rows if wanted is None or row.key in wanted]


FIGURES: dict[str, Callable[[StudyResults], Drawing]] = {
    "scaling": scaling_figure,
    "forest": forest_figure,
    "errors": lambda results: error_figure(results, _rows(results, "errors")),
    "curves": lambda results: curve_figure(results, _rows(results, "curves")),
    "tuning": lambda results: tuning_figure(_rows(results, "tuning")),
    "terms": lambda results: terms_figure(_rows(results, "terms")),
}
