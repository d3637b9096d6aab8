"""The figures of a study: effects, test errors, learning curves, tuning and steps by batch, as SVG, PDF and PNG.

Rows are told apart by place and label first, by line style second and by colour last. Nothing is computed here but
where a mark lies. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from neumann.studies.report.figures.curves import curve_figure
from neumann.studies.report.figures.errors import error_figure
from neumann.studies.report.figures.forest import forest_figure
from neumann.studies.report.figures.scaling import scaling_figure
from neumann.studies.report.figures.svg import Drawing, style
from neumann.studies.report.figures.tuning import tuning_figure
from neumann.studies.results import RowResult, StudyResults

__all__ = ["Drawing", "draw"]


def draw(results: StudyResults) -> dict[str, Drawing]:
    """Return every figure of the study by its name; one without data says so."""
    with style():
        scaling = {"scaling": scaling_figure(results)} if results.scaling else {}
        return scaling | {
            "forest": forest_figure(results),
            "errors": error_figure(results, _rows(results, "errors")),
            "curves": curve_figure(results, _rows(results, "curves")),
            "tuning": tuning_figure(_rows(results, "tuning")),
        }


def _rows(results: StudyResults, figure: str) -> list[RowResult]:
    wanted = results.figures.get(figure)
    return [row for row in results.rows if wanted is None or row.key in wanted]
