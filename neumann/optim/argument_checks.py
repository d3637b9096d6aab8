"""Checks of the optimizers' arguments; each returns the plain Python value, or says in one sentence what is wrong.

Plain values matter: they go into ``param_groups`` and so into checkpoints, and ``torch.load(weights_only=True)``
refuses NumPy's scalars.
"""

from __future__ import annotations

import difflib
import math
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from neumann.optim.momentum_and_resets import RESET_RULES

BETA_COUNTS = ("tensors", "scalars", "absolute")


def number(name: str, value: Any, *, above: float | None = None, below: float | None = None) -> float:
    """Return ``value`` as a finite float >= 0 (or > ``above``) and < ``below``, where these are given.

    Raises:
        ValueError: ``value`` is not a real number, is not finite, or lies outside the interval.
    """
    valid = "a finite number " + (">= 0" if above is None else f"> {above:g}")
    if below is not None:
        valid += f" and < {below:g}"
    x = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    low_enough = below is None or x < below
    high_enough = x >= 0 if above is None else x > above
    if not (math.isfinite(x) and low_enough and high_enough):
        raise ValueError(f"{name} must be {valid}, got {value!r}")
    return x


def whole(name: str, value: Any, *, least: int) -> int:
    """Return ``value`` as an int >= ``least``; a float counts where it has no fraction (10.0 is 10).

    Raises:
        ValueError: ``value`` is not a whole number or is below ``least``.
    """
    is_whole = isinstance(value, Integral) or (isinstance(value, Real) and float(value).is_integer())
    if isinstance(value, bool) or not is_whole or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    return int(value)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return ``value`` where it is one of ``choices``.

    Raises:
        ValueError: it is not; the message lists the choices and names the nearest one.
    """
    if isinstance(value, str) and value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    listed = ", ".join(f"'{word}'" for word in choices)
    raise ValueError(f"{name} must be one of {listed}, got {value!r}{hint}")


def flag(name: str, value: Any, *, optional: bool = False) -> bool | None:
    """Return ``value`` where it is a bool, or None where that is ``optional``.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, bool) or (optional and value is None):
        return value
    raise ValueError(f"{name} must be True{', False or None' if optional else ' or False'}, got {value!r}")


def learning_rate(value: Any) -> float | Tensor:
    """Return ``value`` as a finite float >= 0; a tensor of one number is kept, so that its owner can go on filling it.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, Tensor):
        return number("lr", value)
    if value.numel() != 1:
        raise ValueError(f"lr must be a number or a tensor of one, got a tensor of shape {tuple(value.shape)}")
    number("lr", value.item())
    return value


def momentum(value: Any) -> float | tuple[float, float]:
    """Return a constant μ as a float in [0, 1), or a pair (start, peak) as a tuple of two such floats, start <= peak.

    Raises:
        ValueError: it is neither; the message says which rule is broken.
    """
    if not isinstance(value, (list, tuple)):
        return number("momentum", value, below=1)
    if len(value) != 2:
        raise ValueError(f"momentum must be a number in [0, 1) or a pair (start, peak) of them, got {value!r}")
    start, peak = (number(f"momentum's {end}", x, below=1) for end, x in zip(("start", "peak"), value, strict=True))
    if start > peak:
        raise ValueError(f"momentum must be a pair (start, peak) with start <= peak, got {value!r}")
    return start, peak


def neumann_hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of :class:`neumann.optim.Neumann` in ``group`` as plain, valid values.

    Raises:
        ValueError: one of them is not valid; the message names it, the value and what is.
    """
    period, min_distance = group["reset_period"], group["min_distance"]
    valid: dict[str, Any] = {
        "lr": learning_rate(group["lr"]),
        "alpha": number("alpha", group["alpha"]),
        "beta": number("beta", group["beta"]),
        "beta_count": choice("beta_count", group["beta_count"], BETA_COUNTS),
        "gamma": number("gamma", group["gamma"], below=1),
        "momentum": momentum(group["momentum"]),
        "momentum_unit": number("momentum_unit", group["momentum_unit"], above=0),
        "burn_in_steps": whole("burn_in_steps", group["burn_in_steps"], least=0),
        "reset_period": None if period is None else whole("reset_period", period, least=1),
        "reset_growth": number("reset_growth", group["reset_growth"]),
        "reset_rule": choice("reset_rule", group["reset_rule"], RESET_RULES),
        "weight_decay": number("weight_decay", group["weight_decay"]),
        "min_distance": None if min_distance is None else number("min_distance", min_distance),
        "maximize": flag("maximize", group["maximize"]),
        "foreach": flag("foreach", group["foreach"], optional=True),
        "fused": flag("fused", group["fused"], optional=True),
        "capturable": flag("capturable", group["capturable"]),
    }
    if valid["reset_growth"] < 1:
        raise ValueError(f"reset_growth must be a finite number >= 1, got {group['reset_growth']!r}")
    if valid["reset_period"] == 1 and valid["reset_growth"] == 1:
        raise ValueError(
            "reset_period must be at least 2 where reset_growth is 1, got 1: every step would be a reset, and a reset "
            "does not move the weights"
        )
    if valid["fused"] and valid["foreach"]:
        raise ValueError("fused and foreach cannot both be True: leave one at None")
    return valid


def nesterov_hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of :class:`neumann.optim.NesterovInner` in ``group`` as plain, valid values.

    Raises:
        ValueError: one of them is not valid; the message names it, the value and what is.
    """
    return {
        "lr": learning_rate(group["lr"]),
        "momentum": number("momentum", group["momentum"], below=1),
        "weight_decay": number("weight_decay", group["weight_decay"]),
        "maximize": flag("maximize", group["maximize"]),
        "foreach": flag("foreach", group["foreach"], optional=True),
    }
