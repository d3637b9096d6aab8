"""A report says where its runs were trained by several versions of the code, or by another than today's."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from neumann.store import RunFolder
from neumann.store.code_digests import OWN, OWN_DIGEST
from neumann.store.files import write_json
from neumann.store.vouching import sealed
from neumann.studies import stamp
from neumann.studies.plan import Study, load_study
from neumann.studies.run import report, study
from tests.support.study_folders import finish, write_study

pytestmark = pytest.mark.medium


def trained_by(folder: RunFolder, *codes: dict[str, str]) -> None:
    """Record ``codes`` as those of the run's attempts, each of which went on from the one before."""
    attempts = [
        {"step": 10 * i, "code": code, "git": {"commit": f"{i}" * 40, "diff_sha256": None}}
        for i, code in enumerate(codes)
    ]
    write_json(folder.provenance, {"attempts": attempts})
    result = json.loads((folder.path / "result.json").read_text())
    result.pop("digest", None)
    write_json(folder.path / "result.json", sealed({**result, "code": list(codes)}))


def finished(study: Study) -> Iterator[tuple[str, RunFolder]]:
    for planned in study.tuning():
        if planned.row != "averaged":
            yield planned.row, finish(planned, {0.1: 0.03, 0.3: 0.01, 1.0: 0.02}[planned.setting["optimizer.lr"]])
    for row in ("sgd", "neumann"):
        for planned in study.evaluation(row, {"optimizer.lr": 0.3}):
            yield row, finish(planned, 0.02)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert report("mine", console=Console(file=io.StringIO())) == 0
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_mixed_and_changed_code_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    write_study()
    now = {OWN: OWN_DIGEST}
    folders = list(finished(load_study("mine")))
    for _, folder in folders:
        trained_by(folder, now)
    assert told(capsys) == ""
    (page,) = Path("runs/mine").glob("*/report.html")
    assert "‡" not in page.read_text()

    row, last = folders[-1]  # begun by another checkout than the one that finished it
    assert row == "neumann"
    trained_by(last, {OWN: "other"}, now)
    assert told(capsys).startswith(f"note: the code of neumann has changed since the result in {last.path} was trained")
    assert told(capsys) != ""  # also where the report is answered from its stamp
    text = page.read_text()
    assert re.findall(r"‡ ([^:<]*): ([^,<]*),", text) == [
        ("Neumann", "the code of neumann has changed between its runs")
    ]
    assert "Mixed code of neumann." in text
    assert "Mixed commit." in text  # of all attempts, not of the last alone
    assert "Neumann ‡" in page.with_name("table.md").read_text()

    for _, folder in folders:
        trained_by(folder, {OWN: "other"})
    assert "since 24 of these 24 results were trained" in told(capsys)
    assert "output=NEW trains all with today's code" in told(capsys)
    assert "‡" not in page.read_text()  # all by one version


def test_a_report_is_made_again_where_a_targets_file_has_changed() -> None:
    Path("stamped_opt.py").write_text("class Mine: pass\n")
    Path("page").write_text("page")
    stamp.write(Path(), "digest", [], ["stamped_opt.Mine"], [Path("page")], headline="found")
    assert stamp.unchanged(Path(), "digest") is not None
    Path("stamped_opt.py").write_text("class Mine: ...\n")
    assert stamp.unchanged(Path(), "digest") is None


@pytest.mark.medium
def test_a_plan_says_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    write_study()
    for _, folder in finished(load_study("mine")):
        trained_by(folder, {OWN: "other"})
    capsys.readouterr()
    assert study("mine", plan=True, console=Console(file=io.StringIO())) == 0
    assert capsys.readouterr().err.startswith("note: the code of neumann has changed since 24 of these 24 results were")
