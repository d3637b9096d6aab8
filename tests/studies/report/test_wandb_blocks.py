"""The report for W&B says what report.html says, in a specification that wandb-workspaces reads back as it is."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from wandb_workspaces.reports.v2 import internal

from neumann import compat
from neumann.studies.mirrored import Mirrored
from neumann.studies.report.figures.svg import Drawing
from neumann.studies.report.methods import methods
from neumann.studies.report.page import page
from neumann.studies.report.wandb_blocks import specification
from neumann.studies.results import StudyResults
from neumann.studies.scaling import Cell
from neumann.training.mirror_rows import row_of_line, row_of_measurement
from tests.studies.report.test_page import FEW, STUDIES, Page
from tests.studies.test_scaling import planted
from tests.support.fake_results import study

pytestmark = pytest.mark.medium

DRAWN = {
    name: Drawing(b"", b"", b"", "nothing", empty=True) for name in ("forest", "errors", "curves", "tuning", "scaling")
}


def mirrors(results: StudyResults, **changes: Any) -> Mirrored:
    """Return what is known of mirrors where every finished evaluation run has one, of its first attempt."""
    ids = {
        row.key: tuple(
            f"{run.signature}-1"
            for run in results.runs
            if row.key in run.rows and run.role == "evaluation" and run.status == "finished"
        )
        for row in results.rows
    }
    return Mirrored(**({"group": "table4", "project": "ours", "entity": None, "ids": ids, "notes": ()} | changes))


def batches() -> StudyResults:
    """A study of batch sizes, as far as the report for W&B asks."""
    results = study(FEW)
    cells = {row.key: Cell(row.key, row.label, "batch", "32", "32") for row in results.rows}
    return replace(results, cells=cells, scaling=(planted(100, 64, 0.01, 3),), target=None)


ALL = {**STUDIES, "batches": batches, "pilot": lambda: study(FEW, pilot=True), "checks": lambda: study(FEW, checks={"saves": "yes"})}  # fmt: skip


@pytest.fixture(scope="module", params=ALL)
def built(request: pytest.FixtureRequest) -> tuple[StudyResults, Any]:
    results = ALL[request.param]()
    return results, specification(results, mirrors(results))


def dumped(model: Any) -> str:
    return str(model.model_dump_json(by_alias=True, exclude_none=True, indent=1))


def blocks(model: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(dumped(model))["spec"]["blocks"]
    return found


def text_of(model: Any) -> str:
    return "\n\n".join(block["content"] for block in blocks(model) if block["type"] == "markdown-block")


def plain(text: str) -> str:
    """Return Markdown as it is read, on one line."""
    return " ".join(html.unescape(re.sub(r"\\([\\`*_\[\]|~$])", r"\1", text)).split())


def rows_below(model: Any, heading: str) -> list[list[str]]:
    """Return the lines of the first table in the section called ``heading``, without its header, cell by cell."""
    found = iter(blocks(model))
    next(block for block in found if block["type"] == "heading" and block["children"][0]["text"] == heading)
    lines = next(found)["content"].split("\n\n")
    table = next(part for part in lines if part.startswith("|"))
    return [[plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.split("\n")[2:]]


def numbers(*cells: str) -> list[str]:
    return sorted(re.findall(r"[−+]?\d+(?:[.,]\d+)*", " ".join(cells)))


def test_the_package_reads_the_specification_back_as_it_is(built: tuple[StudyResults, Any]) -> None:
    results, model = built
    written = dumped(model)
    again = internal.ReportViewspec.model_validate_json(written)
    report = compat.from_wandb_spec(again)
    assert (report.project, report.width) == ("ours", "fluid")
    assert dumped(compat.as_wandb_spec(report)) == written
    assert dumped(specification(results, mirrors(results))) == written  # the same results, the same bytes


class Spaced(Page):
    """The page, whose cells have a space before what stands below their first line."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        if dict(attrs).get("class") == "under" and ("td" in self.open or "th" in self.open):
            self.tables[self.section][-1][-1] += " "


def test_every_number_of_the_claims_is_that_of_the_page(built: tuple[StudyResults, Any], tmp_path: Path) -> None:
    results, model = built
    (tmp_path / "report.html").write_text(page(results, DRAWN), encoding="utf-8")
    shown = Spaced(tmp_path / "report.html")
    claims = [line for line in shown.tables.get("comparisons", [])[1:] if len(line) > 1]
    ours = rows_below(model, "All comparisons") if claims else []
    assert len(ours) == len(claims) == len(results.comparisons)
    for theirs, cells in zip(claims, ours, strict=True):
        if len(theirs) == 2:  # nothing to compare yet, and why
            assert cells[-1] == theirs[1]
        else:
            assert numbers(*cells[:-1]) == numbers(*theirs)
    for theirs, cells in zip(shown.tables["table"][2:], rows_below(model, "Main table"), strict=True):
        assert numbers(*cells) == numbers(*theirs)


