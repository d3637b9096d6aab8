"""What an exception of code that is not ours says of the settings that the code was given, in words of the settings.

A constructor of torch, of timm or of the user's own refuses a value by whatever Python raises on the way. Where the
value is of another kind than the constructor's own default, that is told; where code of the user's fails, the exception
and its line are.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neumann.bounds import KINDS, as_yaml, check_kind
from neumann.errors import UserError, first_line

# whose code is not the user's, by the first part of a module's name
LIBRARIES = frozenset(
    {*sys.stdlib_module_names, "neumann", "torch", "torchvision", "timm", "numpy", "pytorch_lightning", "hydra"}
)
NAMED = {kind.__name__: kind for kind in KINDS}  # by the name that an annotation gives


def missing(call: Callable[..., Any], settings: Mapping[str, Any]) -> list[str]:
    """Return the arguments of ``call`` that have no default and are not in ``settings``.

    Its first argument is not among them: it is given by position.
    """
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return []  # some C functions have no signature; calling will tell
    given = parameters[0].kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        p.name
        for p in parameters[1 if given else 0 :]
        if p.default is p.empty and p.name not in settings and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]


def of_another_kind(
    calls: Sequence[Callable[..., Any]], given: Mapping[str, Any], key_of: Callable[[str], str], name: str
) -> str | None:
    """Return a sentence on the first setting whose value is of another kind than ``calls`` have it by themselves.

    It is asked after one of them has raised: many take more kinds than their defaults show.

    calls    the functions and constructors that take the settings
    given    the settings
    key_of   returns how a user names the setting of an argument
    name     what the settings are for
    """
    found: list[tuple[bool, str]] = []
    for key, value in given.items():
        for call in calls:
            parameter = _parameter(call, key)
            kind, default = (None, "") if parameter is None else _kind(parameter)
            if kind is None:
                continue
            try:
                check_kind(key_of(key), value, kind, f": {name} {default}" if default else f", as {name} takes it")
            except UserError as error:
                found.append((isinstance(value, int | float), str(error)))
            break
    found.sort(key=lambda one: one[0])  # 0.5 where the default is 1 may be meant, a word is not
    return found[0][1] if found else None


def as_raised(error: BaseException) -> str:
    """Return the kind of exception, the line of the user's own code that it comes from, and its message."""
    where = users_line(error)
    text = first_line(error)
    kind = type(error).__name__
    return f"{kind}{f' in {where}' if where else ''}: {text.removeprefix(f'{kind}: ')}"


def users_line(error: BaseException) -> str | None:
    """Return the file and the line of the user's own code that ``error`` comes from; None where it has passed none."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}, line {error.lineno}"
    for frame, number in reversed(list(traceback.walk_tb(error.__traceback__))):
        module, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
        if module.partition(".")[0] not in LIBRARIES and Path(file).is_file():
            return f"{file}, line {number}"
    return None


def root_cause(error: BaseException) -> BaseException:
    """Return the exception that ``error`` was made of, through as many as there are."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _parameter(call: Callable[..., Any], key: str) -> inspect.Parameter | None:
    with contextlib.suppress(TypeError, ValueError):
        return inspect.signature(call).parameters.get(key)
    return None


def _kind(parameter: inspect.Parameter) -> tuple[type | None, str]:
    """Return the kind of `KINDS` that a parameter is annotated with, else that of its default, and words on that."""
    default, annotation = parameter.default, parameter.annotation
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    if default is parameter.empty or default is None:
        return NAMED.get(name), ""
    own = next((kind for kind in KINDS if isinstance(default, kind)), None)
    kind = NAMED.get(name) or (float if own is int else own)  # a default of 0 may stand for any number
    return kind, f"has {parameter.name}={as_yaml(default)} by itself"
