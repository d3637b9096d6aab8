"""A report is rendered again when, and only when, something that it was made of has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neumann.studies import run as studies
from neumann.studies import stamp
from neumann.studies.plan import Study, load_study
from tests.support.study_folders import finish, write_study

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
    assert real == {".py", ".j2", ".css", ".js"}  # a file of another kind must be among the stamp's kinds as well
    Path("package/conf").mkdir(parents=True)
    monkeypatch.setattr(stamp, "PACKAGE", Path("package").resolve())
    seen = [stamp.digest(study, RUN.parent)]
    for name in ("new.py", "page.j2", "page.css", "page.js"):
        append(f"package/{name}")
        seen.append(stamp.digest(study, RUN.parent))
    append("package/notes.txt")
    assert len(set(seen)) == 5
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


def test_a_file_of_no_use_beside_the_configuration_is_no_error(study: Study, tmp_path: Path) -> None:
    (tmp_path / "optimizer" / "folder.yaml").mkdir(parents=True)
    os.mkfifo(tmp_path / "optimizer" / "pipe.yaml")
    (tmp_path / "optimizer" / "dead.yaml").symlink_to("nowhere")
    one = replace(study, config_dirs=(str(tmp_path),))
    before = stamp.digest(one, RUN.parent)
    (tmp_path / "optimizer" / "mine.yaml").write_text("lr: 1")
    assert stamp.digest(one, RUN.parent) != before


@pytest.mark.medium
def test_a_run_that_ends_while_a_report_is_made_is_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    write_study()
    one = load_study("mine")
    for planned in one.tuning():
        finish(planned, {0.1: 0.03, 0.3: 0.01, 1.0: 0.02}[planned.setting["optimizer.lr"]])
    *others, last = [run for row in ("sgd", "neumann") for run in one.evaluation(row, {"optimizer.lr": 0.3})]
    for planned in others:
        finish(planned, 0.02)
    analyse, made = studies.analyse, []

    def slow(runs: Any) -> Any:
        made.append(analyse(runs))
        if len(made) == 1:
            finish(last, 0.02)  # by another process
        return made[-1]

    def render(results: Any, folder: Path) -> list[Path]:
        (folder / "report.html").write_text(results.answer)
        return [folder / "report.html"]

    monkeypatch.setattr(studies, "analyse", slow)
    monkeypatch.setattr("neumann.studies.report.page.render", render)
    for _ in range(3):
        assert studies.report("mine", console=Console(quiet=True)) == 0
    assert [results.incomplete is None for results in made] == [False, True]  # the third is answered by the stamp


@pytest.mark.medium
def test_studies_of_one_folder_are_published_side_by_side() -> None:
    page = Path("runs/page/report.html")
    page.parent.mkdir(parents=True)
    for name in ("study", "first", "second"):
        file = write_study().rename(f"experiments/mine/{name}.yaml")
        page.write_text(name)
        studies._publish(load_study(str(file)), page.parent, None, Console(quiet=True))
    published = {str(path.parent): path.read_text() for path in Path("experiments/mine/results").rglob("report.html")}
    assert published == {
        "experiments/mine/results/full": "study",
        "experiments/mine/results/first/full": "first",
        "experiments/mine/results/second/full": "second",
    }
