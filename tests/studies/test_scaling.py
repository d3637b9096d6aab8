"""Scaling curves: planted ones are found again, what missed never counts as a number, and batches are read strictly."""

from __future__ import annotations

import copy
import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neumann.cli.main import main
from neumann.errors import UserError
from neumann.studies.analysis import analyse
from neumann.studies.collect import collect
from neumann.studies.effects import Way
from neumann.studies.grid import Ended, cheapest
from neumann.studies.plan import TUNING, Study, load_study
from neumann.studies.report.scaling import curve_lines, point_lines, scaling_csv
from neumann.studies.results import StudyResults, TuningTrial
from neumann.studies.scaling import REACH, AtBatch, ScalingCurve, curve
from neumann.studies.study_run import StudyRun
from tests.support.study_folders import STUDY, diverge, finish, write_study

BATCHES = (32, 128, 512, 2048)


def reached(steps: float, batch: int) -> Way:
    return Way(True, {"steps": steps, "examples": steps * batch})


def missed(steps: float | None, batch: int) -> Way:
    return Way(False, {"steps": steps, "examples": None if steps is None else steps * batch})


def at(batch: int, steps: Mapping[int, float], lost: Mapping[int, float | None] | None = None) -> AtBatch:
    ways = {seed: reached(taken, batch) for seed, taken in steps.items()}
    ways |= {seed: missed(taken, batch) for seed, taken in (lost or {}).items()}
    return AtBatch(ways, {}, None)


def planted(floor: float, critical: float, noise: float, seeds: int, batches: Sequence[int] = BATCHES) -> ScalingCurve:
    """Return a curve of S_min = ``floor`` and B_crit = ``critical``, with log-normal ``noise`` by seed and batch."""
    random = np.random.default_rng(1)
    own = {
        batch: at(
            batch,
            {
                s: floor * (1 + critical / batch) * math.exp(noise * float(random.standard_normal()))
                for s in range(seeds)
            },
        )
        for batch in batches
    }
    return curve("row", "Row", own, None)


@pytest.mark.parametrize(("floor", "critical"), [(20.0, 300.0), (5.0, 4000.0), (100.0, 40.0)])
def test_a_planted_curve_is_found_again(floor: float, critical: float) -> None:
    found = planted(floor, critical, 0.0, 3)
    assert found.why is None
    assert found.fit is not None
    assert found.fit.floor == pytest.approx(floor, rel=1e-3)
    assert found.fit.critical == pytest.approx(critical, rel=1e-3)
    assert found.fit.residual == pytest.approx(0, abs=1e-4)
    assert (found.fit.batches, found.fit.seeds) == (4, 3)
    for point in found.points:
        assert point.mean == pytest.approx(floor * (1 + critical / point.batch))
        if point.batch != 32:
            assert point.excess is not None
            assert point.excess.value == pytest.approx((point.batch + critical) / (32 + critical))


@pytest.mark.slow
def test_the_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    """With eight seeds percentile intervals are somewhat short: at least 85 % of them hold the planted value."""
    held = {"floor": 0, "critical": 0}
    truth, rounds = {"floor": 20.0, "critical": 300.0}, 60
    random = np.random.default_rng(2)
    for _ in range(rounds):
        own = {
            b: at(b, {s: 20 * (1 + 300 / b) * math.exp(0.06 * float(random.standard_normal())) for s in range(8)})
            for b in BATCHES
        }
        fit = curve("row", "Row", own, None).fit
        assert fit is not None
        for name in held:
            low, high = getattr(fit, f"{name}_low"), getattr(fit, f"{name}_high")
            held[name] += (low or 0) <= truth[name] <= (high or math.inf)
    assert all(0.85 <= count / rounds <= 1 for count in held.values()), held


def test_the_same_runs_give_the_same_intervals() -> None:
    one, other = planted(20, 300, 0.05, 5), planted(20, 300, 0.05, 5)
    assert one == other
    assert one.fit is not None
    assert one.fit.critical_low is not None
    assert one.fit.critical_high is not None
    assert one.fit.critical_low < one.fit.critical < one.fit.critical_high


