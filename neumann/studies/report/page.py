"""The page of a study: report.html, with the files beside it (figures, and the same numbers as Markdown and CSV).

The page is one file without addresses: it opens from a disk, prints, and can be kept beside a paper. Its script sorts
tables and draws curves from data in the page, which is whole without it. The same results give the same bytes.
matplotlib and jinja2 are imported only to render, since most commands find that nothing has changed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumann.store.files import replace_file
from neumann.studies.numbers import (
    DASH,
    either,
    measure,
    printable,
    setting_text,
    size,
    verbatim,
)
from neumann.studies.report import content
from neumann.studies.report.claims import claims, claims_caption, paper_table
from neumann.studies.report.csv_files import curves_csv, runs_csv, table_csv, terms_csv
from neumann.studies.report.embedded import charts
from neumann.studies.report.error_rates import error_rates
from neumann.studies.report.latex import latex_tables
from neumann.studies.report.methods import methods
from neumann.studies.report.outcomes import (
    columns,
    costs,
    outcome_lines,
    outcomes_caption,
    outcomes_csv,
    target_csv,
    target_lines,
    target_text,
)
from neumann.studies.report.scaling import (
    curve_lines,
    curves_caption,
    fits_csv,
    point_lines,
    points_caption,
    scaling_csv,
    seeds_csv,
)
from neumann.studies.report.table_md import markdown_table
from neumann.studies.report.tables import (
    caption,
    effect_header,
    main_lines,
    missing_sentence,
    setting_header,
)
from neumann.studies.report.text import label_of, markdown, reference_label
from neumann.studies.results import COSTS, StudyResults

if TYPE_CHECKING:
    from neumann.studies.report.figures.svg import Drawing

HERE = Path(__file__).parent
UNBROKEN = re.compile(r" (?=[=<] )|(?<= [=<]) |(?<=\d) (?=%)")  # spaces at which no line may end: α = 0, n = 5, 95 %


def render(results: StudyResults, folder: Path, refresh: int | None = None) -> list[Path]:
    """Write the page, the tables and the figures into ``folder``; return their paths, report.html first.

    Every file is replaced atomically. With ``refresh`` a browser loads the page again after so many seconds. Raises
    OSError.
    """
    from neumann.studies.report.figures import draw

    folder.mkdir(parents=True, exist_ok=True)
    drawings = draw(results)
    files = {
        "report.html": refreshing(page(results, drawings), refresh).encode(),
        "table.md": markdown_table(results).encode(),
        "table.csv": table_csv(results),
        "runs.csv": runs_csv(results),
        "curves.csv": curves_csv(results),
        "outcomes.csv": outcomes_csv(results),
        "tables.tex": latex_tables(results).encode(),
        "methods.md": ("\n\n".join(map(markdown, methods(results))) + "\n").encode(),
    }
    if any(row.terms for row in results.rows):
        files["terms.csv"] = terms_csv(results)
    if results.target is not None:
        files["target.csv"] = target_csv(results)
    if results.scaling:
        files |= {
            "scaling.csv": scaling_csv(results),
            "scaling-seeds.csv": seeds_csv(results),
            "scaling-fits.csv": fits_csv(results),
        }
    for name, drawing in drawings.items():
        files |= {f"{name}.svg": drawing.svg, f"{name}.png": drawing.png, f"{name}.pdf": drawing.pdf}
    for name, written in reversed(files.items()):  # the page last, when the files beside it are there
        replace_file(folder / name, written)
    return [folder / name for name in files]


def refreshing(text: str, seconds: int | None) -> str:
    """Return a page that a browser loads again after so many ``seconds``, for None as it is."""
    again = f'<head>\n<meta http-equiv="refresh" content="{seconds}">'
    return text if seconds is None else text.replace("<head>", again, 1)


def _bound(text: str) -> str:
    return UNBROKEN.sub("\N{NO-BREAK SPACE}", text)


def page(results: StudyResults, drawings: Mapping[str, Drawing]) -> str:
    """Return report.html, with ``drawings`` (by name) inside."""
    return fill(
        "report.html.j2",
        drawings,
        r=results,
        missing=missing_sentence(results),
        lines=main_lines(results),
        caption=caption(results),
        claims=claims(results),
        error_rates=error_rates(results),
        claims_caption=claims_caption(results),
        paper=paper_table(results),
        **_scaling(results),
        design=content.design(results),
        explained=content,
        setting_header=setting_header(results),
        setting_text=setting_text,
        reference=reference_label(results),
        primary_label=next((label_of(results, c.row) for c in results.comparisons if c.primary), ""),
        compared=effect_header(results),
        outcomes=outcome_lines(results),
        cost_columns=[COSTS[outcome] for outcome in columns(results) if outcome in COSTS],
        outcomes_caption=outcomes_caption(results),
        target=target_text(results),
        needed=target_lines(results),
        cost_names=[COSTS[cost] for cost in costs(results)],
        measure=measure(results.outcome),
        methods=methods(results),
        primaries=[content.compared(results, c) for c in results.comparisons if c.primary],
        comparisons=content.comparisons(results),
        comparisons_caption=content.comparisons_caption(results),
        margin=size(results.margin.size, results.margin),
        points=results.points(),
        by_point=[content.by_point(row, results.points()) for row in results.rows],
        failures=[content.failures(results, row) for row in results.rows],
        failures_told=content.failures_told(results),
        unfinished=content.unfinished(results),
        labels=lambda run: content.labels(results, run),
        terms_told=content.terms_told(results),
        seeds_told=content.seeds_told(results),
        **content.origin(results),
        spaces=[(printable(row.label), row.overrides, content.space(row)) for row in results.rows],
    )  # fmt: skip


def _scaling(results: StudyResults) -> dict[str, Any]:
    """Return what scaling.html.j2 shows, nothing for a study that is about something else."""
    if not results.scaling:
        return {}
    return {
        "scaling_points": point_lines(results),
        "scaling_curves": curve_lines(results),
        "points_caption": points_caption(results),
        "curves_caption": curves_caption(results),
        "reference_label": printable(results.cells[results.reference].label),
    }


def fill(template: str, drawings: Mapping[str, Drawing], **named: Any) -> str:
    """Return the page of ``template``, a file beside this module, filled with ``named``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    from neumann.studies.report.figures.svg import inline

    # autoescape escapes data and finalize makes it printable; what is Markup was written by this package
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: v if isinstance(v, Markup) or not isinstance(v, str) else _bound(printable(v)),
    )
    return environment.get_template(template).render(
        data=Markup(charts(named["r"])),
        script=Markup((HERE / "report.js").read_text(encoding="utf-8")),
        css=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        drawings=drawings,
        code=lambda text: escape(verbatim(text)),  # Markup, since finalize would close up its spaces and lines
        words=lambda overrides: escape(verbatim(shlex.join(overrides))) if overrides else DASH,
        inline=lambda name: Markup(inline(drawings[name], name)),
        either=either,
        ours=Markup,  # a text that this package wrote, to be left as it is
        DASH=DASH,
        **named,
    )
