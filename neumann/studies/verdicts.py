"""Verdicts: what an effect says, from its interval against the margin that the study named beforehand.

The margin is the smallest effect of interest: a share of the other row's (0.1 is 10 %), or a difference of errors. It
lies on both sides of no effect, and a ratio's is symmetric in the logarithm, from 1 - δ to 1 / (1 - δ): swapping the
rows swaps the verdict.

Sources: Schuirmann 1987, A comparison of the two one-sided tests procedure and the power approach; Phillips 1990, Power
of the two one-sided tests procedure in bioequivalence; Cohen 1988, Statistical power analysis for the behavioral
sciences; Dixon and Mood 1946, The statistical sign test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from neumann.studies.effects import Effect
from neumann.studies.statistics import MOST_SEEDS, sd_interval, seeds_needed, smallest_detectable_effect, special

Answer = Literal[
    "better by the margin",
    "better",
    "equivalent",
    "negligible",
    "worse",
    "worse by the margin",
    "undecided",
    "diverged",
    "missed",
    "pilot",
]


@dataclass(frozen=True)
class Margin:
    """The smallest effect of interest: ``size`` is a share where it is ``relative``, else a difference of fractions."""

    size: float
    relative: bool

    def bounds(self) -> tuple[float, float]:
        """Return the smallest effects on either side: of a ratio where the margin is relative, else of a difference."""
        return (1 - self.size, 1 / (1 - self.size)) if self.relative else (-self.size, self.size)


@dataclass(frozen=True)
class Verdict:
    """The answer to a comparison, and what it rests on.

    ``p`` is the adjusted one where `decide` was given one. ``judged`` says whether the interval was held against the
    ``margin``; else the answer is of a difference alone. ``smallest_detectable_effect`` has the unit of the margin:
    a share, or a difference of fractions. ``seeds`` is the n that would decide, see `deciding_seeds`, and
    ``fewest_seeds`` and ``most_seeds`` are that n at both ends of the noise's 95 % interval, since the noise is an
    estimate; only of a comparison that is ``judged``. Each is None where it is unknown or above a million.
    """

    answer: Answer
    p: float | None
    margin: Margin
    judged: bool
    smallest_detectable_effect: float | None
    seeds: int | None
    fewest_seeds: int | None
    most_seeds: int | None
    alpha: float
    power: float

    @property
    def detects_nothing(self) -> bool:
        """Return whether not even errors of 0 and 100 % would be told apart with this power."""
        found = self.smallest_detectable_effect
        return found is not None and not self.margin.relative and found > 1


def decide(
    effect: Effect,
    margin: Margin,
    alpha: float = 0.05,
    *,
    power: float = 0.8,
    adjusted_p: float | None = None,
    against_margin: bool = True,
    pilot: bool = False,
) -> Verdict:
    """Return the answer to a comparison whose effect is ``effect``, by its interval with a confidence of 1 - alpha.

    - "better by the margin": the whole interval is at or beyond the margin. "worse by the margin" likewise.
    - "equivalent": the interval with a confidence of 1 - 2 alpha lies within the margin on both sides, which is to say
      that two one-sided tests at alpha reject (Schuirmann 1987). "negligible" where the effect is told from none all
      the same: there, and too small to matter.
    - "better", "worse": told from no effect, and the interval holds effects smaller and larger than the margin.
    - "undecided": none of these. It is not equality.
    - "diverged": no seed is left at which both rows have a value, and nothing else tells them apart. "missed" where
      the value is the cost of reaching a target.

    ``adjusted_p``, Holm's, takes the place of the effect's own in a family. Without ``against_margin`` the answer is
    "better", "worse" or "undecided", by p alone: intervals that are not adjusted say nothing of a family. A ``pilot``
    has no answer.

    Where all differences by seed are equal there is no interval: the sign-flip test's p tells an effect from none, and
    its one-sided p, 1/2ⁿ, decides whether it lies within the margin. Where runs diverged or missed the target, p is of
    a test without sizes, so nothing is said of the margin, and no row is better of which more runs are lost.

    Raises ValueError for a margin that is not above 0, one that is relative where the effect is a difference or the
    other way round, and an adjusted p that is below the effect's own or above 1.
    """
    if not 0 < margin.size < (1 if margin.relative else math.inf):
        raise ValueError(f"the margin must be above 0, and below 1 where it is relative, got {margin.size}")
    if margin.relative == (effect.scale == "difference"):
        raise ValueError(f"a {effect.scale} is not to be held against {margin}")
    p = effect.p
    if adjusted_p is not None:
        if p is None or not p <= adjusted_p <= 1:
            raise ValueError(f"an adjusted p lies between the comparison's own, {p}, and 1, got {adjusted_p}")
        p = adjusted_p
    sd = effect.sd if not effect.lost else None
    found = smallest_detectable_effect(sd, effect.n, alpha, power)
    if found is not None and effect.scale == "log ratio":
        found = -math.expm1(-found)
    if pilot:
        answer: Answer = "pilot"
    elif effect.lost:
        answer = _without_sizes(effect, p, alpha)
    else:
        answer = (_against(effect, margin, p, alpha) if against_margin else None) or _by_p(effect, p, alpha)
    seeds: list[int | None] = [None] * 3
    if against_margin and sd:
        noises = (sd, *sd_interval(sd, effect.n))
        seeds = [deciding_seeds(replace(effect, sd=noise), margin, alpha, power) for noise in noises]
    return Verdict(answer, p, margin, against_margin, found, seeds[0], seeds[1], seeds[2], alpha, power)


def _without_sizes(effect: Effect, p: float | None, alpha: float) -> Answer:
    a, b = len(effect.lost_a), len(effect.lost_b)
    told = _by_p(effect, p, alpha)
    if (told == "better" and a <= b) or (told == "worse" and a >= b):
        return told
    if effect.n:
        return "undecided"
    return "missed" if effect.scale == "log ratio" else "diverged"


def _by_p(effect: Effect, p: float | None, alpha: float) -> Answer:
    if p is None or p > alpha or not effect.side:
        return "undecided"
    return "better" if effect.side < 0 else "worse"


def _against(effect: Effect, margin: Margin, p: float | None, alpha: float) -> Answer | None:
    """Return the answer of the interval against the margin, None where the margin decides nothing."""
    low, high = margin.bounds()
    apart = p is not None and p <= alpha
    if effect.low is None or effect.high is None or effect.inner_low is None or effect.inner_high is None:
        if effect.sd != 0 or effect.value is None or 0.5**effect.n > alpha:
            return None
        rounding = 1e-9 * margin.size  # on the margin, but for rounding, is not inside
        return ("negligible" if apart else "equivalent") if low + rounding < effect.value < high - rounding else None
    if effect.high <= low:
        return "better by the margin"
    if effect.low >= high:
        return "worse by the margin"
    if low < effect.inner_low and effect.inner_high < high:
        return "negligible" if apart else "equivalent"
    return None


def deciding_seeds(effect: Effect, margin: Margin, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Return the n that would decide, by the noise found here: None where that is unknown or a million is not enough.

    On so many seeds a true effect as large as the margin is told from none with ``power``, and rows that do not differ
    are found equivalent with that power.
    """
    if not effect.sd or effect.lost:
        return None
    return seeds_for(effect.sd, margin, alpha, power, is_cost=effect.scale == "log ratio")


