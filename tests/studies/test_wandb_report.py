"""`neumann report --wandb-report`: run sets that select a study's own runs, what is said of mirrors, and the upload."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neumann.cli.main import main
from neumann.store import RunFolder
from neumann.store.lookup import find
from neumann.studies.collect import collect
from neumann.studies.mirrored import mirrored
from neumann.studies.plan import PlannedRun, Study, load_study
from neumann.training.mirror_rows import Described
from tests.support.offline_wandb import read_offline
from tests.support.study_folders import STUDY, diverge, finish, spec_of, write_study
from tests.support.wandb_server import WandbServer, serving

pytestmark = pytest.mark.medium

RATE = {"optimizer.lr": 0.1}
FILE = Path("runs/mine/report-full/wandb-report.json")
KEY = "0123456789012345678901234567890123456789"


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from neumann.studies.report.figures.svg import Drawing

    drawn = {name: Drawing(b"", b"", b"", "nothing", empty=True) for name in ("forest", "errors", "curves", "tuning")}
    monkeypatch.setattr("neumann.studies.report.figures.draw", lambda results: drawn)


@dataclass(frozen=True)
class Trained:
    """A study whose runs are over, and the plans of its evaluation runs by row."""

    study: Study
    planned: Mapping[str, list[PlannedRun]]

    @property
    def evaluated(self) -> list[PlannedRun]:
        return [run for runs in self.planned.values() for run in runs]


@pytest.fixture
def trained() -> Trained:
    """Two rows with three seeds each, of which one run diverged and one needed two attempts; none is mirrored."""
    content = copy.deepcopy(STUDY) | {"space": {"optimizer.lr": [0.1]}}
    del content["rows"]["averaged"], content["paper"]
    content["seeds"] = {"tuning": [100], "evaluation": [0, 1, 2]}
    write_study(content)
    study = load_study("mine")
    planned = {row: study.evaluation(row, RATE) for row in study.config.rows}
    for run in study.tuning():
        finish(run, 0.02)
    for row, runs in planned.items():
        for i, run in enumerate(runs):
            if (row, i) == ("sgd", 2):
                diverge(run)
            else:
                finish(run, 0.02, test=0.02 + (i + 2 * (row == "sgd")) / 300)
    add(planned["neumann"][1], attempts=2)
    return Trained(study, planned)


def folder_of(run: PlannedRun) -> RunFolder:
    return find(spec_of(tuple(run.overrides)))


def add(run: PlannedRun, **values: Any) -> RunFolder:
    """Write ``values`` into a run's result, and return its folder."""
    folder = folder_of(run)
    result = folder.result()
    assert result is not None
    folder.write_result({**result, **values})
    return folder


def on_wandb(run: PlannedRun, attempt: int) -> dict[str, str]:
    """Return what a mirror's run is filtered by, as the mirror names it."""
    described = Described.of_spec(spec_of(tuple(run.overrides)), attempt, {})
    return {"name": described.id, "group": described.study}


def selects(filters: Mapping[str, Any], run: Mapping[str, str]) -> bool:
    """Return whether a run set's filters let ``run`` through, all of them joined by AND."""
    assert all(one.get("connector", "AND") == "AND" and not one["disabled"] for one in filters["filters"])
    assert all(one["key"]["section"] == "run" for one in filters["filters"])
    tests = {"=": lambda value, wanted: value == wanted, "IN": lambda value, wanted: value in wanted}
    return all(tests[one["op"]](run[one["key"]["name"]], one["value"]) for one in filters["filters"])


def grid() -> dict[str, Any]:
    (found,) = (block for block in json.loads(FILE.read_text())["spec"]["blocks"] if block["type"] == "panel-grid")
    metadata: dict[str, Any] = found["metadata"]
    return metadata


@pytest.mark.usefixtures("no_figures")
def test_run_sets_select_the_finished_evaluation_runs_of_their_row_and_no_others(trained: Trained) -> None:
    assert main(["report", "mine", "--wandb-report"]) == 0
    there = [on_wandb(run, attempt) for run in (*trained.study.tuning(), *trained.evaluated) for attempt in (1, 2)]
    there += [one | {"group": "another"} for one in there]
    sets = {one["name"]: one["filters"] for one in grid()["runSets"]}
    assert sets.keys() == {"SGD", "Neumann"}
    sgd, neumann = trained.planned["sgd"], trained.planned["neumann"]
    wanted = {"SGD": [(sgd[0], 1), (sgd[1], 1)], "Neumann": [(neumann[0], 1), (neumann[1], 2), (neumann[2], 1)]}
    for label, filters in sets.items():
        assert [one for one in there if selects(filters, one)] == [on_wandb(*run) for run in wanted[label]]


