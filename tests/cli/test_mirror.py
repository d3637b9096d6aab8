"""Tests of `neumann runs mirror`: what TensorBoard and MLflow are given, what is refused, and runs that are odd."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from neumann.cli.main import main
from neumann.errors import UserError
from neumann.store import RunFolder
from neumann.store.vouching import sealed
from neumann.training.mirror_rows import Recorded

WORDS = ("optimizer=neumann", "trainer.max_epochs=2", "batch.size=64", "+model.kwargs.width=8", "logger=none")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with step lines and evaluations, in its folder."""
    output = tmp_path_factory.mktemp("trained")
    assert main(["train", *WORDS, "trainer.log_every_n_steps=10", f"output={output}"]) == 0
    (folder,) = (output / "default").iterdir()
    return folder


@pytest.fixture
def run(trained: Path) -> Path:
    """A copy of it under ./runs."""
    return Path(shutil.copytree(trained, f"runs/default/{trained.name}"))


@pytest.mark.medium
def test_tensorboard_is_given_every_row_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["runs", "mirror", run.name, "--to", "tensorboard"]) == 0
    assert f"event files in {run}/tensorboard" in capsys.readouterr().out
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    rows = Recorded.read(run).rows
    assert len(rows) == 6  # four lines and two evaluations
    wanted: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "examples"):
                at = row["examples" if name.startswith("by_examples/") else "step"]
                wanted.setdefault(name, []).append((int(at), value))
    tags = set(read.Tags()["scalars"])
    assert {"train/loss", "train/lr", "train/momentum", "validation/base/error"} <= wanted.keys() <= tags
    for name, values in wanted.items():
        events = read.Scalars(name)
        assert [event.step for event in events] == [step for step, _ in values]
        assert [event.value for event in events] == pytest.approx([value for _, value in values], rel=1e-6)
    result = RunFolder(run).result()
    assert result is not None
    (final,) = read.Scalars("final/test/base/error")
    assert (final.step, final.value) == (36, pytest.approx(result["test"]["base"]["error"]))
    assert read.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"
    (command,) = read.Tensors("command/text_summary")
    assert b"neumann train " in command.tensor_proto.string_val[0]
    before = {path: path.read_bytes() for path in (run / "tensorboard").iterdir()}
    assert main(["runs", "mirror", str(run), "--to", "tensorboard"]) == 2
    assert "tensorboard is there already, and nothing is overwritten: name another with --logdir" in (
        capsys.readouterr().err
    )
    assert {path: path.read_bytes() for path in (run / "tensorboard").iterdir()} == before
    assert main(["runs", "mirror", run.name, "--to", "tensorboard", "--logdir", "logs"]) == 0
    assert len(list(Path(f"logs/default/{run.name}").iterdir())) >= 1


@pytest.mark.medium
def test_mlflow_is_given_every_row_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # what the command sets is undone afterwards
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow import MlflowClient

    words = ["runs", "mirror", run.name, "--to", "mlflow", "--tracking-uri", "store"]
    assert main(words) == 0
    assert "of the experiment neumann, tagged neumann.run=" in capsys.readouterr().out
    client = MlflowClient(tracking_uri="store")
    (place,) = [one.experiment_id for one in client.search_experiments() if one.name == "neumann"]
    (made,) = client.search_runs([place])
    recorded = Recorded.read(run)
    assert (made.info.run_name, made.info.status) == (recorded.described.name, "FINISHED")
    assert made.data.tags["neumann.run"] == f"{run.name[-12:]}-1"
    assert made.data.tags["neumann.command"].startswith("neumann train ")
    assert made.data.params["optimizer.alpha"] == "1e-07"
    names = {name for row in recorded.rows for name in row} - {"step", "examples"}
    for name in names:
        axis = "examples" if name.startswith("by_examples/") else "step"
        history = client.get_metric_history(made.info.run_id, name)
        assert [(m.step, m.value) for m in history] == [(row[axis], row[name]) for row in recorded.rows if name in row]
    assert made.data.metrics["objective"] == recorded.summary["objective"]
    kept = {one.path for one in client.list_artifacts(made.info.run_id)}
    assert {"config.yaml", "steps.jsonl", "measurements.jsonl", "result.json"} <= kept
    assert main(words) == 2
    assert "already, as its run" in capsys.readouterr().err
    assert len(client.search_runs([place])) == 1
    assert main([*words, "--experiment-name", "another"]) == 0


def test_rows_are_by_step_and_of_a_run_of_an_earlier_version_by_evaluation(run: Path) -> None:
    recorded = Recorded.read(run)
    assert [(row["step"], "train/loss" in row) for row in recorded.rows] == [
        (10, True), (18, False), (20, True), (30, True), (36, True), (36, False),
    ]  # fmt: skip
    assert recorded.summary["final/test/base/n"] == 300
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key in ("log_every_n_steps", "track_grad_norm", "track_update_norm"):
        del config["trainer"][key]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "steps.jsonl").unlink()
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(
        json.dumps(sealed({k: v for k, v in result.items() if k not in ("digest", "steps_digest")}))
    )
    old = Recorded.read(run)
    measured = RunFolder(run).read_measurements()
    assert [row["train/loss"] for row in old.rows] == [one["train_loss"] for one in measured]
    assert [row["train/lr"] for row in old.rows] == [one["lr"] for one in measured]
    assert old.summary == recorded.summary


