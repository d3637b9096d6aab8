"""Checks of the optimizers' arguments; each returns the plain Python value, or says in one sentence what is wrong.

Plain values matter: they go into ``param_groups`` and so into checkpoints, and ``torch.load(weights_only=True)``
refuses NumPy's scalars.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from neumann.optim.foreign_settings import SETTINGS, meant
from neumann.optim.momentum_and_resets import RESET_RULES

BETA_COUNTS = ("tensors", "scalars", "absolute")
KEYS_OF_A_GROUP = ("params", "param_names", "point", "step")  # beside the hyperparameters


def no_clipping(setting: str, remedy: str = "leave gradient clipping off") -> ValueError:
    """Return the error for a framework's ``setting`` that would clip Neumann's gradients."""
    return ValueError(
        f"{setting} would break the method: a clipped gradient is not the gradient at Neumann's displaced point; "
        f"{remedy}, and lower lr where training is not stable"
    )


def number(name: str, value: Any, *, above: float | None = None, below: float | None = None) -> float:
    """Return ``value`` as a finite float >= 0 (or > ``above``) and < ``below``, where these are given.

    Raises:
        ValueError: ``value`` is not a real number, is not finite, or lies outside the interval.
    """
    is_number = type(value) is float or (isinstance(value, Real) and not isinstance(value, bool))
    x = float(value) if is_number else math.nan
    low_enough = x < (math.inf if below is None else below)
    high_enough = x >= 0 if above is None else x > above
    if low_enough and high_enough:
        return x
    valid = "a finite number " + (">= 0" if above is None else f"> {above:g}")
    if below is not None:
        valid += f" and < {below:g}"
    raise ValueError(f"{name} must be {valid}, got {value!r}")


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
        raise ValueError(f"Tensor lr must be 1-element, got one of shape {tuple(value.shape)}")
    number("lr", value.item())
    return value


def momentum(value: Any, *, set_later: bool = False) -> float | tuple[float, float]:
    """Return a constant μ as a float in [0, 1), or a pair (start, peak) as a tuple of two such floats, start <= peak.

    Args:
        value: what was given.
        set_later: it may come from a scheduler of torch's, some of which raise the momentum to 1.

    Raises:
        ValueError: it is neither; the message says which rule is broken.
    """
    if not isinstance(value, (list, tuple)):
        return 1.0 if set_later and not isinstance(value, bool) and value == 1 else number("momentum", value, below=1)
    if len(value) != 2:
        raise ValueError(f"momentum must be a number in [0, 1) or a pair (start, peak) of them, got {value!r}")
    start, peak = (number(f"momentum's {end}", x, below=1) for end, x in zip(("start", "peak"), value, strict=True))
    if start > peak:
        raise ValueError(f"momentum must be a pair (start, peak) with start <= peak, got {value!r}")
    return start, peak


def known_keys(group: Iterable[str], hyperparameters: Iterable[str], optimizer: str) -> None:
    """Refuse keys of a group that are misspelt or another optimizer's; other keys are taken for somebody's notes.

    torch leaves every key that it does not know in the group, where schedulers and users keep some of their own
    (``initial_lr``, ``lr_scale``, ``name``), so a setting that is misspelt or that ``optimizer`` has not would be one
    without effect. Another key that holds a hyperparameter's name as a word, as ``max_momentum`` does, is about it.

    Args:
        group: the group's keys.
        hyperparameters: the names that ``optimizer`` knows.
        optimizer: its name, for the message.

    Raises:
        ValueError: a key is close to a hyperparameter's name, or is a setting of other optimizers.
    """
    names = {*hyperparameters}
    for key in group:
        if key in names or key in KEYS_OF_A_GROUP:
            continue
        word = meant(str(key))
        if word is None and key not in SETTINGS and any(f"_{name}_" in f"_{key}_" for name in names):
            continue
        near = [word] if word in names else difflib.get_close_matches(str(key).lower(), sorted(names), n=1, cutoff=0.7)
        refused = f"{optimizer} has no hyperparameter '{key}' for a group"
        if near:
            raise ValueError(f"{refused}: did you mean '{near[0]}'?")
        if word is not None or key in SETTINGS:
            raise ValueError(f"{refused}, which is one of other optimizers; it has {', '.join(sorted(names))}")


def state_dict(loaded: Any, optimizer: str, keys: Iterable[str]) -> None:
    """Refuse what no ``state_dict()`` of ``optimizer`` can be.

    Args:
        loaded: what is to be loaded.
        optimizer: the optimizer's name.
        keys: those that every group of it has.

    Raises:
        ValueError: a part is missing, or a group lacks one of ``keys``.
    """
    groups = loaded.get("param_groups") if isinstance(loaded, dict) and isinstance(loaded.get("state"), dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, dict) and "params" in group for group in groups):
        raise ValueError(
            f"{optimizer} loads what its state_dict() returns: a dict with a dict 'state' and a list 'param_groups'"
        )
    for index, group in enumerate(groups):
        missing = ", ".join(repr(key) for key in keys if key not in group)
        if missing:
            raise ValueError(f"the state was not saved by {optimizer}: its parameter group {index} has no {missing}")


@contextmanager
def of_saved_group(optimizer: str, index: int) -> Iterator[None]:
    """Name a saved state's parameter group in what is said of it within the block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the state of {optimizer} is not valid in its parameter group {index}: {error}") from error


