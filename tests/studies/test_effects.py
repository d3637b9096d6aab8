"""Effects against scipy, statsmodels, simulation and pencil."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from neumann.studies.effects import Effect, Median, Way, cost_effect, difference, median, relative, way
from neumann.studies.statistics import paired

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
errors = st.floats(0.01, 0.9).map(lambda x: round(x, 3))
pairs = st.lists(st.tuples(errors, errors), min_size=3, max_size=12)


def rowed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def ratio(a: dict[int, float], b: dict[int, float], alpha: float = 0.05) -> Effect:
    return relative(paired(a, b), a, b, alpha)


def steps(*values: float | None, missed_at: float = 1000.0) -> dict[int, Way]:
    """Return ways to the target, by seed; None is a run that missed it."""
    return {i: Way(v is not None, {"steps": missed_at if v is None else v}) for i, v in enumerate(values)}


# ------------------------------------------------------------------------------------------------------- two errors


@quick
@given(pairs)
def test_a_ratio_is_in_fiellers_interval_where_scipys_test_does_not_reject_it(given_pairs: list[tuple[float, float]]) -> None:  # fmt: skip
    a, b = (rowed(*side) for side in zip(*given_pairs, strict=True))
    found = ratio(a, b)
    assume(found.low is not None and found.high is not None and found.low > 0)
    assert found.low is not None
    assert found.high is not None
    assert found.value == pytest.approx(np.mean(list(a.values())) / np.mean(list(b.values())))
    for share, ends in ((0.05, (found.low, found.high)), (0.1, (found.inner_low, found.inner_high))):
        for end in ends:
            assert end is not None
            at_the_end = [x - end * y for x, y in given_pairs]
            assume(np.std(at_the_end) > 1e-9)
            assert stats.ttest_1samp(at_the_end, 0).pvalue == pytest.approx(share, rel=1e-6)
    assert (found.p, found.scale, found.side) == (paired(a, b).p, "ratio", np.sign(round(paired(a, b).mean or 0, 12)))


def test_a_ratio_to_what_may_be_nothing_has_no_interval() -> None:
    found = ratio(rowed(0.01, 0.02, 0.0, 0.01), rowed(0.0, 0.03, 0.0, 0.0))
    assert (found.value, found.low, found.high) == (pytest.approx(0.04 / 0.03), None, None)
    found = ratio(rowed(0.01, 0.02), rowed(0.0, 0.0))
    assert (found.value, found.low, found.sd) == (None, None, None)


def test_equal_differences_have_no_interval_of_a_ratio_either() -> None:
    found = ratio(rowed(*[0.1] * 6), rowed(*[0.2] * 6))
    assert (found.value, found.low, found.sd, found.test) == (0.5, None, 0.0, "sign-flip test")
    assert found.p == pytest.approx(2 / 2**6)


def test_a_difference_is_the_paired_one() -> None:
    one = paired(rowed(0.1, 0.2, 0.15), rowed(0.2, 0.25, 0.3))
    found = difference(one)
    assert (found.value, found.low, found.high, found.p, found.n) == (one.mean, one.low, one.high, one.p, 3)
    assert (found.inner_low, found.inner_high) == pytest.approx(
        stats.t.interval(0.9, 2, one.mean, (one.sd or 0) / math.sqrt(3))
    )
    bounded = difference(paired(rowed(0.0, 0.1, 1.0), rowed(1.0, 0.9, 0.0)), most=1.0)
    assert (bounded.low, bounded.high) == (-1.0, 1.0)


def test_where_a_run_diverged_the_interval_is_not_that_of_all_runs() -> None:
    one = paired(rowed(0.1, 0.2, 0.15), rowed(0.2, 0.25, 0.3), diverged_a=(3, 4), diverged_b=())
    assert one.over == 3
    one = paired(rowed(0.1, 0.2, 0.15), {**rowed(0.2, 0.25, 0.3), 3: 0.1}, diverged_a=(3,))
    found = difference(one)
    assert (found.test, found.low, found.lost_a, found.lost, found.over, found.side) == ("sign test", None, (3,), True, 4, -1)  # fmt: skip


@pytest.mark.medium
def test_fiellers_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(1000):
        shared = draw.normal(0, 0.01, 5)
        a, b = (rowed(*(mean + shared + draw.normal(0, 0.01, 5))) for mean in (0.09, 0.1))
        found = ratio(a, b)
        assert found.low is not None
        assert found.high is not None
        held += found.low < 0.9 < found.high
    assert held / 1000 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 1000))  # ± 2.1 points


# --------------------------------------------------------------------------------------------------- ways to a target


def test_the_first_evaluation_at_or_below_the_target_counts_and_nothing_is_interpolated() -> None:
    curve = [(0.3, {"steps": 10}), (0.1, {"steps": 20}), (0.2, {"steps": 30}), (0.05, {"steps": 40})]
    assert way(curve, 0.1) == Way(True, {"steps": 20})
    assert way(curve, 0.19) == Way(True, {"steps": 20})
    assert way(curve, 0.01) == Way(False, {"steps": 40})
    assert way(curve, 0.01, diverged=True) == Way(False, {"steps": None})
    assert way(curve, 0.3, diverged=True) == Way(True, {"steps": 10})  # it was there before it diverged
    assert way([], 0.1) is None
    assert way([(0.1 + 0.2, {"steps": 1})], 0.3) == Way(True, {"steps": 1})  # 0.30000000000000004


def test_where_all_arrive_the_effect_is_the_t_test_of_the_log_ratios() -> None:
    a, b = (100.0, 130.0, 90.0, 120.0), (120.0, 135.0, 100.0, 150.0)
    found = cost_effect(steps(*a), steps(*b), "steps")
    assert found is not None
    logs = np.log(a) - np.log(b)
    assert found.value == pytest.approx(stats.gmean(a) / stats.gmean(b))
    assert found.p == pytest.approx(stats.ttest_rel(np.log(a), np.log(b)).pvalue)
    for confidence, ends in ((0.95, (found.low, found.high)), (0.9, (found.inner_low, found.inner_high))):
        expected = np.exp(stats.t.interval(confidence, 3, logs.mean(), stats.sem(logs)))
        assert ends == pytest.approx(tuple(expected))
    assert (found.scale, found.test, found.side, found.n, found.lost) == ("log ratio", "paired t test", -1, 4, False)


def test_a_way_without_the_cost_is_in_no_effect() -> None:
    a = {0: Way(True, {"steps": 10.0}), 1: Way(True, {"steps": None})}
    assert cost_effect(a, {1: Way(True, {"steps": 3.0})}, "steps") is None
    found = cost_effect(a, steps(20, 20), "steps")
    assert found is not None
    assert (found.n, found.value) == (1, pytest.approx(0.5))


@quick
@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=2, max_size=12),
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=2, max_size=12),
)
def test_with_misses_it_is_statsmodels_log_rank_test(a: list[tuple[int, bool]], b: list[tuple[int, bool]]) -> None:
    survdiff = pytest.importorskip("statsmodels.duration.survfunc").survdiff
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    assume(any(arrived for _, arrived in (*a, *b)))
    assume(not all(arrived for _, arrived in (*a, *b)))
    rows = [{i: Way(arrived, {"steps": float(t)}) for i, (t, arrived) in enumerate(row)} for row in (a, b)]
    found = cost_effect(*rows, "steps")
    assert found is not None
    assert found.test == "log-rank test"
    assert found.low is None
    times, status = zip(*a, *b, strict=True)
    try:
        with np.errstate(all="ignore"):
            _, p = survdiff(np.array(times), np.array(status, dtype=int), np.array([0] * n + [1] * n))
    except np.linalg.LinAlgError:  # all arrive at once: nothing tells them apart
        p = 1.0
    assert found.p == pytest.approx(p if math.isfinite(p) else 1.0, abs=1e-9)


@quick
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=2, max_size=12))
def test_the_median_is_where_statsmodels_curve_falls_to_a_half(given_ways: list[tuple[int, bool]]) -> None:
    survival = pytest.importorskip("statsmodels.duration.survfunc").SurvfuncRight
    ways = [Way(arrived, {"steps": float(t)}) for t, arrived in given_ways]
    found = median(ways, "steps")
    times, status = zip(*given_ways, strict=True)
    assert (found.runs, found.reached) == (len(times), sum(status))
    curve = survival(np.array(times, dtype=float), np.array(status, dtype=int))
    shares = curve.surv_prob
    below = np.flatnonzero(shares <= 0.5 + 1e-12)
    if not any(status) or not below.size:
        assert found.value is None
        return
    first = float(curve.surv_times[below[0]])
    further = np.flatnonzero(shares < 0.5 - 1e-12)
    flat = abs(shares[below[0]] - 0.5) < 1e-12 and further.size
    assert found.value == (first if not flat else (first + float(curve.surv_times[further[0]])) / 2)
    if all(status):
        assert found.value == np.median(times)


def test_the_interval_of_a_median_is_the_books() -> None:
    """Leukaemia under 6-MP (Freireich et al. 1963), as R's survfit(conf.type="log-log") has it: 23 [13, NA]."""
    weeks = [
        "6",
        "6",
        "6",
        "6+",
        "7",
        "9+",
        "10",
        "10+",
        "11+",
        "13",
        "16",
        "17+",
        "19+",
        "20+",
        "22",
        "23",
        "25+",
        "32+",
        "32+",
        "34+",
        "35+",
    ]
    ways = [Way(not w.endswith("+"), {"steps": float(w.rstrip("+"))}) for w in weeks]
    assert median(ways, "steps") == Median(21, 9, 23.0, 13.0, None)


