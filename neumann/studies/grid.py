"""The grid design: every seed trains every setting of a row and chooses its own by validation error.

So n seeds repeat the whole of it, the search included, and an interval over them covers the luck of tuning. Where one
setting is chosen once for all seeds, it leaves that luck out. Rows that differ in one part of an optimizer may be
compared at equal settings instead: by the mean over the middle of the space, which no choice blurs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from neumann.studies.effects import Way
from neumann.studies.results import Setting


class Ended(NamedTuple):
    """What a run ended with on the validation images: error (fraction) and loss (nats), both None where it diverged."""

    error: float | None
    loss: float | None


def best(ended: Sequence[Ended]) -> int | None:
    """Return which setting a seed chooses, None where it diverged at all of them.

    The lowest validation error wins; equal ones are told apart by the loss, and then by their order in the space. A
    setting that diverged at this seed is not chosen by it.
    """
    ranks = [
        (round(one.error, 12), one.loss, order)
        for order, one in enumerate(ended)
        if one.error is not None and one.loss is not None
    ]
    return min(ranks)[-1] if ranks else None


def cheapest(ended: Sequence[Ended], ways: Sequence[Way | None], cost: str) -> int | None:
    """Return which setting a seed chooses by what it costs to reach the target, None where it diverged at all of them.

    The least ``cost`` wins among the settings that reached the target and did not diverge, as in Shallue et al. (2019,
    section 3); equal ones are told apart as by `best`, which chooses where no setting reached it.
    """
    ranks = []
    for order, (one, way) in enumerate(zip(ended, ways, strict=True)):
        spent = way.costs[cost] if way is not None and way.reached else None
        if spent is not None and one.error is not None and one.loss is not None:
            ranks.append((spent, round(one.error, 12), one.loss, order))
    return min(ranks)[-1] if ranks else best(ended)


def middle(settings: Sequence[Setting]) -> tuple[int, ...]:
    """Return the settings that lie on no edge of the space: whose numbers are neither the smallest nor the largest.

    A setting that is no number everywhere, or has a single value, has no edge.
    """
    inside = list(range(len(settings)))
    for key in settings[0] if settings else ():
        values = [setting[key] for setting in settings]
        numbers = [v for v in values if isinstance(v, int | float)]
        if len(numbers) == len(values) and len(set(numbers)) > 1:
            inside = [i for i in inside if min(numbers) < numbers[i] < max(numbers)]
    return tuple(inside)


@dataclass(frozen=True)
class Measured:
    """What the runs of one row ended with, by evaluation seed.

    ``errors`` maps a seed to the test error (fraction) of the runs that finished, ``diverged`` are the seeds without
    one, and ``ways`` maps a seed to how its run came to the study's target, empty where there is none.
    """

    errors: Mapping[int, float]
    diverged: tuple[int, ...]
    ways: Mapping[int, Way] = field(default_factory=dict)


def mean_over(parts: Iterable[Measured]) -> Measured:
    """Return the mean over settings by seed, of the seeds at which every one of ``parts`` has a run that is over.

    A seed at which one of them diverged has diverged. The mean cost of reaching the target is the geometric one, and
    missed where one of them missed it: then it is above the mean of what is known.
    """
    parts = list(parts)
    seeds = sorted(set.intersection(*({*one.errors, *one.diverged} for one in parts))) if parts else []
    diverged = tuple(seed for seed in seeds if any(seed in one.diverged for one in parts))
    errors = {seed: fmean(one.errors[seed] for one in parts) for seed in seeds if seed not in diverged}
    ways = {seed: _together([one.ways[seed] for one in parts]) for seed in seeds if all(seed in p.ways for p in parts)}
    return Measured(errors, diverged, ways)


def _together(ways: Sequence[Way]) -> Way:
    costs: dict[str, float | None] = {}
    for cost in ways[0].costs:
        known = [one.costs[cost] for one in ways]
        costs[cost] = None
        if all(known):
            costs[cost] = math.exp(fmean(math.log(c) for c in known if c is not None))
    return Way(all(one.reached for one in ways), costs)