def test_rates_and_losses_are_those_of_the_denser_of_lines_and_evaluations(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["log_every_n_steps"] = config["derived"]["eval_every_steps"] + 1
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    recorded = Recorded.read(run)
    measured = RunFolder(run).read_measurements()
    found = [(row["step"], row["train/loss"]) for row in recorded.rows if "train/loss" in row]
    assert found == [(one["optimizer_step"], one["train_loss"]) for one in measured]


@pytest.mark.parametrize("step", ["1e400", "100000000000000000000000", "-1"])
def test_a_line_at_no_step_is_one_sentence(step: str, run: Path) -> None:
    (run / "result.json").unlink()
    lines = (run / "steps.jsonl").read_text()
    (run / "steps.jsonl").write_text(lines.replace('"optimizer_step": 10', f'"optimizer_step": {step}'))
    assert lines != (run / "steps.jsonl").read_text()
    with pytest.raises(UserError, match="has a line that no run writes"):
        Recorded.read(run)


def test_a_run_that_is_not_over_is_mirrored_as_far_as_it_got(run: Path) -> None:
    (run / "result.json").unlink()
    (run / "steps.jsonl").write_text("".join((run / "steps.jsonl").read_text().splitlines(keepends=True)[:2]) + '{"st')
    folder = RunFolder(run)
    folder.set_status("interrupted", attempt=3, step=25)
    recorded = Recorded.read(run)
    assert (recorded.status, recorded.summary, recorded.result) == ("interrupted", {"status": "interrupted"}, None)
    assert recorded.described.id == f"{run.name[-12:]}-3"
    assert [row["step"] for row in recorded.rows] == [10, 18, 20, 36]
    with folder.claim():
        folder.set_status("running", attempt=3, step=25)
        with pytest.raises(UserError, match="is being trained: its mirror would lack the rest"):
            Recorded.read(run)
    (run / "steps.jsonl").unlink()
    folder.measurements.unlink()
    with pytest.raises(UserError, match="has nothing to mirror: no step of it is recorded"):
        Recorded.read(run)


def test_a_foreign_run_is_data(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["optimizer"]["_target_"] = "os.system"
    config["logger"] |= {"tags": ["theirs", "x" * 99], "entity": "theirs", "mode": "online"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    described = Recorded.read(run).described
    assert described.command() is None
    assert described.tags == ["theirs", "x" * 64, "data:digits", "model:small_cnn", "optimizer:neumann"]
    (run / "steps.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match=r"steps.jsonl is not what the run logged"):
        Recorded.read(run)
    (run / "result.json").unlink()
    (run / "steps.jsonl").write_text('{"step": 1, "examples": {}, "optimizer_step": 1}\n')
    with pytest.raises(UserError, match="has a line that no run writes"):
        Recorded.read(run)


def test_an_edited_result_is_refused(run: Path) -> None:
    text = (run / "result.json").read_text()
    (run / "result.json").write_text(text.replace('"step": 36', '"step": 35'))
    with pytest.raises(UserError, match=r"result.json is not what the run wrote"):
        Recorded.read(run)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "neumann runs mirror takes runs"),
        (["RUN"], "--to is missing: choose from "),
        (["RUN", "--to", "wandbb"], "--to wandbb is not a choice: did you mean 'wandb'?"),
        (
            ["RUN", "--to", "tensorboard", "--project", "x"],
            "--project is about --to wandb: --to tensorboard takes --logdir",
        ),
        (["RUN", "--to", "wandb", "--logdir", "x"], "--logdir is about --to tensorboard: --to wandb takes --mode"),
        (["RUN", "--to", "wandb", "--mode", "onlin"], "--mode onlin is not a choice: did you mean 'online'?"),
        (["RUN", "--to", "wandb", "--project", "a/b"], "--project 'a/b' cannot be a project of W&B"),
        (["RUN", "--to", "wandb", "--entity", ""], "--entity is empty"),
        (["RUN", "logger.mode=online", "--to", "wandb"], "neumann runs mirror takes no 'logger.mode=online'"),
        (["RUNS", "--to", "wandb"], "there is no run RUNS"),
        (["RUN", "--to", "mlflow", "--tracking-uri", "http://127.0.0.1:9"], "127.0.0.1:9 cannot be reached: "),
    ],
)
def test_wrong_words_are_one_sentence(
    words: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "mirror", *(run.name if word == "RUN" else word for word in words)]) == 2
    assert said in capsys.readouterr().err
    assert not list(run.glob("*wandb*"))


def test_a_server_of_wandb_that_does_not_answer_is_one_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("neumann.training.wandb_run.why_unreachable", lambda address: f"{address}: no route")
    assert main(["runs", "mirror", run.name, "--to", "wandb", "--mode", "online"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --mode online: W&B cannot log in (https://")
    assert said.rstrip().endswith("no route); --mode offline writes files for wandb sync")


@pytest.mark.parametrize("package", ["tensorboard", "mlflow"])
def test_a_missing_package_is_one_sentence(
    package: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["runs", "mirror", run.name, "--to", package]) == 2
    assert f"installed: pip install 'neumann[{package}]'" in capsys.readouterr().err


def test_one_run_that_cannot_be_mirrored_stops_no_other(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    other = run.with_name(f"a-{'0' * 12}")
    shutil.copytree(run, other)
    (other / "measurements.jsonl").unlink()
    assert main(["runs", "mirror", str(other), str(run), "--to", "tensorboard"]) == 1
    said = capsys.readouterr().out
    assert "not mirrored:" in said
    assert (run / "tensorboard").is_dir()
    assert not (other / "tensorboard").exists()


@pytest.mark.medium
def test_a_folder_that_cannot_be_written_is_told_by_the_option_that_names_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert main(["runs", "mirror", run.name, "--to", "wandb", "--dir", "file/below"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("file/below cannot be written (not a directory): name another with --dir FOLDER")
    assert "output=" not in said
