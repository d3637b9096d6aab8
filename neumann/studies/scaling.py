"""Scaling curves of a batch-size study: steps to the target against batch size, row by row.

S(B) is the number of steps that a row needs to the target at global batch B, E(B) = S(B) B the number of examples.
Scaling is perfect as long as S falls in proportion to 1/B, that is, as E stays the same. The curve
S = S_min (1 + B_crit / B) joins perfect scaling below B_crit to the floor S_min above it. Pure functions; ``None``
means unknown from these data, and a run that missed the target never counts as a number.

Sources: Shallue et al. 2019, Measuring the effects of data parallelism on neural network training, sections 3 and 4;
McCandlish et al. 2018, An empirical model of large-batch training, equation 5.4; Efron and Tibshirani 1993, An
introduction to the bootstrap, chapter 13 (percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from neumann.studies.effects import Effect, Way, cost_effect
from neumann.studies.statistics import summarize

NEARLY = 1.2  # times the examples of the smallest batch: still within 20 % of perfect scaling
LOOSE = 0.1  # residual of a fit, in ln S, from which it is not shown
FEWEST = 3  # batches that a curve of two parameters is fitted to
REACH = 100.0  # B_crit is looked for to this many times beyond the smallest and the largest batch
RESAMPLES = 1000


BATCH = "batch"  # the factor that is read as a curve


@dataclass(frozen=True)
class Cell:
    """One row at one level of a factor: the ``row`` of the study's file, its ``label`` there, its ``level`` by key.

    ``level_label`` is the level in a report. That of the factor "batch" is the global batch size.
    """

    row: str
    label: str
    factor: str
    level: str
    level_label: str

    @property
    def batch(self) -> int:
        """Return the global batch size of a cell of a batch-size study."""
        assert self.factor == BATCH
        return int(self.level)

    @property
    def at(self) -> str:
        """Return the level in words: "batch 1,024", "model small_cnn"."""
        return f"{self.factor} {self.level_label}"


@dataclass(frozen=True)
class ScalingPoint:
    """One row at one global ``batch``: how its runs at the rates that their seeds chose came to the target.

    ``steps`` maps a seed to the steps that it took, of the runs that reached the target, and ``missed`` a seed to the
    steps after which it had not, None where it diverged. ``mean`` is the geometric mean of the steps with the ends of
    its 95 % interval, all None where a run missed. ``excess`` is the ratio of the examples here to those of the same
    row at the smallest batch, 1 where scaling is perfect; ``against`` that to the reference row's at this batch, None
    for that row itself. ``rates`` are the learning rates by seed, after any scaling by batch. ``edge`` says how many
    seeds chose on the edge of what was tried, None where none did.
    """

    batch: int
    steps: Mapping[int, float]
    missed: Mapping[int, float | None]
    mean: float | None
    low: float | None
    high: float | None
    excess: Effect | None
    against: Effect | None
    rates: Mapping[int, float]
    edge: str | None

    @property
    def runs(self) -> int:
        """Return how many runs are over here."""
        return len(self.steps) + len(self.missed)


@dataclass(frozen=True)
class Fit:
    """The fit of S = S_min (1 + B_crit / B) in the logarithm, with 95 % bootstrap intervals over seeds.

    ``floor`` is S_min in steps and ``critical`` is B_crit in examples, each with the ends of its interval, None where a
    resampled curve leaves it open. ``residual`` is the root of the sum of squares of ln S over the degrees of freedom.
    """

    floor: float
    floor_low: float | None
    floor_high: float | None
    critical: float
    critical_low: float | None
    critical_high: float | None
    residual: float
    batches: int
    seeds: int


@dataclass(frozen=True)
class ScalingCurve:
    """The curve of one row, smallest batch first.

    ``fit`` is None where ``why`` says so. ``nearly`` is the largest batch up to which the row stays within 20 % of
    perfect scaling, None where its smallest batch has no mean; ``surely`` is that by the upper ends of the intervals.
    """

    row: str
    label: str
    points: tuple[ScalingPoint, ...]
    fit: Fit | None
    why: str | None
    nearly: int | None
    surely: int | None

    def at(self, batch: int) -> ScalingPoint:
        """Return the point at ``batch``. Raises StopIteration where there is none."""
        return next(point for point in self.points if point.batch == batch)


@dataclass(frozen=True)
class AtBatch:
    """What the runs of a row at one batch ended with: the way of each seed, its rate, and `ScalingPoint.edge`."""

    ways: Mapping[int, Way]
    rates: Mapping[int, float]
    edge: str | None


def curve(row: str, label: str, own: Mapping[int, AtBatch], reference: Mapping[int, AtBatch] | None) -> ScalingCurve:
    """Return the curve of a row from what it came to at each batch; ``reference`` is that of the reference row."""
    first = own[min(own)]
    points = tuple(
        _point(batch, one, first if batch != min(own) else None, (reference or {}).get(batch))
        for batch, one in sorted(own.items())
    )
    found, why = fit(points)
    return ScalingCurve(row, label, points, found, why, _within(points, "value"), _within(points, "high"))


def _point(batch: int, one: AtBatch, first: AtBatch | None, other: AtBatch | None) -> ScalingPoint:
    steps = {s: way.costs["steps"] for s, way in sorted(one.ways.items()) if way.reached}
    known = {seed: taken for seed, taken in steps.items() if taken is not None}
    missed = {seed: way.costs["steps"] for seed, way in sorted(one.ways.items()) if not way.reached}
    mean = low = high = None
    if known and not missed:
        logs = summarize(math.log(taken) for taken in known.values())
        mean, low, high = (None if v is None else math.exp(v) for v in (logs.mean, logs.low, logs.high))
    return ScalingPoint(
        batch=batch,
        steps=known,
        missed=missed,
        mean=mean,
        low=low,
        high=high,
        excess=cost_effect(one.ways, first.ways, "examples") if first else None,
        against=cost_effect(one.ways, other.ways, "examples") if other else None,
        rates=one.rates,
        edge=one.edge,
    )


def _within(points: Sequence[ScalingPoint], side: str) -> int | None:
    """Return the largest batch up to which `excess`, or an end of its interval, is at most NEARLY."""
    if points[0].mean is None:
        return None
    largest = points[0].batch
    for point in points[1:]:
        excess = getattr(point.excess, side) if point.excess is not None and point.mean is not None else None
        if excess is None or excess > NEARLY:
            break
        largest = point.batch
    return largest


def fit(points: Sequence[ScalingPoint]) -> tuple[Fit | None, str | None]:
    """Return the fit to the batches at which every run reached the target, or None and why there is none."""
    import numpy as np

    whole = [point for point in points if point.mean is not None]
    if len(whole) < FEWEST:
        return None, f"every run reached the target at {len(whole)} of {len(points)} batches, and a fit takes {FEWEST}"
    batches = np.array([point.batch for point in whole], float)
    seeds = sorted(set.intersection(*(set(point.steps) for point in whole)))
    logs = np.array([[math.log(point.steps[seed]) for seed in seeds] for point in whole])
    floor, critical, residual = _fitted(batches, logs.mean(axis=1))
    if residual >= LOOSE:
        return None, f"the curve misses ln S by {residual:.2f}, and from {LOOSE} it is not shown"
    if critical >= REACH * batches[-1] * 0.99:
        return None, f"the steps fall in proportion to the batch up to {whole[-1].batch:,}: B_crit lies beyond it"
    if critical <= batches[0] / REACH * 1.01:
        return None, f"the steps are as many at every batch from {whole[0].batch:,} on: B_crit lies below it"
    ends = _bootstrap(batches, logs) if len(seeds) > 1 else (None,) * 4
    return Fit(floor, *ends[:2], critical, *ends[2:], residual, len(whole), len(seeds)), None


def _fitted(batches: Any, logs: Any) -> tuple[float, float, float]:
    """Return S_min, B_crit and the residual of the curve through ``logs``, the means of ln S at ``batches``.

    For a given B_crit the best ln S_min is a mean, so one number is left to look for.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar

    def off(log_critical: float) -> float:
        apart = logs - np.log1p(np.exp(log_critical) / batches)
        return float(((apart - apart.mean()) ** 2).sum())

    ends = (math.log(batches[0] / REACH), math.log(batches[-1] * REACH))
    found = minimize_scalar(off, bounds=ends, method="bounded", options={"xatol": 1e-6})
    at = min((*ends, float(found.x)), key=off)  # the search itself never tries the ends
    floor = math.exp(fmean(logs - np.log1p(np.exp(at) / batches)))
    return floor, math.exp(at), math.sqrt(off(at) / (len(batches) - 2))


