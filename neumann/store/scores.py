"""Scores of a run: which evaluation point counts, and the one number that a search minimises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OBJECTIVE = "objective"  # its name on W&B, in a run's summary alone: W&B's search takes the best of a whole history
WORST = 1.0  # the error of a model that is always wrong: no finished run can be worse


def is_number(value: object) -> bool:
    """Return whether ``value`` is a number that can be computed with: no bool, no nan, nothing near infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def headline(scores: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """Return the scores at the eval point: the base point where the optimizer has one, else the held point.

    ``scores`` are {point: {"loss": nats, "error": fraction, "n": images, ...}}.
    """
    return scores.get("base") or scores["held"]


def scores_line(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return the error at every point in words, the eval point first."""
    first = "base" if "base" in scores else "held"
    order = [first, *(p for p in scores if p != first)]
    return ", ".join(f"{100 * scores[p]['error']:.2f} % {p}" for p in order) + f" (n = {scores[first]['n']:.0f})"


def diverged_at(result: Mapping[str, Any]) -> str:
    """Return the sentence on a result whose status is ``diverged``."""
    return f"the training loss was no longer finite at step {result['step']}"


def objective(result: Mapping[str, Any]) -> float:
    """Return the validation error (a fraction) at the eval point after the fixed last step; `WORST` where it diverged.

    It is never the best of the curve, which would favour a run that is measured often or noisily.
    """
    return WORST if result["status"] == "diverged" else float(headline(result["validation"])["error"])
