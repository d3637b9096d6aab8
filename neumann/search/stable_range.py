"""The learning rates at which training is stable and makes progress: a search over trials of single rates.

A trial trains a few steps at one rate from a start that all trials of a seed share, and says what the loss was there
and afterwards. Where each trial comes from is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

EXTENDED = 4  # decades that the grid is followed beyond either end
LEAST_FALL = 0.1  # of the largest fall of the loss, from which on a rate counts as making progress


@dataclass(frozen=True)
class Trial:
    """What came of a few steps at one rate.

    Args:
        rate: the learning rate, as a run is given it.
        seed: of the run.
        start: the loss before the first step, in nats.
        end: the loss after the last one, on the same images; None where a training loss was not finite.
        steps: taken.
        gradients: gradient evaluations of a global batch in them.
    """

    rate: float
    seed: int
    start: float
    end: float | None
    steps: int
    gradients: int

    @property
    def fall(self) -> float:
        """How far the loss fell, in nats; minus infinity where it was not finite."""
        return -math.inf if self.end is None or not math.isfinite(self.end) else self.start - self.end

    @property
    def stable(self) -> bool:
        """Return whether every training loss was finite and the loss ended no higher than it began."""
        return self.fall >= 0


@dataclass(frozen=True)
class Interval:
    """Rates from the lowest that makes progress to the highest that is stable.

    Args:
        low: None where no rate makes progress.
        high: None where no rate is stable.
        low_open: a lower rate than any tried may make progress too.
        high_open: a higher rate than any tried may be stable too.
    """

    low: float | None
    high: float | None
    low_open: bool
    high_open: bool


@dataclass
class StableRange:
    """The trials of a range test, and what follows from them.

    ``try_rate`` trains at one rate from every seed's start and returns a trial for each.
    """

    try_rate: Callable[[float], Sequence[Trial]]
    trials: dict[float, list[Trial]] = field(default_factory=dict)

    def search(self, lowest: float, highest: float, per_decade: int, refinements: int) -> Interval:
        """Try a grid of rates, follow it where an end lies outside, halve the gaps at both ends, and return them.

        Args:
            lowest, highest: ends of the grid, which is logarithmic.
            per_decade: rates in a factor of ten.
            refinements: times that the gap at either end is halved, on the logarithmic scale.
        """
        first, last = (round(per_decade * math.log10(end)) for end in (lowest, highest))
        further = EXTENDED * per_decade
        place = first
        # upwards, until no seed is stable: what lies above is not tried
        while place <= last or (place <= last + further and self.interval().high_open):
            tried = self._try(10 ** (place / per_decade))
            if not any(trial.stable for trial in tried):
                break
            place += 1
        place = first - 1
        while place >= first - further and (self.interval().high is None or self.interval().low_open):
            self._try(10 ** (place / per_decade))
            place -= 1
        for _ in range(refinements):
            self._halve(self._gap_above)
        for _ in range(refinements):
            self._halve(self._gap_below)
        return self.interval()

    def interval(self, seed: int | None = None) -> Interval:
        """Return the interval of ``seed``, or that of all seeds together: what is stable, and progresses, for each.

        A rate is stable where no lower one that was tried is unstable. It makes progress where the loss falls by at
        least `LEAST_FALL` of the largest fall of its seed at a stable rate.
        """
        rates = sorted(self.trials)
        stable: list[float] = []
        for rate in rates:
            if not all(trial.stable for trial in self._of(rate, seed)):
                break
            stable.append(rate)
        largest: dict[int, float] = {}
        for rate in stable:
            for trial in self._of(rate, seed):
                largest[trial.seed] = max(largest.get(trial.seed, 0.0), trial.fall)
        progress = [rate for rate in stable if all(self._progresses(t, largest) for t in self._of(rate, seed))]
        return Interval(
            low=progress[0] if progress else None,
            high=stable[-1] if stable else None,
            low_open=bool(progress) and progress[0] == rates[0],
            high_open=bool(stable) and stable[-1] == rates[-1],
        )

    @staticmethod
    def _progresses(trial: Trial, largest: dict[int, float]) -> bool:
        return trial.fall > 0 and trial.fall >= LEAST_FALL * largest[trial.seed]

    def _of(self, rate: float, seed: int | None) -> list[Trial]:
        return [trial for trial in self.trials[rate] if seed is None or trial.seed == seed]

    def _try(self, rate: float) -> list[Trial]:
        rate = float(f"{rate:.4g}")  # as it is printed
        if rate not in self.trials:
            self.trials[rate] = list(self.try_rate(rate))
        return self.trials[rate]

    def _halve(self, gap: Callable[[], tuple[float, float] | None]) -> None:
        ends = gap()
        if ends is not None:
            self._try(math.sqrt(ends[0] * ends[1]))

    def _gap_above(self) -> tuple[float, float] | None:
        """Return the highest stable rate and the next that was tried, None where there is none."""
        high = self.interval().high
        above = [rate for rate in sorted(self.trials) if high is not None and rate > high]
        return (high, above[0]) if high is not None and above else None

    def _gap_below(self) -> tuple[float, float] | None:
        """Return the highest rate without progress below the lowest with it, and that one; None where there is none."""
        low = self.interval().low
        below = [rate for rate in sorted(self.trials) if low is not None and rate < low]
        return (below[-1], low) if low is not None and below else None


def space_of(interval: Interval, count: int) -> list[float]:
    """Return ``count`` rates for a study, spread evenly on the logarithmic scale over ``interval``, of two digits.

    None lies outside it. Raises ValueError where it has no ends, or is too narrow for so many.
    """
    low, high = interval.low, interval.high
    if low is None or high is None:
        raise ValueError("there is no rate that is stable and makes progress")
    least, most = _two_digits(low, up=True), _two_digits(high, up=False)
    inner = [low * (high / low) ** (i / (count - 1)) for i in range(1, count - 1)]
    found = sorted({least, *(float(f"{rate:.1e}") for rate in inner), most})
    if len(found) < count or least >= most:
        raise ValueError(f"{low:.4g} to {high:.4g} is too narrow for {count} different rates of two digits")
    return found


def _two_digits(rate: float, *, up: bool) -> float:
    """Return ``rate`` in two significant digits, the next above or below."""
    unit = 10.0 ** (math.floor(math.log10(rate)) - 1)
    whole = rate / unit
    return float(f"{(math.ceil(whole - 1e-9) if up else math.floor(whole + 1e-9)) * unit:.1e}")
