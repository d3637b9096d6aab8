"""Error rates of the instrument: resampled from the committed pool, and told in the footer of a report."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from neumann.store.archive import NAME, Archive
from neumann.studies.calibrate import HOME, SEEDS, STUDIES, Pool, PoolRun, planted, pool_of, rates, row
from neumann.studies.calibration import DESIGNS, FILE, Rates, rates_of, read
from neumann.studies.effects import Way
from neumann.studies.grid import Ended, Measured

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pool() -> tuple[Pool, list[dict[str, float]]]:
    archive = Archive.read(ROOT / HOME / NAME)
    assert not archive.unread
    return pool_of(list(archive.runs.values()))


def test_the_pool_is_one_run_for_each_seed_and_rate(pool: tuple[Pool, list[dict[str, float]]]) -> None:
    runs, settings = pool
    assert sorted(runs) == list(range(40))
    assert settings == [{"optimizer.lr": rate} for rate in (0.025, 0.05, 0.1, 0.2)]
    assert all(len(its) == 4 and all(one.way.reached for one in its) for its in runs.values())


def test_the_committed_rates_are_those_of_the_pool(pool: tuple[Pool, list[dict[str, float]]]) -> None:
    """A short run of the same function, since the committed one takes minutes: within four Monte-Carlo errors."""
    for design, outcome in (("grid", "steps"), ("equal", "error")):
        known = rates_of(design, outcome, 5)
        assert known is not None
        again = rates(*pool, design, outcome, 5, studies=120)
        assert (again.planted, again.seeds, again.settings) == (known.planted, 40, 4)
        for one, other in ((again.false_positives, known.false_positives), (again.found, known.found)):
            assert abs(one - other) <= 4 * math.sqrt(other * (1 - other) * (1 / 120 + 1 / known.studies))


def test_the_same_study_draws_the_same_seeds(pool: tuple[Pool, list[dict[str, float]]]) -> None:
    assert rates(*pool, "grid", "error", 3, studies=20) == rates(*pool, "grid", "error", 3, studies=20)


def test_a_grid_errs_as_often_as_it_says_and_finds_what_is_there() -> None:
    every = {(one.design, one.outcome, one.n): one for one in read()}
    assert every.keys() == {(d, o, n) for d in DESIGNS for o in ("error", "steps") for n in SEEDS}
    assert {one.studies for one in every.values()} == {STUDIES}
    for (design, _, _n), one in every.items():
        if design != "tuned":
            assert 0.03 <= one.false_positives <= 0.07, one
            assert one.found >= one.nominal - 0.05, one
        else:  # the luck of tuning is not in the interval, and the report says so
            assert one.false_positives > 0.07, one


def pool_by_hand() -> Pool:
    """Two rates: the first has the lower validation error at seed 0, the second arrives sooner there."""

    def run(error: float, steps: float) -> PoolRun:
        return PoolRun(Ended(error, 1.0), error + 0.1, Way(True, {"steps": steps, "examples": None}))

    return {0: [run(0.1, 40), run(0.2, 20)], 1: [run(0.3, 60), run(0.15, 30)], **{s: [run(0.1, 9)] * 2 for s in (7, 8)}}


def test_a_row_chooses_as_a_study_does() -> None:
    pool, settings = pool_by_hand(), [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.2}]
    assert row(pool, settings, "grid", "error", [0, 1]).errors == pytest.approx({0: 0.2, 1: 0.25})
    assert [way.costs["steps"] for way in row(pool, settings, "grid", "steps", [0, 1]).ways.values()] == [20, 30]
    tuned = row(pool, settings, "tuned", "error", [1, 7, 8, 0])  # the second rate on the first three
    assert tuned.errors == pytest.approx({0: 0.3})
    three = {seed: [its[0], its[1], its[0]] for seed, its in pool.items()}
    middle = row(three, [{"optimizer.lr": rate} for rate in (0.1, 0.2, 0.3)], "equal", "error", [0, 1])
    assert middle.errors == pytest.approx({0: 0.3, 1: 0.25})


def test_what_is_planted_shrinks_errors_and_costs() -> None:
    its = Measured({0: 0.2}, (), {0: Way(True, {"steps": 40.0, "examples": None})})
    less = planted(its, 0.25)
    assert less.errors == pytest.approx({0: 0.15})
    assert less.ways[0].costs == {"steps": 30.0, "examples": None}


def test_runs_that_are_no_pool_are_refused() -> None:
    runs = list(Archive.read(ROOT / HOME / NAME).runs.values())
    with pytest.raises(ValueError, match="159 runs are not one for each of 40 seeds and 4 rates"):
        pool_of(runs[1:])


def test_rates_are_those_of_the_nearest_smaller_study(tmp_path: Path) -> None:
    assert FILE.exists()
    file = tmp_path / "rates.csv"
    file.write_text(
        "design,outcome,n,studies,seeds,settings,false_positives,planted,nominal,found\n"
        "grid,steps,4,100,40,4,0.05,0.1,0.8,0.7\ngrid,steps,8,100,40,4,0.06,0.1,0.8,0.8\n"
    )
    assert rates_of("grid", "examples", 7, file) == Rates("grid", "steps", 4, 100, 40, 4, 0.05, 0.1, 0.8, 0.7)
    assert [rates_of("grid", *asked, file) for asked in (("steps", 3), ("error", 9), ("device_seconds", 9))] == [
        None
    ] * 3
    assert rates_of("grid", "steps", 99, tmp_path / "none.csv") is None
    best = rates_of("grid", "steps", 99, file)
    assert best is not None
    assert best.error_of(best.found) == pytest.approx(0.04)
