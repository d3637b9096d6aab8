"""A study's report as a W&B report: the texts and tables of report.html in Markdown, and its curves as live panels.

The package wandb-workspaces makes the report, so it is imported within the functions. Nothing here asks a server: what
is built is what W&B stores, and the same results give the same specification.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from typing import Any

from neumann import compat
from neumann.studies.mirrored import Mirrored
from neumann.studies.numbers import DASH, measure, printable, setting_text, size, verbatim
from neumann.studies.report import content
from neumann.studies.report.claims import claims_table, paper_table
from neumann.studies.report.error_rates import error_rates
from neumann.studies.report.methods import methods
from neumann.studies.report.outcomes import outcomes_markdown
from neumann.studies.report.scaling import scaling_tables
from neumann.studies.report.tables import (
    caption,
    effect_header,
    main_lines,
    main_table,
    missing_sentence,
    setting_header,
)
from neumann.studies.report.text import TextTable, joined, label_of, markdown, markdown_rows
from neumann.studies.results import StudyResults
from neumann.studies.scaling import BATCH
from neumann.training.mirror_rows import BY_EXAMPLES, LOSS, RATE, score_name

TITLE_LENGTH = 128  # characters, as W&B takes
WIDE, HIGH = 12, 9  # a panel, of a grid 24 wide
SOME = 2  # rows that a panel's title names


def specification(results: StudyResults, runs: Mirrored) -> Any:
    """Return the W&B report of ``results``, as wandb-workspaces' model of it.

    A run set shows the runs of one row, by ``runs``.
    """
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    sets = _run_sets(results, runs)
    title = printable(results.title)
    report = wr.Report(
        project=runs.project,
        entity=runs.entity or "",
        title=title if len(title) <= TITLE_LENGTH else f"{title[: TITLE_LENGTH - 1]}…",
        description=printable(results.question),
        blocks=_blocks(results, runs, sets),
        width="fluid",
    )
    model = compat.as_wandb_spec(report)
    for grid in (block for block in model.spec.blocks if block.type == "panel-grid"):
        for run_set, ids in zip(grid.metadata.run_sets, sets.values(), strict=True):
            run_set.id = _name(results, "run set", run_set.name)
            # not as the expression that a run set takes, in whose names '=', '<' and quotes do not stay what they are
            run_set.filters = expr.filters_tree_to_v2(
                expr.Filters(
                    op="AND",
                    filters=[
                        expr.Filters(op=op, key=expr.Key(section="run", name=name), value=value, disabled=False)
                        for name, op, value in (("group", "=", runs.group), ("name", "IN", list(ids)))
                    ],
                )
            )
        for panel in grid.metadata.panel_bank_section_config.panels:
            panel.id = _name(results, "panel", panel.config.chart_title)
    return model


def _name(results: StudyResults, kind: str, of: str) -> str:
    """Return the name of a part of the specification, the same each time; the package makes a random one."""
    whole = "\n".join(map(printable, (results.name, results.budget, kind, of)))
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def _run_sets(results: StudyResults, runs: Mirrored) -> dict[str, tuple[str, ...]]:
    """Return the W&B ids of each run set by its name: the label of its row, or of all rows that read the same runs."""
    labels: dict[tuple[str, ...], list[str]] = {}
    for row in results.rows:
        if ids := runs.ids.get(row.key):
            labels.setdefault(ids, []).append(printable(row.label))
    return {" / ".join(names): ids for ids, names in labels.items()}


# ------------------------------------------------------------------------------------------------------------- panels


def _curves(results: StudyResults, runs: Mirrored, sets: dict[str, tuple[str, ...]]) -> list[Any]:
    """Return the section of learning curves: what the panels show, and the panels of the runs."""
    import wandb_workspaces.reports.v2 as wr

    said = "".join(f" {note[:1].upper()}{note[1:]}." for note in runs.notes)
    if not sets:
        return [wr.MarkdownBlock(markdown(said.strip()))]
    text = (
        f"Drawn by W&B from the runs themselves: each run set has the evaluation runs of one row that finished, by "
        f"their ids, in the group {runs.group}. A line is the mean of a run set, its band the standard error, not the "
        f"95 % interval that report.html draws. Runs that tuned are in the same group with the job type tuning.{said}"
    )
    panels = [
        wr.LinePlot(
            title=title,
            x=axis,
            y=names,
            title_x={"step": "optimizer steps", "examples": "examples"}[axis],
            title_y=unit or None,
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
            max_runs_to_show=len(sets) * len(names),
            layout=wr.Layout(x=WIDE * (i % 2), y=HIGH * (i // 2), w=WIDE, h=HIGH),
        )
        for i, (title, axis, names, unit) in enumerate(_drawn(results))
    ]
    run_sets = [wr.Runset(name=name, groupby=["run.group"]) for name in sets]
    return [wr.MarkdownBlock(markdown(text)), wr.PanelGrid(runsets=run_sets, panels=panels)]


def _drawn(results: StudyResults) -> list[tuple[str, str, list[str], str]]:
    """Return title, axis, metrics and unit of every panel, under the names that the mirror writes."""
    judged: dict[str, list[str]] = {}
    for row in results.rows:
        if row.at is not None:
            judged.setdefault(row.at, []).append(printable(row.label))
    errors = [score_name("validation", point, "error") for point in judged]
    kind, unit = "validation error", "fraction of the validation images"
    told = f"{kind} at the {next(iter(judged))} point" if len(judged) == 1 else f"{kind} at every point that counts"
    drawn = [(told, "step", errors, unit)]
    if any(cell.factor == BATCH for cell in results.cells.values()):  # steps of unlike batches
        drawn.append((f"{told}, by examples", "examples", [f"{BY_EXAMPLES}{name}" for name in errors], unit))
    if len(judged) > 1:
        drawn += [
            (f"{kind} at the {point} point, by which {_some(labels, results)}", "step", [name], unit)
            for name, (point, labels) in zip(errors, judged.items(), strict=True)
        ]
    return [*drawn, ("training loss", "step", [LOSS], "nats"), ("learning rate", "step", [RATE], "")]


def _some(labels: Sequence[str], results: StudyResults) -> str:
    """Return which rows are judged, in few words."""
    if len(labels) > SOME:
        return f"{len(labels)} of {len(results.rows)} rows are judged"
    return f"{' and '.join(labels)} {'is' if len(labels) == 1 else 'are'} judged"


# ------------------------------------------------------------------------------------------------------- text, tables


def _blocks(results: StudyResults, runs: Mirrored, sets: dict[str, tuple[str, ...]]) -> list[Any]:
    """Return the report block by block, in the order of report.html."""
    import wandb_workspaces.reports.v2 as wr

    sections: list[tuple[str, list[str | Any]]] = [
        ("Claims", _claims(results)),
        ("Main table", _main(results)),
        ("Outcomes", outcomes_markdown(results) or ["No two rows have an evaluation seed that is over."]),
        ("Learning curves", _curves(results, runs, sets)),
        ("All comparisons", _comparisons(results)),
        ("The same runs at every evaluation point", _points(results)),
        ("Runs that failed, diverged or are missing", _failures(results)),
        ("What this study cannot show", [_bullets(results.limits) or "The study names no limits."]),
        ("Provenance", _provenance(results)),
        ("How to reproduce", [*_commands(results), markdown(error_rates(results))]),
    ]
    if results.scaling:
        tables = [text for table in scaling_tables(results) for text in (markdown_rows(table), markdown(table.caption))]
        sections.insert(0, ("Steps against batch size", tables))
    if results.checks:
        found = TextTable("checks", content.CHECKS, ["it …", "found"], list(results.checks.items()), (0, 1))
        sections.insert(-3, ("Contracts and cost", [markdown(content.CHECKS), markdown_rows(found)]))
    blocks = [wr.MarkdownBlock("\n\n".join(_opening(results))), wr.TableOfContents()]
    for heading, parts in sections:
        blocks.append(wr.H2(heading))
        texts: list[str] = []
        for part in parts:
            if isinstance(part, str):
                texts.append(part)
                continue
            blocks += [wr.MarkdownBlock("\n\n".join(texts))] if texts else []
            blocks.append(part)
            texts = []
        blocks += [wr.MarkdownBlock("\n\n".join(texts))] if texts else []
    return blocks


def _opening(results: StudyResults) -> list[str]:
    """Return the paragraphs above the first heading: question, what is odd, answer, the primary comparisons, design."""
    parts = [f"Study {markdown(results.name)}, budget: {markdown(results.budget)}", f"*{markdown(results.question)}*"]
    if results.incomplete:
        parts.append(
            f"> **This study is not finished.** {markdown(missing_sentence(results))} What follows is what the "
            "finished runs say so far."
        )
    if results.exploratory:
        parts.append(f"> **Exploratory.** {markdown(results.exploratory)}.")
    parts.append(f"**Answer{' so far' if results.incomplete else ''}.** {markdown(results.answer)}")
    unit = effect_header(results)[1]
    for c in (content.compared(results, c) for c in results.comparisons if c.primary):
        if c["n"] != DASH:
            facts = [
                ("comparison", f"{c['row']} against {c['against']}"),
                (f"verdict on {measure(results.outcome)}", c["verdict"]),
                (f"effect, {unit}", c["effect"]),
                (f"95 % interval, {c['includes']}", c["effect_interval"]),
                (f"p, {c['test']}", c["own_p"]),
                *([("within the margin, by two one-sided tests", c["within"])] if c["within"] else []),
                ("n, seeds that count in both rows", c["seeds"]),
                ("margin: smallest effect of interest", size(results.margin.size, results.margin)),
                ("smallest effect that these seeds could see", c["detectable"]),
            ]
            parts.append(markdown_rows(TextTable("primary", "", ["primary comparison", ""], facts, (0, 1))))
        note = f" Note: {c['note']}." if c["note"] and c["n"] != DASH else ""
        parts.append(markdown(f"{c['sentence']}{note}"))
    return [*parts, markdown(content.design(results))]


def _main(results: StudyResults) -> list[str]:
    margin = size(results.margin.size, results.margin)
    lines = main_lines(results)
    verdicts = "Verdicts come from the interval of the primary comparison against the margin, "
    verdicts += f"{margin}. {content.VERDICTS}{f' {content.PILOT}' if results.pilot else ''}"
    return [
        markdown_rows(main_table(results)),
        *(markdown(f"† {line.label}: {line.edge}. A better one may lie outside.") for line in lines if line.edge),
        *(markdown(f"‡ {line.label}: {line.mixed}.") for line in lines if line.mixed),
        markdown(caption(results)),
        markdown(verdicts),
    ]  # fmt: skip


def _claims(results: StudyResults) -> list[str | Any]:
    tables = (claims_table(results), paper_table(results))
    return [text for table in tables if table for text in (markdown_rows(table), markdown(table.caption))]


def _comparisons(results: StudyResults) -> list[str]:
    header = ["comparison", "n", "difference, percentage points [95 % interval]", "t-test p", "Holm p", "sign-flip p"]
    header += ["wins/ties/losses", "verdict", "smallest detectable", "note"]
    body = [
        [
            f"{c['row']} − {c['against']}" + (" (primary)" if c["primary"] else ""),
            f"{c['n']}, {c['correlation']}" if c["correlation"] and c["n"] != DASH else c["n"],
            joined(c["difference"], c["interval"]), c["p"], c["holm"], c["flip"], c["counts"],
            f"{c['verdict']} ({c['within']})" if c["within"] else c["verdict"], c["detectable"], c["note"],
        ]
        for c in content.comparisons(results)
    ]  # fmt: skip
    if not body:
        return ["This study compares nothing."]
    shown = content.comparisons_caption(results)
    return [markdown_rows(TextTable("comparisons", shown, header, body, (0, 7, 9))), markdown(shown)]


def _points(results: StudyResults) -> list[str]:
    points = results.points()
    if not points:
        return [markdown("No evaluation run has finished.")]
    lines = ["| row |" + "".join(f" {markdown(point)} |" for point in points), "| --- |" + " ---: |" * len(points)]
    for row in results.rows:
        label, cells = content.by_point(row, points)
        shown = [f"**{markdown(cell)}**" if chosen else markdown(cell) for cell, chosen in cells]
        lines.append(f"| {' | '.join((markdown(label), *shown))} |")
    return [markdown(content.POINTS_INTRODUCED), "\n".join(lines), markdown(content.POINTS)]


def _failures(results: StudyResults) -> list[str]:
    told = [markdown(content.failures_told(results))]
    if not content.unfinished(results):
        return told
    header = ["row", "finished", "diverged", "divergence rate, %", "failed", "missing", "diverged in tuning"]
    keys = ("label", "finished", "diverged", "rate", "failed", "missing", "tuning")
    body = [[str(content.failures(results, row)[key]) for key in keys] for row in results.rows]
    told += [markdown_rows(TextTable("failures", content.FAILURES, header, body)), markdown(content.FAILURES)]
    ended = [run for run in content.unfinished(results) if run.status in ("diverged", "failed")]
    if ended:
        names = ["row", "role", setting_header(results), "seed", "status", "message", "folder"]
        runs = [
            [
                content.labels(results, run), run.role, setting_text(run.setting), str(run.seed), run.status,
                run.message or DASH, run.folder,
            ]
            for run in ended
        ]  # fmt: skip
        told.append(markdown_rows(TextTable("unfinished", "", names, runs, (0, 1, 4, 5, 6))))
    return told


def _provenance(results: StudyResults) -> list[str]:
    origin = content.origin(results)
    told, body = [], []
    for name, values, mixed in origin["provenance"]:
        if mixed:
            told.append(
                f"> **Mixed {markdown(name)}.** The runs have {len(values)} different values of {markdown(name)}: part "
                "of a difference between rows may come from there."
            )
        shown = [f"{v} ({', '.join(rows)})" if len(values) > 1 else v for v, rows in values.items()]
        body.append([name, "; ".join(shown) or DASH])
    told.append(
        f"{len(results.runs)} runs, {origin['trained']} of them trained, {origin['seconds']} of training in all."
        if body
        else "No run has left a record yet."
    )
    if body:
        told.append(markdown_rows(TextTable("provenance", "", ["what", "values"], body, (0, 1))))
    if results.archive:
        told.append(
            f"{results.archive.archived} of the {results.archive.over} runs that are over are in "
            f"{markdown(results.archive.file)}, beside the study's file (content {markdown(results.archive.digest)})."
        )
        told += [f"> **Archive.** {markdown(note)}." for note in results.archive.notes]
        names = ["code", "machine", "runs", "rows"]
        origins = [[o.code, o.machine, str(o.runs), ", ".join(o.rows)] for o in results.archive.origins]
        if origins:
            told.append(markdown_rows(TextTable("origins", "", names, origins, (0, 1, 3))))
    return told


def _commands(results: StudyResults) -> list[str]:
    told = [text for name, command in results.commands.items() for text in (f"**{markdown(name)}**", _code(command))]
    told += ["**Methods, in the words of a paper**", *map(markdown, methods(results))]
    told += ["**Recipe, the same for every row**", _code("\n".join(results.recipe) or "defaults")]
    told.append(markdown(content.seeds_told(results)))
    body = [
        [
            label_of(results, row.key),
            shlex.join(row.overrides) or DASH,
            "; ".join(f"{key}: {tried}" for key, tried in content.space(row)) or DASH,
        ]
        for row in results.rows
    ]
    told.append(markdown_rows(TextTable("spaces", "", ["row", "overrides", "search space"], body, (0, 1, 2))))
    return told


def _code(text: str) -> str:
    """Return ``text`` as a block of code, which no run of backticks in it ends."""
    shown = verbatim(text)
    fence = "```"
    while fence in shown:
        fence += "`"
    return f"{fence}sh\n{shown}\n{fence}"


def _bullets(texts: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(text)}" for text in texts)
