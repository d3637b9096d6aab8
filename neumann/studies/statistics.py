"""Statistics of a comparison by seed: intervals, paired tests, Holm and power, as pure functions.

Values are errors, losses or steps: smaller is better, and every result keeps the unit of its values. A diverged run has
no value and is in no mean, but it is a result: `paired` is told of it, and counts it as worse than any run that
finished. ``None`` in a result means unknown from these data, never zero.

x̄ is the mean of n values and s their sample standard deviation (n - 1 in the denominator), t(p; df) the quantile of
Student's t. Sources: Student 1908, The probable error of a mean; Fisher 1935, The design of experiments, section 21;
Dixon and Mood 1946, The statistical sign test; Phipson and Smyth 2010, Permutation p-values should never be zero; Holm
1979, A simple sequentially rejective multiple test procedure; Wilson 1927, Probable inference, the law of succession,
and statistical inference; Cohen 1988, Statistical power analysis for the behavioral sciences, chapter 2; Johnson, Kotz
and Balakrishnan 1995, Continuous univariate distributions 2, chapter 30.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

EXACT_FLIPS = 15  # differences: 2^15 flips take a millisecond
RANDOM_FLIPS = 99_999  # with the observed one a round 100 000, so p moves in steps of 1e-5
MOST_SEEDS, MOST_SDS = 1_000_000, 1e7  # upper limits of the searches for n and for the effect
ROUNDING = 1e-12  # of the largest value: below it two floats are the same measurement, computed in another order


@dataclass(frozen=True)
class Summary:
    """The summary of one row's values, in their unit.

    ``n`` is the number of values, ``median`` their middle one. ``sd`` is the sample standard deviation s, None for one
    value; ``low`` and ``high`` are the ends of the confidence
    interval of the mean, None where `summarize` gives none.
    """

    n: int
    mean: float
    median: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Paired:
    """The differences d = a - b by seed, in the unit of a and b; a negative one is a win of a.

    ``n`` is the number of ``seeds``, those at which both rows have a value, ``only_a`` and ``only_b`` those dropped
    since the other row has neither a value nor diverged. ``diverged_a`` and ``diverged_b`` are the seeds at which a and
    b diverged, of those that both rows have. ``mean``, ``sd``, ``low`` and ``high`` are as in `Summary`, the mean None
    where n is 0; ``t`` and ``p`` of the paired t test, ``sign_flip_p`` of `sign_flip`. ``wins``, ``losses`` and
    ``ties`` count differences below, above and at 0. A diverged run loses to one that finished and ties with another;
    where there is one, ``p`` is that of `sign_test`, and there is neither t nor sign-flip p. ``correlation`` is
    Pearson's of a and b by seed, None below three seeds and where either row has no spread: the higher, the more
    pairing is worth.
    """

    n: int
    seeds: tuple[int, ...]
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]
    diverged_a: tuple[int, ...]
    diverged_b: tuple[int, ...]
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    t: float | None
    p: float | None
    sign_flip_p: float | None
    wins: int
    losses: int
    ties: int
    correlation: float | None

    @property
    def diverged(self) -> bool:
        """Return whether a run of either row diverged at a seed that both have."""
        return bool(self.diverged_a or self.diverged_b)

    @property
    def over(self) -> int:
        """Return at how many seeds both rows have a run that finished or diverged."""
        return self.wins + self.losses + self.ties


@dataclass(frozen=True)
class HolmResult:
    """One hypothesis of a family: its adjusted p, and whether that is at most alpha."""

    adjusted: float
    rejected: bool


@dataclass(frozen=True)
class Proportion:
    """A ``rate``, ``wrong`` / ``n`` in [0, 1], and ``low`` and ``high``, the ends of its confidence interval."""

    wrong: int
    n: int
    rate: float
    low: float
    high: float


def summarize(values: Iterable[float], confidence: float = 0.95) -> Summary:
    """Return mean, median, s, and the interval x̄ ± t((1 + confidence)/2; n - 1) s/√n (Student 1908).

    One value has neither s nor interval; equal values have s = 0 and no interval, since their noise is below their
    resolution, not zero. Raises ValueError for no value, one that is not finite, or a confidence outside (0, 1).
    """
    _check_share(confidence, "confidence")
    finite = [_measured(value, f"value {i}") for i, value in enumerate(values)]
    if not finite:
        raise ValueError("there is no value to summarize")
    n, mean, sd = len(finite), statistics.mean(finite), _sd(finite, max(map(abs, finite)))
    return Summary(n, mean, statistics.median(finite), sd, *t_interval(mean, sd, n, confidence))


def paired(
    a: Mapping[int, float],
    b: Mapping[int, float],
    confidence: float = 0.95,
    *,
    diverged_a: Collection[int] = (),
    diverged_b: Collection[int] = (),
) -> Paired:
    """Compare two rows, which map a seed to a value, by their differences d = a - b at the seeds that both have.

    ``diverged_a`` and ``diverged_b`` are the seeds at which a run diverged. Mean, s and interval are of the seeds at
    which both finished and say nothing of these, so then p is `sign_test`'s over all seeds.

    t = d̄ √n / s on n - 1 degrees of freedom, p = P(|T| ≥ |t|) is two-sided (Student 1908); ``sign_flip_p`` needs no
    normal differences, see `sign_flip`. One seed has no s, interval, t or p. Where all differences are equal, the noise
    is below the resolution of the values (errors on 300 images move in steps of 1/300), and the t formula would claim
    p = 0, from two seeds even, or 0/0 where all are ties: then s is 0, interval and t are None, and p is the sign-flip
    p, 2/2^n, or 1.0 where all are ties. A difference below 1e-12 of the largest value is a tie.

    Raises ValueError where no seed is in both, a value is not finite, or the confidence is outside (0, 1).
    """
    _check_share(confidence, "confidence")
    over_a, over_b = {*a, *diverged_a}, {*b, *diverged_b}
    if not over_a & over_b:
        raise ValueError(f"no seed is in both rows: a has {sorted(over_a)}, b has {sorted(over_b)}")
    seeds = tuple(sorted(a.keys() & b.keys()))
    only_a, only_b = tuple(sorted(a.keys() - over_b)), tuple(sorted(b.keys() - over_a))
    lost_a, lost_b = tuple(sorted({*diverged_a} & over_b)), tuple(sorted({*diverged_b} & over_a))
    pairs = [(_measured(a[s], f"a at seed {s}"), _measured(b[s], f"b at seed {s}")) for s in seeds]
    size = max((abs(value) for pair in pairs for value in pair), default=0.0)
    differences = [0.0 if abs(x - y) <= ROUNDING * size else x - y for x, y in pairs]
    n, sd = len(seeds), _sd(differences, size)
    mean = statistics.mean(differences) if differences else None
    low, high = t_interval(mean, sd, n, confidence) if mean is not None else (None, None)
    wins = sum(d < 0 for d in differences) + len({*lost_b} - {*lost_a})
    losses = sum(d > 0 for d in differences) + len({*lost_a} - {*lost_b})
    ties = len(over_a & over_b) - wins - losses
    t = flip = None
    if lost_a or lost_b or mean is None:
        p: float | None = sign_test(wins, losses)
    else:
        flip = sign_flip(differences)
        t = mean * math.sqrt(n) / sd if sd else None
        p = flip if sd == 0 else None
        if t is not None:
            p = 2 * float(special().stdtr(n - 1, -abs(t)))
    return Paired(
        n, seeds, only_a, only_b, lost_a, lost_b, mean, sd, low, high, t, p, flip, wins, losses, ties,
        _correlation(pairs, size),
    )  # fmt: skip


def _correlation(pairs: Sequence[tuple[float, float]], size: float) -> float | None:
    if len(pairs) < 3 or not all(_sd(side, size) for side in zip(*pairs, strict=True)):
        return None
    return statistics.correlation(*zip(*pairs, strict=True))


def sd_interval(sd: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a standard deviation that was found on ``n`` normal values, at least two.

    It is s √((n - 1) / χ²) at both quantiles of chi-squared on n - 1 degrees of freedom. Raises ValueError for fewer
    values, or a confidence outside (0, 1).
    """
    _check_share(confidence, "confidence")
    if n < 2:
        raise ValueError(f"{n} values have no standard deviation")
    rest = (1 - confidence) / 2
    upper, lower = (float(special().chdtri(n - 1, share)) for share in (rest, 1 - rest))
    return sd * math.sqrt((n - 1) / upper), sd * math.sqrt((n - 1) / lower)


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p of so many wins and losses where each is as likely (Dixon and Mood 1946).

    Ties are left out. It uses no sizes, so a diverged run, which has none, is a loss like another. Under six
    seeds it cannot reach 0.05.
    """
    n, fewer = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """Return the two-sided p of the mean difference among all 2^n flips of signs (Fisher 1935).

    p is the share of sign vectors σ in {-1, 1}ⁿ with |Σ σᵢdᵢ| ≥ |Σ dᵢ|, ties within rounding included. It assumes only
    that differences are symmetric about 0 under the null hypothesis, so discrete errors do no harm. It is never below
    2/2^n: under six seeds it cannot reach 0.05. Above 15 differences it draws 99 999 flips from ``seed`` and counts the
    observed one among them (Phipson and Smyth 2010), so p is never 0. The order of the differences does not matter.
    Raises ValueError for none, or one that is not finite.
    """
    finite = [_measured(d, f"difference {i}") for i, d in enumerate(differences)]
    if not finite:
        raise ValueError("there is no difference to flip")
    import numpy as np

    sizes = sorted(map(abs, finite))  # sorted, so that the order they came in draws the same flips
    # Discrete differences tie often, and ties that rounding breaks would shrink p
    reach = abs(math.fsum(finite)) - 1e-9 * math.fsum(sizes)
    if len(sizes) <= EXACT_FLIPS:
        sums = np.zeros(1)
        for size in sizes:
            sums = np.concatenate([sums - size, sums + size])
        return float(np.mean(np.abs(sums) >= reach))
    stream, sums = np.random.default_rng(seed), np.zeros(RANDOM_FLIPS)
    for size in sizes:  # one difference at a time: no matrix of flips × n
        sums += np.where(stream.random(RANDOM_FLIPS) < 0.5, size, -size)
    return (int(np.sum(np.abs(sums) >= reach)) + 1) / (RANDOM_FLIPS + 1)


def holm(p_values: Mapping[str, float], alpha: float = 0.05) -> dict[str, HolmResult]:
    """Return a family of p adjusted by Holm's step-down (1979), in the order of ``p_values``.

    The i-th smallest of m becomes max over j ≤ i of min(1, (m - j + 1) pⱼ). Rejecting where adjusted ≤ alpha keeps the
    family-wise error rate at alpha, however the tests depend. A comparison without a p is not a member: leave it out.
    Raises ValueError for a p outside [0, 1] or alpha outside (0, 1).
    """
    _check_share(alpha, "alpha")
    for name, p in p_values.items():
        if not 0 <= _finite(p, f"p of {name!r}") <= 1:
            raise ValueError(f"p of {name!r} must lie in [0, 1], got {p}")
    adjusted, worst = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        worst = max(worst, min(1.0, (len(p_values) - i) * p_values[name]))
        adjusted[name] = worst
    return {name: HolmResult(adjusted[name], adjusted[name] <= alpha) for name in p_values}


def power(effect: float, sd: float | None, n: int, alpha: float = 0.05) -> float | None:
    """Return the power of the two-sided paired t test on n seeds for a true mean difference ``effect``.

    It is P(|T| > t(1 - alpha/2; n - 1)) with T noncentral t, δ = effect √n / sd (Cohen 1988); ``sd`` is that of the
    differences, in the unit of ``effect``. Give the effect of interest, never the observed one, whose "power" only
    restates p. None for n < 2 or sd None or 0: without a measure of the noise there is no test. Raises ValueError for
    an effect that is not finite, a sd that is negative or not finite, or alpha outside (0, 1).
    """
    _check_share(alpha, "alpha")
    effect, noise = _finite(effect, "effect"), _noise(sd)
    return _power(effect / noise, n, alpha) if noise and n >= 2 else None


def smallest_detectable_effect(sd: float | None, n: int, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Return the true mean difference that the paired t test on n seeds detects with ``power``, in sd's unit.

    It solves `power` for the effect. None for n < 2 or sd None or 0, where no size is known to be detectable, and above
    1e7 sd. The sd is itself an estimate, a rough one from few seeds. Raises as `power` does, and for a power outside
    (alpha, 1).
    """
    _check_share(alpha, "alpha")
    _check_share(power, "power", above=alpha)
    noise = _noise(sd)
    if not noise or n < 2:
        return None
    low, high = 0.0, 1.0
    while _power(high, n, alpha) < power:
        if high > MOST_SDS:
            return None
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, n, alpha) < power else (low, middle)
    return high * noise


