"""The interval of stable rates is the one that is known, whatever the grid, and its ends say where they were not found."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from neumann.search.stable_range import Interval, StableRange, Trial, space_of

CURVATURES = {0: 4.0, 1: 5.0}  # λ of each seed's quadratic λw²/2; plain gradient descent is stable up to 2/λ


def descent(rate: float, momentum: float = 0.0, steps: int = 2000) -> list[Trial]:
    """Return what gradient descent with heavy-ball momentum comes to from w = 1, on each seed's quadratic."""
    found = []
    for seed, curvature in CURVATURES.items():
        w, m = 1.0, 0.0
        for _ in range(steps):
            m = momentum * m - rate * curvature * w
            w += m
            if abs(w) > 1e100:
                break
        end = curvature * w * w / 2
        found.append(Trial(rate, seed, curvature / 2, end if abs(w) < 1e100 else None, steps, steps))
    return found


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("per_decade", [1, 2, 5])
def test_the_upper_end_is_the_known_bound_within_the_gap_that_is_left(momentum: float, per_decade: int) -> None:
    found = StableRange(lambda rate: descent(rate, momentum))
    interval = found.search(1e-5, 10, per_decade, refinements=4)
    gap = 10 ** (1 / per_decade / 2**4) * 1.001  # rates have four digits
    for seed, curvature in (*CURVATURES.items(), (None, max(CURVATURES.values()))):
        bound = 2 * (1 + momentum) / curvature
        alone = found.interval(seed)
        assert alone.high is not None
        assert alone.high < bound
        if seed != 0:  # the gap that was halved is that of all seeds together
            assert bound < alone.high * gap
    assert not interval.high_open
    assert not interval.low_open


def test_the_lower_end_is_where_the_loss_falls_by_a_tenth_of_the_most() -> None:
    steps = 50
    found = StableRange(lambda rate: descent(rate, steps=steps))
    interval = found.search(1e-5, 10, 2, refinements=5)
    # (1 − ηλ)^(2 steps) = 0.9 for the smaller λ, whose loss falls to nothing at the best rate
    known = (1 - 0.9 ** (1 / (2 * steps))) / min(CURVATURES.values())
    assert interval.low is not None
    assert known <= interval.low < known * 10 ** (1 / 2 / 2**5) * 1.001


def _trial(rate: float, fall: float, seed: int = 0) -> Trial:
    return Trial(rate, seed, 1.0, None if math.isinf(fall) else 1.0 - fall, 10, 10)


def test_the_grid_is_followed_beyond_either_end_and_an_end_that_was_not_found_is_open() -> None:
    found = StableRange(lambda rate: [_trial(rate, 0.5 if rate < 300 else -math.inf)])
    interval = found.search(0.1, 1, 1, refinements=2)
    assert not interval.high_open
    assert interval.low_open  # progress was made at all of them, four decades below the grid too
    assert interval.low == 1e-5
    assert interval.high is not None
    assert 300 / 10**0.25 < interval.high < 300
    assert max(found.trials) == 1000  # one beyond the bound
    always = StableRange(lambda rate: [_trial(rate, 0.5)])
    interval = always.search(0.1, 1, 1, refinements=2)
    assert (interval.high, interval.high_open) == (1e4, True)


def test_without_a_stable_rate_in_the_grid_lower_ones_are_tried() -> None:
    found = StableRange(lambda rate: [_trial(rate, 0.5 if rate < 2e-4 else -1.0)])
    interval = found.search(0.01, 1, 1, refinements=0)
    assert (interval.high, interval.high_open) == (1e-4, False)
    never = StableRange(lambda rate: [_trial(rate, -1.0)])
    assert never.search(0.01, 1, 1, refinements=3) == Interval(None, None, low_open=False, high_open=False)


def test_a_rate_above_an_unstable_one_is_not_stable_and_none_is_tried_above_one_at_which_all_fail() -> None:
    falls = {1e-3: [0.1, 0.1], 1e-2: [0.5, -0.1], 1e-1: [0.9, 0.9], 1.0: [-1, -math.inf], 10.0: [1.0, 1.0]}

    def trials(rate: float) -> Sequence[Trial]:
        return [_trial(rate, fall, seed) for seed, fall in enumerate(falls[rate])]

    found = StableRange(trials)
    falls |= {10.0**-place: [0.0, 0.0] for place in range(4, 8)}
    interval = found.search(1e-3, 10, 1, refinements=0)
    assert interval.high == 1e-3
    assert (found.interval(0).high, found.interval(1).high) == (1e-1, 1e-3)
    assert 10.0 not in found.trials


def test_where_the_loss_never_falls_there_is_no_progress() -> None:
    found = StableRange(lambda rate: [_trial(rate, 0.0 if rate < 0.05 else -1)])
    interval = found.search(1e-3, 1, 1, refinements=0)
    assert (interval.low, interval.high) == (None, 0.01)


@pytest.mark.parametrize(
    ("low", "high", "count", "space"),
    [
        (0.001, 1.0, 4, [0.001, 0.01, 0.1, 1.0]),
        (0.0005623, 0.2053, 4, [0.00057, 0.004, 0.029, 0.2]),
        (0.1, 0.12, 2, [0.1, 0.12]),
        (0.0999, 99.9, 3, [0.1, 3.2, 99.0]),
    ],
)
def test_the_space_lies_within_the_interval(low: float, high: float, count: int, space: list[float]) -> None:
    found = space_of(Interval(low, high, low_open=False, high_open=False), count)
    assert found == space
    assert low <= found[0]
    assert found[-1] <= high


def test_no_space_is_made_of_no_interval_or_of_one_that_is_too_narrow() -> None:
    with pytest.raises(ValueError, match="no rate that is stable"):
        space_of(Interval(None, 0.1, low_open=False, high_open=False), 4)
    with pytest.raises(ValueError, match=r"0\.1 to 0\.11 is too narrow for 4 different rates"):
        space_of(Interval(0.1, 0.11, low_open=False, high_open=False), 4)
