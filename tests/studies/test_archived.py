"""A study and its archive: a fresh clone has the report without training, and trains only what the archive lacks."""

from __future__ import annotations

import copy
import functools
import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from neumann.cli.main import main
from neumann.config import RESULTS_VERSION, RunSpec, make_spec, precision, signature
from neumann.launch.protocol import LaunchView, RunOutcome
from neumann.store import RunFolder
from neumann.store.code_digests import OWN_DIGEST
from neumann.store.vouching import sealed, with_curve
from neumann.studies.collect import collect
from neumann.studies.plan import TUNING, PlannedRun, Study, load_study
from neumann.studies.report.figures import draw
from neumann.studies.study_run import StudyRun
from tests.support.fake_results import study as fake_study
from tests.support.study_folders import STUDY, diverge, finish, write_study

pytestmark = pytest.mark.medium

RATE = {"optimizer.lr": 0.1}
REPORT = Path("runs/mine/report-full")
FILE = Path("experiments/mine/results/full/runs.jsonl.gz")
TABLES = ("table.md", "table.csv", "runs.csv", "curves.csv", "errors.svg", "curves.svg", "tuning.svg", "errors.png")


def content(seeds: Sequence[int] = (0, 1), **rows: Any) -> dict[str, Any]:
    """Return a study of two rows at one rate."""
    study = copy.deepcopy(STUDY)
    del study["rows"]["averaged"], study["paper"]
    study["rows"] |= rows
    return study | {"space": {"optimizer.lr": [0.1]}, "seeds": {"tuning": [100], "evaluation": list(seeds)}}


def planned(study: Study) -> list[PlannedRun]:
    return [*study.tuning(), *(run for row in study.config.rows for run in study.evaluation(row, RATE))]


def train(study: Study, runs: Sequence[PlannedRun], *, commit: str = "c0ffee" * 7, code: str = OWN_DIGEST) -> None:
    """Write what the runs leave, on a machine of this commit and code."""
    error = 0.02
    for i, one in enumerate(runs):
        folder = finish(one, error, test=error + i / 300)
        attempt = {
            "attempt": 1,
            "step": 0,
            "git": {"commit": commit, "diff_sha256": None},
            "host": {"name": "secret-host", "processor": "A Processor", "cores": 8},
            "device": "cpu",
            "code": {"neumann": code},
        }
        folder.provenance.write_text(json.dumps({"attempts": [attempt]}))


def files(folder: Path = REPORT) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".stamp.json"}


@pytest.fixture
def study() -> Study:
    write_study(content())
    return load_study("mine")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A study that was trained elsewhere, one run diverged, and packed; and the report from the folders there."""
    with pytest.MonkeyPatch.context() as at:
        at.chdir(tmp_path_factory.mktemp("elsewhere"))
        write_study(content())
        one = load_study("mine")
        runs = planned(one)
        train(one, runs[:-1])
        diverge(runs[-1])
        assert main(["report", "mine"]) == 0
        assert main(["runs", "pack", "mine"]) == 0
        return Path.cwd(), files()


@pytest.fixture
def packed(clone: tuple[Path, dict[str, bytes]]) -> dict[str, bytes]:
    """What a fresh clone has of it: the archive and no run. Returns the files of the report from the folders."""
    shutil.copytree(clone[0] / "experiments", "experiments")
    return clone[1]


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with figures of another study, which take no time."""
    monkeypatch.setattr("neumann.studies.report.figures.draw", lambda _: _drawn())


@functools.cache
def _drawn() -> dict[str, Any]:
    return draw(fake_study())


def test_a_fresh_clone_has_every_table_and_figure_of_the_report(packed: dict[str, bytes]) -> None:
    assert main(["report", "mine"]) == 0
    found = files()
    assert found.keys() == packed.keys()
    assert {name for name in found if found[name] != packed[name]} == {"report.html"}
    assert set(TABLES) <= found.keys()
    assert [path.name for path in Path("runs/mine").iterdir()] == ["report-full"]  # no run was made of it


