"""The grid design: every seed chooses its own setting, so that n repeats the search too."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from neumann.cli.main import main
from neumann.errors import UserError
from neumann.studies.analysis import analyse
from neumann.studies.collect import collect
from neumann.studies.effects import Way
from neumann.studies.grid import Ended, Measured, best, mean_over, middle
from neumann.studies.plan import EQUAL, EVALUATION, TUNING, Study, load_study
from neumann.studies.remaining import remaining
from neumann.studies.report.csv_files import table_csv
from neumann.studies.report.table_md import markdown_table
from neumann.studies.report.tables import main_lines
from neumann.studies.results import StudyResults, TuningTrial
from neumann.studies.statistics import paired
from neumann.studies.study_run import StudyRun
from tests.support.study_folders import STUDY, diverge, finish, write_study

# validation and test error by row, rate and seed
VALIDATION: dict[str, dict[float, tuple[float, ...]]] = {
    "sgd": {0.1: (0.06, 0.04, 0.06), 0.3: (0.05, 0.05, 0.05), 1.0: (0.09, 0.09, 0.09)},
    "neumann": {0.1: (0.05, 0.05, 0.05), 0.3: (0.02, 0.02, 0.06), 1.0: (0.09, 0.09, 0.04)},
}
TEST: dict[str, dict[float, tuple[float, ...]]] = {
    "sgd": {0.1: (0.5, 0.08, 0.5), 0.3: (0.07, 0.5, 0.07), 1.0: (0.5, 0.5, 0.5)},
    "neumann": {0.1: (0.5, 0.5, 0.5), 0.3: (0.04, 0.05, 0.06), 1.0: (0.5, 0.5, 0.03)},
}


def content(**changes: Any) -> dict[str, Any]:
    made = copy.deepcopy(STUDY)
    del made["rows"]["averaged"]
    made |= {"design": "grid", "seeds": {"evaluation": [0, 1, 2]}}
    return made | changes


def study_of(**changes: Any) -> Study:
    write_study(content(**changes))
    return load_study("mine")


def rate(run: Any) -> float:
    return float(run.setting["optimizer.lr"])


def trained(study: Study, runs: Sequence[StudyRun], trials: Mapping[str, Sequence[TuningTrial]]) -> None:
    """Write what the runs of a phase would leave."""
    for planned, spec in ((run.planned, run.spec) for run in runs if not run.over):
        seed = planned.seed
        error = VALIDATION[planned.row][rate(planned)][seed % 3]
        test = TEST[planned.row][rate(planned)][seed % 3]
        finish(planned, error, test=test, tested=planned.role != TUNING, first=2 * error, spec=spec)


def run_it(study: Study) -> StudyResults:
    return analyse(collect(study, trained))


# ------------------------------------------------------------------------------------------------------ pure functions


def test_a_seed_chooses_by_error_then_loss_then_order() -> None:
    assert best([Ended(0.2, 0.1), Ended(0.1, 0.5), Ended(0.3, 0.1)]) == 1
    assert best([Ended(0.1, 0.4), Ended(0.1 + 1e-15, 0.3)]) == 1
    assert best([Ended(0.1, 0.3), Ended(0.1, 0.3)]) == 0
    assert best([Ended(None, None), Ended(0.9, 2.0)]) == 1
    assert best([Ended(None, None), Ended(None, None)]) is None


def test_the_middle_lies_on_no_edge() -> None:
    assert middle([{"lr": lr} for lr in (0.1, 0.3, 1.0)]) == (1,)
    assert middle([{"lr": lr} for lr in (3.0, 0.3, 0.1, 1.0)]) == (1, 3)
    both = [{"lr": lr, "wd": wd} for lr in (0.1, 0.3, 1.0) for wd in (0.0, 1e-4, 1e-3)]
    assert middle(both) == (4,)
    assert middle([{"lr": lr, "schedule": word} for lr in (1, 2, 3) for word in ("a", "b")]) == (2, 3)
    assert middle([{"lr": lr, "wd": 0} for lr in (1, 2, 3)]) == (1,)
    assert middle([{"lr": 0.1}, {"lr": 0.3}]) == ()
    assert middle([]) == ()


def test_the_mean_over_settings_is_by_seed_and_loses_what_one_of_them_lost() -> None:
    one = Measured({0: 0.1, 1: 0.2, 2: 0.3}, (), {0: Way(True, {"steps": 10.0}), 1: Way(True, {"steps": 10.0})})
    other = Measured({0: 0.3, 1: 0.4}, (2,), {0: Way(True, {"steps": 40.0}), 1: Way(False, {"steps": 90.0})})
    found = mean_over([one, other])
    assert found.errors == pytest.approx({0: 0.2, 1: 0.3})
    assert found.diverged == (2,)
    assert found.ways[0].costs == pytest.approx({"steps": 20.0})
    assert (found.ways[0].reached, found.ways[1].reached, set(found.ways)) == (True, False, {0, 1})
    assert mean_over([one, Measured({}, ())]).errors == {}


# ----------------------------------------------------------------------------------------------------------- the study


@pytest.mark.medium
def test_every_seed_chooses_its_own_and_is_tested_there_alone() -> None:
    study = study_of()
    phases = []

    def train(study: Study, runs: Sequence[StudyRun], trials: Mapping[str, Sequence[TuningTrial]]) -> None:
        phases.append([(run.planned.role, run.planned.row, rate(run.planned), run.planned.seed) for run in runs])
        for run in runs:
            words = run.planned.overrides
            assert ("trainer.test=false" in words) == ("checkpoint.keep=last" in words) == (run.planned.role == TUNING)
        trained(study, runs, trials)

    results = analyse(collect(study, train))
    assert len(phases[0]) == 2 * 3 * 3
    assert phases[1] == [
        *((EVALUATION, "sgd", lr, seed) for seed, lr in enumerate((0.3, 0.1, 0.3))),
        *((EVALUATION, "neumann", lr, seed) for seed, lr in enumerate((0.3, 0.3, 1.0))),
    ]
    sgd, neumann = results.row("sgd"), results.row("neumann")
    assert sgd.errors == {0: 0.07, 1: 0.08, 2: 0.07}
    assert neumann.errors == {0: 0.04, 1: 0.05, 2: 0.03}
    assert (sgd.setting, {seed: s["optimizer.lr"] for seed, s in sgd.choices.items()}) == (None, {0: 0.3, 1: 0.1, 2: 0.3})  # fmt: skip
    assert [trial.seeds for trial in neumann.trials] == [(), (0, 1), (2,)]
    assert neumann.edge == "1 of 3 seeds chose a setting on the edge of those tried"
    assert results.incomplete is None
    assert results.comparisons[0].paired is not None
    assert results.comparisons[0].paired.mean == pytest.approx(-0.1 / 3)
    assert "Every seed chose its own settings, so the luck of tuning is in this." in results.answer
    tested = {(run.rows, run.seed, rate(run)) for run in results.runs if run.test is not None}
    assert len(tested) == 6
    assert {run.role for run in results.runs if run.test is None} == {TUNING}
    assert len(results.runs) == 18  # a run that is in both phases is listed once
    assert [line.setting for line in main_lines(results)] == ["0.3 (2 seeds), 0.1 (1)", "0.3 (2 seeds), 1 (1)"]
    assert "0.3 \\(2 seeds\\), 0.1" in markdown_table(results) or "0.3 (2 seeds), 0.1 (1)" in markdown_table(results)
    assert "0.3 x2 0.1 x1" in table_csv(results).decode()
    assert analyse(collect(study)) == results  # the report reads the same


@pytest.mark.medium
def test_what_is_missing_is_said_and_seeds_that_are_complete_go_on() -> None:
    study = study_of()
    for planned in study.tuning():
        if planned.seed != 2:
            error = VALIDATION[planned.row][rate(planned)][planned.seed]
            finish(planned, error, tested=False)
    runs = collect(study)
    assert [(run.planned.row, run.planned.seed, run.over) for run in runs.evaluation] == [
        (row, seed, False) for row in ("sgd", "neumann") for seed in (0, 1)
    ]
    assert len(remaining(runs)) == 6  # seed 2; what is trained has its test to come alone
    results = analyse(runs)
    assert results.incomplete is not None
    assert "no setting is chosen yet for any row" in results.incomplete
    assert "10 of the 18 runs" in results.incomplete


@pytest.mark.medium
def test_a_seed_passes_by_what_diverged_and_has_diverged_where_all_did() -> None:
    study = study_of()
    for planned in study.tuning():
        lost = planned.row == "neumann" and (planned.seed == 0 or (planned.seed == 1 and rate(planned) == 0.3))
        if lost:
            diverge(planned)
        else:
            finish(planned, VALIDATION[planned.row][rate(planned)][planned.seed], tested=False)
    results = run_it(study)
    row = results.row("neumann")
    assert {seed: s["optimizer.lr"] for seed, s in row.choices.items()} == {1: 0.1, 2: 1.0}
    assert (row.diverged, sorted(row.errors)) == ((0,), [1, 2])
    assert results.comparisons[0].paired is not None
    assert results.comparisons[0].paired.diverged_a == (0,)
    assert "n = 2 of 3 (1 diverged in Neumann)" in results.headline


@pytest.mark.medium
def test_rows_are_compared_at_equal_settings_by_the_mean_over_the_middle() -> None:
    comparisons = {"primary": "neumann", "reference": "sgd", "margin": 0.1, "equal_settings": [["neumann", "sgd"]]}
    study = study_of(
        comparisons=comparisons, space={"optimizer.lr": [0.03, 0.1, 0.3, 1.0]}, target={"error": 5.0}, figures={}
    )
    for table in (VALIDATION, TEST):
        for rates in table.values():
            rates.setdefault(0.03, (0.8, 0.8, 0.8))
    results = run_it(study)
    c = results.comparisons[0]
    assert [s["optimizer.lr"] for s in c.settings] == [0.1, 0.3]
    assert c.paired is not None
    sgd, neumann = (
        [(TEST[row][0.1][seed] + TEST[row][0.3][seed]) / 2 for seed in range(3)] for row in ("sgd", "neumann")
    )
    assert c.paired.mean == pytest.approx(np.mean(neumann) - np.mean(sgd))
    assert c.effects["error"].value == pytest.approx(np.mean(neumann) / np.mean(sgd))
    assert results.row("neumann").errors == {0: 0.04, 1: 0.05, 2: 0.03}  # the row itself is at what its seeds chose
    assert "Both are compared at equal settings, by the mean over 0.1, 0.3." in results.answer
    assert "compared at equal settings, by the mean over 0.1, 0.3, and not at what was chosen." in markdown_table(
        results
    )
    assert "| Neumann against SGD, at equal settings |" in markdown_table(results)
    tested = [run for run in results.runs if run.test is not None]
    assert len(tested) == 2 * (2 * 3) + 1  # and the seed that chose 1.0
    assert {run.planned.role for run in collect(study).evaluation} == {EVALUATION, EQUAL}


@pytest.mark.medium
def test_costs_are_counted_to_what_a_row_reaches_on_seeds_of_its_own() -> None:
    study = study_of(
        seeds={"tuning": [101, 102, 103], "evaluation": [0, 1, 2]},
        target={"of": "sgd"},
        comparisons={"primary": "neumann", "reference": "sgd", "margin": 0.1, "outcome": "steps"},
    )
    assert {run.row for run in study.tuning() if run.seed > 100} == {"sgd"}
    results = run_it(study)
    assert results.target is not None
    assert results.target.error == 0.05  # of 0.04, 0.05 and 0.05, each at its seed's own rate
    assert "SGD ends on 3 tuning seeds that no comparison uses" in results.target.source
    # Neumann is at 0.04, 0.04 and 0.08 after one epoch; SGD at 0.10, 0.08 and 0.10, and at 0.05, 0.04, 0.05 after two
    steps = results.comparisons[0].effects["steps"]
    assert steps.value == pytest.approx(math.exp((2 * math.log(0.5) + 0) / 3))
    assert results.comparisons[0].effect == steps
    assert results.row("neumann").to_target["steps"].value == 18.0
    assert results.row("sgd").to_target["device_seconds"].value == 1.5
    assert "steps to the target −37.0 %" in results.headline
    assert set(results.comparisons[0].effects) == {"error", "steps", "examples", "gradient_evaluations", "device_seconds"}  # fmt: skip


@pytest.mark.medium
def test_the_plan_of_a_grid_says_who_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    study_of(seeds={"tuning": [100], "evaluation": [0, 1, 2]}, target={"of": "sgd"})
    assert main(["study", "mine", "--plan", "logger=none"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "every seed trains all settings and chooses its own: 0, 1, 2; seeds of the target 100" in out
    assert "to train: 21 runs, and then the test of what each seed chooses" in out
    run_it(load_study("mine"))
    assert main(["study", "mine", "--plan", "logger=none"]) == 0
    assert "to train: 0 runs (rows" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"design": "grids"}, ["design=grids is not a design", "did you mean 'grid'?"]),
        ({"seeds": {"tuning": [100], "evaluation": [0]}}, ["seeds.tuning=[100]", "for target.of alone"]),
        ({"seeds": {"evaluation": []}}, ["seeds.evaluation=[]"]),
        ({"seeds": {"evaluation": [0]}, "target": {"of": "sgd"}}, ["seeds.tuning=[]", "at least one seed"]),
        ({"seeds": {"tuning": [0], "evaluation": [0]}, "target": {"of": "sgd"}}, ["[0] both tune and evaluate"]),
        ({"equal": [["sgd", "adam"]]}, ["comparisons.equal_settings", "'adam'"]),
        ({"equal": [["sgd"]]}, ["is not a comparison of the study"]),
        ({"equal": [["neumann", "sgd"]], "space": {"optimizer.lr": [0.1, 0.3]}}, ["every setting of the full budget", "three rates"]),
        ({"equal": [["neumann", "sgd"]], "budgets": {"small": {"trials": 2}}}, ["every setting of the small budget"]),
        ({"equal": [["neumann", "sgd"]], "design": "tuned", "seeds": {"tuning": [9, 10, 11], "evaluation": [0]}}, ["needs design: grid"]),
    ],
)  # fmt: skip
def test_what_a_grid_cannot_be_is_one_sentence(changes: dict[str, Any], parts: list[str]) -> None:
    made = content()
    made["comparisons"] = made["comparisons"] | {"equal_settings": changes.pop("equal", [])}
    write_study(made | changes)
    with pytest.raises(UserError) as caught:
        load_study("mine")
    for part in parts:
        assert part in str(caught.value)


def test_equal_settings_need_one_space() -> None:
    made = content()
    made["rows"]["neumann"]["space"] = {"optimizer.lr": [0.2, 0.3, 1.0]}
    made["comparisons"] = made["comparisons"] | {"equal_settings": [["neumann", "sgd"]]}
    write_study(made)
    with pytest.raises(UserError, match="spaces of their own, so there are no equal settings"):
        load_study("mine")


# -------------------------------------------------------------------------------------------------------- calibration


def false_positives(design: str, studies: int, seeds: int, draw: np.random.Generator) -> float:
    """Return how often two rows that do not differ are told apart, the search included.

    Errors are 10 % at the best of four rates, 0.3 points more at the next, 1.2 beyond; each run is off by 0.5 points,
    and its validation error by 0.7 more.
    """
    offsets, found = np.array([0.012, 0.003, 0.0, 0.003]), 0
    for _ in range(studies):
        sides = []
        for _row in range(2):
            test = 0.1 + offsets + draw.normal(0, 0.005, (seeds, 4))
            ended = test + draw.normal(0, 0.007, (seeds, 4))
            if design == "tuned":
                tuning = offsets + draw.normal(0, math.hypot(0.005, 0.007), (1, 4))
                picked = np.full(seeds, tuning.mean(axis=0).argmin())
            else:
                picked = np.array([best([Ended(float(e), 0.0) for e in row]) for row in ended])
            sides.append(dict(enumerate(test[np.arange(seeds), picked])))
        p = paired(*sides).p
        found += p is not None and p <= 0.05
    return found / studies


@pytest.mark.medium
def test_the_grid_errs_as_seldom_as_it_says_and_one_choice_for_all_does_not() -> None:
    """A/A with the search included: Monte-Carlo error (one sd) 0.9 points for the grid of 600 studies."""
    draw, studies = np.random.default_rng(11), 600
    in_grid, tuned = (false_positives(design, studies, 10, draw) for design in ("grid", "tuned"))
    assert in_grid == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / studies))
    assert tuned > 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)
    assert stats.binomtest(round(tuned * studies), studies, in_grid, alternative="greater").pvalue < 1e-3
