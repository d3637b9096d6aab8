"""mkdocs hooks: generated pages, figures, formulas as MathML."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from docs.figures import inside, method, rooms, run_life, statistics
from docs.generate import command_line, configuration, experiments, pages

ROOT = Path(__file__).resolve().parents[1]
GENERATED: dict[str, Callable[[], str]] = {
    "reference/configuration.md": configuration.page,
    "reference/command-line.md": command_line.page,
    "reference/experiments.md": experiments.page,
}
# a page asks for one by a line that is <!-- figure: NAME -->
FIGURES: dict[str, Callable[[], str]] = {
    "rooms": rooms.svg,
    "run-life": run_life.svg,
    "series": method.series,
    "displaced": method.displaced,
    "regularizers": method.regularizers,
    "counting": method.counting,
    "resets": method.resets,
    "detectable": statistics.detectable,
    "transport": inside.transport,
}
ASKED = re.compile(r"<!-- figure: ([\w-]+) -->")
BESIDE_ARCHITECTURE = {"The story of one run": "run-life", "Rooms": "rooms"}  # a heading of it: the figure below


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are generated or stand elsewhere, and the results of the study."""
    for page, make in GENERATED.items():
        files.append(File.generated(config, page, content=make()))
    for page in pages.INCLUDED:
        files.append(File.generated(config, page, content=pages.included(page)))
    for name in pages.COPIED:
        there = f"{pages.RESULTS}/{name}".replace("experiments/regularizers", "explanation")
        files.append(File.generated(config, there, abs_src_path=str(ROOT / pages.RESULTS / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put the figures where a page asks for them."""
    if page.file.src_uri == "LOG.md":  # what belongs to an item is indented by two there, and by four here
        markdown = re.sub(r"^ +", lambda match: 2 * match[0], markdown, flags=re.MULTILINE)
    if page.file.src_uri == "explanation/architecture.md":
        for heading, figure in BESIDE_ARCHITECTURE.items():
            placed = rf"\1\n\n<!-- figure: {figure} -->"
            markdown, times = re.subn(rf"^(#+ {heading})$", placed, markdown, count=1, flags=re.MULTILINE)
            if not times:
                raise PluginError(
                    f"ARCHITECTURE.md has no heading '{heading}' for the figure {figure}: see docs/hooks.py"
                )

    def drawn(match: re.Match[str]) -> str:
        if match[1] not in FIGURES:
            raise PluginError(f"{page.file.src_uri} asks for the figure {match[1]}, and there are {', '.join(FIGURES)}")
        return f'<div class="figure">{FIGURES[match[1]]()}</div>'

    return ASKED.sub(drawn, markdown)


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Turn what arithmatex has marked as a formula into MathML, which browsers draw without a script."""

    def formula(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        latex = html.unescape(match[2]).strip()[2:-2].replace("aligned}", "align*}")
        return convert(latex, display=display)

    return re.sub(r'<(div|span) class="arithmatex">(.*?)</\1>', formula, content, flags=re.DOTALL)
