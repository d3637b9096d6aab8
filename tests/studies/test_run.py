"""A study from its file to its report, by the real command: real processes, real runs, kill -9 included."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from neumann.cli.main import main
from neumann.store.files import read_json
from neumann.studies.analysis import analyse
from neumann.studies.collect import collect
from neumann.studies.plan import load_study
from tests.support.study_folders import STUDY, finish, write_study

WITHOUT_TORCH = (
    "import sys; from neumann.cli.main import main; code = main(sys.argv[1:]);"
    "assert not {'torch', 'pytorch_lightning', 'timm', 'wandb', 'pandas'} & set(sys.modules), 'heavy import';"
    "sys.exit(code)"
)


def small(**changes: Any) -> dict[str, Any]:
    """A study of two settings, 16 quick runs."""
    content = copy.deepcopy(STUDY)
    content["space"] = {"optimizer.lr": [0.1, 0.3]}
    content["seeds"] = {"tuning": [100, 101, 102], "evaluation": [0, 1]}
    return content | changes


def neumann(*words: str, code: str = WITHOUT_TORCH) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL
    )


def results() -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in Path("runs/mine").glob("*/result.json")}


def attempts() -> list[int]:
    return [len(read_json(path)["attempts"]) for path in Path("runs/mine").glob("*/provenance.json")]


@pytest.mark.slow
def test_a_study_trains_what_is_missing_and_nothing_twice() -> None:
    write_study(small())
    done = neumann("study", "mine", "logger=none")
    assert done.returncode == 0, done.stdout + done.stderr
    first = results()
    assert len(first) in (12 + 4, 12 + 6)  # the averaged row may have chosen the other rate
    assert set(attempts()) == {1}
    folder = Path("runs/mine/report-full")
    page = (folder / "report.html").read_text()
    assert "Is Neumann better than SGD here?" in page
    assert f"report: {folder / 'report.html'}" in done.stdout
    assert "n = 2" in done.stdout
    with open(folder / "table.csv") as file:
        table = {row["key"]: row for row in csv.DictReader(file)}
    assert set(table) == {"sgd", "averaged", "neumann"}
    for key, row in table.items():
        tests = []
        for path in Path("runs/mine").glob("*/result.json"):
            result = json.loads(path.read_text())
            signed = json.loads((path.parent / "signed.json").read_text())["config"]
            ours = "Neumann" in signed["optimizer"]["_target_"]
            rate = float(row["optimizer.lr"])
            if signed["seed"] < 100 and ours == (key == "neumann") and signed["optimizer"]["lr"] == rate:
                tests.append(result["test"]["average" if key == "averaged" else result["eval_point"]]["error"])
        assert len(tests) == 2
        assert float(row["test_error_mean"]) == pytest.approx(sum(tests) / 2)

    began = time.monotonic()
    again = neumann("study", "mine", "logger=none")
    assert again.returncode == 0, again.stderr
    assert time.monotonic() - began < 20  # no import of PyTorch, no fork server; measured 1 s on an idle machine
    assert done.stdout.splitlines()[-1] == again.stdout.splitlines()[-1]
    assert results() == first

    write_study(small(seeds={"tuning": [100, 101, 102], "evaluation": [0, 1, 2]}))
    more = neumann("study", "mine", "logger=none")
    assert more.returncode == 0, more.stderr
    assert {name: content for name, content in results().items() if name in first} == first
    assert len(results()) > len(first)
    assert set(attempts()) == {1}

    gone = next(path for path in Path("runs/mine").glob("*neumann*-s2-*"))
    for file in ("result.json", "measurements.jsonl"):
        (gone / file).unlink()
    rendered = neumann("report", "mine")
    assert rendered.returncode == 0, rendered.stderr
    assert "have no result" in rendered.stdout
    assert "neumann study mine trains them" in " ".join(rendered.stdout.split())
    assert not (gone / "result.json").exists()  # a report trains nothing


@pytest.mark.slow
def test_a_grid_is_trained_once_and_only_what_a_seed_chose_is_tested() -> None:
    content = small(design="grid", seeds={"tuning": [100], "evaluation": [0, 1]}, target={"of": "sgd"})
    content["space"] = {"optimizer.lr": [0.1, 0.3, 1.0]}
    write_study(content)
    done = neumann("study", "mine", "logger=none")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.parent: json.loads(path.read_text()) for path in Path("runs/mine").glob("*/result.json")}
    assert len(found) == 2 * 3 * 2 + 3  # two rows share theirs; and the target's
    tested = {folder: result for folder, result in found.items() if result["test"] is not None}
    assert 4 <= len(tested) <= 6  # the averaged row may have chosen other rates
    for folder, result in found.items():
        assert result["attempts"] == (2 if folder in tested else 1)
        assert (folder / "test-correct.bin").exists() == (folder in tested)
        steps = [json.loads(line)["step"] for line in (folder / "measurements.jsonl").read_text().splitlines()]
        assert steps == [18, 36]
        assert (folder / "last.ckpt").exists() == (folder not in tested)
    first = results()
    again = neumann("study", "mine", "logger=none")
    assert again.returncode == 0, again.stderr
    assert results() == first
    with open("runs/mine/report-full/runs.csv") as file:
        lines = list(csv.DictReader(file))
    assert {line["role"] for line in lines if line["test_error"]} == {"evaluation"}
    assert len({line["signature"] for line in lines if line["test_error"]}) == len(tested)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def children(pid: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found |= {int(path.parent.name)} | children(int(path.parent.name))
    return found


@pytest.mark.slow
def test_a_killed_study_loses_nothing_that_was_finished() -> None:
    write_study(small())
    words = [sys.executable, "-m", "neumann", "study", "mine", "logger=none"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while len(results()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    family = children(process.pid)
    assert family
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in family)  # nothing is left behind
    before = results()
    assert 2 <= len(before) < 8
    again = neumann("study", "mine", "logger=none")
    assert again.returncode == 0, again.stdout + again.stderr
    after = results()
    assert len(after) >= 8
    assert {name: after[name] for name in before} == before
    for name in before:
        assert len(read_json(Path("runs/mine", name, "provenance.json"))["attempts"]) == 1


@pytest.mark.slow
def test_a_failing_row_leaves_the_others_and_exits_with_1() -> None:
    content = small()
    del content["rows"]["averaged"]
    content["rows"]["broken"] = {"label": "Broken", "overrides": ["optimizer=broken"]}
    write_study(content)
    Path("mine/optimizer").mkdir(parents=True)
    Path("mine/optimizer/broken.yaml").write_text("_target_: broken_optimizer.Broken\nlr: 0.1\nweight_decay: 0.0\n")
    Path("broken_optimizer.py").write_text(
        "import torch\nclass Broken(torch.optim.SGD):\n    def step(self, closure=None):\n"
        "        closure()\n        raise RuntimeError('the step broke')\n"
    )
    done = neumann("study", "mine", "--config-dir", "mine", "logger=none")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the step broke" in done.stdout
    assert "no setting is chosen yet for Broken" in Path("runs/mine/report-full/report.html").read_text()
    with open("runs/mine/report-full/table.csv") as file:
        table = {row["key"]: row for row in csv.DictReader(file)}
    assert table["neumann"]["test_error_mean"]
    assert table["broken"]["test_error_mean"] == ""


@pytest.mark.medium
def test_values_of_a_study_are_tried_before_any_run_trains(capsys: pytest.CaptureFixture[str]) -> None:
    content = small(space={"optimizer.alpha": [0.0, -3.0]}, overrides=["trainer.max_epochs=2", "batch.size=64"])
    content["rows"] = {
        "sgd": {"label": "Neumann", "overrides": ["optimizer=neumann"]},
        "neumann": {"label": "ResNet", "overrides": ["optimizer=neumann", "model=timm", "model.name=resnt18"]},
    }
    write_study(content)
    assert main(["study", "mine", "logger=none"]) == 2
    out, err = capsys.readouterr()
    assert "9 of 12 runs cannot be trained, so none was started: digits-small_cnn-neumann-s100 alpha=-3.0: " in err
    assert "did you mean 'resnet18'?" in err
    assert not Path("runs").exists()
    assert "again" not in out + err


def test_a_plan_trains_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    write_study(small())
    assert main(["study", "mine", "--plan"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "to train: 12 runs and up to 6 evaluation runs after tuning" in said
    assert not Path("runs").exists()


@pytest.mark.medium
def test_brackets_in_a_studys_texts_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    write_study(small(title="[x] [/bold] AdamW", question="Does [/b] it diverge [red]?"))
    assert main(["study", "mine", "--plan"]) == 0
    assert "Does [/b] it diverge [red]?" in capsys.readouterr().out
    assert main(["report", "mine"]) == 0
    assert "neumann study mine trains them" in " ".join(capsys.readouterr().out.split())
    assert main(["study"]) == 0
    assert "Does [/b] it diverge [red]?" in capsys.readouterr().out


def test_the_commands_of_a_report_name_what_the_study_was_given() -> None:
    write_study(small())
    Path("my conf").mkdir()
    one = load_study("mine", extra=["output=else where", "logger=none"], config_dirs=["my conf"])
    commands = analyse(collect(one)).commands.values()
    assert "neumann report mine --config-dir 'my conf' 'output=else where'" in commands
    assert any(command.startswith("neumann train --config-dir 'my conf' ") for command in commands)
    write_study(small(budgets={"small": {}}), "my own")
    assert load_study("my own", "small").command("study") == "neumann study 'my own' --budget small"
    Path("elsewhere").mkdir()
    Path("experiments/mine/study.yaml").rename("elsewhere/other study.yaml")
    assert load_study("elsewhere/other study.yaml").command("report") == "neumann report 'elsewhere/other study.yaml'"


@pytest.mark.medium
def test_publishing_takes_a_whole_report_only(capsys: pytest.CaptureFixture[str]) -> None:
    write_study(small())
    assert main(["report", "mine", "--publish"]) == 2
    assert "--publish: Incomplete" in capsys.readouterr().err
    assert not Path("experiments/mine/results").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["study", "mnie"], "did you mean 'mine'"),
        (["study", "mine", "--budget", "smal"], "there is no budget 'smal'"),
        (["study", "mine", "optimizer.lr=0.1"], "belongs in its study.yaml"),
        (["study", "mine", "seed=3"], "belongs in its study.yaml"),
        (["study", "mine", "--plna"], "did you mean '--plan'"),
        (["report", "mine", "--budget"], "neumann report: --budget takes a value"),
        (["report", "mine", "loger=none"], "did you mean 'logger'"),
        (["report", "mine", "lr=3"], "data.workers\n"),  # and no hint, where no setting is spelt like it
    ],
)
def test_wrong_words_are_one_sentence(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(small())
    assert main(words) == 2
    err = capsys.readouterr().err
    assert part in err
    assert len(err.strip().splitlines()) == 1


def test_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    write_study(small())
    assert main(["study"]) == 0
    out = capsys.readouterr().out
    assert "Is Neumann better than SGD here?" in out
    assert "regularizers" in out


@pytest.mark.medium
def test_a_plan_says_how_long_it_takes_or_that_it_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert main(["study", "mine", "--plan", *words]) == 0
        return " ".join(capsys.readouterr().out.split())

    write_study(small())
    assert "not known: no run like these was measured in runs yet" in said()
    finish(load_study("mine").tuning()[0], 0.02)  # 1.5 s
    text = said("launch.parallel=1")
    assert "to train: 11 runs and up to 6 evaluation runs" in text
    assert "with 1 run at once" in text
    assert "1.5 s a run, by 1 run like these that was measured in runs" in text
    one, three = (re.search(r"up to (\d+) s with", said(f"launch.parallel={n}")) for n in (1, 3))
    assert one is not None
    assert three is not None
    assert int(one[1]) == pytest.approx(3 * int(three[1]), abs=2)


@pytest.mark.medium
def test_a_plan_is_timed_by_equal_runs_of_another_study(capsys: pytest.CaptureFixture[str]) -> None:
    write_study(small())
    write_study(small(), "other")
    finish(load_study("other").tuning()[0], 0.02)
    assert main(["study", "mine", "--plan"]) == 0
    assert "1.5 s a run, by 1 run like these" in " ".join(capsys.readouterr().out.split())