def test_the_committed_page_is_rendered_again_to_the_byte(study: Study) -> None:
    runs = planned(study)
    train(study, runs)
    assert main(["runs", "pack", "mine"]) == 0
    assert main(["report", "mine", "--publish", "logger=none"]) == 0  # with the runs in their folders
    page = (FILE.parent / "report.html").read_bytes()
    shutil.rmtree("runs")
    assert main(["report", "mine"]) == 0  # on another machine, with the archive alone
    assert files()["report.html"] == page
    assert main(["report", "mine", "--publish"]) == 0
    assert FILE.exists()


@pytest.mark.usefixtures("no_figures")
def test_the_report_says_which_runs_came_from_which_code_and_machine(
    packed: dict[str, bytes], study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(content(seeds=(0, 1, 2)))
    more = load_study("mine")
    train(more, [run for run in planned(more) if run.seed == 2], commit="deadbeef" * 5, code="0" * 16)
    assert main(["report", "mine"]) == 0
    page = " ".join(files()["report.html"].decode().split())
    assert "6 of the 8 runs that are over are in <code>results/full/runs.jsonl.gz</code>" in page
    assert page.count("finished, archived") == 5
    assert page.count("diverged, archived") == 1
    assert "commit c0ffeec0ffee" in page
    assert "A Processor, 8 cores, cpu" in page
    archived, _, _ = page.partition("How to reproduce")
    assert '<td class="num">5</td><td>SGD, Neumann</td>' in archived.partition("Archive</h3>")[2]
    assert "deadbeef" not in archived.partition("Archive</h3>")[2]
    assert "secret-host" not in page
    assert "‡" in files()["table.md"].decode()  # of one code in the archive, of another here
    assert b"Archive</h3>" not in packed["report.html"]


@pytest.mark.usefixtures("no_figures")
def test_a_plan_and_an_estimate_count_what_is_archived(
    packed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "mine", "--plan"]) == 0
    out = capsys.readouterr().out
    assert f"archived: 6 of these 6 runs are in {FILE}" in out
    assert "to train: 0 runs" in out
    assert main(["study", "mine", "--plan", "--no-archive"]) == 0
    out = capsys.readouterr().out
    assert "archived" not in out
    assert "to train: 2 runs and up to 4 evaluation runs" in out
    assert main(["study", "mine", "--estimate=1000"]) == 0
    assert "6" in capsys.readouterr().out


class Trains:
    """A launcher whose runs are over at once."""

    preparation, parallel = "nothing", 1

    def __init__(self) -> None:
        self.asked: list[RunSpec] = []
        self.trained: list[RunSpec] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, specs: Sequence[RunSpec], view: LaunchView) -> list[RunOutcome]:
        self.asked += specs
        by_signature = {run.spec.signature: run.planned for run in _all_runs(load_study("mine"))}
        for spec in specs:
            if RunOutcome.of_result(spec) is None:
                self.trained.append(spec)
                train(load_study("mine"), [by_signature[spec.signature]])
        return [outcome for spec in specs if (outcome := RunOutcome.of_result(spec)) is not None]


def _all_runs(study: Study) -> list[Any]:
    from neumann.config import make_specs
    from neumann.studies.study_run import runs_of

    return runs_of(study, planned(study), make_specs)


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Trains:
    one = Trains()
    monkeypatch.setattr("neumann.launch.make_launcher", lambda *_: one)
    return one


