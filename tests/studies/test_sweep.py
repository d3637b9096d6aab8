"""The page of a sweep says what its runs say: every number by other means, grouping by all but the seed, and no verdict."""

from __future__ import annotations

import csv
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from neumann.cli.main import main
from neumann.config import make_spec, resolution
from neumann.store import RunFolder
from neumann.store.archive import Archive, of_folder
from neumann.store.selection import select
from neumann.studies import sweep_report
from neumann.studies.report import sweep_page
from neumann.studies.report.figures.svg import Drawing
from neumann.studies.sweep import EXPLORATORY, group
from neumann.studies.sweep_commands import repeat_words
from neumann.studies.sweep_runs import read_runs
from tests.support.sweep_folders import put, run_of

pytestmark = pytest.mark.medium

PAGE = Path("runs/mine/exploratory-report")
SGD = ("optimizer=sgd",)


@pytest.fixture
def no_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_report, "repeat_words", lambda groups, columns: {})  # half a second each


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Drawing(b"", b"", b"", "left out here", empty=True)
    monkeypatch.setattr(sweep_page, "_draw", lambda results: {"errors": empty, "curves": empty})


quick = pytest.mark.usefixtures("no_commands", "no_figures")
drawn = pytest.mark.usefixtures("no_commands")


def report(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """Run the command and return what it said, as one line."""
    assert main(["report", "--runs", *words]) == code
    out = capsys.readouterr()
    return " ".join((out.err if code else out.out + out.err).split())


def table(folder: Path = PAGE, name: str = "table.csv") -> dict[str, dict[str, str]]:
    with open(folder / name, encoding="utf-8", newline="") as file:
        return {line["row"]: line for line in csv.DictReader(file)}


def sweep(rates: tuple[float, ...] = (0.03, 0.1), seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    random = np.random.default_rng(0)
    for rate in rates:
        for seed in seeds:
            errors = random.integers(3, 60, 2) / 300
            put(*SGD, f"optimizer.lr={rate}", seed=seed, error=float(errors[0]), test=float(errors[1]))


@quick
def test_numbers_are_those_of_the_runs_by_numpy_and_scipy(capsys: pytest.CaptureFixture[str]) -> None:
    sweep(seeds=(0, 1, 2, 5))
    said = report(capsys, "runs/mine/*")
    by_rate: dict[float, dict[int, tuple[float, float]]] = {}
    for path in Path("runs/mine").glob("*-*-s*"):
        signed, result = (json.loads((path / f"{name}.json").read_text()) for name in ("signed", "result"))
        errors = tuple(result[split]["held"]["error"] for split in ("validation", "test"))
        by_rate.setdefault(signed["config"]["optimizer"]["lr"], {})[signed["config"]["seed"]] = errors
    rows = table()
    assert list(rows) == ["lr 0.03", "lr 0.1"]
    for rate, by_seed in by_rate.items():
        row = rows[f"lr {rate:g}"]
        assert float(row["optimizer.lr"]) == rate
        assert (row["runs"], row["finished"], row["diverged"], row["test_n"]) == ("4", "4", "0", "4")
        for at, what in enumerate(("validation", "test")):
            values = np.array([errors[at] for errors in by_seed.values()])
            low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
            for part, right in (
                ("mean", values.mean()),
                ("sd", values.std(ddof=1)),
                ("median", np.median(values)),
                ("low", max(0, low)),
                ("high", high),
            ):
                assert float(row[f"{what}_error_{part}"]) == pytest.approx(right, rel=1e-9)
        assert f"{100 * np.mean([e[0] for e in by_seed.values()]):.2f}" in said
    differences = np.array([by_rate[0.1][seed][0] - by_rate[0.03][seed][0] for seed in (0, 1, 2, 5)])
    row = rows["lr 0.1"]
    assert (row["difference_against"], row["difference_n"]) == ("lr 0.03", "4")
    low, high = stats.t.interval(0.95, 3, differences.mean(), stats.sem(differences))
    for part, right in (("mean", differences.mean()), ("low", low), ("high", high)):
        assert float(row[f"difference_{part}"]) == pytest.approx(right, rel=1e-9)
    curves = list(csv.DictReader(open(PAGE / "curves.csv", newline="")))  # noqa: SIM115
    last = next(line for line in curves if line["row"] == "lr 0.1" and line["epoch"] == "2.0")
    assert float(last["validation_error"]) == pytest.approx(np.mean([e[0] for e in by_rate[0.1].values()]))


@quick
def test_it_is_exploratory_and_has_no_verdict_and_no_p(capsys: pytest.CaptureFixture[str]) -> None:
    sweep()
    assert EXPLORATORY in report(capsys, "mine")
    for name in ("report.html", "table.md"):
        head, _, body = (PAGE.with_name("exploratory-report-mine") / name).read_text().partition("</style>")
        text = body or head
        assert EXPLORATORY in text
        for word in ("Holm", "undecided", "equivalent", "t-test p", "smallest effect", "primary"):
            assert word not in text


@quick
def test_rows_are_all_that_differs_but_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    idle = ["logger.project=mine", "trainer.log_every_n_steps=7", "trainer.test=false", "checkpoint=none", "name=x"]
    for seed, word in enumerate(idle):
        put(*SGD, seed=seed, extra=("logger=wandb", word))
    put(*SGD, "recipe.label_smoothing=0.1", seed=7)
    report(capsys, "runs/mine/*")
    rows = table()
    assert {name: row["runs"] for name, row in rows.items()} == {
        "recipe.label_smoothing 0": "5",
        "recipe.label_smoothing 0.1": "1",
    }
    columns = next(iter(rows.values())).keys()
    assert [key for key in columns if "." in key] == ["recipe.label_smoothing"]


@quick
def test_columns_of_optimizers_and_rates(capsys: pytest.CaptureFixture[str]) -> None:
    put(*SGD, "optimizer.lr=0.1")
    put(*SGD, "optimizer.lr=0.3")
    put("optimizer=nesterov", "optimizer.lr=0.1")
    put("optimizer=neumann", "optimizer.lr=0.1")
    put("optimizer=neumann", "optimizer.lr=0.1", "optimizer.alpha=0")
    report(capsys, "runs/mine")
    rows = table(PAGE.with_name("exploratory-report-mine"))
    assert list(rows) == [
        "nesterov, lr 0.1",
        "neumann, lr 0.1, alpha 0",
        "neumann, lr 0.1, alpha 1e-07",
        "sgd, lr 0.1",
        "sgd, lr 0.3",
    ]
    columns = list(rows["sgd, lr 0.1"])
    shown = columns[1 : columns.index("evaluated_at")]
    assert shown == ["optimizer", "optimizer.lr", "optimizer.momentum", "optimizer.alpha"]
    assert rows["neumann, lr 0.1, alpha 0"]["evaluated_at"] == "base"
    page = (PAGE.with_name("exploratory-report-mine") / "report.html").read_text()
    assert "<code>optimizer.beta</code>" in page  # among all settings that differ


@quick
def test_a_horizon_is_a_column_and_the_steps_that_follow_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    put("optimizer=neumann")
    put("optimizer=neumann", extra=("trainer.max_epochs=4",))
    report(capsys, "runs/mine/*")
    rows = table()
    assert list(rows) == ["trainer.max_epochs 2", "trainer.max_epochs 4"]
    assert [key for key in rows["trainer.max_epochs 2"] if "." in key] == ["trainer.max_epochs"]


@quick
def test_steps_that_alone_tell_rows_apart_are_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    put("optimizer=neumann")
    put("optimizer=neumann", "optimizer.reset_period=9")
    put("optimizer=neumann", "timing.burn_in=0.5")
    report(capsys, "runs/mine/*")
    names = list(table())
    assert len(set(names)) == 3
    assert [name for name in names if "timing.burn_in 0.5" in name]
    assert [name for name in names if "reset_period 9" in name]


@drawn
def test_one_configuration_or_one_run_is_a_row_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    put(*SGD, seed=3, error=0.05)
    said = report(capsys, "runs/mine/*")
    assert "The mean validation error of digits-small_cnn-sgd is 5.00 %, n = 1" in said
    assert list(table()) == ["digits-small_cnn-sgd"]
    text = (PAGE / "report.html").read_text()
    assert "There is one row, so there is nothing to compare." in text
    assert not (PAGE / "rates.svg").exists()


@quick
def test_other_images_and_splits_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    put(*SGD)
    put(*SGD, "data.split_seed=1")
    said = report(capsys, "runs/mine/*", code=2)
    assert "cannot be one table: the splits of their images differ, data.split_seed=" in said
    put(*SGD, "data=fashion14", extra=("name=f",))
    said = report(capsys, "runs/mine/digits*s0*", "runs/mine/f-*", code=2)
    assert "their images differ, data.kind=digits in runs/mine/digits" in said
    assert "data.kind=fashion14 in runs/mine/f-" in said
    assert not list(Path("runs/mine").glob("exploratory*"))


@quick
def test_what_is_not_over_is_counted_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    put(*SGD, seed=0)
    put(*SGD, seed=1, status="failed")
    put(*SGD, seed=2, status="running")
    put(*SGD, "optimizer.lr=1", seed=0, status="diverged")
    said = report(capsys, "runs/mine/*")
    assert "2 of 4 runs are not over: 1 failed, 1 interrupted." in said
    assert "1 run diverged." in said
    rows = table()
    assert (rows["lr 1"]["finished"], rows["lr 1"]["diverged"], rows["lr 1"]["validation_error_mean"]) == ("0", "1", "")
    assert (rows["lr 0.1"]["runs"], rows["lr 0.1"]["finished"]) == ("3", "1")
    page = (PAGE / "report.html").read_text()
    assert "it broke" in page
    assert "2 of 4 runs are not over" in page


@quick
def test_rows_of_other_seeds_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    sweep()
    put(*SGD, "optimizer.lr=0.3", seed=1)
    said = report(capsys, "runs/mine/*")
    assert "Not all rows have the same seeds: lr 0.3 has no 0, 2." in said
    assert table()["lr 0.3"]["difference_n"] == "1"


@quick
def test_none_over_and_no_run_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    put(*SGD, seed=1, status="failed")
    assert "none of these runs is over: 1 failed" in report(capsys, "runs/mine", code=2)
    assert "no folder fits runs/none*/x" in report(capsys, "runs/none*/x", code=2)
    assert "takes patterns" in report(capsys, code=2)
    put(*SGD, seed=2)
    assert "--against lr 7 names no row" in report(capsys, "runs/mine", "--against", "lr 7", code=2)


@quick
def test_other_code_or_libraries_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    for rate, torch in ((0.1, "2.10"), (0.3, "2.11")):
        for seed in (0, 1):
            put(*SGD, f"optimizer.lr={rate}", seed=seed, packages={"torch": torch}, device="cpu")
    report(capsys, "runs/mine/*")
    text = (PAGE / "table.md").read_text()
    assert "lr 0.3 ‡" in text
    assert "lr 0.1 ‡" not in text
    assert "‡ lr 0.3: its runs and those of lr 0.1 differ in torch." in text
    assert "Mixed torch." in (PAGE / "report.html").read_text()


@quick
def test_the_row_to_compare_with_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    sweep(rates=(0.03, 0.1, 0.3))
    report(capsys, "runs/mine/*", "--against", "lr 0.3")
    assert {name: row["difference_against"] for name, row in table().items()} == {
        "lr 0.03": "lr 0.3",
        "lr 0.1": "lr 0.3",
        "lr 0.3": "",
    }


# ------------------------------------------------------------------------------------------------ hostile folders


@quick
def test_an_edited_config_yaml_changes_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    sweep()
    report(capsys, "runs/mine/*", "--to", "before")
    path = next(Path("runs/mine").glob("*-s1-*")) / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.", "lr: 7."))
    report(capsys, "runs/mine/*", "--to", "after")
    assert table(Path("before")) == table(Path("after"))


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _unlink(folder: Path) -> None:
    (folder / "signed.json").unlink()


def _pipe(folder: Path) -> None:
    (folder / "signed.json").unlink()
    os.mkfifo(folder / "signed.json")


def _other(folder: Path) -> None:
    """Put the whole result of another run there."""
    other = next(path for path in Path("runs/mine").glob("*-s1-*") if path != folder)
    (folder / "result.json").write_bytes((other / "result.json").read_bytes())


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "result": (lambda f: _edit(f / "result.json", '"error": 0.', '"error": 0.0'), "result.json is not what the run wrote"),
    "settings": (lambda f: _edit(f / "signed.json", '"size": 32', '"size": 64'), "is not what its signature covers"),
    "seed": (lambda f: _edit(f / "signed.json", '"seed": 0', '"seed": 9'), "is not what its signature covers"),
    "deep": (lambda f: (f / "signed.json").write_text("[" * 9999), "signed.json is missing or damaged"),
    "list": (lambda f: (f / "signed.json").write_text("[1]"), "is not what its signature covers"),
    "nan": (lambda f: (f / "signed.json").write_text('{"config": {"seed": NaN}}'), "is not what its signature covers"),
    "none": (_unlink, "signed.json is missing or damaged"),
    "pipe": (_pipe, "signed.json is missing or damaged"),
    "curve": (lambda f: _edit(f / "measurements.jsonl", '"step": 37', '"step": 36'), "is not what the run measured"),
    "another": (_other, "result.json is that of the run"),
}  # fmt: skip


@quick
@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_run_is_in_no_number_and_told(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    sweep()
    spoilt = next(
        path for path in Path("runs/mine").glob("*-s0-*") if '"lr": 0.03' in (path / "signed.json").read_text()
    )
    spoil, why = SPOILT[name]
    spoil(spoilt)
    said = report(capsys, "runs/mine/*")
    assert f"1 run or file is not used, such as {spoilt}: " in said
    assert why in said
    rows = table()
    assert (rows["lr 0.03"]["runs"], rows["lr 0.1"]["runs"]) == ("2", "3")
    assert spoilt.name in (PAGE / "report.html").read_text()


@quick
def test_a_damaged_result_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    sweep()
    folder = next(Path("runs/mine").glob("*-s0-*"))
    (folder / "result.json").write_text("{")
    assert "1 of 6 runs are not over: 1 pending." in report(capsys, "runs/mine/*")


@quick
def test_links_and_copies_count_once_and_other_results_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    put(*SGD, seed=0)
    folder = put(*SGD, seed=1, error=0.2)
    copy = Path("runs/z") / folder.path.name
    copy.mkdir(parents=True)
    for file in folder.path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    Path("runs/linked").symlink_to("mine")
    report(capsys, "runs/*", "--to", "page")
    row = table(Path("page"))["digits-small_cnn-sgd"]
    assert (row["runs"], row["finished"]) == ("2", "2")
    second = put(*SGD, seed=1, error=0.3, extra=("study=another",))
    said = report(capsys, "runs/*", "--to", "page")
    assert f"2 runs and files are not used, such as runs/linked/{folder.path.name}: " in said
    assert f"it has the signature of {second.path}, which counts, and another result" in said
    assert table(Path("page"))["digits-small_cnn-sgd"]["finished"] == "2"


@quick
def test_names_that_are_markup_stay_text(capsys: pytest.CaptureFixture[str]) -> None:
    put(*SGD, extra=("name='<script>alert(1)<b>'",))
    report(capsys, "runs/mine/*")
    page = (PAGE / "report.html").read_text()
    assert page.count("<script") == 2  # the data and the script of every page
    assert "&lt;script&gt;alert(1)&lt;b&gt;" in page


# ------------------------------------------------------------------------------------------------ the place of the page


@drawn
def test_the_same_runs_give_the_same_bytes_and_an_unchanged_page_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    sweep()
    first = report(capsys, "runs/mine/*")
    before = {path.name: path.read_bytes() for path in PAGE.iterdir()}
    when = (PAGE / "report.html").stat().st_mtime_ns
    again = report(capsys, "runs/mine/*")
    assert (PAGE / "report.html").stat().st_mtime_ns == when
    assert first.endswith(again.partition("Of 2 rows")[2][-80:])
    (PAGE / "sweep.json").write_text(json.dumps({"what": EXPLORATORY, "patterns": ["runs/mine/*"]}))
    report(capsys, "runs/mine/*")
    assert {path.name: path.read_bytes() for path in PAGE.iterdir()} == before
    put(*SGD, "optimizer.lr=1", error=0.5)
    assert "Of 3 rows" in report(capsys, "runs/mine/*")
    _edit(PAGE / "report.html", "Of 3 rows", "Of 7 rows")
    report(capsys, "runs/mine/*")
    assert "Of 3 rows" in (PAGE / "report.html").read_text()


@quick
def test_nothing_else_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    sweep()
    of_study = Path("runs/mine/report-full")
    of_study.mkdir()
    (of_study / "report.html").write_text("a study's")
    assert "nothing is overwritten" in report(capsys, "runs/mine/*", "--to", str(of_study), code=2)
    report(capsys, "runs/mine/*", "--to", "page")
    assert "page is the page of other runs" in report(capsys, "runs/mine/*-s0-*", "--to", "page", code=2)
    report(capsys, "runs/mine/*-s0-*")
    assert table(Path("runs/mine/exploratory-report-s0"))["lr 0.1"]["runs"] == "1"
    Path("file").write_text("")
    assert "file is there already" in report(capsys, "runs/mine/*", "--to", "file", code=2)
    assert (of_study / "report.html").read_text() == "a study's"


@quick
def test_archived_runs_are_read_too(capsys: pytest.CaptureFixture[str]) -> None:
    folders = [put(*SGD, seed=seed, error=0.1 + seed / 100, test=0.2) for seed in (0, 1)]
    packed = [of_folder(f, run_of(*SGD, seed=i).signed(), f.result() or {}) for i, f in enumerate(folders)]
    file = Path("experiments/x/results/full/runs.jsonl.gz")
    Archive(file, {run.signature: run for run in packed}).write()
    report(capsys, "runs/mine/*")
    report(capsys, str(file), "--to", "page")
    assert table(Path("page")) == table()
    for folder in folders:
        (folder.path / "result.json").unlink()
    report(capsys, str(file.parent), "runs/mine", "--to", "both")
    assert table(Path("both")) == table()
    assert "archived" in (Path("both") / "report.html").read_text()


def test_commands_make_the_runs_and_the_command_needs_no_torch(python: Callable[[str], str]) -> None:
    sweep(seeds=(0, 4))
    put("optimizer=neumann", "+model.kwargs.width=8", seed=4)
    for path in Path("runs/mine").glob("*-s[04]-*"):
        (path / "config.yaml").write_text("data: {download: true}\nx: *a")  # what was signed says what the run was
    words = ["report", "--runs", "runs/mine/*"]
    code = (
        f"import sys\nfrom neumann.cli.main import main\nassert main({words}) == 0\nassert 'torch' not in sys.modules"
    )
    assert "exploratory-report/report.html" in python(code)
    page = (PAGE / "report.html").read_text()
    made = {}
    for line in page.split("<code>neumann train ")[1:]:
        command = line.partition("</code>")[0].replace("&#39;", "'")
        made[command] = shlex.split(command.removeprefix("-m "))
    assert len(made) == 3
    found = set()
    for given in made.values():
        *rest, seeds = given
        for seed in seeds.removeprefix("seed=").split(","):
            found.add(make_spec([*rest, f"seed={seed}"]).signature)
    assert found == {path.name[-12:] for path in Path("runs/mine").glob("*-s[04]-*")}


def test_the_data_is_read_once_for_the_commands_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (("optimizer=sgd",), ("optimizer=neumann",), ("optimizer=adam",)):
        put(*words)
    read = []
    facts = resolution.facts
    monkeypatch.setattr(resolution, "facts", lambda data: read.append(data) or facts(data))
    groups, columns = group(read_runs(select(["runs/mine/*"], Path("runs")))[0])
    assert all(repeat_words(groups, columns.keys).values())
    assert len(groups) == 3
    assert len(read) == len({str(data) for data in read})


def test_the_help_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--runs", "--help"]) == 0
    assert "exploratory" in capsys.readouterr().out


@quick
def test_a_run_that_others_train_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    put(*SGD, seed=0)
    folder = put(*SGD, seed=1, status="running")
    with RunFolder(folder.path).claim():
        assert "1 of 2 runs are not over: 1 running." in report(capsys, "runs/mine/*")
