"""The page of a study: report.html, with the files beside it (figures, and the same numbers as Markdown and CSV).

The page is one file without addresses: it opens from a disk, prints, and can be kept beside a paper. Its script sorts
tables and draws curves from data in the page, which is whole without it. The same results give the same bytes.
matplotlib and jinja2 are imported only to render, since most commands find that nothing has changed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumann.estimates.rate import duration
from neumann.store.code_digests import listed
from neumann.store.files import replace_file
from neumann.store.folder import OVER
from neumann.studies.conditions import is_mixed
from neumann.studies.numbers import (
    DASH,
    correlation,
    count,
    detectable,
    effect_interval,
    effect_value,
    either,
    interval,
    mean_and_interval,
    measure,
    p_value,
    percentage_points,
    printable,
    setting_text,
    size,
    value,
    verbatim,
)
from neumann.studies.plan import EVALUATION, TUNING
from neumann.studies.report.claims import claims, claims_caption, paper_table
from neumann.studies.report.csv_files import curves_csv, runs_csv, table_csv
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
    epochs_text,
    main_lines,
    missing_sentence,
    setting_header,
    settings_text,
    verdict_word,
    within,
)
from neumann.studies.report.text import label_of, markdown, reference_label
from neumann.studies.results import COSTS, Comparison, Results, RowResult, RunEntry, StudyResults
from neumann.studies.statistics import proportion_interval

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
    for name, content in reversed(files.items()):  # the page last, when the files beside it are there
        replace_file(folder / name, content)
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
        chosen_by=measure(results.least) if results.least else "validation error",
        **_scaling(results),
        epochs=epochs_text(results),
        settings=settings_text(results),
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
        primaries=[_compared(results, c) for c in results.comparisons if c.primary],
        comparisons=[_compared(results, c) for c in sorted(results.comparisons, key=lambda c: not c.primary)],
        margin=size(results.margin.size, results.margin),
        points=results.points(),
        by_point=[_by_point(row, results.points()) for row in results.rows],
        failures=[_failures(results, row) for row in results.rows],
        unfinished=[run for run in results.runs if run.status != "finished"],
        pending=[run for run in results.runs if run.status not in (*OVER, "failed")],
        labels=lambda run: ", ".join(label_of(results, key) for key in run.rows),
        **origin(results),
        spaces=[(printable(row.label), row.overrides, _space(row)) for row in results.rows],
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
        DASH=DASH,
        **named,
    )


def origin(results: Results) -> dict[str, Any]:
    """Return what provenance.html.j2 shows."""
    return {
        "provenance": [(k, values, is_mixed(k, values)) for k, values in results.provenance.items()],
        "seconds": duration(sum(run.train_seconds or 0.0 for run in results.runs)),
        "trained": sum(run.train_seconds is not None for run in results.runs),
    }


def _compared(results: StudyResults, c: Comparison) -> dict[str, Any]:
    """Return one comparison as text, by column of the table of comparisons."""
    pair, verdict = c.paired, c.verdict
    dropped = [
        f"{'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds)} {what} in {label_of(results, key)}{only}"
        for key, seeds, what, only in (
            (c.row, pair.only_a if pair else (), "finished", " only"),
            (c.against, pair.only_b if pair else (), "finished", " only"),
            (c.row, pair.diverged_a if pair else (), "diverged", ""),
            (c.against, pair.diverged_b if pair else (), "diverged", ""),
        )
        if seeds
    ]
    equal = []
    if pair and pair.diverged:
        equal = [
            f"p = {p_value(pair.p)} is the sign test's over {pair.over} seeds, a diverged run worse than any other"
        ]
    elif pair and pair.sd == 0:
        equal = ["all differences are equal: p is the sign-flip test's"]
    settings = ", ".join(setting_text(setting) for setting in c.settings)
    at_equal = [f"at equal settings: the mean over {settings}"] if settings else []
    apart = [f"the runs of the two differ in {listed(c.unlike)}"] if c.unlike else []
    return {
        "row": label_of(results, c.row),
        "against": label_of(results, c.against),
        "primary": c.primary,
        "n": count(pair.n, pair.over) if pair else DASH,
        "includes": "at equal settings" if settings else "tuning included" if results.grid else "at these settings",
        "effect": effect_value(c.effect),
        "correlation": correlation(pair.correlation if pair else None),
        "seeds": count(c.effect.n, c.effect.over) if c.effect else DASH,
        "effect_interval": effect_interval(c.effect),
        "test": c.effect.test if c.effect else DASH,
        "difference": percentage_points(pair.mean if pair else None),
        "interval": interval(pair.low, pair.high, percentage_points) if pair else DASH,
        # Where all differences are equal there is no t test, and p is the sign-flip test's
        "p": p_value(pair.p if pair and pair.t is not None and not results.pilot else None),
        "own_p": p_value(c.effect.p if c.effect and not results.pilot else None),
        "holm": p_value(c.adjusted if not results.pilot else None),
        "flip": p_value(pair.sign_flip_p if pair and not results.pilot else None),
        "counts": f"{pair.wins}/{pair.ties}/{pair.losses}" if pair else DASH,
        "verdict": verdict_word(c),
        "within": within(c),
        "detectable": detectable(verdict) if verdict else DASH,
        "power": f"{100 * verdict.power:.0f} %" if verdict else DASH,
        "sentence": _budget_sentence(results, c),
        "note": "; ".join([*([c.note] if c.note else []), *at_equal, *dropped, *equal, *apart]),
    }


def _budget_sentence(results: StudyResults, c: Comparison) -> str:
    """Return the sentence on the smallest effect that this number of seeds detects."""
    margin = size(results.margin.size, results.margin)
    if c.verdict is None or c.effect is None:
        return f"The smallest effect that these seeds detect is not known yet; the smallest of interest is {margin}."
    n, found = c.effect.n, c.verdict.smallest_detectable_effect
    seeds = "one seed" if n == 1 else f"{n} seeds"
    if found is None and c.effect.lost:
        return f"The smallest effect that these seeds would detect is unknown: the {c.effect.test} uses no sizes."
    if found is None:
        why = "one difference has no spread" if n == 1 else "all differences are equal"
        return f"The smallest effect that {seeds} would detect is unknown: {why}."
    seen = f"a true difference of {detectable(c.verdict)}"
    if c.verdict.detects_nothing:
        seen = "no true difference, however large,"
    sentence = (
        f"With {seeds} and the spread found here, {seen} is detected "
        f"with a power of {100 * c.verdict.power:.0f} % (two-sided test, α = {c.verdict.alpha:g})."
    )
    if c.verdict.detects_nothing:
        return f"{sentence} This budget can miss every effect."
    of_interest = f"the smallest effect of interest, {margin}"
    if found > results.margin.size:
        return f"{sentence} That is more than {of_interest}: this budget can miss an effect that matters."
    return f"{sentence} That is enough for {of_interest}."


def _by_point(row: RowResult, columns: Sequence[str]) -> tuple[str, list[tuple[str, bool]]]:
    cells = [(mean_and_interval(row.points.get(point)), point == row.at) for point in columns]
    return printable(row.label), cells


def _failures(results: StudyResults, row: RowResult) -> dict[str, Any]:
    """Return how many runs of a row went wrong; the rate is that of its evaluation runs that are over."""
    own = [run for run in results.runs if row.key in run.rows]
    over, diverged = len(row.errors) + len(row.diverged), len(row.diverged)
    tuning = [run for run in own if run.role == TUNING and run.status in OVER]
    return {
        "label": printable(row.label),
        "finished": count(len(row.errors), row.planned),
        "diverged": diverged,
        "rate": _rate(diverged, over),
        "failed": _counted(own, EVALUATION, "failed"),
        "missing": max(0, row.planned - over - _counted(own, EVALUATION, "failed")),
        "tuning": f"{_counted(own, TUNING, 'diverged')}/{len(tuning)}" if tuning else DASH,
    }


def _rate(diverged: int, over: int) -> str:
    if not diverged:
        return "0" if over else DASH
    rate = proportion_interval(diverged, over)
    return f"{100 * rate.rate:.0f} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def _counted(runs: Sequence[RunEntry], role: str, status: str) -> int:
    return sum(run.role == role and run.status == status for run in runs)


def _space(row: RowResult) -> list[tuple[str, str]]:
    """Return what was tried per setting, in the order of the trials."""
    tried: dict[str, dict[str, None]] = {}
    for trial in row.trials:
        for key, v in trial.setting.items():
            tried.setdefault(key, {})[value(v)] = None
    return [(printable(key), ", ".join(values)) for key, values in tried.items()]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