@pytest.mark.usefixtures("no_figures")
def test_the_file_is_of_the_report_beside_it(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "mine", "--wandb-report", "logger.project=ours", "logger.entity=us"]) == 0
    said = capsys.readouterr().out
    assert f"W&B report: {FILE}, not sent (--push sends it)" in said
    assert (
        "of the 5 runs that its panels are of, all 5 were not mirrored to W&B: neumann runs mirror "
        "runs/mine/*-s[0-9]* --to wandb --mode online --project ours --entity us"
    ) in said
    written = json.loads(FILE.read_text())
    assert (written["displayName"], written["project"]) == ("A test", {"name": "ours", "entityName": "us"})
    first = FILE.read_bytes()
    assert main(["report", "mine", "--wandb-report", "logger.project=ours", "logger.entity=us"]) == 0
    assert FILE.read_bytes() == first
    assert main(["report", "mine"]) == 0
    assert FILE.exists()  # nothing has changed
    finish(trained.planned["sgd"][2], 0.02)
    assert main(["report", "mine"]) == 0
    assert not FILE.exists()  # the page is another now


def notes(study: Study, *words: str) -> tuple[str, ...]:
    return mirrored(collect(load_study(study.name, extra=list(words)))).notes


def test_what_is_not_on_wandb_is_told_with_the_command_that_brings_it_there(trained: Trained) -> None:
    offline, synced, online, gone, none = (
        run for run in trained.evaluated if (folder_of(run).result() or {})["status"] == "finished"
    )
    for run, mode in ((offline, "offline"), (synced, "offline"), (online, "online"), (gone, "offline")):
        folder = add(run, wandb=mode)
        attempt = (folder.result() or {}).get("attempts", 1)
        folder.config.write_text("logger: {kind: wandb, project: neumann, entity: null}\n")
        if run is not gone and run is not online:
            (folder.path / f"wandb/offline-run-20260101_000000-{on_wandb(run, attempt)['name']}").mkdir(parents=True)
    (file,) = folder_of(synced).path.glob("wandb/*")
    (file / "run-x.wandb.synced").touch()
    of = "of the 5 runs that its panels are of, 1"
    assert notes(trained.study) == (
        f"{of} is in offline files that have not been uploaded: wandb sync runs/mine/*/wandb/offline-run-*",
        f"{of} was not mirrored to W&B: neumann runs mirror runs/mine/*-s[0-9]* --to wandb --mode online --project neumann",
        f"{of} was mirrored to offline files that are not here: whether they were uploaded is not known",
    )
    folder_of(none).path.joinpath(f"wandb/run-20260101_000000-{on_wandb(none, 1)['name']}").mkdir(parents=True)
    assert not any("was not mirrored" in note for note in notes(trained.study))


def test_a_folder_is_named_as_a_shell_takes_it(trained: Trained) -> None:
    Path("runs").rename("my {runs}")
    (note,) = notes(trained.study, "output='my {runs}'")
    assert "neumann runs mirror 'my {runs}/mine'/*-s[0-9]* --to wandb" in note


def test_runs_in_another_project_are_told_with_the_setting_that_names_it(trained: Trained) -> None:
    for run in trained.planned["neumann"]:
        add(run, wandb="online").config.write_text("logger: {kind: wandb, project: theirs, entity: them}\n")
    assert notes(trained.study)[-1] == (
        "of the 5 runs that its panels are of, 3 were mirrored to another project: with logger.project=theirs "
        "logger.entity=them the report goes there"
    )
    there = ("logger.project=theirs", "logger.entity=them")
    assert not any("another project" in note for note in notes(trained.study, *there))
    assert not any("another project" in note for note in notes(trained.study, "logger.project=theirs"))
    assert "another project" in notes(trained.study, "logger.project=theirs", "logger.entity=us")[-1]


