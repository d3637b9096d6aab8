"""Resample studies from a pool of finished runs that differ in rate and seed alone: `make calibrate`.

A study of the pool compares a row with itself on other seeds, so nothing is there to be found. All of it is repeated,
the choice of rates included, by the functions that a real study uses. Then a difference is planted into one of them.
"""

from __future__ import annotations

import csv
import math
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from neumann.store.archive import NAME, Archive, ArchivedRun, of_folder
from neumann.store.files import read_json
from neumann.store.folder import RunFolder
from neumann.studies.calibration import DESIGNS, Rates
from neumann.studies.compared import compare
from neumann.studies.curves import errors_along
from neumann.studies.effects import Way, way
from neumann.studies.grid import Ended, Measured, best, cheapest, mean_over, middle
from neumann.studies.results import COSTS, ERROR
from neumann.studies.statistics import smallest_detectable_effect
from neumann.studies.verdicts import Margin

HOME = Path("experiments/calibration/results")
TARGET = 0.18  # the validation error to which steps are counted
STUDIES, TUNING_SEEDS, ALPHA, POWER = 3000, 3, 0.05, 0.8
SEEDS = (3, 4, 5, 6, 8, 10, 12, 15)  # two rows of them, and their tuning seeds, are drawn from the pool without repeats
SETTING = "optimizer.lr"


@dataclass(frozen=True)
class PoolRun:
    """What a run ended with on the validation images, its test error (fraction), and how it came to the target."""

    ended: Ended
    error: float
    way: Way


Pool = Mapping[int, Sequence[PoolRun]]  # by seed, in the order of the rates


def pool_of(runs: Sequence[ArchivedRun], target: float = TARGET) -> tuple[Pool, list[dict[str, Any]]]:
    """Return the runs by seed, and the settings in their order.

    Raises ValueError unless every seed has one finished run at every rate.
    """
    found: dict[tuple[int, float], PoolRun] = {}
    for run in runs:
        config, point = run.signed["config"], run.result["eval_point"]
        ends, test = run.result["validation"][point], run.result["test"][point]
        curve = [
            (error, dict.fromkeys(COSTS) | {"steps": float(line["step"])})
            for line, error in errors_along(run, run.result, point)
        ]
        arrival = way(curve, target)
        assert arrival is not None
        found[config["seed"], config["optimizer"]["lr"]] = PoolRun(
            Ended(ends["error"], ends["loss"]), test["error"], arrival
        )
    seeds, tried = sorted({seed for seed, _ in found}), sorted({rate for _, rate in found})
    if len(found) != len(seeds) * len(tried) or len(runs) != len(found):
        raise ValueError(f"{len(runs)} runs are not one for each of {len(seeds)} seeds and {len(tried)} rates")
    return {seed: [found[seed, rate] for rate in tried] for seed in seeds}, [{SETTING: rate} for rate in tried]


def row(pool: Pool, settings: Sequence[Mapping[str, Any]], design: str, outcome: str, seeds: Sequence[int]) -> Measured:
    """Return what a row of a study measures on ``seeds`` of the pool, of which a tuned one chooses on the first."""
    if design == "equal":
        return mean_over(_at(pool, seeds, [at] * len(seeds)) for at in middle(settings))
    if design == "tuned":
        choosing, seeds = seeds[:TUNING_SEEDS], seeds[TUNING_SEEDS:]
        means = [
            Ended(*(statistics.fmean(pool[seed][at].ended[part] or 0.0 for seed in choosing) for part in (0, 1)))
            for at in range(len(settings))
        ]
        return _at(pool, seeds, [best(means)] * len(seeds))
    picked = []
    for seed in seeds:
        ended = [run.ended for run in pool[seed]]
        picked.append(best(ended) if outcome == ERROR else cheapest(ended, [r.way for r in pool[seed]], outcome))
    return _at(pool, seeds, picked)