def test_answer_methods_commands_limits_and_provenance_are_all_there(built: tuple[StudyResults, Any]) -> None:
    results, model = built
    said = plain(text_of(model))
    wanted = [results.question, results.answer, *results.limits, *methods(results)]
    wanted += [value for values in results.provenance.values() for value in values]
    wanted += [row.label for row in results.rows]
    for text in wanted:
        assert plain_text(text) in said
    for command in results.commands.values():
        assert plain_text(command) in " ".join(text_of(model).split())


def plain_text(text: str) -> str:
    from neumann.studies.numbers import printable

    return printable(text)


def test_text_from_data_makes_no_block_link_or_formula() -> None:
    results = ALL["hostile"]()
    model = specification(results, mirrors(results))
    kinds = {block["type"] for block in blocks(model)}
    assert kinds == {"paragraph", "markdown-block", "heading", "table-of-contents", "panel-grid"}
    outside = re.sub(r"(?ms)^(`{3,})sh$.*?^\1$", "", text_of(model))
    assert "<script" not in outside
    assert not re.search(r"(?<!\\)[$<`]", outside)
    assert len(json.loads(dumped(model))["displayName"]) <= 128


def test_a_run_set_has_the_runs_of_a_row_by_their_ids_in_the_studys_group() -> None:
    results = study()
    odd = "a=b <c> 'd' \"e\""  # not as an expression of the package would have it
    known = mirrors(results, group=odd)
    (grid,) = (block for block in blocks(specification(results, known)) if block["type"] == "panel-grid")
    sets = {one["name"]: one for one in grid["metadata"]["runSets"]}
    assert sets.keys() == {row.label for row in results.rows}
    for row in results.rows:
        group, ids = sets[row.label]["filters"]["filters"]
        assert (group["key"], group["op"], group["value"]) == ({"section": "run", "name": "group"}, "=", odd)
        assert (ids["key"], ids["op"], ids["value"]) == ({"section": "run", "name": "name"}, "IN", list(known.ids[row.key]))  # fmt: skip
        assert "project" not in sets[row.label]  # it is the report's, and nothing is asked of a server


def test_rows_of_the_same_runs_share_a_run_set() -> None:
    results = study(FEW)
    ids = dict.fromkeys((row.key for row in results.rows), ("0123456789ab-1",))
    ids[results.rows[0].key] = ("ba9876543210-2",)
    (grid,) = (b for b in blocks(specification(results, mirrors(results, ids=ids))) if b["type"] == "panel-grid")
    first, *others = (row.label for row in results.rows)
    assert [one["name"] for one in grid["metadata"]["runSets"]] == [first, " / ".join(others)]


def panels(model: Any) -> Iterator[dict[str, Any]]:
    for block in blocks(model):
        if block["type"] == "panel-grid":
            for panel in block["metadata"]["panelBankSectionConfig"]["panels"]:
                yield panel["config"]


def test_panels_draw_what_the_mirror_writes_against_its_own_axes() -> None:
    scores = {point: {"error": 0.1, "loss": 0.2} for point in ("held", "base", "average")}
    at = {"optimizer_step": 3, "examples": 96}
    line = row_of_line({**at, "train_loss": 0.5, "lr": 0.1})
    written = {*line, *row_of_measurement({**at, "validation": scores}, by_step=True)}
    seen: set[str] = set()
    for results in (study(), batches()):
        for panel in panels(specification(results, mirrors(results))):
            assert panel["xAxis"] == ("examples" if panel["metrics"][0].startswith("by_examples/") else "step")
            assert {panel["xAxis"], *panel["metrics"]} <= written
            seen |= {*panel["metrics"]}
    errors = {f"validation/{point}/error" for point in ("held", "base", "average")}
    assert {"train/loss", "train/lr", *errors} <= seen
    assert {f"by_examples/validation/{point}/error" for point in {row.at for row in batches().rows}} <= seen


def test_without_a_finished_run_there_are_no_panels() -> None:
    results = study(FEW, tuned=False)
    model = specification(results, mirrors(results, notes=("no evaluation run has finished, so it has no panels",)))
    assert not list(panels(model))
    assert "No evaluation run has finished, so it has no panels." in text_of(model)