def seeds_needed(effect: float, sd: float | None, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Return the fewest seeds, at least 2, on which the paired t test detects ``effect`` with ``power``.

    None for sd None or 0, and where a million do not suffice. Raises as `power` does, for an effect of 0, and for a
    power outside (alpha, 1).
    """
    _check_share(alpha, "alpha")
    _check_share(power, "power", above=alpha)
    if not _finite(effect, "effect"):
        raise ValueError("no number of seeds detects an effect of 0")
    noise = _noise(sd)
    if not noise or _power(effect / noise, MOST_SEEDS, alpha) < power:
        return None
    low, high = 1, MOST_SEEDS  # power grows with n: too few at low, enough at high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _power(effect / noise, middle, alpha) < power else (low, middle)
    return high


def proportion_interval(wrong: int, n: int, confidence: float = 0.95) -> Proportion:
    """Return p̂ = wrong/n and its score interval (Wilson 1927), which is inside [0, 1] and has a width at 0 and n too.

    (p̂ + z²/2n ± z √(p̂(1 - p̂)/n + z²/4n²)) / (1 + z²/n) with z the normal quantile at (1 + confidence)/2.

    For the rate of diverged runs, and for one run's error on n test images: there it covers the luck of the images, not
    that of the seed. Raises ValueError for n < 1, wrong outside 0..n, or confidence outside (0, 1), and TypeError for
    counts that are not whole numbers.
    """
    _check_share(confidence, "confidence")
    if not (isinstance(wrong, SupportsIndex) and isinstance(n, SupportsIndex)):
        raise TypeError(f"counts must be whole numbers, got {wrong!r} of {n!r}")
    if n < 1 or not 0 <= wrong <= n:
        raise ValueError(f"{wrong} of {n} is not a proportion: it takes n ≥ 1 and wrong in 0..n")
    rate, z = wrong / n, statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    shrink = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / shrink
    # Exact at the ends, where rounding would leave 1e-17
    low, high = 0.0 if wrong == 0 else centre - half, 1.0 if wrong == n else centre + half
    return Proportion(int(wrong), int(n), rate, low, high)


def special() -> Any:
    """Return scipy.special."""
    # Imported at first use. It takes a third of the time of scipy.stats, whose functions rest on these
    from scipy import special

    return special


def _power(effect: float, n: int, alpha: float) -> float:
    """Return `power` for an effect in units of sd: T² is F mixed over Poisson(δ²/2) (Johnson, Kotz, Balakrishnan 1995).

    This sum has no holes; in scipy 1.17.1 noncentral t is nan at n = 10, 10 sd, and noncentral F at n = 7813, 0.44 sd.
    """
    import numpy as np

    functions, df = special(), n - 1
    rate = n * min(abs(effect), MOST_SDS) ** 2 / 2
    first, last = max(0.0, math.floor(rate - 10 * math.sqrt(rate))), rate + 10 * math.sqrt(rate) + 40
    j = np.arange(first, last, max(1, (last - first) // 4000))  # a stride far below the Poisson's sd loses nothing
    log_weights = functions.xlogy(j, rate) - functions.gammaln(j + 1)
    weights = np.exp(log_weights - log_weights.max())
    reach = float(functions.stdtrit(df, alpha / 2)) ** 2
    beyond = functions.betainc(df / 2, j + 0.5, df / (df + reach))
    return float(weights @ beyond / weights.sum())


def t_interval(mean: float, sd: float | None, n: int, confidence: float) -> tuple[float | None, float | None]:
    """Return mean ± t((1 + confidence)/2; n - 1) sd/√n, no ends where sd is None or 0."""
    if not sd:
        return None, None
    half = t_quantile(n - 1, (1 + confidence) / 2) * sd / math.sqrt(n)
    return mean - half, mean + half


def t_quantile(df: int, share: float) -> float:
    """Return the quantile of Student's t on ``df`` degrees of freedom."""
    return float(special().stdtrit(df, share))


def _sd(values: Sequence[float], size: float) -> float | None:
    """Sample standard deviation; 0 where the values differ by no more than the rounding of numbers of this size."""
    if len(values) < 2:
        return None
    return 0.0 if max(values) - min(values) <= ROUNDING * size else statistics.stdev(values)


def _noise(sd: float | None) -> float:
    if sd is not None and _finite(sd, "sd") < 0:
        raise ValueError(f"sd must not be negative, got {sd}")
    return sd or 0.0


def _measured(value: float | None, what: str) -> float:
    return _finite(value, f"{what} (diverged runs are counted, not averaged)")


def _finite(value: float | None, what: str) -> float:
    if value is None or not math.isfinite(value):  # in JSON a diverged run's nan is null
        raise ValueError(f"{what} must be a finite number, got {value}")
    return float(value)


def _check_share(share: float, what: str, above: float = 0.0) -> None:
    if not above < share < 1:
        raise ValueError(f"{what} must lie between {above:g} and 1, got {share}")
