"""table.md: the answer and the tables of a report in Markdown."""

from __future__ import annotations

from neumann.studies.report.claims import claims_table, paper_table
from neumann.studies.report.error_rates import error_rates
from neumann.studies.report.outcomes import outcomes_markdown
from neumann.studies.report.scaling import scaling_tables
from neumann.studies.report.tables import caption, main_lines, main_table, missing_sentence, settings_text
from neumann.studies.report.text import markdown, markdown_rows
from neumann.studies.results import StudyResults


def markdown_table(results: StudyResults) -> str:
    """Return the answer and every table in GitHub-flavoured Markdown, each with what it measures."""
    lines = main_lines(results)
    parts = [f"**{markdown(results.title)}**", f"*Question.* {markdown(results.question)}"]
    if results.incomplete:
        parts.append(f"**This study is not finished.** {markdown(missing_sentence(results))}")
    parts += [f"*Answer.* {markdown(results.answer)}"]
    for table in (claims_table(results), paper_table(results)):
        parts += [] if table is None else [markdown_rows(table), markdown(table.caption)]
    parts.append(markdown_rows(main_table(results)))
    parts += [f"† {markdown(line.label)}: {markdown(line.edge)}." for line in lines if line.edge]
    parts += [f"‡ {markdown(line.label)}: {markdown(line.mixed)}." for line in lines if line.mixed]
    parts.append(markdown(caption(results)))
    parts += [text for table in scaling_tables(results) for text in (markdown_rows(table), markdown(table.caption))]
    parts += outcomes_markdown(results)
    if results.settings:
        parts.append(markdown(settings_text(results)))
    parts.append(markdown(error_rates(results)))
    return "\n\n".join(parts) + "\n"
