"""A study.yaml is read strictly: whatever would make a comparison unfair or silently wrong is one sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from neumann.config import RunConfig, make_spec
from neumann.errors import UserError
from neumann.studies.definition import PACKAGED, list_studies, read_study
from neumann.studies.plan import load_study
from neumann.studies.schema import ASKED, SET_BY_STUDY
from neumann.studies.stamp import ON_THE_PAGE


def study() -> dict[str, Any]:
    return {
        "title": "A test",
        "question": "Is it read?",
        "overrides": ["data=digits", "trainer.max_epochs=20"],
        "rows": {
            "sgd": {"label": "SGD", "overrides": ["optimizer=sgd"]},
            "averaged": {"label": "SGD, averaged", "overrides": ["optimizer=sgd"], "point": "average"},
            "neumann": {"label": "Neumann", "overrides": ["optimizer=neumann"]},
        },
        "space": {"optimizer.lr": [0.01, 0.03, 0.1, 0.3, 1.0]},
        "seeds": {"tuning": [100, 101, 102], "evaluation": [0, 1, 2]},
        "comparisons": {"primary": "neumann", "reference": "sgd", "smallest_effect": 0.5},
        "budgets": {
            "small": {
                "overrides": ["trainer.max_epochs=2"],
                "trials": 3,
                "tuning_seeds": 1,
                "pilot": True,
                "evaluation_seeds": 2,
            }
        },
    }


def write(content: dict[str, Any], name: str = "mine") -> Path:
    folder = Path("experiments", name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return folder / "study.yaml"


def test_the_full_budget_is_the_study_as_it_stands() -> None:
    write(study())
    full = load_study("mine")
    assert full.name == "mine"
    assert full.tuning_seeds == (100, 101, 102)
    assert full.evaluation_seeds == (0, 1, 2)
    tuning = full.tuning()
    assert len(tuning) == 3 * 5 * 3
    assert tuning[0].overrides == (
        "data=digits",
        "trainer.max_epochs=20",
        "optimizer=sgd",
        "optimizer.lr=0.01",
        "trainer.test=false",
        "seed=100",
        "study=mine",
    )
    chosen = full.evaluation("neumann", {"optimizer.lr": 0.3})
    assert [run.seed for run in chosen] == [0, 1, 2]
    assert all("optimizer.lr=0.3" in run.overrides and "optimizer=neumann" in run.overrides for run in chosen)


def test_a_budget_takes_the_middle_trials_the_first_seeds_and_its_own_settings() -> None:
    write(study())
    small = load_study("mine", "small")
    assert [s["optimizer.lr"] for s in small.spaces["sgd"]] == [0.03, 0.1, 0.3]
    assert small.tuning_seeds == (100,)
    assert small.evaluation_seeds == (0, 1)
    words = small.tuning()[0].overrides
    assert "trainer.max_epochs=2" in words
    assert "trainer.max_epochs=20" not in words


def test_a_row_may_have_a_space_of_its_own_with_as_many_trials() -> None:
    content = study()
    content["rows"]["neumann"]["space"] = {"optimizer.lr": [1.0, 2.0, 3.0, 4.0, 5.0]}
    write(content)
    assert [s["optimizer.lr"] for s in load_study("mine").spaces["neumann"]] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_space_of_two_settings_is_their_product() -> None:
    content = study()
    content["space"] = {"optimizer.lr": [0.1, 0.3], "optimizer.weight_decay": [0.0, 1e-4]}
    del content["budgets"]
    write(content)
    assert list(load_study("mine").spaces["sgd"]) == [
        {"optimizer.lr": lr, "optimizer.weight_decay": wd} for lr in (0.1, 0.3) for wd in (0.0, 1e-4)
    ]


@pytest.mark.parametrize("name", ["größe", "2024_01", "a = (b)", "it's", "null", "1.10"])
def test_a_study_may_have_any_name(name: str) -> None:
    write(study(), name)
    runs = load_study(f"experiments/{name}").tuning()
    assert make_spec(runs[0].overrides).config.study == name


def change(content: dict[str, Any], path: Any, value: Any) -> dict[str, Any]:
    *parents, last = path.split("/") if isinstance(path, str) else [path]
    node = content
    for key in parents:
        node = node[key]
    node[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("seeds/tuning", [0, 100], ["[0]", "both tune and evaluate"]),
        ("seeds/evaluation", [1, 1], ["seeds.evaluation", "each once"]),
        ("seeds/tuning", [], ["seeds.tuning"]),
        ("seeds/evalution", [7], ["seeds.evalution", "did you mean 'evaluation'?"]),
        ("qestion", "what?", ["there is no 'qestion'", "did you mean 'question'?"]),
        ("question", None, ["it needs question"]),
        ("rows/neumann/lable", "x", ["rows.neumann.lable", "did you mean 'label'?"]),
        ("rows/neumann/label", None, ["it needs rows.neumann.label"]),
        ("rows/neumann/point", "avrage", ["rows.neumann.point=avrage", "did you mean 'average'?"]),
        ("rows/neumann/space", {"optimizer.lr": [0.1]}, ["unequal numbers of trials", "neumann 1"]),
        ("rows/neumann/overrides", ["optimizer.lr=0.1"], ["tuned and set by an override"]),
        ("rows/neumann/overrides", ["seed=3"], ["'seed=3'", "set for each run"]),
        ("rows/neumann/overrides", ["launch.parallel=2"], ["launch is set for each run"]),
        ("rows/neumann/overrides", ["trainer.test=false"], ["'trainer.test=false'", "runs that tune are not tested"]),
        ("rows/neumann/overrides", ["neumann"], ["'neumann' is not an override"]),
        ("rows/neumann", None, ["rows.neumann=nothing is not a mapping"]),
        ("rows", ["a"], ["rows=['a'] is not a mapping of names"]),
        ("rows", {1: {"label": "x"}}, ["rows has the name 1, which must be a word"]),
        ("rows/neumann/label", "SGD", ["rows.sgd.label='SGD'", "each needs its own"]),
        ("rows/neumann/overrides", "optimizer=sgd", ["rows.neumann.overrides=optimizer=sgd is not a list"]),
        ("overrides", "data=digits", ["overrides=data=digits is not a list"]),
        ("seeds", [1, 2], ["seeds=[1, 2] is not a mapping"]),
        ("seeds/tuning", 100, ["seeds.tuning=100 is not a list"]),
        ("comparisons", None, ["comparisons=nothing is not a mapping"]),
        ("comparisons/also", ["sgd", "neumann"], ["comparisons.also=sgd is not a list"]),
        ("comparisons/smallest_effect", float("nan"), ["above 0"]),
        ("comparisons/smallest_effect", float("inf"), ["above 0"]),
        ("paper", {"source": "x", "measure": "y", "rows": {"sgd": float("nan")}}, ["paper.rows.sgd=nan"]),
        ("space", 3, ["space=3 is not a mapping"]),
        ("space", {"optimizer.lr": 0.1}, ["space.optimizer.lr=0.1 is not a list"]),
        ("budgets", [], ["budgets=[] is not a mapping"]),
        ("budgets/full", {"trials": 1}, ["budgets.full is the study as it stands"]),
        ("limits", "hello", ["limits=hello is not a list"]),
        ("figures", ["sgd"], ["figures=['sgd'] is not a mapping"]),
        ("space", {"optimizer.lr": []}, ["space.optimizer.lr=[]"]),
        ("space", {"optimizer.lr": [0.1, 0.1]}, ["each once"]),
        ("space", {}, ["space is empty"]),
        ("comparisons/reference", "sdg", ["comparisons.reference", "did you mean 'sgd'?"]),
        ("comparisons/primary", "sgd", ["the same row"]),
        ("comparisons/also", [["sgd"]], ["not a pair"]),
        ("comparisons/across", "trainer.max_epoch", ["comparisons.across", "did you mean 'trainer.max_epochs'"]),
        ("comparisons/also", [["sgd", "neumann"], ["sgd", "neumann"]], ["['sgd', 'neumann'] stands there twice"]),
        ("space", {"optimizer.lr": [1], "+optimizer.lr": [2]}, ["names optimizer.lr, which is written once"]),
        ("space", {"~optimizer.lr": [1]}, ["names optimizer.lr, which is written once, alone"]),
        ("space", {"optimizer.lr": [0.1, "1e-400"]}, ["1e-400 is nearer to zero"]),
        *[(f"budgets/{name}", {}, ["ends the name of a folder"]) for name in ("..", "a b", "-x", "a\\b")],
        ("budgets", {"a/../../b": {}}, ["budgets.'a/../../b' ends the name of a folder"]),
        ("comparisons/also", [["sgd", "adam"]], ["comparisons.also", "'adam'"]),
        ("comparisons/smallest_effect", 0, ["above 0"]),
        ("comparisons/smallest_effect", None, ["name the smallest effect of interest once", "margin: 0.1"]),
        ("comparisons/margin", 0.1, ["name the smallest effect of interest once"]),
        ("comparisons", {"primary": "neumann", "reference": "sgd", "margin": 10}, ["comparisons.margin=10", "below 1"]),
        ("comparisons/outcome", "step", ["comparisons.outcome=step", "did you mean 'steps'?"]),
        ("comparisons/outcome", "steps", ["a difference of errors, and comparisons.outcome=steps is none"]),
        (
            "comparisons",
            {"primary": "neumann", "reference": "sgd", "margin": 0.1, "outcome": "steps"},
            ["counted to a target", "target.of"],
        ),
        ("target", {}, ["target: name error", "or of"]),
        ("target", {"error": 8.0, "of": "sgd"}, ["target: name error"]),
        ("target", {"error": 800.0}, ["target.error=800.0", "below 100"]),
        ("target", {"of": "sdg"}, ["target.of names the row 'sdg'", "did you mean 'sgd'?"]),
        ("target", {"eror": 8.0}, ["target.eror", "did you mean 'error'?"]),
        ("budgets/small/pilot", "yes", ["budgets.small.pilot=yes is not true or false"]),
        ("figures", {"curvs": ["sgd"]}, ["there is no figure 'curvs'", "did you mean 'curves'?"]),
        ("figures", {"curves": ["adam"]}, ["figures.curves", "'adam'"]),
        ("paper", {"source": "x", "measure": "y", "rows": {"adam": 1.0}}, ["paper.rows", "'adam'"]),
        ("paper", {"measure": "y"}, ["it needs paper.source"]),
        ("overrides", [{"optimizer": "adamw"}], ["overrides", "is not a text", "write 'optimizer=adamw'"]),
        ("rows/neumann/overrides", [{"optimizer": "adamw"}], ["rows.neumann.overrides", "write 'optimizer=adamw'"]),
        ("rows/neumann/overrides", ["batch.size=8", "batch.size=16"], ["both set batch.size"]),
        ("budgets/small/overrides", ["optimizer.lr=3"], ["tuned and set by an override in budgets.small.overrides"]),
        ("budgets/small/overrides", ["+optimizer.lr=3"], ["tuned and set by an override in budgets.small.overrides"]),
        ("budgets/small/overrides", ["optimizer=adam"], ["budgets.small.overrides and rows.", "both set optimizer"]),
        *[
            ("space", {key: ["1", "2"]}, [f"space.{key}: {key.split('.')[0]} is set for each run"])
            for key in ("seed", "study", "output", "name", "launch.threads", "logger.mode", "checkpoint")
        ],
        ("space", {"data.split_seed": [0, 1]}, ["data.split_seed decides which images a run is judged on"]),
        ("space", {"data": ["digits", "other"]}, ["data decides which images a run is judged on"]),
        ("space", {"data.workers": [0, 1]}, ["data.workers cannot change a result"]),
        ("space", {"optimizer.lr": [0.1, "0.1"]}, ["'0.1' is in quotes"]),
        ("seeds/tuning", ["010"], ["seeds.tuning='010' is not a whole number"]),
        ("budgets/small/trials", 9, ["budgets.small.trials=9", "from 1 to 5"]),
        ("budgets/small/tuning_seeds", 0, ["budgets.small.tuning_seeds=0", "from 1 to 3"]),
        ("seeds/tuning", [100, 101], ["seeds.tuning: 2 seeds would choose among 5 settings", "or design: grid"]),
        ("budgets/small/pilot", False, ["budgets.small.tuning_seeds: 1 seed would", "budgets.small.pilot: true"]),
        ("rows", {"sgd": {"label": "SGD"}}, ["at least two"]),
        ("seeds/tuning", ["a"], ["seeds.tuning=a is not a whole number"]),
        ("seeds/tuning", [1.5], ["seeds.tuning=1.5 is not a whole number"]),
        ("seeds/tuning", [True], ["seeds.tuning=true is not a whole number"]),
        ("seeds", {"tuning": [100]}, ["seeds.evaluation=[]", "at least one seed"]),
        ("comparisons/smallest_effect", "half", ["comparisons.smallest_effect=half is not a number"]),
        ("budgets/small", None, ["budgets.small=nothing is not a mapping"]),
        ("budgets/small/trials", "few", ["budgets.small.trials=few is not a whole number"]),
        ("limits", [3], ["limits=3 is not a text"]),
        (3, "x", ["its key 3 is not a word"]),
    ],
)
def test_what_would_be_unfair_or_wrong_is_one_sentence(path: Any, value: Any, parts: list[str]) -> None:
    file = write(change(study(), path, value))
    with pytest.raises(UserError) as caught:
        load_study("mine", "small")
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("key", ["title", "question", "rows", "seeds", "comparisons"])
def test_what_a_study_must_say_is_asked_for(key: str) -> None:
    content = study()
    del content[key]
    write(content)
    with pytest.raises(UserError, match=rf"study\.yaml: it needs {key}$"):
        load_study("mine")


def test_what_a_study_cannot_set_are_settings_of_a_run() -> None:
    settings = {field.name for field in dataclasses.fields(RunConfig)}
    assert set(SET_BY_STUDY) <= settings
    assert {word.rstrip("=.") for word in ON_THE_PAGE} <= settings


def test_a_study_asks_for_the_points_that_optimizers_have() -> None:
    from neumann.optim.points import POINTS

    assert set(ASKED) == {"eval", *POINTS}


def test_a_file_that_is_no_study_is_one_sentence() -> None:
    write(study()).write_text("- a\n- b\n")
    with pytest.raises(UserError, match="holds a list, and a mapping belongs there"):
        load_study("mine")
    write(study()).write_text("question: [unclosed\n")
    with pytest.raises(UserError, match="cannot be read") as caught:
        load_study("mine")
    assert "\n" not in str(caught.value)


def test_studies_are_found_by_name_by_folder_and_by_file() -> None:
    file = write(study())
    assert load_study("mine").file == file
    assert load_study("experiments/mine").name == "mine"
    assert load_study(str(file)).name == "mine"
    with pytest.raises(UserError, match="did you mean 'mine'"):
        load_study("mnie")
    with pytest.raises(UserError, match=r"there is no study at nowhere/study\.yaml"):
        load_study("nowhere/study.yaml")
    with pytest.raises(UserError, match="there is no budget 'smal': did you mean 'small'"):
        load_study("mine", "smal")


def test_ones_own_study_goes_before_a_packaged_one_of_the_same_name() -> None:
    file = write(study(), "regularizers")
    assert list_studies()["regularizers"] == file


@pytest.mark.parametrize("file", sorted(PACKAGED.glob("*/study.yaml")), ids=lambda file: file.parent.name)
def test_every_packaged_study_loads_at_every_budget(file: Path) -> None:
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert f"neumann study {file.parent.name}" in first
    for budget in ("full", *load_study(str(file)).config.budgets):
        one = load_study(str(file), budget)
        assert one.tuning()
        assert not set(one.tuning_seeds) & set(one.evaluation_seeds)


def test_studies_of_ours_name_their_schedule() -> None:
    """A default may change; what a study found must not change with it."""
    for file in PACKAGED.glob("*/study.yaml"):
        study = read_study(file)
        for row in study.rows.values():
            assert any(word.startswith("schedule=") for word in (*study.overrides, *row.overrides)), file