def test_no_fit_where_the_curve_is_another() -> None:
    own = {b: at(b, {0: s}) for b, s in zip(BATCHES, (100.0, 40.0, 80.0, 20.0), strict=True)}
    found = curve("row", "Row", own, None)
    assert found.fit is None
    assert found.why is not None
    assert found.why.startswith("the curve misses ln S by 0.")


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((6400, 1600, 400, 100), "the steps fall in proportion to the batch up to 2,048: B_crit lies beyond it"),
        ((50, 50, 50, 50), "the steps are as many at every batch from 32 on: B_crit lies below it"),
    ],
)
def test_no_fit_where_the_curve_does_not_bend(steps: Sequence[float], why: str) -> None:
    found = curve("row", "Row", {b: at(b, {0: s, 1: s}) for b, s in zip(BATCHES, steps, strict=True)}, None)
    assert (found.fit, found.why) == (None, why)


def test_an_interval_has_no_end_where_resampled_curves_do_not_bend() -> None:
    """Two seeds, of which one scales perfectly: some samples hold that one alone."""
    own = {b: at(b, {0: 64000 / b, 1: 10 * (1 + 640 / b) * 5}) for b in BATCHES}
    fit = curve("row", "Row", own, None).fit
    assert fit is not None
    assert fit.critical_high is None
    assert fit.floor_low is None
    assert fit.critical < REACH * 2048


def test_a_run_that_missed_is_no_number() -> None:
    own = {b: at(b, dict.fromkeys(range(3), 20 * (1 + 300 / b))) for b in BATCHES}
    whole = curve("row", "Row", own, own)
    own[2048] = at(2048, {0: 22.0, 1: 22.0}, {2: 400.0})
    own[512] = at(512, {0: 30.0, 1: 30.0}, {2: None})
    found = curve("row", "Row", own, own)
    for batch, given_up in ((2048, 400.0), (512, None)):
        point = found.points[BATCHES.index(batch)]
        assert (point.mean, point.low, point.high) == (None, None, None)
        assert point.missed == {2: given_up}
        assert point.steps == {0: pytest.approx(own[batch].ways[0].costs["steps"]), 1: point.steps[0]}
        assert point.excess is not None
        assert point.excess.low is None
        assert point.excess.lost
    assert found.points[:2] == whole.points[:2]
    assert found.why == "every run reached the target at 2 of 4 batches, and a fit takes 3"
    assert found.nearly == 32


def test_the_largest_batch_within_a_fifth_of_perfect_scaling_ends_at_the_first_that_is_not() -> None:
    examples = {32: 1000, 128: 1190, 512: 1300, 2048: 1100}  # luck at the last does not count
    found = curve("row", "Row", {b: at(b, {0: e / b, 1: e / b}) for b, e in examples.items()}, None)
    assert found.nearly == 128
    spread = {
        b: at(b, {0: e / b * 0.8, 1: e / b * 1.25}) if b == 128 else at(b, {0: e / b, 1: e / b})
        for b, e in examples.items()
    }
    found = curve("row", "Row", spread, None)
    assert (found.nearly, found.surely) == (128, 32)


def test_two_rows_are_compared_at_equal_batch() -> None:
    ours = {b: at(b, {s: (10 + s) * 0.8 for s in range(4)}) for b in BATCHES}
    other = {b: at(b, {s: 10.0 + s for s in range(4)}) for b in BATCHES}
    for point in curve("row", "Row", ours, other).points:
        assert point.against is not None
        assert point.against.value == pytest.approx(0.8)
        assert point.against.n == 4


@pytest.mark.parametrize(
    ("errors", "steps", "picked"),
    [
        ((0.1, 0.2, 0.3), (30, 20, 40), 1),  # not the lowest error
        ((0.3, 0.2, 0.1), (20, 20, 40), 1),  # equal steps: the lower error
        ((0.3, 0.2, 0.1), (None, None, 40), 2),
        ((0.3, 0.1, 0.2), (None, None, None), 1),  # none reached it: the lowest error
        ((None, 0.2, 0.3), (10, 30, 20), 2),  # one that diverged afterwards is not chosen
        ((None, None, None), (None, None, None), None),
    ],
)
def test_a_seed_chooses_what_reaches_the_target_in_the_fewest_steps(
    errors: Sequence[float | None], steps: Sequence[float | None], picked: int | None
) -> None:
    ended = [Ended(error, None if error is None else 1.0) for error in errors]
    ways = [missed(99, 1) if taken is None else reached(taken, 1) for taken in steps]
    assert cheapest(ended, ways, "steps") == picked


