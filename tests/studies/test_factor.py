"""A study across a factor: every row at every level, compared at equal ones, and read strictly."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from neumann.errors import UserError
from neumann.studies.analysis import analyse
from neumann.studies.collect import collect
from neumann.studies.plan import Study, load_study
from neumann.studies.report.methods import methods
from neumann.studies.report.table_md import markdown_table
from tests.support.study_folders import STUDY, finish, write_study

LEVELS = {
    "short": {"label": "of 1 epoch", "overrides": ["trainer.max_epochs=1"]},
    "long": {"label": "of 2 epochs", "overrides": ["trainer.max_epochs=2"]},
}


def content(**changes: Any) -> dict[str, Any]:
    made = copy.deepcopy(STUDY)
    del made["rows"]["averaged"], made["paper"]
    made |= {
        "design": "grid",
        "seeds": {"evaluation": [0, 1, 2]},
        "factor": {"name": "horizon", "levels": copy.deepcopy(LEVELS)},
        "comparisons": {"primary": "neumann", "reference": "sgd", "margin": 0.1, "level": "long"},
    }
    if changes.get("factor") is not None:
        del made["comparisons"]["level"]
    return {**made, **changes}


def study_of(**changes: Any) -> Study:
    write_study({key: value for key, value in content(**changes).items() if value is not None})
    return load_study("mine")


def test_every_row_is_trained_at_every_level_and_compared_at_equal_ones() -> None:
    study = study_of()
    assert list(study.config.rows) == ["sgd@short", "sgd@long", "neumann@short", "neumann@long"]
    assert study.config.rows["sgd@short"].label == "SGD, horizon of 1 epoch"
    assert study.config.comparisons.primary == "neumann@long"
    assert [study.reference_of(f"neumann@{level}") for level in LEVELS] == ["sgd@short", "sgd@long"]
    planned = study.tuning()
    assert len(planned) == 2 * 2 * 3 * 3
    assert all(("trainer.max_epochs=1" in run.overrides) == run.row.endswith("@short") for run in planned)
    first = study_of(comparisons={"primary": "neumann", "reference": "sgd", "margin": 0.1})
    assert first.config.comparisons.primary == "neumann@short"
    assert not study.is_of_batches


def test_the_report_tells_an_effect_at_each_level() -> None:
    study = study_of()
    for run in study.tuning():
        ours, level = run.row.split("@")
        error = {("sgd", "short"): 0.2, ("sgd", "long"): 0.1, ("neumann", "short"): 0.3, ("neumann", "long"): 0.05}
        at = error[ours, level] + 0.001 * run.seed + 0.01 * (run.setting["optimizer.lr"] != 0.3)
        finish(replace(run, row="neumann" if ours == "neumann" else "sgd"), at, test=at)
    results = analyse(collect(study))
    told = {(c.row, c.against): c.effect for c in results.comparisons}
    assert told.keys() == {("neumann@long", "sgd@long"), ("neumann@short", "sgd@short")}
    effects = {row: effect.value for (row, _), effect in told.items() if effect is not None}
    assert effects["neumann@long"] == pytest.approx(0.051 / 0.101)
    assert effects["neumann@short"] == pytest.approx(0.301 / 0.201)
    assert not results.scaling
    text = markdown_table(results)
    assert "| Neumann, horizon of 2 epochs against SGD, horizon of 2 epochs (primary) |" in text
    assert "against SGD at the same horizon" in text
    assert "at each level of the factor horizon (of 1 epoch and of 2 epochs)" in " ".join(methods(results))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"factor": {"name": "horizon", "levels": {"one": {}}}}, "factor.levels: a factor takes at least two, and there is 1"),
        ({"factor": {"name": "Batch", "levels": LEVELS}}, "factor.name='Batch': name what the levels are of"),
        ({"factor": {"name": " ", "levels": LEVELS}}, "factor.name=' ': name what the levels are of"),
        ({"factor": {"name": "x", "levels": {"a": {}, "b": {}}}}, "factor.levels: two of them have the same overrides"),
        ({"factor": {"name": "x", "levels": {"a": {"label": "b"}, "b": {}}}}, "factor.levels.a.label='b': levels are told apart by it"),
        ({"factor": {"name": "x", "levels": {"a": {"overrides": ["optimizer.lr=1"]}, "b": {}}}}, "factor.levels.a.overrides and space both set optimizer.lr"),
        ({"factor": {"name": "x", "levels": {"a": {"overrides": ["optimizer=adam"]}, "b": {}}}}, "factor.levels.a.overrides and rows.sgd.overrides both set optimizer"),
        ({"factor": {"name": "x", "levels": {"a": {"overrides": ["seed=8"]}, "b": {}}}}, "factor.levels.a.overrides: 'seed=8' does not belong in a study"),
        ({"factor": {"name": "x", "levels": {"a": {"epochs": 1}, "b": {}}}}, "there is no 'factor.levels.a.epochs'"),
        ({"factor": {"levels": LEVELS}}, "it needs factor.name"),
        ({"factor": None}, "comparisons.level=long: the study names no factor"),
        ({"comparisons": {"primary": "neumann", "reference": "sgd", "margin": 0.1, "level": "lang"}}, "comparisons.level=lang: did you mean 'long'?"),
        (
            {"comparisons": {"primary": "neumann", "reference": "sgd", "margin": 0.1, "across": "trainer.max_epochs"}},
            "comparisons.across=trainer.max_epochs: what rows differ in is the factor",
        ),
        ({"target": {"of": "sgd"}, "seeds": {"tuning": [9], "evaluation": [0]}}, "target.of: a row has another error at each level"),
        ({"paper": {"source": "a", "measure": "b", "rows": {"sgd": 24.3}}}, "paper.rows: a published number belongs to one level"),
        (
            {"batches": {32: {}, 64: {}}, "comparisons": {"primary": "neumann", "reference": "sgd", "margin": 0.1, "outcome": "steps"},
             "target": {"error": 5.0}, "overrides": ["trainer.max_epochs=2"]},
            "factor and batches: a study has one of them",
        ),
    ],
)  # fmt: skip
def test_a_wrong_factor_is_one_sentence(changes: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as found:
        study_of(**changes)
    assert sentence in str(found.value)
