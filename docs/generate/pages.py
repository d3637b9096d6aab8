"""The pages of the site that stand elsewhere in the repository, with their links made to fit."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# a page of the site: the file that it is
INCLUDED = {
    "explanation/architecture.md": "ARCHITECTURE.md",
    "explanation/regularizers.md": "experiments/regularizers/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
COPIED = ("report.html", "table.csv", "runs.csv", "curves.csv", "errors.png", "curves.png", "tuning.png")
RESULTS = "experiments/regularizers/results/full"  # copied as explanation/results/full, where that page's links lead


def included(page: str) -> str:
    """Return a page of `INCLUDED`: links to pages of the site lead there, those to other files become their names."""
    source = INCLUDED[page]
    text = (ROOT / source).read_text(encoding="utf-8")

    def fitted(match: re.Match[str]) -> str:
        picture, words, target = match[1], match[2], match[3]
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        on_site = next((name for name, file in INCLUDED.items() if file == there), None)
        if on_site is None and there.startswith("docs/"):
            on_site = there.removeprefix("docs/")
        if there.startswith(f"{RESULTS}/") and posixpath.basename(there) in COPIED:
            on_site = there.replace("experiments/regularizers", "explanation")
        if there == RESULTS:
            on_site = "explanation/results/full/report.html"
        if on_site is None:
            return words if "`" in words else f"`{words}`"
        to = posixpath.relpath(on_site, posixpath.dirname(page) or ".")
        return f"{picture}[{words}]({to}{'#' if anchor else ''}{anchor})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", fitted, text)