# --------------------------------------------------------------------------------------------------- the study's file


def content(**changes: Any) -> dict[str, Any]:
    made = copy.deepcopy(STUDY)
    del made["rows"]["averaged"], made["paper"]
    made["overrides"].remove("batch.size=64")
    made |= {
        "design": "grid",
        "seeds": {"evaluation": [0, 1]},
        "batches": {
            32: {"overrides": ["trainer.max_epochs=3"]},
            64: {},
            128: {"overrides": ["trainer.log_every_n_steps=7", "recipe.label_smoothing=0.1"]},
        },
        "comparisons": {"primary": "neumann", "reference": "sgd", "outcome": "steps", "margin": 0.1},
        "target": {"error": 5.0},
        "budgets": {"few": {"batches": [32, 128], "evaluation_seeds": 1, "pilot": True}},
    }
    if "batches" in changes:
        del made["budgets"]
    return made | changes


def study_of(budget: str = "full", **changes: Any) -> Study:
    write_study(content(**changes))
    return load_study("mine", budget)


def test_every_row_is_trained_at_every_batch() -> None:
    study = study_of()
    assert list(study.config.rows) == [f"{row}@{b}" for row in ("sgd", "neumann") for b in (32, 64, 128)]
    assert study.config.rows["sgd@128"].label == "SGD, batch 128"
    planned = study.tuning()
    assert len(planned) == 2 * 3 * 3 * 2
    of = [run for run in planned if run.row == "neumann@32"]
    assert all({"batch.size=32", "trainer.max_epochs=3", "optimizer=neumann"} <= set(run.overrides) for run in of)
    assert study.config.comparisons.primary == "neumann@128"
    assert [study.reference_of(f"neumann@{b}") for b in (32, 64, 128)] == ["sgd@32", "sgd@64", "sgd@128"]
    few = study_of("few")
    assert list(few.config.rows) == [f"{row}@{b}" for row in ("sgd", "neumann") for b in (32, 128)]
    assert (
        study_of(comparisons=content()["comparisons"] | {"batch": 64}, budgets={}).config.comparisons.reference
        == "sgd@64"
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batches": {32: {}}}, "batches: a curve takes at least two, and there is 1"),
        ({"batches": {0: {}, 32: {}}}, "batches=0 is out of range: it must be at least 1"),
        ({"batches": {"large": {}, 32: {}}}, "batches has 'large', which is no batch size: name whole numbers"),
        ({"batches": {32: {"epochs": 3}, 64: {}}}, "there is no 'batches.32.epochs'"),
        ({"batches": {32: None, 64: {}}}, "batches.32=nothing is not a mapping"),
        ({"batches": [32, 64]}, "batches=[32, 64] is not a mapping"),
        ({"design": "tuned", "seeds": {"tuning": [5, 6, 7], "evaluation": [0]}}, "write design: grid, comparisons.outcome: steps and target.error"),
        ({"target": {"of": "sgd"}, "seeds": {"tuning": [5], "evaluation": [0]}}, "write design: grid, comparisons.outcome: steps and target.error"),
        ({"comparisons": {"primary": "neumann", "reference": "sgd", "margin": 0.1}}, "write design: grid, comparisons.outcome: steps"),
        (
            {"comparisons": {"primary": "neumann", "reference": "sgd", "margin": 0.1, "outcome": "device_seconds"}},
            "write design: grid, comparisons.outcome: steps",
        ),
        ({"overrides": ["batch.size=64"]}, "overrides: batch.size is what the study's batches set: leave it out"),
        ({"batches": {32: {"overrides": ["batch.size=8"]}, 64: {}}}, "batches.32.overrides: batch.size is what"),
        ({"batches": {32: {"overrides": ["optimizer.lr=8"]}, 64: {}}}, "batches.32.overrides and space both set optimizer.lr"),
        ({"batches": {32: {"overrides": ["seed=8"]}, 64: {}}}, "batches.32.overrides: 'seed=8' does not belong in a study"),
        ({"budgets": {"few": {"batches": [32, 99]}}}, "budgets.few.batches=[32, 99]: 99 is none of the study's batches: choose from 32, 64, 128"),
        ({"budgets": {"few": {"batches": [32]}}}, "budgets.few.batches=[32]: name at least two batches, each once"),
        ({"budgets": {"few": {"overrides": ["trainer.max_epochs=1"]}}}, "batches.32.overrides and budgets.few.overrides both set trainer.max_epochs"),
        (
            {"comparisons": {"primary": "neumann", "reference": "sgd", "outcome": "steps", "margin": 0.1, "batch": 48}},
            "comparisons.batch=48 is where the primary comparison is: choose from 32, 64, 128",
        ),
        (
            {"comparisons": {"primary": "neumann", "reference": "sgd", "outcome": "steps", "margin": 0.1, "batch": 64}},
            "comparisons.batch=64 is where the primary comparison is, so budgets.few.batches must hold it: choose from 32, 128",
        ),
        ({"paper": {"source": "a", "measure": "b", "rows": {"sgd": 24.3}}}, "paper.rows: a published number belongs to one batch size"),
        ({"batches": {}, "budgets": {}, "comparisons": {"primary": "neumann", "reference": "sgd", "outcome": "steps", "margin": 0.1, "batch": 64}}, "comparisons.batch=64: the study names no batches"),
        ({"batches": {}, "budgets": content()["budgets"]}, "budgets.few.batches=[32, 128]: the study names no batches"),
    ],
)  # fmt: skip
def test_a_wrong_batch_study_is_one_sentence(changes: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as found:
        study_of(**changes)
    assert sentence in str(found.value)


@pytest.mark.parametrize(
    ("seeds", "sd", "exploratory"),
    [
        (8, 0.06, None),
        (5, 0.06, None),
        (4, 0.06, "4 seeds cannot decide by the margin of 10 % at the pilot's standard deviation of 6 %: 5 would."),
        (1, 1.0, "1 seed cannot decide by the margin of 10 % at the pilot's standard deviation of 100 %: 773 would."),
        (
            1,
            200.0,
            "1 seed cannot decide by the margin of 10 % at the pilot's standard deviation of 2e+04 %: a million",
        ),
        (1, None, None),
    ],
)
def test_a_study_of_too_few_seeds_for_its_margin_is_exploratory(
    seeds: int, sd: float | None, exploratory: str | None
) -> None:
    comparisons = content()["comparisons"] | ({} if sd is None else {"sd": sd})
    study = study_of(comparisons=comparisons, seeds={"evaluation": list(range(seeds))}, budgets={})
    if exploratory is None:
        assert (study.exploratory, study.pilot) == (None, False)
    else:
        assert study.exploratory is not None
        assert exploratory in study.exploratory
        assert study.pilot


def test_the_sd_of_a_difference_of_errors_is_in_percentage_points() -> None:
    wide, narrow = ({**STUDY, "comparisons": {**STUDY["comparisons"], "sd": sd}} for sd in (1.0, 0.3))
    write_study(wide)
    found = load_study("mine").exploratory
    assert found is not None
    assert "margin of 1.00 percentage points at the pilot's standard deviation of 1.00 percentage points: 11" in found
    write_study(narrow)
    assert load_study("mine").exploratory is None
    write_study({**STUDY, "comparisons": {**STUDY["comparisons"], "sd": 0.0}})
    with pytest.raises(UserError, match=r"comparisons.sd=0.0 is out of range: it must be above 0"):
        load_study("mine")


# --------------------------------------------------------------------------------------------------------- the report

ENDS = {"sgd": 0.02, "neumann": 0.01}


def arriving(planned: Any, spec: Any) -> None:
    """Write a run that is at 4 % after its first evaluation at the middle rate, and after its second at others."""
    quick = planned.setting["optimizer.lr"] == 0.3
    row = planned.row.partition("@")[0]
    end = ENDS[row] + (0.02 if quick else 0.0)  # the quick one ends worse
    if row == "neumann" and planned.row.endswith("@128") and planned.seed == 1:
        end = 0.2  # missed at every rate
    finish(planned, end, first=0.04 if quick and end < 0.1 else 0.3, spec=spec, tested=planned.role != TUNING)


def trained(study: Study, runs: Sequence[StudyRun], trials: Mapping[str, Sequence[TuningTrial]]) -> None:
    for run in runs:
        if not run.over or (run.planned.role != TUNING and run.result is not None and run.result["test"] is None):
            arriving(run.planned, run.spec)


def finished(**changes: Any) -> StudyResults:
    return analyse(collect(study_of(**changes), train=trained))


@pytest.mark.medium
def test_the_results_of_a_batch_study() -> None:
    results = finished()
    assert results.least == "steps"
    assert results.settings["batch size"] == {"32, 64, 128, as the row says": ()}
    assert results.epochs == (2.0, 3.0)
    assert [one.row for one in results.scaling] == ["sgd", "neumann"]
    assert results.settings["recipe.label_smoothing"] == {"0": ("batch 32", "batch 64"), "0.1": ("batch 128",)}
    sgd, neumann = results.scaling
    assert [point.steps for point in sgd.points] == [{0: 18.0, 1: 18.0}] * 3  # at the quick rate, not the better one
    assert [point.rates for point in sgd.points] == [{0: 0.3, 1: 0.3}] * 3
    assert neumann.points[-1].missed == {1: 36.0}
    assert neumann.points[-1].mean is None
    assert sgd.points[0].against is None
    assert {(c.row, c.against) for c in results.comparisons} == {(f"neumann@{b}", f"sgd@{b}") for b in (32, 64, 128)}
    assert [c.row for c in results.comparisons if c.primary] == ["neumann@128"]
    assert [results.is_reference(row) for row in results.rows] == [True] * 3 + [False] * 3
    assert [line.reached for line in point_lines(results)] == ["2", "2", "2", "2", "2", "1/2"]
    assert curve_lines(results)[1].why == "every run reached the target at 2 of 3 batches, and a fit takes 3"
    table = list(csv.DictReader(io.StringIO(scaling_csv(results).decode())))
    assert [float(line["steps"] or "nan") for line in table] == pytest.approx([*[18.0] * 5, math.nan], nan_ok=True)
    assert table[-1]["steps"] == table[-1]["excess_ratio"] == table[-1]["against_reference_ratio"] == ""


@pytest.mark.medium
def test_the_page_of_a_batch_study(capsys: pytest.CaptureFixture[str]) -> None:
    collect(study_of(), train=trained)
    assert main(["report", "mine"]) == 0
    assert "1 missed in Neumann, batch 128" in capsys.readouterr().out
    folder = Path("runs/mine/report-full")
    page = (folder / "report.html").read_text()
    for words in ("Steps against batch size", "SGD, batch 64", "chose its own by steps to the target", "missed in 36"):
        assert words in page, words
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}
    assert {"scaling.svg", "scaling.png", "scaling.csv", "scaling-seeds.csv", "scaling-fits.csv"} <= files.keys()
    assert "SGD at the same batch" in files["table.md"].decode()
    seeds = list(csv.DictReader(io.StringIO(files["scaling-seeds.csv"].decode())))
    assert seeds[-1] == {
        "row": "neumann",
        "batch": "128",
        "seed": "1",
        "rate": seeds[-1]["rate"],
        "reached": "false",
        "steps": "36",
    }
    for path in folder.iterdir():
        path.unlink()
    assert main(["report", "mine"]) == 0
    assert {name: (folder / name).read_bytes() for name in files} == files


@pytest.mark.medium
def test_a_row_without_its_smallest_batch_has_no_curve_yet() -> None:
    def partly(study: Study, runs: Sequence[StudyRun], trials: Mapping[str, Sequence[TuningTrial]]) -> None:
        trained(study, [run for run in runs if run.planned.row != "neumann@32"], trials)

    results = analyse(collect(study_of(), train=partly))
    assert [one.row for one in results.scaling] == ["sgd"]


@pytest.mark.medium
def test_a_batch_study_that_has_just_begun_has_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of("few")
    for planned in study.tuning()[:4]:
        diverge(planned)
    assert main(["report", "mine", "--budget", "few"]) == 0
    assert "not finished" in Path("runs/mine/report-few/report.html").read_text()
    capsys.readouterr()
    assert main(["study", "mine", "--plan"]) == 0
    assert "Neumann, batch 128" in capsys.readouterr().out