def test_a_diverged_run_is_censored_beyond_all_others() -> None:
    a = steps(10, 20, 30)
    a[3] = Way(False, {"steps": None})
    found, known = cost_effect(a, steps(40, 50, 60, 70), "steps"), steps(10, 20, 30, None, missed_at=70.0)
    expected = cost_effect(known, steps(40, 50, 60, 70), "steps")
    assert found is not None
    assert expected is not None
    assert (found.p, found.side, found.lost_a, found.lost_b) == (expected.p, -1, (3,), ())
    assert median(a.values(), "steps").value == 25.0
    nobody = cost_effect(steps(None, None), steps(None, None), "steps")
    assert nobody is not None
    assert (nobody.p, nobody.side, nobody.value) == (1.0, 0, None)


@pytest.mark.medium
def test_costs_of_rows_that_do_not_differ_are_told_apart_as_seldom_as_they_say() -> None:
    draw = np.random.default_rng(5)
    wrong = {"all": 0, "some": 0}
    for _ in range(400):
        shared = draw.normal(0, 0.05, 10)
        a, b = (np.exp(5 + shared + draw.normal(0, 0.05, 10)) for _ in "ab")
        found = cost_effect(steps(*a), steps(*b), "steps")
        assert found is not None
        assert found.p is not None
        wrong["all"] += found.p <= 0.05
        a, b = (np.exp(5 + draw.normal(0, 0.1, 10)) for _ in "ab")
        limit = float(np.exp(5.1))
        found = cost_effect(*(steps(*[v if v <= limit else None for v in row], missed_at=limit) for row in (a, b)), "steps")  # fmt: skip
        assert found is not None
        assert found.p is not None
        wrong["some"] += found.p <= 0.05
    for share in wrong.values():
        assert share / 400 == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 400) + 0.01)  # ± 4.3 points
