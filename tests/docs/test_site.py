"""The site builds strictly, is whole, and loads nothing from another server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from docs.figures import method, rooms, run_life
from tests.support.markdown_pages import ROOT

pytestmark = pytest.mark.medium


class References(HTMLParser):
    """Collects what a page loads, what it links to, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "modulepreload"):
            self.loads.append(given["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return folder


def parsed(page: Path) -> References:
    references = References()
    references.feed(page.read_text())
    return references


@pytest.mark.slow
def test_the_site_is_whole_and_stands_alone(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 25
    anchors = {page: parsed(page).anchors for page in pages}
    for page in pages:
        found = parsed(page)
        for target in found.loads:
            parts = urlsplit(target)
            assert parts.scheme in ("", "data"), f"{page.relative_to(site)} loads {target}"
            assert parts.scheme or (page.parent / unquote(parts.path)).exists(), f"{page.relative_to(site)}: {target}"
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (page.parent / unquote(parts.path)).resolve() if parts.path not in ("", ".") else page
            there = there / "index.html" if there.is_dir() else there
            assert there.exists(), f"{page.relative_to(site)}: {link}"
            if parts.fragment and there in anchors:
                assert unquote(parts.fragment) in anchors[there], f"{page.relative_to(site)}: {link}"
        assert "arithmatex" not in page.read_text(), f"{page.relative_to(site)} has a formula that is not drawn"


@pytest.mark.slow
def test_figures_are_the_same_every_time_and_of_the_pages_own_colours() -> None:
    for draw in (method.series, method.displaced, method.regularizers, method.counting, method.resets, rooms.svg):
        drawn = draw()
        assert drawn == draw()
        assert not re.findall(r"(?:fill|stroke): ?#\w+|<text style=\"(?![^\"]*fill)", drawn), "black on a dark page"


def test_the_diagram_of_rooms_has_every_room() -> None:
    drawn = rooms.svg()
    packages = {path.parent.name for path in (ROOT / "neumann").glob("*/__init__.py")}
    for room in packages | {"errors", "seeds"}:
        assert f'class="name">{room}<' in drawn
    assert ("cli", "studies") in rooms.imports({"cli", "studies"})


def test_the_diagram_of_a_run_has_every_status() -> None:
    from neumann.store import STATUSES

    drawn = run_life.svg()
    for status in STATUSES:
        assert f'class="name">{status}<' in drawn
