"""A row that says why it is not tuned has one setting beside rows that are, and every report says so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from rich.console import Console

from neumann.config import make_specs
from neumann.errors import UserError
from neumann.studies.analysis import analyse
from neumann.studies.collect import collect
from neumann.studies.plan import load_study
from neumann.studies.progress import StudyView
from neumann.studies.report.figures import draw
from neumann.studies.report.methods import methods
from neumann.studies.report.page import page
from neumann.studies.study_run import runs_of
from tests.support.study_folders import finish

STUDY: dict[str, Any] = {
    "title": "t",
    "question": "q",
    "design": "grid",
    "rows": {
        "tuned": {"label": "Tuned", "overrides": ["optimizer=neumann"]},
        "measured": {
            "label": "Measured",
            "overrides": ["optimizer=neumann", "schedule=spectral"],
            "untuned": "it has no rate.",
        },
        "fixed": {"label": "Fixed", "overrides": ["optimizer=neumann", "optimizer.lr=0.3"], "untuned": "of elsewhere"},
    },
    "space": {"optimizer.lr": [0.01, 0.1, 1.0]},
    "seeds": {"evaluation": [0, 1]},
    "comparisons": {"primary": "measured", "reference": "tuned", "margin": 0.1},
}


def write(**rows: dict[str, Any]) -> None:
    content = copy.deepcopy(STUDY)
    for name, changes in rows.items():
        content["rows"][name] |= changes
    Path("experiments/mine").mkdir(parents=True, exist_ok=True)
    Path("experiments/mine/study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def test_it_has_one_run_a_seed_and_the_others_all_of_theirs() -> None:
    write()
    planned = load_study("mine").tuning()
    counts = {row: sum(run.row == row for run in planned) for row in STUDY["rows"]}
    assert counts == {"tuned": 6, "measured": 2, "fixed": 2}
    assert not any("optimizer.lr" in word for run in planned if run.row == "measured" for word in run.overrides)
    assert all("optimizer.lr=0.3" in run.overrides for run in planned if run.row == "fixed")


@pytest.mark.medium
def test_the_report_says_which_rows_were_not_tuned_and_why() -> None:
    write()
    study = load_study("mine")
    for run in study.tuning():
        finish(run, 0.2 + 0.01 * run.seed)
    results = analyse(collect(study))
    limits = " ".join(results.limits)
    assert "Measured was not tuned: it has no rate. Rows that were tuned chose among 3 settings" in limits
    assert "Fixed was not tuned: of elsewhere." in limits
    said = " ".join(methods(results))
    assert "Each tuned row had 3 trials: optimizer.lr from {0.01, 0.1, 1}. Measured and Fixed had one setting." in said
    assert all(row.edge is None for row in results.rows if row.key != "tuned")
    assert "it has no rate" in page(results, draw(results))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"measured": {"untuned": " "}}, "rows.measured.untuned is empty: say why"),
        ({"measured": {"space": {"optimizer.lr": [1]}}}, "rows.measured has a space and is untuned"),
        ({"measured": {"untuned": None}}, "rows.measured.*schedule=spectral|schedule=spectral"),
        ({"fixed": {"untuned": None, "overrides": [], "space": {"optimizer.lr": [1]}}}, "unequal numbers of trials"),
        ({"tuned": {"untuned": "no"}}, "every row is untuned"),
    ],
)
def test_what_is_unfair_or_empty_is_refused(rows: dict[str, dict[str, Any]], said: str) -> None:
    write(**rows)
    with pytest.raises(UserError, match=said):
        collect(load_study("mine"))


def test_a_run_whose_rate_is_measured_is_shown_without_one() -> None:
    write()
    study = load_study("mine")
    runs = runs_of(study, study.tuning(), make_specs)
    view = StudyView(Console(quiet=True), "", study, runs)
    labels = {run.planned.row: view.label(run.spec) for run in runs if run.planned.seed == 0}
    assert labels["measured"] == "digits-small_cnn-neumann-s0"
    assert labels["fixed"] == "digits-small_cnn-neumann-s0 lr=0.3"
    assert labels["tuned"].startswith("digits-small_cnn-neumann-s0 lr=")
