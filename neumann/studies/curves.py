"""Learning curves: the evaluations of runs that are over, and their means by epoch with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

from neumann.store import RunFolder
from neumann.store.archive import ArchivedRun
from neumann.store.scores import is_number
from neumann.studies.results import Curve
from neumann.studies.statistics import Summary, summarize

Line = tuple[Mapping[str, Any], float]  # an evaluation, and its validation error at one evaluation point


def errors_along(folder: RunFolder | ArchivedRun, result: Mapping[str, Any], point: str) -> list[Line]:
    """Return every evaluation of the run of ``result``, with its validation error at ``point``.

    Raises UserError where its measurements are not those that it made.
    """
    found: list[Line] = []
    for line in folder.curve(result):
        try:
            error = line["validation"][point]["error"]
        except (KeyError, TypeError):
            continue  # edited
        if is_number(error):
            found.append((line, error))
    return found


SPENT = {"steps": "step", "examples": "examples", "seconds": "train_seconds"}  # axis of a curve: key of an evaluation


class Seen(NamedTuple):
    """One run at one evaluation: validation error (fraction), training loss (nats), and what it had spent, by axis."""

    error: float
    loss: float
    spent: Mapping[str, float | None]


def by_epoch(curves: Iterable[Sequence[Line]]) -> dict[float, list[Seen]]:
    """Return {epoch: what was seen of each run that was evaluated there}."""
    found: dict[float, list[Seen]] = {}
    for curve in curves:
        for line, error in curve:
            epoch, loss = number(line, "epoch"), number(line, "train_loss")
            if epoch is not None and loss is not None:
                spent = {axis: number(line, key) for axis, key in SPENT.items()}
                found.setdefault(round(epoch, 6), []).append(Seen(error, loss, spent))
    return found


def number(record: Mapping[str, Any], key: str) -> float | None:
    """Return the number at ``key``, None where there is none: the file may have been edited."""
    value = record.get(key)
    return value if is_number(value) else None


def possible(values: Iterable[float], most: float) -> Summary:
    """Return the summary of values from 0 to ``most``, its interval without what no mean can be.

    Cutting off impossible values leaves the interval's coverage as it is.
    """
    found = summarize(values)
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(most, found.high))


def mean_curve(measured: Mapping[float, Sequence[Seen]]) -> Curve | None:
    """Return the means and intervals of what `by_epoch` returns; None where there is nothing."""
    if not measured:
        return None
    epochs = sorted(measured)
    errors = [possible((seen.error for seen in measured[epoch]), 1.0) for epoch in epochs]
    losses = [possible((seen.loss for seen in measured[epoch]), math.inf) for epoch in epochs]
    along = {}
    for axis in SPENT:
        known = [[v for seen in measured[epoch] if (v := seen.spent[axis]) is not None] for epoch in epochs]
        if all(len(values) == len(measured[epoch]) for values, epoch in zip(known, epochs, strict=True)):
            along[axis] = tuple(fmean(values) for values in known)
    return Curve(
        epochs=tuple(epochs),
        n=tuple(s.n for s in errors),
        error=tuple(s.mean for s in errors),
        error_low=tuple(s.low for s in errors),
        error_high=tuple(s.high for s in errors),
        loss=tuple(s.mean for s in losses),
        loss_low=tuple(s.low for s in losses),
        loss_high=tuple(s.high for s in losses),
        along=along,
    )