def _bootstrap(batches: Any, logs: Any) -> tuple[float | None, float | None, float | None, float | None]:
    """Return the ends of the intervals of S_min and of B_crit: seeds are drawn, the same ones at every batch."""
    import numpy as np

    count = logs.shape[1]
    draws = np.random.Generator(np.random.PCG64(0)).integers(count, size=(RESAMPLES, count))
    weights, often = np.unique([np.bincount(draw, minlength=count) for draw in draws], axis=0, return_counts=True)
    fits = [_fitted(batches, logs @ weight / count) for weight in weights]  # few seeds give few different draws
    floors = np.repeat([floor for floor, _, _ in fits], often)
    critical = np.repeat([found for _, found, _ in fits], often)
    open_below, open_above = critical <= batches[0] / REACH * 1.01, critical >= REACH * batches[-1] * 0.99
    low, high = _ends(np.where(open_below, -math.inf, np.where(open_above, math.inf, critical)))
    # where B_crit has no end, neither has the floor
    floor_low, floor_high = _ends(np.where(open_above, -math.inf, np.where(open_below, math.inf, floors)))
    return floor_low, floor_high, low, high


def _ends(values: Any) -> tuple[float | None, float | None]:
    import numpy as np

    ends = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    low, high = (float(end) if math.isfinite(end) else None for end in ends)
    return low, high