@pytest.mark.usefixtures("no_figures")
def test_a_study_goes_on_where_another_machine_stopped(
    study: Study, launcher: Trains, capsys: pytest.CaptureFixture[str]
) -> None:
    first, rest = planned(study)[:3], planned(study)[3:]
    train(study, first)
    assert main(["runs", "pack", "mine"]) == 0
    assert "3 runs of the study are not over yet: neumann study mine" in capsys.readouterr().out
    before = FILE.read_bytes()
    shutil.rmtree("runs")
    assert main(["study", "mine"]) == 0
    assert "archived: 2 of these 2 runs" in capsys.readouterr().out
    assert sorted(spec.config.seed for spec in launcher.trained) == sorted(run.seed for run in rest)
    assert FILE.read_bytes() == before  # a study writes none
    assert main(["runs", "pack", "mine"]) == 0
    assert f"{FILE}: 6 runs, 3 of them new" in capsys.readouterr().out
    runs = collect(load_study("mine"))
    assert all(run.over for run in (*runs.tuning, *runs.evaluation))
    shutil.rmtree("runs")
    assert main(["report", "mine", "--publish"]) == 0


@pytest.mark.usefixtures("no_figures")
def test_a_new_row_is_compared_with_tuned_rows_that_are_not_trained_again(
    packed: dict[str, bytes], launcher: Trains
) -> None:
    write_study(content(mine={"label": "Nesterov", "overrides": ["optimizer=nesterov"]}))
    assert main(["study", "mine"]) == 0
    assert [spec.choices["optimizer"] for spec in launcher.trained] == ["nesterov"] * 3
    assert b"Nesterov" in files()["table.md"]
    assert b"SGD" in files()["table.md"]


@pytest.mark.usefixtures("no_figures")
def test_a_study_can_be_repeated_without_its_archive(
    packed: dict[str, bytes], launcher: Trains, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "mine", "--no-archive"]) == 0
    assert len(launcher.trained) == 6
    page = files()["report.html"].decode()
    assert "runs.jsonl.gz" not in page
    assert "neumann report mine --no-archive" in page
    # the other training of the diverged run is told, and packed over nothing
    assert main(["report", "mine"]) == 0
    said = "of its 6 runs have another result in the folder of runs, which counts, such as digits-small_cnn-"
    assert said in capsys.readouterr().err
    assert said in " ".join(files()["report.html"].decode().split())
    before = FILE.read_bytes()
    assert main(["runs", "pack", "mine"]) == 2
    assert "as another training left" in capsys.readouterr().err
    assert FILE.read_bytes() == before


@pytest.mark.usefixtures("no_figures")
def test_a_report_is_left_as_it_is_until_the_archive_changes(
    packed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["report", "mine"]) == 0
    with monkeypatch.context() as at:
        at.setattr("neumann.studies.run.collect", lambda *_: pytest.fail("it is rendered again"))
        assert main(["report", "mine"]) == 0
        assert main(["study", "mine"]) == 0
    FILE.unlink()
    assert main(["report", "mine"]) == 0
    assert b"This study is not finished" in files()["report.html"]


def damage(name: str = "") -> None:
    """Change an error in the archive, of the run whose name begins with ``name``."""
    lines = [json.loads(line) for line in gzip.decompress(FILE.read_bytes()).splitlines()]
    one = next(line for line in lines if line["name"].startswith(name))
    one["result"]["test"] = {"held": {"error": 0.0, "loss": 0.0, "wrong": 0, "n": 300}}
    FILE.write_bytes(gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))


@pytest.mark.usefixtures("no_figures")
def test_an_edited_run_is_told_everywhere_and_trained_again(
    packed: dict[str, bytes], launcher: Trains, capsys: pytest.CaptureFixture[str]
) -> None:
    damage("digits-small_cnn-sgd-s0-")
    said = f"{FILE}: 1 of its 6 runs is not used: not what was packed (line "
    assert main(["study", "mine", "--plan"]) == 0
    out = capsys.readouterr().out
    assert said in out
    assert "to train: 1 run " in out
    for _ in range(2):  # made, then answered from its stamp
        assert main(["report", "mine"]) == 0
        assert said in capsys.readouterr().err
    assert "not what was packed" in files()["report.html"].decode()
    before = FILE.read_bytes()
    assert main(["study", "mine"]) == 0
    assert len(launcher.trained) == 1
    assert main(["runs", "pack", "mine"]) == 2
    assert "put back what was packed, or move the file away" in capsys.readouterr().err
    assert FILE.read_bytes() == before


