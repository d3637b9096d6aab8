"""What the optimizers' terms did along the runs of a study: means by epoch over seeds, where it was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from neumann.studies.curves import number
from neumann.studies.results import TermCurve
from neumann.studies.statistics import summarize


class Quantity(NamedTuple):
    """One number of a line of terms.jsonl: its key there, its name, what it is, its bounds, and its kind of axis."""

    key: str
    name: str
    meaning: str
    least: float = 0.0
    most: float = math.inf
    is_linear: bool = False


# in the order of the panels
QUANTITIES = (
    Quantity("lambda_max", "λ_max", "the largest eigenvalue of the batch's Hessian", -math.inf),
    Quantity("lambda_min", "λ_min", "the smallest one", -math.inf, is_linear=True),
    Quantity("mu", "implied μ", "λ_max/(|λ_min| + λ_max), the momentum of the paper's §3.1", most=1.0, is_linear=True),
    Quantity("eta", "implied η", "1/λ_max, its learning rate"),
    Quantity("lambda_max_times_rate", "λ_max × rate", "below 2 where plain gradient descent is stable", -math.inf),
    Quantity("gradient_norm", "‖∇f̂‖", "the norm of the batch's gradient"),
    Quantity("attraction", "‖α‖r‖ r‖", "the cubic regularizer's share of the gradient, r = w − v"),
    Quantity("repulsion", "‖β/‖r‖³ r‖", "the repulsive regularizer's"),
    Quantity("distance", "‖w − v‖", "how far the weights are from their moving average"),
    Quantity("noise_share", "noise share", "tr Σ/(B‖∇f̂‖²), the share of ‖∇f̂‖² that is noise", is_linear=True),
    Quantity("update_norm", "update norm", "how far a step moves the held weights"),
    Quantity(
        "transport_error",
        "transport error",
        "‖∇f̂(w + d) − ∇f̂(w) − ∇²f̂ d‖/‖∇²f̂ d‖, d being the optimizer's displacement, or its step where it has none",
    ),
    Quantity("newton_cosine_gradient", "−∇f̂ to Newton", "the cosine of −∇f̂ with the Newton direction", -1, 1, True),
    Quantity("newton_cosine_move", "step to Newton", "that of the step", -1, 1, True),
    Quantity("newton_cosine_momentum", "m to Newton", "that of m", -1, 1, True),
)  # fmt: skip
BY_KEY = {quantity.key: quantity for quantity in QUANTITIES}


def term_curves(runs: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, TermCurve]:
    """Return the curve of every quantity that the lines of ``runs`` have, by key, in the order of `QUANTITIES`."""
    found: dict[str, dict[float, list[float]]] = {}
    for lines in runs:
        for line in lines:
            epoch = number(line, "epoch")
            for key in BY_KEY:
                if epoch is not None and (value := number(line, key)) is not None:
                    found.setdefault(key, {}).setdefault(round(epoch, 6), []).append(value)
    return {key: _curve(BY_KEY[key], found[key]) for key in BY_KEY if key in found}


def _curve(quantity: Quantity, values: Mapping[float, Sequence[float]]) -> TermCurve:
    epochs = sorted(values)
    summaries = [summarize(values[epoch]) for epoch in epochs]
    bounded = [
        one
        if one.low is None or one.high is None
        else replace(one, low=max(quantity.least, one.low), high=min(quantity.most, one.high))
        for one in summaries
    ]
    return TermCurve(
        epochs=tuple(epochs),
        n=tuple(one.n for one in bounded),
        mean=tuple(one.mean for one in bounded),
        low=tuple(one.low for one in bounded),
        high=tuple(one.high for one in bounded),
    )
