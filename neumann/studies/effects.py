"""Effects: one row against another on one outcome, by seed, with the intervals that a verdict rests on.

The outcomes are the error at the fixed last step and the cost of reaching a target error. Smaller is better in both.
An effect is a difference (a - b), a ratio of means or a ratio of geometric means (a / b). Pure functions; ``None``
means unknown from these data.

Sources: Fieller 1954, Some problems in interval estimation; Kaplan and Meier 1958, Nonparametric estimation from
incomplete observations; Mantel 1966, Evaluation of survival data and two new rank order statistics arising in its
consideration; Brookmeyer and Crowley 1982, A confidence interval for the median survival time; Shallue et al. 2019,
Measuring the effects of data parallelism on neural network training; Dahl et al. 2023, Benchmarking neural network
training algorithms.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neumann.studies.statistics import Paired, paired, t_interval, t_quantile

Scale = Literal["difference", "ratio", "log ratio"]
Test = Literal["paired t test", "sign-flip test", "sign test", "log-rank test"]


@dataclass(frozen=True)
class Effect:
    """The effect of a row a against a row b on one outcome.

    ``scale`` says what ``value`` is: the mean difference a - b, the ratio of the means, or the ratio of the geometric
    means ("log ratio", since its interval is symmetric in the logarithm). ``low`` and ``high`` are the ends of its
    interval with a confidence of 1 - alpha, ``inner_low`` and ``inner_high`` with 1 - 2 alpha, on which two one-sided
    tests at alpha rest; None where there is no interval. ``sd`` is the standard deviation by seed: of the differences,
    of the differences as a share of b's mean, or of the log ratios. ``p`` is two-sided, of ``test``; no effect is a
    difference of 0 and a ratio of 1. ``side`` is -1 where a did better, 1 where b did, 0 for neither. ``n`` counts the
    seeds at which both have a value, ``over`` those at which both have a run that is over. ``lost_a`` and ``lost_b``
    are the seeds without a value: diverged, or the target missed.
    """

    scale: Scale
    n: int
    over: int
    value: float | None
    low: float | None
    high: float | None
    inner_low: float | None
    inner_high: float | None
    sd: float | None
    p: float | None
    test: Test
    side: int
    lost_a: tuple[int, ...] = ()
    lost_b: tuple[int, ...] = ()

    @property
    def lost(self) -> bool:
        """Return whether a run of either row has no value: then no interval tells of all runs."""
        return bool(self.lost_a or self.lost_b)


@dataclass(frozen=True)
class Way:
    """How one run came to the target: what it had cost at its first evaluation at or below it.

    Where ``reached`` is false the target was missed, and the costs are those of the whole run, None where it diverged:
    it would have missed the target in any run that is longer. A cost is None too where the run does not record it.
    """

    reached: bool
    costs: Mapping[str, float | None]


@dataclass(frozen=True)
class Median:
    """The median cost of reaching the target by Kaplan and Meier, over ``runs`` of which ``reached`` did.

    ``value`` is None where fewer than half are known to have reached it, ``low`` and ``high`` are the ends of its 95 %
    interval (Brookmeyer and Crowley 1982), each None where it is not known.
    """

    runs: int
    reached: int
    value: float | None
    low: float | None
    high: float | None


def difference(one: Paired, alpha: float = 0.05, *, most: float = math.inf) -> Effect:
    """Return the mean difference, the intervals without what is below -``most`` or above it: 1 for two errors."""
    outer, inner = _t_intervals(one, alpha)
    ends = [None if end is None else min(most, max(-most, end)) for end in (*outer, *inner)]
    return _of_errors(one, "difference", one.mean, ends, one.sd)


def relative(one: Paired, a: Mapping[int, float], b: Mapping[int, float], alpha: float = 0.05) -> Effect:
    """Return the ratio of the mean errors of ``a`` and ``b``, which ``one`` has compared, with Fieller's interval.

    The interval holds the ratios ρ at which the paired t test of a - ρ b rejects nothing (Fieller 1954). It is exact
    for normal errors, also where they are correlated by seed, and has no end where b's mean is not told from 0; then it
    is None.
    """
    pairs = [(a[seed], b[seed]) for seed in one.seeds]
    base = statistics.fmean(y for _, y in pairs) if pairs else 0.0
    value = statistics.fmean(x for x, _ in pairs) / base if base > 0 else None
    ends: list[float | None] = [None] * 4
    if value is not None and one.sd:
        found = [end for share in (alpha, 2 * alpha) for end in _fieller(pairs, 1 - share)]
        ends = [None if end is None else max(0.0, end) for end in found]
    return _of_errors(one, "ratio", value, ends, one.sd / base if one.sd is not None and base > 0 else None)


def _of_errors(one: Paired, scale: Scale, value: float | None, ends: list[float | None], sd: float | None) -> Effect:
    test: Test = "sign test" if one.diverged else "sign-flip test" if one.t is None else "paired t test"
    side = one.losses - one.wins if one.diverged or one.mean is None else one.mean
    low, high, inner_low, inner_high = [None] * 4 if one.diverged else ends
    return Effect(
        scale, one.n, one.over, value, low, high, inner_low, inner_high, sd, one.p, test, _sign(side),
        one.diverged_a, one.diverged_b,
    )  # fmt: skip


def _fieller(pairs: list[tuple[float, float]], confidence: float) -> tuple[float | None, float | None]:
    """Return the roots in ρ of (x̄ - ρ ȳ)² = t² (s_x² - 2 ρ s_xy + ρ² s_y²) / n, between which no ρ is rejected."""
    n, (xs, ys) = len(pairs), zip(*pairs, strict=True)
    x, y, g = statistics.fmean(xs), statistics.fmean(ys), t_quantile(n - 1, (1 + confidence) / 2) ** 2 / n
    square = y * y - g * statistics.variance(ys)
    middle = x * y - g * statistics.covariance(xs, ys)
    if square <= 0:
        return None, None
    root = math.sqrt(max(0.0, middle * middle - square * (x * x - g * statistics.variance(xs))))
    return (middle - root) / square, (middle + root) / square


# ------------------------------------------------------------------------------------------------------ costs to target


def way(
    curve: Iterable[tuple[float, Mapping[str, float | None]]],
    target: float,
    *,
    diverged: bool = False,
) -> Way | None:
    """Return how a run came to the error ``target`` (fraction), None for a run without an evaluation.

    ``curve`` has, in order, the error and the costs so far at every evaluation of the run. As in Shallue et al. (2019)
    and Dahl et al. (2023), the first evaluation at or below the target counts, at its own cost: nothing is
    interpolated, so a cost is exact to the distance of two evaluations.
    """
    costs: Mapping[str, float | None] = {}
    for error, so_far in curve:
        costs = so_far
        if error <= target * (1 + 1e-12):  # a mean of two errors may differ from both in its last bit
            return Way(True, dict(costs))
    return Way(False, dict.fromkeys(costs) if diverged else dict(costs)) if costs else None


def median(ways: Iterable[Way], cost: str) -> Median:
    """Return the median of ``cost`` over ``ways``: the ordinary one where all reached the target."""
    from scipy import stats

    known = [one for one in ways if not one.reached or one.costs[cost] is not None]
    reached = sum(one.reached for one in known)
    if not reached:
        return Median(len(known), 0, None, None, None)
    curve = stats.ecdf(_sample(stats, known, cost, _beyond(known, cost))).sf
    ends: list[float | None] = [None, None]
    if reached > 1:
        with warnings.catch_warnings():  # undefined where all runs have arrived, and not needed there
            warnings.simplefilter("ignore", RuntimeWarning)
            bounds = curve.confidence_interval(0.95, method="log-log")
        ends = [_half(bound.quantiles, bound.probabilities) for bound in (bounds.low, bounds.high)]
    return Median(len(known), reached, _half(curve.quantiles, curve.probabilities), *ends)


def _half(times: Any, shares: Any) -> float | None:
    """Return the time at which the share of runs still on their way falls to a half; the middle of a plateau."""
    below = [i for i, share in enumerate(shares) if share <= 0.5 + 1e-12]
    if not below:
        return None
    first = below[0]
    after = next((i for i in below if shares[i] < 0.5 - 1e-12), None)
    flat = abs(shares[first] - 0.5) <= 1e-12 and after is not None
    return float((times[first] + times[after]) / 2 if flat else times[first])


def cost_effect(a: Mapping[int, Way], b: Mapping[int, Way], cost: str, alpha: float = 0.05) -> Effect | None:
    """Return the effect of ``a`` against ``b`` on ``cost``, each {seed: way}; None where no seed has it in both.

    Where every run reached the target, it is the ratio of the geometric means with the paired t interval of the log
    ratios by seed. Where one missed it, its cost is known to be above the cost of its whole run and nothing more: p is
    the log-rank test's (Mantel 1966), which leaves the pairing by seed unused, and there is no interval.
    """
    seeds = sorted(s for s in a.keys() & b.keys() if _has(a[s], cost) and _has(b[s], cost))
    if not seeds:
        return None
    lost_a, lost_b = (tuple(seed for seed in seeds if not row[seed].reached) for row in (a, b))
    if lost_a or lost_b:
        return _log_rank([a[s] for s in seeds], [b[s] for s in seeds], cost, lost_a, lost_b)
    logs_a, logs_b = ({seed: math.log(float(row[seed].costs[cost] or 0.0)) for seed in seeds} for row in (a, b))
    one = paired(logs_a, logs_b)
    assert one.mean is not None
    outer, inner = _t_intervals(one, alpha)
    low, high, inner_low, inner_high = (None if end is None else math.exp(end) for end in (*outer, *inner))
    test: Test = "sign-flip test" if one.t is None else "paired t test"
    return Effect(
        "log ratio", one.n, one.over, math.exp(one.mean), low, high, inner_low, inner_high, one.sd, one.p, test,
        _sign(one.mean),
    )  # fmt: skip


def _log_rank(a: list[Way], b: list[Way], cost: str, lost_a: tuple[int, ...], lost_b: tuple[int, ...]) -> Effect:
    from scipy import stats

    beyond, n = _beyond([*a, *b], cost), sum(x.reached and y.reached for x, y in zip(a, b, strict=True))
    p, side = 1.0, 0  # where no run reached the target
    if any(one.reached for one in (*a, *b)):
        with warnings.catch_warnings():  # 0/0 where every run arrived or left at one time: nothing tells them apart
            warnings.simplefilter("ignore", RuntimeWarning)
            found = stats.logrank(_sample(stats, a, cost, beyond), _sample(stats, b, cost, beyond))
        if math.isfinite(found.statistic):
            p, side = float(found.pvalue), -_sign(float(found.statistic))  # above 0: a arrives sooner
    medians = [median(row, cost).value for row in (a, b)]
    value = medians[0] / medians[1] if medians[0] is not None and medians[1] else None
    return Effect(
        "log ratio", n, len(a), value, None, None, None, None, None, p, "log-rank test", side, lost_a, lost_b
    )  # fmt: skip


def _has(one: Way, cost: str) -> bool:
    return not one.reached or one.costs[cost] is not None


def _beyond(ways: Iterable[Way], cost: str) -> float:
    """Return the largest cost that is known: where a diverged run is censored, which never arrives."""
    return max((c for one in ways if (c := one.costs[cost]) is not None), default=1.0)


def _sample(stats: Any, ways: Iterable[Way], cost: str, beyond: float) -> Any:
    arrived = [one.costs[cost] for one in ways if one.reached]
    missed = [beyond if (c := one.costs[cost]) is None else c for one in ways if not one.reached]
    return stats.CensoredData(uncensored=arrived, right=missed)


def _t_intervals(one: Paired, alpha: float) -> list[tuple[float | None, float | None]]:
    if one.mean is None or not one.sd:
        return [(None, None)] * 2
    return [t_interval(one.mean, one.sd, one.n, 1 - share) for share in (alpha, 2 * alpha)]


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
