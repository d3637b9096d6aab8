"""`neumann lr-range`: its interval and its space are those of the trials, a study reads the space, bad input is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from neumann.cli.main import main
from neumann.studies.plan import load_study

QUICK = ["model=mlp", "+model.kwargs.width=4", "batch.size=256", "launch.threads=1"]
FEW = ["--steps", "4", "--seeds", "2", "--images", "64", "--per-decade", "1", "--refine", "1"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What a test prints as JSON, and the space that it wrote."""
    place = tmp_path_factory.mktemp("found") / "space.yaml"
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        words = ["lr-range", "optimizer=sgd", "seed=7", *QUICK, *FEW, "--write", str(place), "--json"]
        assert main(words) == 0
    return json.loads(out.getvalue()), place


@pytest.mark.medium
def test_the_record_says_every_trial_and_what_follows(found: tuple[dict[str, Any], Path]) -> None:
    record, _ = found
    trials = record["trials"]
    assert {trial["seed"] for trial in trials} == {7, 8} == {int(seed) for seed in record["by_seed"]}
    assert record["gradient_evaluations"] == sum(trial["gradients"] for trial in trials)
    stable = dict.fromkeys(sorted({trial["rate"] for trial in trials}), True)
    for trial in trials:
        stable[trial["rate"]] &= trial["end"] is not None and trial["end"] <= trial["start"]
    highest = [rate for rate in stable if all(stable[lower] for lower in stable if lower <= rate)][-1]
    assert record["interval"]["high"] == highest
    assert record["interval"]["low"] < highest < 1000
    assert not record["interval"]["high_open"]
    assert not Path("runs").exists()


@pytest.mark.medium
def test_a_study_reads_the_space(found: tuple[dict[str, Any], Path]) -> None:
    record, place = found
    content = {
        "title": "t",
        "question": "q",
        "design": "grid",
        "rows": {name: {"label": name, "overrides": [f"optimizer={name}"]} for name in ("sgd", "nesterov")},
        "seeds": {"evaluation": [0, 1]},
        "comparisons": {"primary": "sgd", "reference": "nesterov", "margin": 0.1},
    }
    Path("experiments/mine").mkdir(parents=True)
    Path("experiments/mine/study.yaml").write_text(yaml.safe_dump(content) + place.read_text())
    rates = [
        float(word.removeprefix("optimizer.lr="))
        for run in load_study("mine").tuning()
        for word in run.overrides
        if word.startswith("optimizer.lr=")
    ]
    assert sorted(set(rates)) == record["space"]["optimizer.lr"]
    assert len(set(rates)) == 4


@pytest.mark.medium
def test_what_is_printed_is_the_interval_and_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optimizer=neumann", "timing.burn_in=2", "recipe.lr_scaling=linear", "recipe.lr_base_size=128"]
    assert main(["lr-range", *words, *QUICK, *FEW, "--from", "1e-3", "--to", "100"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"digits-mlp-neumann: stable and making progress from [≤ ]*[\d.e-]+ to [\d.]+, for 2 seeds", out)
    assert re.search(r"by seed: 0: stable .*; 1: stable", out)
    assert "recipe.lr_scaling multiplies each of these rates by 2" in out
    assert "note: the burn-in, which is another method, is left out" in out
    assert re.search(r"space of a study: optimizer\.lr: \[[\d.e-]+(, [\d.e-]+){3}\]", out)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer.lr=0.1"], "'optimizer.lr=0.1': the rate is what a range test varies"),
        (["--steps", "0"], "--steps 0: give 1 or more"),
        (["--values", "1"], "--values 1: give 2 or more"),
        (["--from", "0"], "--from 0: give a rate above 0"),
        (["--to", "nan"], "--to nan: give a rate above 0"),
        (["--from", "1", "--to", "0.1"], "--from 1 --to 0.1: the first is to be the lower one"),
        (["--write", ""], "--write is empty"),
        (["--write", "there.yaml"], "--write there.yaml: it is there already, and nothing is overwritten"),
        (["--write", "no/such.yaml"], "--write no/such.yaml: there is no folder"),
        (["optimizer=sgdd"], "there is no optimizer 'sgdd'"),
        (["trainer.devices=2"], "a range test is made in one process"),
        (["launch=slurm"], "launch=slurm: a range test is made in this process"),
        (["schedule=spectral"], "schedule=spectral measures the rate, so there is none to try"),
        (["--setps", "3"], "did you mean '--steps'?"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("there.yaml").write_text("mine")
    assert main(["lr-range", *words]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert said in err
    assert err.count("error:") == 1
    assert Path("there.yaml").read_text() == "mine"


@pytest.mark.medium
def test_an_interval_too_narrow_for_a_space_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optimizer=sgd", *QUICK, "--steps", "2", "--seeds", "1", "--images", "64", "--per-decade", "1"]
    place = "space.yaml"
    code = main(["lr-range", *words, "--refine", "0", "--values", "900", "--write", place])
    out, err = capsys.readouterr()
    assert re.search(r"space of a study: none, since .* is too narrow for 900 different rates", out)
    assert "nothing is written" in err
    assert code == 2
    assert not Path(place).exists()