def seeds_for(sd: float, margin: Margin, alpha: float = 0.05, power: float = 0.8, *, is_cost: bool) -> int | None:
    """Return `deciding_seeds` for a standard deviation by seed in the margin's unit, of log ratios for a cost."""
    size = -math.log1p(-margin.size) if is_cost else margin.size
    detected, equal = seeds_needed(size, sd, alpha, power), _equivalent_on(size / sd, alpha, power)
    return None if detected is None or equal is None else max(detected, equal)


def equivalence_power(margin: float, n: int, alpha: float = 0.05) -> float:
    """Return the probability that two one-sided t tests on ``n`` seeds find rows equivalent that do not differ.

    ``margin`` is in standard deviations of the differences. The mean x̄ and s are independent, so it is the mean over s
    of P(|x̄| < margin - t s/√n) (Phillips 1990), here over 400 quantiles of s.
    """
    import numpy as np

    functions = special()
    shares = (np.arange(400) + 0.5) / 400
    s = np.sqrt(functions.chdtri(n - 1, 1 - shares) / (n - 1))
    reach = (margin - functions.stdtrit(n - 1, 1 - alpha) * s / math.sqrt(n)) * math.sqrt(n)
    return float(np.mean(np.where(reach > 0, 2 * functions.ndtr(reach) - 1, 0.0)))


def _equivalent_on(margin: float, alpha: float, power: float) -> int | None:
    low, high = 1, 2
    while equivalence_power(margin, high, alpha) < power:
        low, high = high, 2 * high
        if high > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if equivalence_power(margin, middle, alpha) < power else (low, middle)
    return high
