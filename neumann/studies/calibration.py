"""How often studies of one design err: resampled from a committed pool of runs that differ in nothing but luck.

`neumann.studies.calibrate` writes the rates, and a report's footer states those of its own design. Monte-Carlo errors
are standard deviations of a binomial share; the pool itself is finite, so they hold for its runs.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from neumann.studies.definition import PACKAGED
from neumann.studies.results import COSTS

FILE = PACKAGED / "calibration" / "results" / "rates.csv"
DESIGNS = {  # of a comparison
    "grid": "every seed at the setting that it chose",
    "equal": "the mean over equal settings",
    "tuned": "one setting for all seeds, chosen on three others",
}


@dataclass(frozen=True)
class Rates:
    """How often comparisons of one design, outcome and number of seeds ``n`` found a difference at p of at most 0.05.

    ``studies`` are the studies resampled for each share, from a pool of ``seeds`` seeds at each of ``settings`` rates.
    ``false_positives`` is the share that told rows apart which do not differ, and ``found`` the share that saw a
    difference of the size ``planted`` (as a share of the other row's value), in its direction. With the noise of the
    pool ``nominal`` of them should.
    """

    design: str
    outcome: str
    n: int
    studies: int
    seeds: int
    settings: int
    false_positives: float
    planted: float
    nominal: float
    found: float

    def error_of(self, share: float) -> float:
        """Return the Monte-Carlo error of ``share``, one standard deviation."""
        return math.sqrt(share * (1 - share) / self.studies)


def rates_of(design: str, outcome: str, n: int, file: Path = FILE) -> Rates | None:
    """Return the rates of comparisons on ``n`` seeds, or of as many below it as were tried; None where none fits.

    Every cost stands for steps, with which it is in proportion, but for seconds, which are a machine's.
    """
    asked = "steps" if outcome in COSTS and outcome != "device_seconds" else outcome
    known = [one for one in read(file) if (one.design, one.outcome) == (design, asked) and one.n <= n]
    return max(known, key=lambda one: one.n, default=None)


def read(file: Path = FILE) -> list[Rates]:
    """Return all rates in ``file``, none where there is no such file."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return [
            Rates(
                line["design"],
                line["outcome"],
                *(int(line[key]) for key in ("n", "studies", "seeds", "settings")),
                *(float(line[key]) for key in ("false_positives", "planted", "nominal", "found")),
            )
            for line in csv.DictReader(lines)
        ]