@pytest.mark.usefixtures("no_figures")
def test_runs_of_another_results_version_are_told(
    packed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signature, "RESULTS_VERSION", RESULTS_VERSION + 1)
    assert main(["report", "mine"]) == 0
    assert (
        f"{FILE}: 6 of its 6 runs are not used: they are of results version {RESULTS_VERSION}, and this neumann makes "
        f"version {RESULTS_VERSION + 1}"
    ) in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_runs_that_the_study_no_longer_asks_for_are_told_and_kept(
    packed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(content() | {"overrides": [*STUDY["overrides"], "recipe.label_smoothing=0.1"]})
    assert main(["report", "mine"]) == 0
    said = capsys.readouterr().err
    assert "6 of its 6 runs are not what the study asks for now: recipe.label_smoothing was 0 and is 0.1" in said
    now = load_study("mine")
    train(now, planned(now))
    assert main(["runs", "pack", "mine"]) == 0
    assert "12 runs, 6 of them new" in capsys.readouterr().out


@pytest.mark.usefixtures("no_figures")
def test_a_report_from_an_archive_is_not_overwritten_by_an_emptier_one(
    packed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "mine"]) == 0
    before = files()
    write_study(content() | {"overrides": [*STUDY["overrides"], "recipe.label_smoothing=0.1"]})
    assert main(["report", "mine"]) == 2
    assert "2 of the 2 tuning runs that runs/mine/report-full stands on are not what the" in capsys.readouterr().err
    assert files() == before


