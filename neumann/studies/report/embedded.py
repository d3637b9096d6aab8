"""The numbers that a page holds for its script: curves by row, and steps by batch, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from neumann.studies.effects import Effect
from neumann.studies.numbers import printable
from neumann.studies.results import Results, RowResult, StudyResults
from neumann.studies.scaling import ScalingCurve

AXES = {"epochs": "epochs", "steps": "steps", "examples": "examples", "seconds": "seconds of training on each device"}


def charts(results: Results) -> str:
    """Return the charts of a page as a JSON text that may stand inside a script element.

    A chart has ``x`` and ``y`` (axis: what it measures), ``log`` (whether x and y begin logarithmic), ``dots`` (points
    rather than bands) and ``series``: a label, x values by axis, and by measure the mean with the ends of its interval.
    """
    wanted = results.figures.get("curves") if isinstance(results, StudyResults) else None
    rows = [row for row in results.rows if row.curve is not None and (wanted is None or row.key in wanted)]
    found = [_curves(rows)]
    if isinstance(results, StudyResults) and results.scaling:
        found.insert(0, _scaling(results.scaling, printable(results.cells[results.reference].label)))
    # no text of a label can end the element
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _curves(rows: Iterable[RowResult]) -> dict[str, Any]:
    series = []
    for row in rows:
        curve = row.curve
        assert curve is not None
        error = _bounded(100, curve.error, curve.error_low, curve.error_high)
        loss = _bounded(1, curve.loss, curve.loss_low, curve.loss_high)
        x = {"epochs": _short(curve.epochs), **{axis: _short(values) for axis, values in curve.along.items()}}
        series.append({"label": printable(row.label), "x": x, "y": {"error": error, "loss": loss}})
    known = {axis: said for axis, said in AXES.items() if any(axis in one["x"] for one in series)}
    return {
        "id": "curves",
        "title": "The curves again, to explore: means over seeds with 95 % bands",
        "x": known or {"epochs": "epochs"},
        "y": {"error": "validation error, %", "loss": "training loss, nats"},
        "log": [False, False],
        "dots": False,
        "series": series,
    }


def _scaling(curves: Sequence[ScalingCurve], reference: str) -> dict[str, Any]:
    series = []
    for one in curves:
        batches = [point.batch for point in one.points]
        means, lows, highs = zip(*((p.mean, p.low, p.high) for p in one.points), strict=True)
        steps = _bounded(1, means, lows, highs)
        excess = _effects([p.excess for p in one.points])
        excess["mean"][0] = 1.0
        y = {"steps": steps, "excess": excess, "against": _effects([p.against for p in one.points])}
        series.append({"label": printable(one.label), "x": {"batch": batches}, "y": y})
    return {
        "id": "scaling",
        "title": "The same, to explore: means over seeds with 95 % intervals",
        "x": {"batch": "batch size"},
        "y": {
            "steps": "steps to the target",
            "excess": "examples, × smallest batch",
            "against": f"examples, × {reference}",
        },
        "log": [True, True],
        "dots": True,
        "series": series,
    }


def _effects(effects: Iterable[Effect | None]) -> dict[str, list[float | None]]:
    whole = [effect if effect is not None and not effect.lost else None for effect in effects]
    values, lows, highs = ([getattr(e, end) if e else None for e in whole] for end in ("value", "low", "high"))
    return _bounded(1, values, lows, highs)


def _bounded(
    scale: float, mean: Iterable[float | None], low: Iterable[float | None], high: Iterable[float | None]
) -> dict[str, list[float | None]]:
    return {"mean": _short(mean, scale), "low": _short(low, scale), "high": _short(high, scale)}


def _short(values: Iterable[float | None], scale: float = 1.0) -> list[float | None]:
    """Return the values with six digits, which no screen shows more of; None where there is no number."""
    return [None if v is None or not math.isfinite(v) else float(f"{v * scale:.6g}") for v in values]
