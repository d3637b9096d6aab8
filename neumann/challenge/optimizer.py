"""The user's optimizer: found by its dotted name, with the settings that its constructor has by itself."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from neumann.bounds import as_yaml
from neumann.challenge.contracts import Make, Problem
from neumann.challenge.files import Challenger
from neumann.config.override_text import key_of, plain_value
from neumann.errors import UserError, did_you_mean
from neumann.refusals import as_raised, missing
from neumann.studies.definition import settings_of
from neumann.training.instantiate import locate, split_target

PLAIN = (bool, int, float, str, type(None))


def challenger_of(
    target: str, name: str | None, overrides: Sequence[str], space: Mapping[str, Sequence[Any]]
) -> Challenger:
    """Return the optimizer called ``target`` with its constructor's defaults and the user's ``optimizer.KEY=VALUE``.

    Raises UserError where it cannot be imported, is not an optimizer, or has no such setting, and where one is given
    that the ``space`` tunes.
    """
    found = locate(target, "the optimizer")
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise UserError(f"{target} is not a class of torch.optim.Optimizer")
    parameters = list(inspect.signature(found).parameters.values())[1:]  # the first are the weights
    known = {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    settings = {key: _as_yaml(value) for key, value in known.items() if _is_plain(value)}
    for word in overrides:
        key = key_of(word).removeprefix("optimizer.")
        if key not in known:
            raise UserError(f"{word}: {target} has no such setting: {did_you_mean(key, known)}")
        if key in space:
            raise UserError(f"'{word}' and --space both set {key}: leave out one of the two")
        settings[key] = plain_value(word)
    settings |= {key: values[len(values) // 2] for key, values in space.items() if key in known}
    if lacking := missing(found, settings):
        raise UserError(f"{target} needs {lacking[0]}, which has no default: give optimizer.{lacking[0]}=VALUE")
    key = name or found.__name__.lower()
    if not re.fullmatch(r"[A-Za-z]\w*", key):
        raise UserError(f"--name {key} names a file and a row: use letters, digits and _")
    return Challenger(target, key, settings, space)


def maker(challenger: Challenger) -> Make:
    """Return what makes the optimizer over parameters or groups of them, with settings changed by name."""
    call, settings, _ = split_target({"_target_": challenger.target, **challenger.settings}, "optimizer")

    def make(params: Any, **changed: Any) -> Optimizer:
        made: Optimizer = call(params, **{**settings, **changed})
        return made

    return make


def refuse_values(challenger: Challenger, make: Make) -> None:
    """Raise UserError for a value that is not finite, a rate of 0 or less, and what the constructor refuses."""
    for key, values in {**{key: [one] for key, one in challenger.settings.items()}, **challenger.space}.items():
        where = f"{'--space ' if key in challenger.space else 'optimizer.'}{key}"
        for value in values:
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{where}={as_yaml(value)} is not a finite number")
            if key == "lr" and isinstance(value, int | float) and value <= 0:  # the constructor may let it through
                raise UserError(f"{where}={as_yaml(value)} trains nothing or climbs: give a rate above 0")
    for setting in settings_of(challenger.space, None):
        try:
            make(Problem().params, **setting)
        except Exception as error:  # the user's own optimizer may raise anything
            told = ", ".join(f"{key}={as_yaml(value)}" for key, value in setting.items())
            raise UserError(f"--space: {challenger.target} refuses {told}: {as_raised(error)}") from error


def _is_plain(value: object) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, list | tuple) and all(isinstance(v, PLAIN) for v in value))


def _as_yaml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
