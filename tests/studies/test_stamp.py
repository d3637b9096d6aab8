"""A report is rendered again when, and only when, something that it was made of has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from neumann.studies import stamp
from neumann.studies.plan import Study, load_study
from tests.support.study_folders import write_study

RUN = Path("runs/mine/a-run")


@pytest.fixture
def study() -> Study:
    write_study()
    RUN.mkdir(parents=True)
    for name in ("signed.json", "result.json"):
        (RUN / name).write_text("{}")
    Path("own").mkdir()
    Path("own/a.yaml").write_text("lr: 0.1\n")
    return load_study("mine", config_dirs=["own"])


def append(file: str) -> None:
    with open(file, "a") as opened:
        opened.write("# more\n")


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        (lambda: append("experiments/mine/study.yaml"), True),
        (lambda: append("own/a.yaml"), True),
        (lambda: append("own/b.yaml"), True),
        (lambda: append(f"{RUN}/result.json"), True),
        (lambda: append(f"{RUN}/measurements.jsonl"), True),
        (lambda: (RUN / "result.json").unlink(), True),
        (lambda: append(f"{RUN}/output.log"), False),
        (lambda: append("runs/mine/notes.json"), False),
    ],
)
def test_the_digest_follows_all_that_a_report_is_made_of(
    study: Study, change: Callable[[], None], matters: bool
) -> None:
    before = stamp.digest(study, RUN.parent)
    assert stamp.digest(study, RUN.parent) == before
    change()
    assert (stamp.digest(study, RUN.parent) != before) == matters


def test_the_digest_notices_a_record_that_keeps_its_size_and_time(study: Study) -> None:
    before = stamp.digest(study, RUN.parent)
    file = RUN / "result.json"
    state = file.stat()
    file.write_text("[]")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert stamp.digest(study, RUN.parent) != before


def test_a_report_or_a_stamp_that_was_edited_is_rendered_again(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("40.1 %")
    stamp.write(tmp_path, "digest", [], [], [page], headline="worse")
    page.write_text("10.1 %")
    assert stamp.unchanged(tmp_path, "digest") is None
    page.write_text("40.1 %")
    assert stamp.unchanged(tmp_path, "digest") is not None
    file = tmp_path / stamp.NAME
    file.write_text(file.read_text().replace("worse", "better"))
    assert stamp.unchanged(tmp_path, "digest") is None


def test_the_digest_follows_the_code_and_its_templates(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    real = {file.suffix for file in stamp.PACKAGE.glob("studies/**/*") if file.is_file()} - {".pyc"}
    assert real == {".py", ".j2", ".css"}  # a file of another kind must be among the stamp's kinds as well
    Path("package/conf").mkdir(parents=True)
    monkeypatch.setattr(stamp, "PACKAGE", Path("package").resolve())
    seen = [stamp.digest(study, RUN.parent)]
    for name in ("new.py", "page.j2", "page.css"):
        append(f"package/{name}")
        seen.append(stamp.digest(study, RUN.parent))
    append("package/notes.txt")
    assert len(set(seen)) == 4
    assert stamp.digest(study, RUN.parent) == seen[-1]


def test_a_report_that_is_not_whole_is_rendered_again(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("page")
    stamp.write(tmp_path, "digest", [], [], [page], headline="found")
    assert (stamp.unchanged(tmp_path, "digest") or {})["headline"] == "found"
    assert stamp.unchanged(tmp_path, "another") is None
    page.write_text("page, longer")
    assert stamp.unchanged(tmp_path, "digest") is None
    page.unlink()
    assert stamp.unchanged(tmp_path, "digest") is None