@pytest.mark.usefixtures("no_figures")
def test_other_code_than_todays_is_told(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    runs = planned(study)
    train(study, runs)
    for path in Path("runs/mine").glob("*/result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps(sealed({**result, "code": [{"neumann": "0123456789abcdef"}]})))
    assert main(["runs", "pack", "mine"]) == 0
    shutil.rmtree("runs")
    assert main(["report", "mine"]) == 0
    said = capsys.readouterr().err
    assert "the code of neumann has changed since 6 of these 6 results were trained, and they stand" in said
    assert "--no-archive output=NEW trains all with today's code" in said


@pytest.mark.usefixtures("no_figures")
def test_what_takes_weights_says_that_there_are_none(
    packed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").mkdir()
    one = next(iter(load_study("mine").archive.runs.values()))
    for command in (["evaluate"], ["export"], ["predict"], ["runs", "resume"], ["runs", "show"]):
        words = [*command, one.signature[:8], *(["image.png"] if command == ["predict"] else [])]
        assert main(words) == 2, command
        err = " ".join(capsys.readouterr().err.split())
        assert f"{one.path.name} has no folder here: it is a run of {FILE}, which holds results and no weights" in err
        assert "neumann study mine --no-archive trains" in err
    FILE.parent.rename(FILE.parent.with_name("small"))
    assert main(["evaluate", one.path.name]) == 2
    assert "neumann study mine --budget small --no-archive trains" in capsys.readouterr().err
    assert main(["evaluate", "0" * 12]) == 2
    assert "there is no run 000000000000 in runs" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_there_is_something_to_pack(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["mine"], "no run of mine is over yet, so there is nothing to pack: neumann study mine"),
        ([], "takes a study"),
        (["nine"], "there is no study 'nine'"),
        (["mine", "optimizer.lr=1"], "'optimizer.lr=1' may change what a study finds"),
        (["mine", "--budget", "tiny"], "there is no budget 'tiny'"),
    ):
        assert main(["runs", "pack", *words]) == 2
        assert said in capsys.readouterr().err
        assert not FILE.parent.exists()


@pytest.mark.usefixtures("no_figures")
def test_packing_twice_writes_once(packed: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    before = FILE.stat().st_mtime_ns, FILE.stat().st_ino
    assert main(["runs", "pack", "mine"]) == 0
    assert "6 runs, all there before, so it is left as it is" in capsys.readouterr().out
    assert (FILE.stat().st_mtime_ns, FILE.stat().st_ino) == before


@pytest.mark.usefixtures("no_figures")
def test_a_spoilt_result_is_not_packed(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    train(study, planned(study))
    folder = next(iter(collect(study).tuning)).folder
    assert isinstance(folder, RunFolder)
    result = folder.result() or {}
    folder.write_result({**result, "digest": "0123456789abcdef"})
    assert main(["runs", "pack", "mine"]) == 2
    assert "result.json is not what the run wrote" in capsys.readouterr().err
    assert not FILE.exists()


@pytest.mark.usefixtures("no_figures")
def test_a_study_of_another_name_has_an_archive_of_its_own() -> None:
    write_study(content())
    Path("experiments/mine/study.yaml").rename("experiments/mine/other.yaml")
    one = load_study("experiments/mine/other.yaml")
    train(one, planned(one))
    assert main(["runs", "pack", "experiments/mine/other.yaml"]) == 0
    assert Path("experiments/mine/results/other/full/runs.jsonl.gz").exists()
    shutil.rmtree("runs")
    assert main(["report", "experiments/mine/other.yaml", "--publish"]) == 0


@pytest.mark.usefixtures("no_figures")
def test_a_grid_that_was_packed_before_its_tests_is_packed_again(capsys: pytest.CaptureFixture[str]) -> None:
    grid = content() | {"design": "grid", "seeds": {"evaluation": [0, 1]}, "space": {"optimizer.lr": [0.1, 0.3]}}
    write_study(grid)

    def finished(study: Study, runs: Sequence[StudyRun], trials: object) -> None:
        for run in (run for run in runs if not run.over):
            planned = run.planned
            error = 0.02 + planned.setting["optimizer.lr"] / 10
            folder = finish(planned, error, tested=planned.role != TUNING, spec=run.spec)
            folder.write_result(sealed(with_curve(folder.result() or {}, folder.read_measurements())))

    def stopped(study: Study, runs: Sequence[StudyRun], trials: object) -> None:
        finished(study, [run for run in runs if run.planned.role == TUNING], trials)

    collect(load_study("mine"), stopped)
    assert main(["runs", "pack", "mine"]) == 0
    collect(load_study("mine"), finished)
    assert f"{FILE}: 8 runs, 8 of them new" in capsys.readouterr().out
    assert main(["report", "mine"]) == 0  # what is packed untested and was tested since is no other training
    assert "another result" not in capsys.readouterr().err
    assert main(["runs", "pack", "mine"]) == 0
    assert f"{FILE}: 8 runs, 4 of them new" in capsys.readouterr().out
    assert main(["report", "mine"]) == 0
    page = files()["report.html"]
    shutil.rmtree("runs")
    assert main(["report", "mine"]) == 0
    assert files()["report.html"] == page
    assert b"8 of the 8 runs that are over are in" in page


def test_a_study_that_leaves_its_precision_open_is_read_from_the_archive_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_study(content())
    one = load_study("mine")
    monkeypatch.setattr(precision, "torch_has_gpu", lambda: True)
    for planned_run in planned(one):
        finish(planned_run, 0.02, spec=make_spec(planned_run.overrides))
    assert main(["runs", "pack", "mine"]) == 0
    shutil.rmtree("runs")
    monkeypatch.setattr(precision, "torch_has_gpu", lambda: False)
    found = collect(load_study("mine"))
    assert found.study.taken_over == "bf16-mixed"
    assert all(run.over for run in (*found.tuning, *found.evaluation))
