"""`neumann challenge`: the user's optimizer in a study with the baselines, of which nothing is trained again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from neumann.cli.main import main
from neumann.studies.definition import PACKAGED, read_study
from neumann.studies.plan import load_study

SIGNS = """
import torch


class SignMomentum(torch.optim.Optimizer):
    def __init__(self, params, lr=0.01, momentum=0.9, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    m.mul_(group["momentum"]).add_(p.grad, alpha=1 - group["momentum"])
                    p.sub_(group["lr"] * m.sign())
        return loss


class Needs(SignMomentum):
    def __init__(self, params, depth, lr=0.01):
        super().__init__(params, lr)
"""
BANK: dict[str, Any] = {
    "title": "The baselines",
    "question": "Which is best?",
    "design": "grid",
    "overrides": ["data=digits", "model=small_cnn", "+model.kwargs.width=4", "batch.size=64", "trainer.max_epochs=1"],
    "rows": {
        "sgd": {"label": "SGD", "overrides": ["optimizer=sgd"]},
        "nesterov": {"label": "Nesterov", "overrides": ["optimizer=nesterov"]},
    },
    "space": {"optimizer.lr": [0.03, 0.1]},
    "seeds": {"evaluation": [0, 1]},
    "comparisons": {"primary": "sgd", "reference": "nesterov", "margin": 0.02},
    "limits": ["It is a test."],
}


@pytest.fixture(autouse=True)
def _here() -> None:
    Path("signs.py").write_text(SIGNS)
    folder = Path("experiments/baselines")
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(BANK, sort_keys=False))


def plan(*words: str, code: int = 0) -> None:
    assert main(["challenge", "signs.SignMomentum", "--space", "lr=0.001,0.01", *words, "--plan"]) == code


@pytest.mark.medium
def test_the_study_has_the_baselines_and_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    plan("optimizer.momentum=0.8")
    out = capsys.readouterr().out
    folder = Path("experiments/challenge-signmomentum")
    study = read_study(folder / "study.yaml")
    assert list(study.rows) == ["signmomentum", "sgd", "nesterov"]
    assert study.rows["signmomentum"].space == {"optimizer.lr": [0.001, 0.01]}
    assert study.comparisons.primary == "signmomentum"
    assert study.comparisons.reference == "nesterov"
    assert study.comparisons.also == [["signmomentum", "sgd"]]
    assert study.checks["saves and loads"] == "kept"
    assert study.checks["refuses a rate below zero"] == "a rate of -1 is accepted"
    assert "refuses a rate below zero: a rate of -1 is accepted" in out
    assert study.checks["state"].startswith("4.0 bytes a weight")
    optimizer = yaml.safe_load((folder / "conf/optimizer/signmomentum.yaml").read_text())
    assert optimizer == {"_target_": "signs.SignMomentum", "lr": 0.01, "momentum": 0.8, "weight_decay": 0.0}
    assert "to train: 12 runs" in out
    assert not any(limit.startswith(("Only the rate is tuned", "Device-seconds are")) for limit in study.limits)
    assert any("Of SignMomentum lr was chosen" in limit for limit in study.limits)


@pytest.mark.medium
def test_the_same_challenge_goes_on_and_another_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    plan()
    study = Path("experiments/challenge-signmomentum/study.yaml")
    before = study.read_bytes()
    plan()
    plan("optimizer.momentum=0.5", code=2)
    error = capsys.readouterr().err
    assert "is of another challenge, it differs in momentum: name this one with --name" in " ".join(error.split())
    assert "momentum: 0.9" in (study.parent / "conf/optimizer/signmomentum.yaml").read_text()
    assert study.read_bytes() == before
    plan("optimizer.momentum=0.5", "--name", "half")
    assert Path("experiments/challenge-half/study.yaml").exists()


@pytest.mark.medium
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["signs.SignMomentun"], "signs has no SignMomentun: did you mean 'SignMomentum'?"),
        (["no_such.Thing"], "cannot be imported"),
        (["torch.optim.SparseAdam"], "does not train a small regression, so nothing is compared: RuntimeError"),
        (["torch.nn.Linear"], "torch.nn.Linear is not a class of torch.optim.Optimizer"),
        (["signs.SignMomentum", "--space", "lr=0.1"], "--space lr=0.1 names no values to choose from"),
        (["signs.SignMomentum", "--space", "rate=0.1,0.2"], "SignMomentum has no such setting: choose from"),
        (["signs.SignMomentum", "--space", "lr=0.1,0.2,0.3"], "--space names 3 trials, and each baseline had 2"),
        (
            ["signs.SignMomentum", "--against", "nestorov"],
            "--against nestorov is not a baseline: did you mean 'nesterov'",
        ),
        (["signs.SignMomentum", "--space", "lr=0.1,0.1"], "--space names 1 trial, and each baseline had 2"),
        (["signs.SignMomentum", "--space", "lr=range(0,2),1"], "range(…) stands alone after the equals sign"),
        (
            ["torch.optim.SGD", "--space", "weight_decay=-1,0.1"],
            "--space: torch.optim.SGD refuses weight_decay=-1: ValueError",
        ),
        (["signs.Needs"], "signs.Needs needs depth, which has no default: give optimizer.depth=VALUE"),
        (["signs.SignMomentum", "--name", "sgd"], "'sgd' is the name of a baseline"),
        (["signs.SignMomentum", "--name", "a/b"], "use letters, digits and _"),
        (["signs.SignMomentum", "optimizer.moment=1"], "has no such setting: did you mean 'momentum'?"),
        (["signs.SignMomentum", "--space", "lr=0.1,nan"], "--space lr=nan is not a finite number"),
        (["signs.SignMomentum", "--space", "lr=-1,0.1"], "--space lr=-1 trains nothing or climbs: give a rate above 0"),
        (["signs.SignMomentum", "--space", "lr=0.1,0"], "--space lr=0 trains nothing"),
        (["signs.SignMomentum", "optimizer.momentum=inf"], "optimizer.momentum=inf is not a finite number"),
        (
            ["signs.SignMomentum", "--space", "momentum=0.5,0.9", "optimizer.momentum=0.3"],
            "'optimizer.momentum=0.3' and --space both set momentum: leave out one of the two",
        ),
        (["signs.SignMomentum", "batch.size=8"], "'batch.size=8' may change what a study finds"),
        ([], "takes an optimizer: its class, as package.module.Class"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    default = [] if "--space" in words or not words else ["--space", "lr=0.1,0.2"]
    assert main(["challenge", *words, *default]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in Path("experiments").iterdir()] == ["baselines"]


def test_the_baselines_of_the_package_are_whole() -> None:
    study = load_study(str(PACKAGED / "baselines"))
    archived = study.archive
    assert not archived.unread
    assert len(study.config.rows) * 4 * 6 <= len(archived.runs)


@pytest.mark.slow
def test_only_ones_own_runs_are_trained(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["logger=none"]
    assert main(["study", "baselines", *words]) == 0
    assert main(["runs", "pack", "baselines"]) == 0
    assert main(["challenge", "signs.SignMomentum", "--space", "lr=0.001,0.01", *words]) == 0
    capsys.readouterr()
    folder = Path("runs/challenge-signmomentum")
    trained = [json.loads(file.read_text()) for file in folder.glob("*/signed.json")]
    assert len(trained) == 4
    page = (folder / "report-full/report.html").read_text()
    assert "Contracts and cost of SignMomentum" in page
    assert "8 of the 12 runs that are over are in" in " ".join(page.split()).replace("\N{NO-BREAK SPACE}", " ")
