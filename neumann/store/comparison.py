"""What differs between two runs: settings, code and environment by their records, and their curves, paired by epoch.

Everything that is read may be damaged or another user's: a value of the wrong kind counts as missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neumann.store.code_digests import codes, contributing, differing
from neumann.store.details import ABSENT, written
from neumann.store.folder import RunFolder
from neumann.store.listing import error_of
from neumann.store.records import flat
from neumann.store.scores import is_number

# of a record of an attempt: told as code or as settings, or another in every run
_NOT_ENVIRONMENT = {"attempt", "time", "step", "code", "seeds", "choices"}

Difference = tuple[str, str, str]  # what differs, and its value in the one run and in the other


def environments(one: RunFolder, other: RunFolder) -> list[Difference]:
    """Return what differs between the machines, libraries and data of two runs, over all attempts in their results."""
    sides = [_environment(folder) for folder in (one, other)]
    names = dict.fromkeys(name for side in sides for name in side)
    found = [(name, *(side.get(name, ABSENT) for side in sides)) for name in names]
    return [(name, here, there) for name, here, there in found if here != there]


def _environment(folder: RunFolder) -> dict[str, str]:
    values: dict[str, dict[str, None]] = {}
    for attempt in contributing(folder.attempts()):
        for name, value in flat({key: part for key, part in attempt.items() if key not in _NOT_ENVIRONMENT}):
            values.setdefault(name, {})[written(value)] = None
    return {name: "; ".join(its) for name, its in values.items()}


def code(one: RunFolder, other: RunFolder) -> list[Difference] | None:
    """Return the code of which two runs have different digests; None where one of them has no record of its code."""
    sides = [codes(contributing(folder.attempts())) for folder in (one, other)]
    if not all(sides):
        return None

    def digests(versions: Sequence[Mapping[str, str]], name: str) -> str:
        return "; ".join(dict.fromkeys(version.get(name, ABSENT) for version in versions))

    names = differing([version for side in sides for version in side])
    return [(name, digests(sides[0], name), digests(sides[1], name)) for name in names]


@dataclass(frozen=True)
class Pair:
    """The evaluations of two runs at one epoch.

    ``errors`` are the validation errors at each one's eval point (fractions), ``losses`` the training losses (nats),
    None where they were not finite.
    """

    epoch: float
    errors: tuple[float, float]
    losses: tuple[float | None, float | None]


def curves(one: RunFolder, other: RunFolder) -> tuple[list[Pair], int]:
    """Return the evaluations that both runs have, by epoch, and how many either has alone.

    Raises UserError where the measurements of a run that is over are not those that it made.
    """
    here, there = _by_epoch(one), _by_epoch(other)
    paired = [
        Pair(epoch, (here[epoch][0], there[epoch][0]), (here[epoch][1], there[epoch][1]))
        for epoch in sorted(here.keys() & there.keys())
    ]
    return paired, len(here.keys() ^ there.keys())


def _by_epoch(folder: RunFolder) -> dict[float, tuple[float, float | None]]:
    result = folder.result()
    measured: Sequence[Mapping[str, Any]]
    measured = folder.read_measurements() if result is None else folder.curve(result)
    found = {}
    for line in measured:
        epoch, error, loss = line.get("epoch"), error_of(line.get("validation")), line.get("train_loss")
        if is_number(epoch) and error is not None:
            found[round(float(epoch), 6)] = (error, loss if is_number(loss) else None)  # type: ignore[arg-type]
    return found