def _at(pool: Pool, seeds: Sequence[int], settings: Sequence[int | None]) -> Measured:
    """Return what the runs of ``seeds`` measured, each at its setting; the seeds are numbered from 0, to be paired."""
    runs = [pool[seed][at] for seed, at in zip(seeds, settings, strict=True) if at is not None]
    return Measured({i: run.error for i, run in enumerate(runs)}, (), {i: run.way for i, run in enumerate(runs)})


def planted(its: Measured, share: float) -> Measured:
    """Return a row whose errors and costs are smaller by ``share``."""
    ways = {
        seed: replace(one, costs={k: None if c is None else c * (1 - share) for k, c in one.costs.items()})
        for seed, one in its.ways.items()
    }
    return Measured({seed: error * (1 - share) for seed, error in its.errors.items()}, its.diverged, ways)


def rates(
    pool: Pool,
    settings: Sequence[Mapping[str, Any]],
    design: str,
    outcome: str,
    n: int,
    studies: int = STUDIES,
) -> Rates:
    """Return how often ``studies`` of this design on ``n`` seeds tell apart rows that do not differ, and planted ones.

    Each study draws its seeds from the pool without repeats, so a pool needs twice as many.
    """
    draw = random.Random(f"{design} {outcome} {n}")
    count = n + (TUNING_SEEDS if design == "tuned" else 0)
    size = _detectable(pool, settings, design, outcome, n)
    false = found = 0
    for _ in range(studies):
        seeds = draw.sample(sorted(pool), 2 * count)
        a, b = (row(pool, settings, design, outcome, its) for its in (seeds[:count], seeds[count:]))
        false += _side_told(a, b, outcome) != 0
        found += _side_told(planted(a, size), b, outcome) < 0
    return Rates(design, outcome, n, studies, len(pool), len(settings), false / studies, size, POWER, found / studies)


def _side_told(a: Measured, b: Measured, outcome: str) -> int:
    """Return -1 where ``a`` is told from ``b`` as the better row, 1 as the worse one, 0 where nothing is told."""
    effect = compare(a, b, outcome, Margin(0.1, True), ALPHA).judged
    return effect.side if effect is not None and effect.p is not None and effect.p <= ALPHA else 0


def _detectable(pool: Pool, settings: Sequence[Mapping[str, Any]], design: str, outcome: str, n: int) -> float:
    """Return the share by which rows must differ to be told apart with `POWER`, by the noise of the whole pool."""
    seeds = sorted(pool)
    its = row(pool, settings, design, outcome, [*seeds[:TUNING_SEEDS], *seeds] if design == "tuned" else seeds)
    if outcome == ERROR:
        errors = list(its.errors.values())
        sd = statistics.stdev(errors) / statistics.fmean(errors)
    else:
        sd = statistics.stdev(math.log(cost) for one in its.ways.values() if (cost := one.costs[outcome]) is not None)
    found = smallest_detectable_effect(sd * math.sqrt(2), n, ALPHA, POWER)
    assert found is not None
    return round(found if outcome == ERROR else -math.expm1(-found), 5)


def pack(folder: Path, home: Path = HOME) -> None:
    """Pack the finished runs in ``folder`` into the pool. Raises UserError as `Archive.merged` does."""
    runs = []
    for run in map(RunFolder, sorted(folder.iterdir())):
        signed, result = read_json(run.signed), run.result()
        if signed is not None and result is not None:
            runs.append(of_folder(run, signed, result))
    Archive.read(home / NAME).merged(runs).write()


def main(home: Path = HOME) -> None:
    """Write rates.csv beside the pool in ``home``."""
    archive = Archive.read(home / NAME)
    if archive.unread:
        raise ValueError("; ".join(archive.unread))
    pool, settings = pool_of(list(archive.runs.values()))
    with (home / "rates.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow([field.name for field in fields(Rates)])
        for design in DESIGNS:
            for outcome in (ERROR, "steps"):
                for n in SEEDS:
                    one = rates(pool, settings, design, outcome, n)
                    lines.writerow(astuple(one))
                    print(*astuple(one), file=sys.stderr)


if __name__ == "__main__":
    for named in sys.argv[1:]:
        pack(Path(named))
    main()