def saved_steps(groups: Iterable[dict[str, Any]], optimizer: str) -> int:
    """Return the count of steps in saved groups, which count together.

    Raises:
        ValueError: a count is not a whole number >= 0, or they differ.
    """
    steps = set()
    for index, group in enumerate(groups):
        with of_saved_group(optimizer, index):
            steps.add(saved_step(group["step"]))
    if len(steps) > 1:
        told = ", ".join(map(str, sorted(steps)))
        raise ValueError(f"the groups of {optimizer} are all at one step, those of the state at the steps {told}")
    return steps.pop() if steps else 0


def require_one_step(groups: list[dict[str, Any]]) -> None:
    """Refuse a count of steps that was set in ``groups`` and cannot be one; they count together.

    A count on a device, or of a capturable optimizer, is not read, since that waits for the device.

    Raises:
        ValueError: a count is not a whole number >= 0, or they differ.
    """
    first = groups[0]["step"]
    if (
        type(first) is int
        and first >= 0
        and all(type(each["step"]) is int and each["step"] == first for each in groups)
    ):
        return
    steps: dict[int, int] = {}
    for number, group in enumerate(groups):
        step = group["step"]
        if isinstance(step, Tensor) and (step.device.type != "cpu" or group.get("capturable")):
            continue
        try:
            steps[number] = saved_step(step)
        except ValueError as error:
            raise ValueError(f"param_groups[{number}]: {error}") from error
        if not isinstance(step, Tensor):
            group["step"] = steps[number]  # a float or a number of NumPy's
    if len({*steps.values()}) > 1:
        told = ", ".join(map(str, steps.values()))
        raise ValueError(f"the step must be the same in all groups, which count together, and is {told} in them")


def saved_step(value: Any) -> int:
    """Return the count of steps in a saved group, an int >= 0 or a tensor of one, as an int.

    Raises:
        ValueError: it is neither.
    """
    return whole("step", value.item() if isinstance(value, Tensor) and value.numel() == 1 else value, least=0)


def saved_tensor(value: Any, p: Tensor) -> str | None:
    """Return why ``value`` cannot be a tensor of the state of ``p``, in half a sentence; None where it can."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor"
    if value.shape != p.shape:
        shapes = f"has the shape {tuple(value.shape)}, but the parameter has {tuple(p.shape)}"
        return f"{shapes}: it was saved for another model"
    return None if value.is_floating_point() else f"has the type {value.dtype}, which is not a real floating-point one"


def neumann_hyperparameters(group: dict[str, Any], *, set_later: bool = False) -> dict[str, Any]:
    """Return the hyperparameters of :class:`neumann.optim.Neumann` in ``group`` as plain, valid values.

    Args:
        group: the hyperparameters by name.
        set_later: see :func:`momentum`.

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
        "momentum": momentum(group["momentum"], set_later=set_later),
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


def nesterov_hyperparameters(group: dict[str, Any], *, set_later: bool = False) -> dict[str, Any]:
    """Return the hyperparameters of :class:`neumann.optim.NesterovInner` in ``group`` as plain, valid values.

    Args:
        group: the hyperparameters by name.
        set_later: see :func:`momentum`.

    Raises:
        ValueError: one of them is not valid; the message names it, the value and what is.
    """
    if isinstance(group["momentum"], (list, tuple)):
        number("momentum", group["momentum"], below=1)  # there is no ramp
    return {
        "lr": learning_rate(group["lr"]),
        "momentum": momentum(group["momentum"], set_later=set_later),
        "weight_decay": number("weight_decay", group["weight_decay"]),
        "maximize": flag("maximize", group["maximize"]),
        "foreach": flag("foreach", group["foreach"], optional=True),
    }
