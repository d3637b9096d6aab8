"""Two rows compared by seed: the differences of their errors, and the effect on every outcome of a study."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from neumann.studies.effects import Effect, cost_effect, difference, relative
from neumann.studies.grid import Measured
from neumann.studies.results import COSTS, ERROR
from neumann.studies.statistics import Paired, paired
from neumann.studies.verdicts import Margin


@dataclass(frozen=True)
class Compared:
    """What row a is against row b.

    ``paired`` compares the test errors by seed, None where the rows share no seed that is over; ``effects`` has the
    effect on every outcome that both record, the error's as a ratio; ``judged`` is the one that is held against the
    margin, None where it is not known.
    """

    paired: Paired | None
    effects: dict[str, Effect]
    judged: Effect | None


def compare(a: Measured, b: Measured, outcome: str, margin: Margin, alpha: float) -> Compared:
    """Compare two rows; the effect on ``outcome`` is the one that is judged, in the unit of ``margin``."""
    shared = {*a.errors, *a.diverged} & {*b.errors, *b.diverged}
    one = paired(a.errors, b.errors, diverged_a=a.diverged, diverged_b=b.diverged) if shared else None
    effects = {} if one is None else {ERROR: relative(one, a.errors, b.errors, alpha)}
    costs = {cost: cost_effect(a.ways, b.ways, cost, alpha) for cost in costs_of([a, b])}
    effects |= {cost: effect for cost, effect in costs.items() if effect is not None}
    judged = effects.get(outcome)
    if outcome == ERROR and not margin.relative:
        judged = None if one is None else difference(one, alpha, most=1.0)
    return Compared(one, effects, judged)


def costs_of(rows: Iterable[Measured]) -> list[str]:
    """Return the costs that every run of ``rows`` records which reached the target, if any of them has come there."""
    ways = [one for row in rows for one in row.ways.values()]
    return [cost for cost in COSTS if ways and all(one.costs[cost] is not None for one in ways if one.reached)]
