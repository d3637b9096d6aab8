"""Statistics against scipy, textbooks, simulation and pencil."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from neumann.studies.statistics import (
    HolmResult,
    Paired,
    holm,
    paired,
    power,
    proportion_interval,
    sd_interval,
    seeds_needed,
    sign_flip,
    sign_test,
    smallest_detectable_effect,
    summarize,
)

# Student 1908, after Cushny and Peebles: hours of sleep gained under two drugs; R's t.test gives the numbers below
SLEEP_1 = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
SLEEP_2 = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)
# Darwin's maize, eighths of an inch; Fisher 1935, section 21: 863 of 2^15 flips reach the sum of 314
MAIZE = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
numbers = st.floats(-100, 100).map(lambda x: round(x, 3))
rows = st.dictionaries(st.integers(0, 40), st.tuples(numbers, numbers), min_size=2, max_size=12)


def rowed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def against_zero(*differences: float) -> Paired:
    return paired(rowed(*differences), rowed(*[0.0] * len(differences)))


# ---------------------------------------------------------------------------------------------------------- one row


def test_summary_is_scipys() -> None:
    s = summarize(SLEEP_2)
    assert (s.n, s.mean, s.median) == (10, pytest.approx(2.33), pytest.approx(1.75))
    assert s.sd == pytest.approx(2.002249, abs=1e-6)
    for confidence in (0.5, 0.9, 0.95, 0.999):
        s = summarize(iter(SLEEP_2), confidence)
        assert (s.low, s.high) == pytest.approx(stats.t.interval(confidence, 9, s.mean, stats.sem(SLEEP_2)), rel=1e-12)


def test_one_value_has_no_spread_and_equal_ones_no_interval() -> None:
    s = summarize([0.25])
    assert (s.n, s.mean, s.median, s.sd, s.low, s.high) == (1, 0.25, 0.25, None, None, None)
    for equal in ([0.1] * 3, [0.3, 0.1 + 0.2, 0.3], [0.0, 0.0]):
        s = summarize(equal)
        assert (s.sd, s.low, s.high) == (0.0, None, None)
    assert summarize([0.1] * 3).mean == 0.1


@pytest.mark.medium
def test_t_interval_covers_as_often_as_it_says() -> None:
    stream = np.random.default_rng(1)
    for n in (3, 10):
        samples = [summarize(row, 0.9) for row in stream.normal(5.0, 2.0, (3000, n)).tolist()]
        covered = sum(s.low is not None and s.high is not None and s.low <= 5.0 <= s.high for s in samples) / 3000
        assert covered == pytest.approx(0.9, abs=4 * math.sqrt(0.9 * 0.1 / 3000))


@pytest.mark.medium
@quick
@given(st.lists(numbers, min_size=2, max_size=12), st.floats(-50, 50), st.floats(0.01, 100))
def test_summary_follows_shift_and_scale(values: list[float], shift: float, scale: float) -> None:
    before, after = summarize(values), summarize([scale * v + shift for v in values])
    assert after.mean == pytest.approx(scale * before.mean + shift, abs=1e-9)
    assert after.sd == pytest.approx(scale * (before.sd or 0.0), abs=1e-9)
    assert (after.low is None) == (before.low is None)
    if before.low is not None:
        assert after.low == pytest.approx(scale * before.low + shift, abs=1e-8)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_values_that_are_none_are_refused(bad: float) -> None:
    told = r"\(diverged runs are counted, not averaged\) must be a finite number, got"
    with pytest.raises(ValueError, match=rf"^value 1 {told}"):
        summarize([0.1, bad])
    with pytest.raises(ValueError, match=rf"^a at seed 7 {told}"):
        paired({7: bad, 8: 1.0}, {7: 1.0, 8: 1.0})
    with pytest.raises(ValueError, match=rf"^b at seed 7 {told}"):
        paired({7: 1.0}, {7: bad})
    with pytest.raises(ValueError, match=rf"^difference 0 {told}"):
        sign_flip([bad])
    # A seed that the other row lacks is dropped before it is looked at
    assert paired({1: 1.0, 2: bad}, {1: 2.0}).only_a == (2,)


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no value to summarize"):
        summarize([])
    with pytest.raises(ValueError, match="there is no difference to flip"):
        sign_flip([])
    with pytest.raises(ValueError, match=r"no seed is in both rows: a has \[1, 2\], b has \[3\]"):
        paired({2: 0.1, 1: 0.1}, {3: 0.1})


@pytest.mark.parametrize("share", [0.0, 1.0, 95.0, -0.1, math.nan])
def test_shares_lie_between_0_and_1(share: float) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("confidence", lambda: summarize([1.0], share)),
        ("confidence", lambda: paired({1: 1.0}, {1: 1.0}, share)),
        ("confidence", lambda: proportion_interval(1, 2, share)),
        ("alpha", lambda: holm({}, share)),
        ("alpha", lambda: power(1.0, 1.0, 5, share)),
        ("alpha", lambda: smallest_detectable_effect(1.0, 5, share)),
        ("alpha", lambda: seeds_needed(1.0, 1.0, share)),
    ]
    for what, call in calls:
        with pytest.raises(ValueError, match=f"^{what} must lie between 0 and 1, got"):
            call()


# ------------------------------------------------------------------------------------------------------------- pairs


def test_students_sleep() -> None:
    c = paired(rowed(*SLEEP_1), rowed(*SLEEP_2))
    assert (c.n, c.mean, c.sd) == (10, pytest.approx(-1.58), pytest.approx(1.229995, abs=1e-6))
    assert c.t == pytest.approx(-4.0621, abs=5e-5)
    assert c.p == pytest.approx(0.002833, abs=5e-7)
    assert (c.low, c.high) == (pytest.approx(-2.4598858), pytest.approx(-0.7001142))
    assert (c.wins, c.losses, c.ties) == (9, 0, 1)
    theirs = stats.ttest_rel(SLEEP_1, SLEEP_2)
    assert (c.t, c.p) == (pytest.approx(theirs.statistic, rel=1e-12), pytest.approx(theirs.pvalue, rel=1e-9))
    # Nine differences of one sign: the observed flip, its mirror, and the tie's two signs
    assert c.sign_flip_p == 4 / 2**10


def test_seeds_are_matched_by_name_and_the_rest_is_told() -> None:
    a, b = {3: 0.3, 1: 0.1, 9: 0.9, 2: 0.5}, {2: 0.2, 5: 0.5, 3: 0.2, 4: 0.4}
    c = paired(a, b)
    assert (c.n, c.seeds, c.only_a, c.only_b) == (2, (2, 3), (1, 9), (4, 5))
    assert c.mean == pytest.approx(0.2)


@pytest.mark.medium
@quick
@given(rows, st.randoms(use_true_random=False))
def test_pairs_are_scipys_and_know_no_order(both: dict[int, tuple[float, float]], shuffler: object) -> None:
    a, b = {s: x for s, (x, _) in both.items()}, {s: y for s, (_, y) in both.items()}
    c, mirrored = paired(a, b), paired(b, a)
    seeds = list(both)
    shuffler.shuffle(seeds)  # type: ignore[attr-defined]
    assert paired({s: a[s] for s in seeds}, b) == c
    assert (mirrored.mean, mirrored.p, mirrored.sign_flip_p) == (-c.mean, c.p, c.sign_flip_p)
    assert (mirrored.wins, mirrored.losses, mirrored.ties) == (c.losses, c.wins, c.ties)
    assert c.wins + c.losses + c.ties == c.n
    assert 2 / 2**c.n <= c.sign_flip_p <= 1
    assume(c.sd)
    theirs = stats.ttest_rel([a[s] for s in c.seeds], [b[s] for s in c.seeds])
    assert c.t == pytest.approx(theirs.statistic, rel=1e-6, abs=1e-9)
    assert c.p == pytest.approx(theirs.pvalue, rel=1e-5, abs=1e-12)
    interval = theirs.confidence_interval()
    assert (c.low, c.high) == (pytest.approx(interval.low, abs=1e-6), pytest.approx(interval.high, abs=1e-6))


@quick
@given(rows, st.integers(-50, 50), st.sampled_from([0.01, 0.5, 3.0, 100.0]))
def test_pairs_follow_shift_and_scale(both: dict[int, tuple[float, float]], shift: int, scale: float) -> None:
    before = paired({s: x for s, (x, _) in both.items()}, {s: y for s, (_, y) in both.items()})
    after = paired(
        {s: scale * x + shift for s, (x, _) in both.items()}, {s: scale * y + shift for s, (_, y) in both.items()}
    )
    assert after.mean == pytest.approx(scale * before.mean, abs=1e-9)
    assert after.sd == pytest.approx(scale * (before.sd or 0.0), abs=1e-9)
    assert after.sign_flip_p == before.sign_flip_p
    assert (after.wins, after.losses, after.ties) == (before.wins, before.losses, before.ties)
    assert after.p == pytest.approx(before.p, rel=1e-5, abs=1e-12)


def test_one_pair_has_no_test() -> None:
    c = paired({4: 0.1}, {4: 0.3})
    assert (c.sd, c.low, c.high, c.t, c.p, c.sign_flip_p) == (None, None, None, None, None, 1.0)
    assert (c.n, c.wins, c.losses, c.ties) == (1, 1, 0, 0)


def test_all_ties_are_no_evidence() -> None:
    c = paired(rowed(0.1 + 0.2, 0.5, 1 - 0.9), rowed(0.3, 0.5, 0.1))  # equal but for rounding
    assert (c.mean, c.sd, c.low, c.high, c.t) == (0.0, 0.0, None, None, None)
    assert (c.p, c.sign_flip_p) == (1.0, 1.0)
    assert (c.wins, c.losses, c.ties) == (0, 0, 3)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_equal_differences_claim_no_more_than_signs_do(n: int) -> None:
    # One image of 300 at every seed: in floats these differ in the last bits, and scipy answers p = 1e-16 or so
    c = paired({s: (s + 4) / 300 for s in range(n)}, {s: (s + 5) / 300 for s in range(n)})
    assert (c.sd, c.low, c.high, c.t) == (0.0, None, None, None)
    assert c.mean == pytest.approx(-1 / 300)
    assert c.p == c.sign_flip_p == 2 / 2**n


def test_fishers_maize() -> None:
    c = against_zero(*MAIZE)
    assert c.sign_flip_p == 2 * 863 / 2**15
    assert c.t == pytest.approx(2.148, abs=5e-4)
    assert c.p == pytest.approx(0.0497, abs=5e-5)


@quick
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_sign_flip_counts_every_flip_ties_included(lumps: list[int]) -> None:
    flips = [
        abs(sum(s * d for s, d in zip(signs, lumps, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(lumps))
    ]
    expected = sum(flip >= abs(sum(lumps)) for flip in flips) / len(flips)
    assert sign_flip(lumps) == expected
    assert sign_flip([d / 300 for d in lumps]) == expected  # thirds are not exact, and no tie breaks
    assert sign_flip([(90 + d) / 300 - 90 / 300 for d in lumps]) == expected


def test_sign_flip_is_scipys() -> None:
    theirs = stats.permutation_test((np.array(MAIZE),), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(MAIZE) == pytest.approx(theirs.pvalue)


def test_many_differences_are_flipped_at_random_from_a_seed() -> None:
    # A sixteenth difference of next to nothing keeps Fisher's p, which is then drawn rather than counted
    many = [*map(float, MAIZE), 1e-3]
    drawn, counted = sign_flip(many), 2 * 863 / 2**15
    assert drawn == sign_flip(many) == sign_flip(many[::-1])
    assert drawn != sign_flip(many, seed=1)
    assert drawn == pytest.approx(counted, abs=4 * math.sqrt(counted / 1e5) + 0.001)
    assert sign_flip([1.0] * 40) == 1e-5  # never 0
    assert sign_flip([0.0] * 40) == 1.0


def test_sign_flip_rejects_no_more_than_it_may() -> None:
    stream = np.random.default_rng(3)
    lumps = stream.integers(-3, 4, (3000, 8)) / 300  # no effect, errors on 300 images
    assert np.mean([sign_flip(row) <= 0.05 for row in lumps.tolist()]) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 3000)


# -------------------------------------------------------------------------------------------------------------- Holm


def test_holm_by_hand() -> None:
    # 0.005·4 = 0.02; 0.01·3 = 0.03; 0.03·2 = 0.06; 0.04·1 is raised to 0.06
    results = holm({"b": 0.01, "d": 0.04, "c": 0.03, "a": 0.005})
    assert list(results) == ["b", "d", "c", "a"]
    assert {k: (pytest.approx(r.adjusted), r.rejected) for k, r in results.items()} == {
        "a": (0.02, True),
        "b": (0.03, True),
        "c": (0.06, False),
        "d": (0.06, False),
    }
    assert holm({}) == {}
    assert holm({"only": 0.05}) == {"only": HolmResult(0.05, True)}
    assert holm({"x": 0.9, "y": 0.8}) == {"x": HolmResult(1.0, False), "y": HolmResult(1.0, False)}
    assert [r.rejected for r in holm({"x": 0.004, "y": 0.02}, alpha=0.01).values()] == [True, False]


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_is_the_step_down(p_values: list[float], alpha: float) -> None:
    results = holm({str(i): p for i, p in enumerate(p_values)}, alpha)
    going, last = True, 0.0
    for i in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        result = results[str(i)]
        m = sum(p >= p_values[i] for p in p_values)
        going = going and m * p_values[i] <= alpha
        assert result.rejected == going
        assert result.adjusted >= max(last, p_values[i])
        last = result.adjusted
    assert last <= 1


@pytest.mark.parametrize("p", [-0.01, 1.01])
def test_holm_takes_only_p(p: float) -> None:
    with pytest.raises(ValueError, match=rf"p of 'α = 0' must lie in \[0, 1\], got {p}"):
        holm({"α = 0": p})


def test_holm_refuses_a_missing_p() -> None:
    for p in (math.nan, None):
        with pytest.raises(ValueError, match="p of 'x' must be a finite number, got"):
            holm({"x": p})  # type: ignore[dict-item]


# ------------------------------------------------------------------------------------------------------------- power


def test_power_is_the_tables() -> None:
    # G*Power and Cohen 1988, paired, two-sided, alpha 0.05: seeds for power 0.8
    assert [seeds_needed(d, 1.0) for d in (0.2, 0.5, 0.8, 1.0)] == [199, 34, 15, 10]
    assert seeds_needed(0.5, 1.0, power=0.9) == 44
    assert seeds_needed(0.5, 1.0, alpha=0.01) == 51
    assert power(1.0, 1.0, 10) == pytest.approx(0.8031, abs=5e-5)
    assert power(0.5, 1.0, 34) == pytest.approx(0.8078, abs=5e-5)


@pytest.mark.parametrize(("effect", "n", "alpha"), [(0.8, 5, 0.05), (-1.2, 3, 0.1), (0.4, 20, 0.01), (3.0, 2, 0.05)])
def test_power_is_what_simulation_finds(effect: float, n: int, alpha: float) -> None:
    samples = np.random.default_rng(2).normal(effect, 1.0, (40_000, n))
    found = np.mean(stats.ttest_1samp(samples, 0.0, axis=1).pvalue <= alpha)
    assert power(effect, 1.0, n, alpha) == pytest.approx(found, abs=4 * math.sqrt(0.25 / 40_000))


@pytest.mark.parametrize(
    ("effect", "n"), [(0.3, 4), (1.0, 10), (2.5, 3), (10.0, 10), (50.0, 2), (8.0, 2), (0.03, 7813), (0.4, 300)]
)
def test_power_is_the_noncentral_t_where_scipys_has_holes_too(effect: float, n: int) -> None:
    # P(|Z + δ| > t s) averaged over s² ~ chi²/df
    df, delta = n - 1, effect * math.sqrt(n)
    t = stats.t.ppf(0.975, df)

    def tails(s: float) -> float:
        return (
            float((stats.norm.sf(t * s - delta) + stats.norm.cdf(-t * s - delta)) * stats.chi.pdf(s * df**0.5, df))
            * df**0.5
        )

    seen, _ = integrate.quad(tails, 0, 12, points=[0.5, 1, delta / t], limit=200)
    assert power(effect, 1.0, n) == pytest.approx(seen, abs=1e-6)


@pytest.mark.medium
@quick
@given(st.floats(1e-4, 1e3), st.integers(2, 60), st.floats(0.001, 0.2), st.floats(0.3, 0.99))
def test_power_and_its_inverses_agree(sd: float, n: int, alpha: float, wanted: float) -> None:
    effect = smallest_detectable_effect(sd, n, alpha, wanted)
    assert effect is not None
    assert power(effect, sd, n, alpha) == pytest.approx(wanted, abs=1e-6)
    assert power(-effect, sd, n, alpha) == power(effect, sd, n, alpha)
    assert effect == pytest.approx(sd * (smallest_detectable_effect(1.0, n, alpha, wanted) or 0.0))
    needed = seeds_needed(1.000001 * effect, sd, alpha, wanted)
    assert needed is not None
    assert needed <= n
    if needed > 2:
        fewer = power(1.000001 * effect, sd, needed - 1, alpha)
        assert fewer is not None
        assert fewer < wanted


def test_power_without_effect_is_alpha() -> None:
    assert power(0.0, 2.0, 7, 0.03) == pytest.approx(0.03)


@pytest.mark.parametrize(("sd", "n"), [(None, 10), (0.0, 10), (1.0, 1), (1.0, 0), (None, 1)])
def test_without_noise_or_pairs_there_is_no_power(sd: float | None, n: int) -> None:
    assert power(0.1, sd, n) is None
    assert smallest_detectable_effect(sd, n) is None
    if not sd:
        assert seeds_needed(0.1, sd) is None


def test_power_has_no_holes_and_an_end() -> None:
    assert power(0.4352401243682204, 1.0, 7813, 0.1875) == pytest.approx(1.0)  # scipy 1.17.1's ncfdtr is nan there
    for n, alpha in itertools.product((2, 3, 10, 7813, 1_000_000), (1e-6, 0.01, 0.3)):
        curve = [chance for k in range(-12, 22) if (chance := power(2.0**k, 1.0, n, alpha)) is not None]
        assert len(curve) == 34
        assert np.diff(curve).min() > -1e-9
        assert curve[0] >= alpha
        assert curve[-1] == pytest.approx(1.0, abs=1e-5)
    assert power(1e300, 1.0, 5) == pytest.approx(1.0)
    assert smallest_detectable_effect(1.0, 2, alpha=1e-9) is None


def test_a_million_seeds_are_enough() -> None:
    assert seeds_needed(1e-9, 1.0) is None
    assert seeds_needed(0.01, 1.0) == 78_491  # (1.959964 + 0.841621)² / 0.01² = 78 488.8, and Student's two more
    assert seeds_needed(1000.0, 1.0) == 2


def test_power_says_what_is_wrong() -> None:
    for call in (
        lambda sd: power(1.0, sd, 5),
        lambda sd: smallest_detectable_effect(sd, 5),
        lambda sd: seeds_needed(1.0, sd),
    ):
        with pytest.raises(ValueError, match=r"sd must not be negative, got -1\.0"):
            call(-1.0)
        with pytest.raises(ValueError, match="sd must be a finite number, got nan"):
            call(math.nan)
    for call in (lambda e: power(e, 1.0, 5), lambda e: seeds_needed(e, 1.0)):
        with pytest.raises(ValueError, match="effect must be a finite number, got inf"):
            call(math.inf)
    with pytest.raises(ValueError, match="no number of seeds detects an effect of 0"):
        seeds_needed(0.0, 1.0)
    for bad in (0.05, 1.0):
        with pytest.raises(ValueError, match=rf"power must lie between 0\.05 and 1, got {bad}"):
            smallest_detectable_effect(1.0, 5, power=bad)
        with pytest.raises(ValueError, match=rf"power must lie between 0\.05 and 1, got {bad}"):
            seeds_needed(1.0, 1.0, power=bad)


# ------------------------------------------------------------------------------------------------------- proportions


@pytest.mark.parametrize(
    ("wrong", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_newcombes_table(wrong: int, n: int, low: float, high: float) -> None:
    p = proportion_interval(wrong, n)  # Newcombe 1998, table I, method 3
    assert (p.wrong, p.n, p.rate) == (wrong, n, wrong / n)
    assert (p.low, p.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@quick
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_is_scipys_and_symmetric(counts: tuple[int, int], confidence: float) -> None:
    wrong, n = counts
    ours, mirror = proportion_interval(wrong, n, confidence), proportion_interval(n - wrong, n, confidence)
    theirs = stats.binomtest(wrong, n).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=1e-12), pytest.approx(theirs.high, abs=1e-12))
    assert (ours.low, ours.high) == (pytest.approx(1 - mirror.high), pytest.approx(1 - mirror.low))
    assert 0 <= ours.low <= ours.rate <= ours.high <= 1
    assert (ours.low == 0, ours.high == 1) == (wrong == 0, wrong == n)


def test_counts_are_counts() -> None:
    for wrong, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match=rf"^{wrong} of {n} is not a proportion: it takes n ≥ 1 and wrong in 0..n"):
            proportion_interval(wrong, n)
    with pytest.raises(TypeError, match=r"counts must be whole numbers, got 0\.1 of 300"):
        proportion_interval(0.1, 300)  # type: ignore[arg-type]
    assert proportion_interval(np.int64(3), np.int64(30)) == proportion_interval(3, 30)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- imports


@pytest.mark.medium
def test_imports_are_light(python: Callable[[str], str]) -> None:
    heavy = "torch", "pandas", "matplotlib", "numpy", "scipy"
    assert python(f"import sys, neumann.studies.statistics; print([m for m in {heavy} if m in sys.modules])") == "[]\n"
    used = "from neumann.studies.statistics import paired\npaired({1: 1, 2: 2}, {1: 2, 2: 4})\n"
    assert python(f"{used}import sys; print([m for m in {heavy[:3]} if m in sys.modules])") == "[]\n"


def test_a_diverged_run_loses_to_any_that_finished_and_ties_with_another() -> None:
    one = paired({0: 0.1, 1: 0.1, 5: 0.1}, {0: 0.2, 2: 0.2, 6: 0.1}, diverged_a=(2, 3), diverged_b=(1, 3, 9))
    assert (one.n, one.seeds, one.over) == (1, (0,), 4)
    assert (one.wins, one.losses, one.ties) == (2, 1, 1)
    assert (one.diverged_a, one.diverged_b, one.only_a, one.only_b) == ((2, 3), (1, 3), (5,), (6,))
    assert one.p == sign_test(2, 1) == 1.0
    assert one.t is None
    assert one.sign_flip_p is None
    with pytest.raises(ValueError, match="no seed is in both"):
        paired({}, {1: 0.1}, diverged_a=(0,))


@pytest.mark.parametrize("wins", range(9))
def test_the_sign_test_is_the_exact_binomial_one(wins: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert sign_test(wins, 8 - wins) == pytest.approx(stats.binomtest(wins, 8).pvalue)
    assert sign_test(0, 0) == 1.0


def test_the_interval_of_a_standard_deviation_is_scipys_chi_squared() -> None:
    for n, confidence in ((2, 0.95), (5, 0.9), (30, 0.99)):
        low, high = sd_interval(2.0, n, confidence)
        quantiles = stats.chi2.ppf([(1 + confidence) / 2, (1 - confidence) / 2], n - 1)
        assert (low, high) == pytest.approx(tuple(2.0 * np.sqrt((n - 1) / quantiles)))
    with pytest.raises(ValueError, match="1 values have no standard deviation"):
        sd_interval(2.0, 1)


def test_the_correlation_by_seed_is_pearsons_where_both_rows_vary() -> None:
    found = paired(rowed(*SLEEP_1), rowed(*SLEEP_2))
    assert found.correlation == pytest.approx(stats.pearsonr(SLEEP_1, SLEEP_2).statistic)
    assert paired(rowed(1.0, 2.0), rowed(1.0, 3.0)).correlation is None
    assert paired(rowed(1.0, 2.0, 3.0), rowed(1.0, 1.0, 1.0)).correlation is None
