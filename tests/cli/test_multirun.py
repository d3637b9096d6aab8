"""`neumann train -m` end to end: each run has its own overrides, no run is trained twice; table and exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neumann.cli.main import main
from neumann.store import RunFolder
from neumann.store.files import read_json
from tests.support.launching import QUICK, own_optimizer

pytestmark = pytest.mark.medium

TRAIN = ["train", "-m", *QUICK, "launch.parallel=2", "launch.threads=1"]


def folders(study: str = "default") -> list[RunFolder]:
    return [RunFolder(path) for path in sorted(Path("runs", study).glob("d*"))]


def attempts(folder: RunFolder) -> int:
    return len(read_json(folder.provenance)["attempts"])


def row(out: str, label: str) -> str:
    (line,) = [line for line in out.splitlines() if line.startswith(label + "  ")]
    return " ".join(line.split())


def test_each_run_gets_its_own_overrides_and_is_trained_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optimizer=sgd,nesterov", "seed=0,1"]
    assert main(["train", "-m", "--cfg", "job", *TRAIN[2:], *words]) == 0
    printed = [OmegaConf.create(text) for text in capsys.readouterr().out.split("--- ")[1:]]
    assert not Path("runs").exists()
    assert main([*TRAIN, *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "4 of 4 runs to train" in out
    assert len(folders()) == 4
    for folder in folders():
        config = OmegaConf.load(folder.config)
        assert config in printed
        label = f"optimizer={'nesterov' if 'nesterov' in config.optimizer else 'sgd'} seed={config.seed}"
        point = "base" if "nesterov" in config.optimizer else "held"
        result = read_json(folder.path / "result.json")
        errors = [f"{100 * result[split][point]['error']:.2f} %" for split in ("validation", "test")]
        assert row(out, label).startswith(f"{label} finished {' '.join(errors)} ")
        assert row(out, label).endswith(folder.path.name)
    assert main([*TRAIN, "optimizer=sgd,nesterov,adam", "seed=0,1"]) == 0
    out, err = capsys.readouterr()
    assert "2 of 6 runs to train" in out
    assert "already there" in row(out, "optimizer=sgd seed=1")
    assert "finished" in row(out, "optimizer=adam seed=1")
    assert [attempts(folder) for folder in folders()] == [1] * 6
    assert main([*TRAIN, "optimizer=sgd", "seed=0"]) == 0  # a sweep of one
    assert "already there" in capsys.readouterr().out


def test_a_changed_default_is_trained_again(capsys: pytest.CaptureFixture[str]) -> None:
    conf = Path("conf/optimizer")
    conf.mkdir(parents=True)
    words = [*TRAIN, "--config-dir", "conf", "optimizer=mine", "seed=0,1"]
    for lr, trained in ((0.1, 2), (0.1, 2), (0.2, 4)):
        (conf / "mine.yaml").write_text(f"_target_: torch.optim.SGD\nlr: {lr}\n")
        assert main(words) == 0
        assert len(folders()) == trained
    assert "already there" not in capsys.readouterr().out.rsplit("to train", 1)[1]
    assert {attempts(folder) for folder in folders()} == {1}


@pytest.mark.slow
def test_a_sweep_file_with_a_run_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = own_optimizer(Path.cwd())
    monkeypatch.syspath_prepend(str(Path.cwd()))
    (Path(conf) / "sweeps").mkdir()
    (Path(conf) / "sweeps" / "ends.yaml").write_text(
        "# @package _global_\nhydra: {sweeper: {params: {optimizer: mine, optimizer.ends: 'well,raise,kill'}}}\n"
        "optimizer: {at: 10}\nstudy: ends\n"
    )
    words = [*TRAIN, "-cd", conf, "+sweeps=ends"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "finished" in row(out, "optimizer.ends=well")
    assert "failed" in row(out, "optimizer.ends=kill")
    (broken,) = [f for f in folders("ends") if f.error.exists()]
    assert f"failed: optimizer.ends=raise: it broke (traceback in {broken.error})" in out
    assert "failed: optimizer.ends=kill: killed by signal 9 (SIGKILL); out of memory?" in out
    assert "2 of 3 runs did not finish: once the cause is mended, the same command tries them again" in out
    assert all(OmegaConf.load(f.config).study == "ends" for f in folders("ends"))
    assert main([*words, "optimizer.ends=well"]) == 0  # the command line has the last word
    assert "already there" in capsys.readouterr().out
    assert main(words) == 1
    out, _ = capsys.readouterr()
    assert "already there" in row(out, "optimizer.ends=well")
    assert sorted(attempts(f) for f in folders("ends")) == [1, 2, 2]


@pytest.mark.parametrize(
    ("words", "run", "sentence"),
    [
        (["optimizer=timm", "optimizer.name=adopt,adoptt"], "optimizer.name=adoptt", "did you mean 'adopt'"),
        (["model=timm", "model.name=resnet18,resnt18"], "model.name=resnt18", "did you mean 'resnet18'?"),
        (["schedule=constant,cosine", "schedule.ramp_steps=-1"], "schedule=constant", "schedule.ramp_steps=-1"),
        (["optimizer.lr=0.1,0.2", "optimizer.alpha=-3"], "optimizer.lr=0.1", "alpha"),
    ],
)
def test_values_of_a_sweep_are_tried_before_any_run_trains(
    words: list[str], run: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, *words]) == 2
    out, err = capsys.readouterr()
    assert run in err
    assert sentence in err
    assert "of 2 runs cannot be trained, so none was started" in err
    assert not Path("runs").exists()
    assert "again" not in out + err


def test_a_search_tries_both_ends_of_an_interval_before_any_run_trains(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["hydra/sweeper=optuna", "optimizer.alpha=interval(-3,1)", "hydra.sweeper.n_trials=2"]
    assert main([*TRAIN, *words]) == 2
    assert "cannot be trained, so none was started: optimizer.alpha=-3.0: optimizer: " in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_diverged_run_is_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TRAIN, "optimizer=sgd", "optimizer.lr=1e30,0.1"]
    assert main(words) == 0
    assert "diverged" in row(capsys.readouterr().out, "optimizer.lr=1e+30")
    assert main(words) == 0
    assert "diverged, already there" in row(capsys.readouterr().out, "optimizer.lr=1e+30")


def test_help_names_multirun_and_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "-m +sweeps=NAME" in capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for part in ("-m optimizer=neumann,sgd", "+sweeps=rates", "launch.parallel", "ablations, rate_search, rates"):
        assert part in out
