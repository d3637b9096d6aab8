"""The user's optimizer: found by its dotted name, with the settings that its constructor has by itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from neumann.challenge.contracts import Make
from neumann.challenge.files import Challenger
from neumann.config.override_text import key_of, plain_value
from neumann.errors import UserError, did_you_mean
from neumann.training.instantiate import check_settings, locate

PLAIN = (bool, int, float, str, type(None))


def challenger_of(
    target: str, name: str | None, overrides: Sequence[str], space: Mapping[str, Sequence[Any]]
) -> Challenger:
    """Return the optimizer called ``target`` with its constructor's defaults and the user's ``optimizer.KEY=VALUE``.

    Raises UserError where it cannot be imported, is not an optimizer, or has no such setting.
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
        settings[key] = plain_value(word)
    settings |= {key: values[len(values) // 2] for key, values in space.items() if key in known}
    check_settings(found, settings, "optimizer", target)
    key = name or found.__name__.lower()
    if not re.fullmatch(r"[A-Za-z]\w*", key):
        raise UserError(f"--name {key} names a file and a row: use letters, digits and _")
    return Challenger(target, key, settings, space)


def maker(challenger: Challenger) -> Make:
    """Return what makes the optimizer over parameters or groups of them, with settings changed by name."""
    call: Any = locate(challenger.target, "the optimizer")
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in challenger.settings.items()}

    def make(params: Any, **changed: Any) -> Optimizer:
        made: Optimizer = call(params, **{**settings, **changed})
        return made

    return make


def _is_plain(value: object) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, list | tuple) and all(isinstance(v, PLAIN) for v in value))


def _as_yaml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