def test_archived_runs_have_no_mirror_that_is_known(trained: Trained) -> None:
    assert main(["runs", "pack", "mine"]) == 0
    Path("runs").rename("elsewhere")
    (note,) = notes(trained.study)
    assert note == (
        "of the 5 runs that its panels are of, all 5 are in the study's archive alone, by which no mirror was made of "
        "them"
    )


@pytest.mark.usefixtures("no_figures")
def test_what_cannot_be_is_one_sentence(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", os.environ.get("WANDB_MODE", ""))  # the command hides it for good

    def error(*words: str) -> str:
        assert main(["report", "mine", *words]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "--push sends what --wandb-report writes: give both" in error("--push")
    assert "give one of the two" in error("--watch", "--wandb-report")
    assert "logger=none sends nothing to W&B: leave it out" in error("--wandb-report", "logger=none")
    assert not FILE.exists()
    reason = "W&B cannot log in (api cannot be reached: no route)"
    monkeypatch.setattr("neumann.training.wandb_run.why_unreachable", lambda address: "api cannot be reached: no route")
    assert f"--push: {reason}; the report is in {FILE}, and the same command sends it once W&B answers" in error(
        "--wandb-report", "--push"
    )
    assert FILE.exists()
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert "wandb-workspaces, which is not installed: pip install 'neumann[wandb-report]'" in error("--wandb-report")


def push(server: WandbServer, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command with W&B's own client, which is to know no other server and no other account."""
    surroundings = {"HOME": str(home), "WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY}
    code = "import sys; from neumann.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "report", "mine", "--wandb-report", "--push"],
        capture_output=True,
        text=True,
        timeout=250,
        stdin=subprocess.DEVNULL,
        env=os.environ | surroundings | variables,
    )


@pytest.mark.slow
def test_the_client_sends_what_the_file_holds(trained: Trained, tmp_path: Path) -> None:
    with serving() as server:
        done = push(server, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    (sent,) = server.reports
    written = json.loads(FILE.read_text())
    assert json.loads(sent["spec"]) == written["spec"]
    assert (sent["displayName"], sent["description"]) == (written["displayName"], written["description"])
    assert (sent["entityName"], sent["projectName"], sent["id"]) == ("me", "neumann", None)
    assert server.projects == [{"entityName": "me", "name": "neumann"}]
    assert done.stdout.splitlines()[-1] == f"sent: {server.address}/me/neumann/reports/A-test--Vmlldzox"


@pytest.mark.slow
def test_a_report_that_wandb_refuses_is_one_sentence_and_kept(trained: Trained, tmp_path: Path) -> None:
    with serving(denies=True) as server:
        done = push(server, tmp_path, WANDB_ENTITY="them")
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: --push: W&B has not taken the report (")
    assert "permission denied" in last
    assert [report["entityName"] for report in server.reports] == ["them"]
    assert FILE.exists()


@pytest.mark.slow
def test_the_mirrors_of_a_grid_are_selected_as_their_client_wrote_them() -> None:
    """Each seed's choice goes on to its test in a second attempt, whose mirror is whole: the first one is not drawn."""
    content = copy.deepcopy(STUDY) | {"design": "grid", "space": {"optimizer.lr": [0.1, 0.3]}}
    del content["rows"]["averaged"], content["paper"]
    content["seeds"] = {"evaluation": [0]}
    write_study(content)
    code = "import sys; from neumann.cli.main import main; sys.exit(main())"
    for words in (["study", "mine"], ["report", "mine", "--wandb-report"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "of the 2 runs that its panels are of, all 2 are in offline files that have not been uploaded: wandb sync "
        "runs/mine/*/wandb/offline-run-*"
    ) in done.stdout
    there = [
        {"name": run["id"], "group": run["group"], "job_type": run["job_type"], "of": folder.name, "run": run}
        for folder in Path("runs/mine").glob("*-s[0-9]*")
        for run in read_offline(RunFolder(folder))
    ]
    assert len(there) == 4 + 2
    metadata = grid()
    metrics = {name for p in metadata["panelBankSectionConfig"]["panels"] for name in p["config"]["metrics"]}
    for one in metadata["runSets"]:
        found = [run for run in there if selects(one["filters"], run)]
        (run,) = found
        assert f"-{one['name'].lower()}-s0-" in run["of"]
        assert run["job_type"] == "evaluation"
        own = {name for name in metrics if "/base/" not in name or one["name"] == "Neumann"}
        assert own <= {name for row in run["run"]["history"] for name in row}
