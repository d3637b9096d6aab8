"""Tests of a study's plan: what makes its rows comparable, and its evaluation points, those of the built optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from neumann.cli.main import main
from neumann.config import make_spec
from neumann.config.compose import list_groups
from neumann.optim.points import points
from neumann.studies.collect import collect
from neumann.studies.plan import load_study
from neumann.training.optimizers import build_optimizer
from tests.support.study_folders import STUDY, write_study

pytestmark = pytest.mark.medium

NAMED = {"torch": "optimizer.name=Adagrad", "timm": "optimizer.name=lion"}


@pytest.mark.parametrize("name", list_groups()["optimizer"])
def test_an_optimizer_keeps_an_average_of_its_own_where_its_file_has_a_gamma(name: str) -> None:
    section = make_spec([f"optimizer={name}", *([NAMED[name]] if name in NAMED else [])]).config.optimizer
    optimizer = build_optimizer(torch.nn.Linear(2, 2), section, "none")
    assert ("average" in points(optimizer)) == ("gamma" in section and "inner_steps" not in section)


def different(override: str, **comparisons: Any) -> dict[str, Any]:
    """Return the study of three rows, whose row neumann has an override more."""
    content = copy.deepcopy(STUDY)
    content["rows"]["neumann"]["overrides"].append(override)
    content["comparisons"] |= comparisons
    return content


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.split_seed=1", ["the split of their images", "data.split_seed=1 and 0"]),
        ("trainer.max_epochs=40", ["the horizon (trainer.max_epochs=40 and 2)", "comparisons.across"]),
        ("trainer.check_val_every_n_epoch=0.5", ["the evaluation grid", "0.5 and 1"]),
        ("trainer.accelerator=gpu", ["their precision", "trainer.precision=bf16-mixed and 32-true", "for all rows"]),
    ],
)
def test_rows_that_no_seed_can_pair_are_refused_at_the_plan(
    override: str, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(different(override))
    assert main(["study", "mine", "--plan"]) == 2
    err = capsys.readouterr().err
    assert "rows.neumann and rows.sgd are compared seed by seed" in err
    assert all(part in err for part in parts), err
    assert len(err.strip().splitlines()) == 1


def test_two_rows_that_are_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    content = copy.deepcopy(STUDY)
    content["rows"]["neumann"]["overrides"] = ["optimizer=sgd"]
    write_study(content)
    assert main(["study", "mine", "--plan"]) == 2
    assert "rows.sgd and rows.neumann are the same runs judged at the same point" in capsys.readouterr().err


def test_a_space_that_varies_the_horizon_is_refused_too(capsys: pytest.CaptureFixture[str]) -> None:
    write_study(copy.deepcopy(STUDY) | {"space": {"trainer.max_epochs": [2, 40]}, "overrides": STUDY["overrides"][1:]})
    assert main(["study", "mine", "--plan"]) == 2
    assert "two settings of rows.sgd" in capsys.readouterr().err


def test_rows_of_other_images_are_refused(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shade in (("a", 10), ("b", 200)):
        small_folder(tmp_path / name, shade)
    content = different(f"data.root={tmp_path / 'b'}")
    content["overrides"] += ["data=image_folder", f"data.root={tmp_path / 'a'}"]
    content["overrides"][1] = "batch.size=4"
    write_study(content)
    assert main(["study", "mine", "--plan"]) == 2
    assert "differ in their images (data.root=" in capsys.readouterr().err


def small_folder(folder: Any, shade: int) -> None:
    """Write twenty images of two classes."""
    from PIL import Image

    for name in ("x", "y"):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (8, 8), shade + i + (20 if name == "y" else 0)).save(folder / name / f"{i}.png")


def test_the_horizon_may_differ_where_that_is_compared_and_batches_share_epochs_or_steps() -> None:
    write_study(different("trainer.max_epochs=40", across="trainer.max_epochs"))
    assert {run.spec.config.trainer.max_epochs for run in collect(load_study("mine")).tuning} == {2, 40}
    write_study(different("batch.size=32"))
    collect(load_study("mine"))  # as many epochs
    write_study(different("trainer.precision=bf16-mixed"))
    collect(load_study("mine"))  # a row that names it compares it
