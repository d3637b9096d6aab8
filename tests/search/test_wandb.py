"""A sweep as a file of W&B's: its agent's own code starts each point of the grid once and gets the objective.

There is no W&B server here: what it does with the file, and how its search chooses, is not tested.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from neumann.cli.main import main
from neumann.config import make_spec, make_specs
from neumann.errors import UserError
from neumann.search.grid import expand
from neumann.search.wandb import sweep_file
from neumann.store import RunFolder, find
from tests.support.offline_wandb import read_offline
from tests.support.quick_runs import QUICK

SHORT = [word for word in QUICK if word != "logger=none"]


def sweep(*words: str) -> dict[str, Any]:
    """Return the content of a sweep's file, after the server has had it as JSON."""
    content: dict[str, Any] = json.loads(json.dumps(yaml.safe_load(sweep_file(words))))
    return content


def points(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    values = [parameter["values"] for parameter in content["parameters"].values()]
    for row in product(*values):
        yield dict(zip(content["parameters"], row, strict=True))


def expanded(content: dict[str, Any], point: dict[str, Any]) -> list[str]:
    """Return the words that an agent starts for ``point``, by W&B's own functions."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    arguments = create_sweep_command_args({"args": {key: {"value": value} for key, value in point.items()}})
    command = create_sweep_command([*content["command"]])
    return [w for word in command for w in (arguments[word[2:-1]] if word.startswith("${") else [word])]


@pytest.mark.medium
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["+sweeps=rates"], marks=pytest.mark.slow),
        pytest.param(["+sweeps=ablations", "seed=0,1"], marks=pytest.mark.slow),
        ["optimizer=neumann,sgd", "optimizer.lr=1e-7,1,0.1", "batch.size=range(16,65,16)"],
        ["ablation=null,no_alpha", "+model.kwargs.width=8,16", "optimizer.momentum=[0.5,0.9],0.9"],
        ["optimizer=torch", "optimizer.name=NAdam,Adagrad", "+optimizer.kwargs.eps=1e-6,1e-8", "optimizer.kwargs.foreach=true,false"],
        ["recipe.weight_average=null,0.9", "name='a b: ${seed}'", "study=x", "seed=2,3"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_agents_points_are_those_of_the_grid(words: list[str]) -> None:
    content = sweep(*words)
    assert content["method"] == "grid"
    commands = [expanded(content, point) for point in points(content)]
    assert all(command[:2] == ["neumann", "train"] and "-m" not in command for command in commands)
    specs = make_specs([command[2:] for command in commands])
    asked = make_specs(expand(words))
    assert sorted(spec.signature for spec in specs) == sorted(spec.signature for spec in asked)
    assert {spec.folder for spec in specs} == {spec.folder for spec in asked}
    assert {spec.config.logger.mode for spec in specs} == {"online"}


@pytest.mark.medium
def test_the_file_says_what_it_is_and_what_it_needs() -> None:
    text = sweep_file(["+sweeps=rates", "logger.project=mine", "logger.entity=us"])
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert "20 runs" in head[0]
    assert "neumann wandb-sweep +sweeps=rates logger.project=mine" in head[0]
    assert "logger.mode=online" in " ".join(head)
    content = yaml.safe_load(text)
    assert (content["project"], content["entity"], content["name"]) == ("mine", "us", "rates")
    assert content["metric"] == {"name": "objective", "goal": "minimize"}


@pytest.mark.medium
def test_a_text_stays_one_and_the_mode_is_given_once() -> None:
    content = sweep("name=1.10,1.20", "logger.mode=offline", "study=2024_01")
    assert content["parameters"] == {"name": {"values": ["1.10", "1.20"]}}
    assert [word for word in content["command"] if word.startswith("logger.mode")] == ["logger.mode=online"]
    assert "study=2024_01" in content["command"]


def test_the_command_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wandb-sweep", "seed=0,1"]) == 0
    assert capsys.readouterr().out == sweep_file(["seed=0,1"])
    for words, part in ((["seed=0"], "the sweep has one run"), (["--config", "x"], "did you mean '--config-dir'?")):
        assert main(["wandb-sweep", *words]) == 2
        assert part in capsys.readouterr().err
    assert main(["wandb-sweep", "--help"]) == 0
    assert "as after neumann train -m" in capsys.readouterr().out


@pytest.mark.medium
def test_a_search_becomes_one_of_wandbs() -> None:
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=9", "optimizer=neumann,sgd", "seed=4"]
    space = [
        *("optimizer.lr=tag(log,interval(0.01,1))", "timing.burn_in=interval(0,2)"),
        *("batch.size=int(interval(8,64))", "trainer.max_epochs=range(2,5)"),
    ]
    content = sweep(*words, *space)
    assert (content["method"], content["run_cap"]) == ("bayes", 9)
    assert "seed=4" in content["command"]
    assert content["parameters"] == {
        "optimizer": {"values": ["neumann", "sgd"]},
        "optimizer.lr": {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0},
        "timing.burn_in": {"distribution": "uniform", "min": 0.0, "max": 2.0},
        "batch.size": {"distribution": "int_uniform", "min": 8, "max": 64},
        "trainer.max_epochs": {"values": [2, 3, 4]},
    }
    assert sweep(*words, *space, "hydra/sweeper/sampler=random")["method"] == "random"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["seed=0"], "the sweep has one run"),
        (["seed=0,1", "logger=none"], "gets its metrics from the mirror"),
        (["optimizer.lr=interval(0.1,1)"], "add hydra/sweeper=optuna to search it"),
        (["optimizer=neumann,sgd", "optimizer.alpha=0"], "'alpha'"),
        (["+sweeps=rate_search"], "sampler=qmc: W&B has no such search"),
        (["+sweeps=rate_search", "hydra/sweeper/sampler=tpe"], "cannot average over seeds: give one seed"),
        (["+sweeps=rate_search", "hydra/sweeper/sampler=tpe", "seed=0", "hydra.sweeper.n_jobs=2"], "as there are agents"),
        (["+sweeps=rate_search", "hydra/sweeper/sampler=tpe", "seed=0", "hydra.sweeper.sampler.seed=2"], "sampler of its own"),
        (["hydra/sweeper=optuna", "batch.size=tag(log,int(interval(8,64)))"], "so list its values"),
    ],
)  # fmt: skip
def test_what_wandb_cannot_do_is_one_sentence(words: list[str], part: str) -> None:
    with pytest.raises(UserError) as caught:
        sweep_file(words)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any], dict[str, Any], str], int]:
    """Have W&B's agent start a point as a run, as when the server has told it to; return the exit code."""
    from wandb.wandb_agent import Agent

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_SWEEP_ID", "swp1")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them: to be undone after the test
        monkeypatch.setenv(name, "")

    def start(content: dict[str, Any], point: dict[str, Any], run: str) -> int:
        agent = Agent.__new__(Agent)
        agent._sweep_command = [word.replace("mode=online", "mode=offline") for word in content["command"]]
        agent._in_jupyter, agent._function, agent._forward_signals = False, None, False
        agent._run_processes = {}
        arguments = {key: {"value": value} for key, value in point.items()}
        agent._command_run({"run_id": run, "program": content["program"], "args": arguments})
        return int(agent._run_processes[run].wait())

    return start


@pytest.mark.slow
def test_an_agents_run_is_ours_and_its_objective_arrives_also_when_it_was_there(
    agent: Callable[[dict[str, Any], dict[str, Any], str], int],
) -> None:
    content = sweep("optimizer=neumann,sgd", "optimizer.lr=0.1,0.3", *SHORT)
    point = next(p for p in points(content) if p == {"optimizer": "neumann", "optimizer.lr": 0.3})
    assert agent(content, point, "run1") == 0
    spec = make_spec(["optimizer=neumann", "optimizer.lr=0.3", *SHORT])
    folder = find(spec)
    result = folder.result()
    assert result is not None
    assert agent(content, point, "run2") == 0
    assert folder.result() == result
    assert len(json.loads(folder.provenance.read_text())["attempts"]) == 1
    first, second = sorted(read_offline(folder), key=lambda run: str(run["id"]))
    assert [first["id"], second["id"]] == ["run1", "run2"]
    for run in (first, second):
        assert run["exit"] == 0
        assert run["project"] == "theirs"
        assert run["summary"]["objective"] == result["validation"]["base"]["error"]
        assert not any("objective" in row for row in run["history"])  # W&B's search takes the best of what is there
        assert [row["step"] for row in run["history"] if "validation/base/error" in row] == [18, 36]
        assert run["config"]["optimizer.lr"] == 0.3
        assert run["config"]["resolved"]["optimizer"]["alpha"] == 1e-7
        assert run["config"]["signature"] == spec.signature


@pytest.mark.medium
def test_a_run_that_is_over_answers_an_agent_without_torch(agent: object, python: Callable[[str], str]) -> None:
    spec = make_spec([*SHORT, "optimizer=sgd"])
    scores = {"held": {"error": 0.25, "loss": 1.0, "n": 300}}
    folder = RunFolder(spec.folder)
    folder.path.mkdir(parents=True)
    numbers = {"step": 1, "examples": 1, **dict.fromkeys(("epoch", "train_loss", "train_seconds"), 1.0)}
    numbers["best_validation_error"] = 1.0
    result = {"status": "diverged", "signature": spec.signature, "validation": scores, "test": None, "attempts": 1}
    folder.write_result({**result, **numbers})
    os.environ["WANDB_RUN_ID"] = "run3"
    del os.environ["WANDB_SWEEP_PARAM_PATH"]
    said = python(
        f"import sys; from neumann.cli.main import main; code = main(['train', 'optimizer=sgd', *{SHORT!r}]);"
        "print(code, 'torch' in sys.modules)"
    )
    assert said.splitlines()[-1] == "0 False"
    (run,) = read_offline(folder)
    assert (run["id"], run["summary"]["objective"], run["summary"]["status"]) == ("run3", 1.0, "diverged")


@pytest.mark.medium
def test_an_agent_starts_no_sweeps(agent: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "neumann", "train", "-m", "seed=0,1"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "trains one run at a time: leave out -m" in done.stderr
