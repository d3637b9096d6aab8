"""Every block of code in the README and on the site runs as it stands, or says why it is not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.markdown_pages import NOT_RUN, ROOT, blocks, is_slow, run_page

pytestmark = pytest.mark.medium

TESTED_CLOSER = (
    "plain-loop",
    "timm",
    "lightning",
    "export",
    "transformers",
)  # by test_tutorials.py and, the last, optim
PAGES = sorted({*(ROOT / "docs").rglob("*.md")} - {ROOT / "docs" / "LOG.md"})


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT / "docs")), marks=[pytest.mark.slow] if is_slow(page) else [])
        for page in PAGES
        if blocks(page) and page.stem not in TESTED_CLOSER
    ],
)
def test_a_page_does_what_it_says(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(".")  # as the command line has it: a user's module lies beside the user's files
    run_page(page)


def test_what_is_not_run_is_little() -> None:
    left_out = {str(page.relative_to(ROOT)): len(NOT_RUN.findall(page.read_text())) for page in PAGES}
    assert sum(left_out.values()) <= 14, left_out
    assert sum(len(blocks(page)) for page in PAGES) >= 45


def test_a_block_that_fails_fails_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for wrong in (
        "```python\nassert 1 == 2\n```",
        "```sh\nneumann train optimizer=nuemann\n```",
        "```console\n$ neumann train optimizer=nuemann\nerror: something else\n```",
        "```console\n$ neumann runs --help\nerror: it exits with 0\n```",
        "<!-- slow -->\n```console\n$ echo one\ntwo\n```",
        "<!-- slow -->\n```sh\nfalse | true\n```",
    ):
        page.write_text(wrong)
        with pytest.raises(AssertionError):
            run_page(page)
    page.write_text("```console\n$ neumann train optimizer=nuemann\nerror: there is ... did you mean 'neumann'?\n```")
    run_page(page)
    page.write_text("<!-- not run -->\n```sh\nfalse\n```")
    with pytest.raises(AssertionError, match="gives no reason"):
        blocks(page)
