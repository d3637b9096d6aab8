"""Kinds, choices and bounds of settings, written where the setting is defined and checked in one place.

@dataclass
class BatchConfig:
    size: int = number(32, at_least=1)

check_fields(BatchConfig(size=0), "batch.")  # UserError: batch.size=0 is out of range: it must be at least 1
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from numbers import Real
from typing import Any

from neumann.errors import UserError, did_you_mean

KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True)
class Bounds:
    """The numbers that a setting may have. None: no bound on that side; infinity and nan are never within."""

    at_least: float | None = None
    above: float | None = None
    below: float | None = None

    def check(self, key: str, value: float, *, or_null: bool = False) -> None:
        """Raise UserError where ``value`` of the setting ``key`` is outside; ``or_null`` names null as a choice."""
        within = (
            is_finite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        if not within:
            sides = (("at least", self.at_least), ("above", self.above), ("below", self.below))
            words = " and ".join(f"{word} {bound}" for word, bound in sides if bound is not None)
            raise UserError(f"{key}={value} is out of range: it must be {words}{', or null' if or_null else ''}")


def is_finite(value: float) -> bool:
    """Return whether ``value`` is a number that a float can hold, as whole numbers of 309 digits cannot."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def vanishes(number: str) -> bool:
    """Return whether ``number``, in decimal digits, is not zero and would be read as zero, as 1e-400 would."""
    return float(number) == 0 and any(digit in "123456789" for digit in re.split("[eE]", number)[0])


def choice(default: str, *choices: str, also: Mapping[str, str] | None = None) -> Any:
    """Return a dataclass field that is one of ``choices``; ``also`` maps other words for them to the choice meant."""
    return field(default=default, metadata={"choices": choices, "also": also or {}})


def number(
    default: float | None, *, at_least: float | None = None, above: float | None = None, below: float | None = None
) -> Any:
    """Return a dataclass field with `Bounds`; None is within them where the field's annotation allows it."""
    return field(default=default, metadata={"bounds": Bounds(at_least, above, below)})


def check_fields(config: Any, prefix: str = "") -> None:
    """Check every field of a tree of dataclasses: its kind, then its choices or bounds.

    ``prefix`` stands before the names in errors (``"data."``). Only plain kinds are checked (`KINDS`, and None where
    the annotation has it); lists, tuples and dicts are the caller's. Raises UserError for the first wrong value.
    """
    for key, value, kind, optional, metadata in _leaves(config, prefix):
        if kind is None or (value is None and optional):
            continue
        check_kind(key, value, kind, " or null" if optional else "")
        choices, bounds = metadata.get("choices"), metadata.get("bounds")
        if choices is not None and value not in choices:
            meant = metadata["also"].get(value.lower())
            near = f"did you mean '{meant}'?" if meant else did_you_mean(value, choices)
            raise UserError(f"{key}={value} is not a choice: {near}")
        if bounds is not None:
            bounds.check(key, value, or_null=optional)


def check_kind(key: str, value: Any, kind: type, more: str = "") -> None:
    """Raise UserError where ``value`` of the setting ``key`` is not of ``kind``, one of `KINDS`.

    A whole number is a number, too; true and false are not. ``more`` ends the sentence.
    """
    right = isinstance(value, Real if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not right:
        plain = (
            isinstance(value, list | tuple)
            and len(value) > 1
            and not any(isinstance(v, list | tuple | dict) for v in value)
        )
        each = (
            f"; for a run of each write {key}={','.join(map(as_yaml, value))} with -m, without brackets"
            if plain
            else ""
        )
        raise UserError(f"{key}={as_yaml(value)} is not {KINDS[kind]}{more}{each}")


def as_yaml(value: Any) -> str:
    """Return ``value`` as a user writes it in YAML, a text in quotes where it would be something else without them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        bare = value.isidentifier() and value.lower() not in ("null", "true", "false")
        return value if bare else repr(value)  # '3' is not a number
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {as_yaml(each)}' for key, each in value.items())}}}"
    return str(value)


def check_plain(given: Mapping[str, Any], of: type, prefix: str = "") -> None:
    """Check plain data for a dataclass before it is converted: a conversion makes 10 of '010' and '1.1' of 1.10.

    ``given`` are values by field, ``of`` is the dataclass, and ``prefix`` stands before the names in errors. A number
    belongs where a number is asked for; a whole number passes for a text, which it is letter for letter. Raises
    UserError for the first value of another kind. Unknown fields and sections within are the caller's.
    """
    for name, (kind, optional) in kinds_of(of).items():
        if name not in given or (optional and given[name] is None):
            continue
        key, value = f"{prefix}{name}", given[name]
        if kind is not None:
            _check_convertible(key, value, kind, " or null" if optional else "")
        elif (item := _item_kind(of, name)) is not None:
            if not isinstance(value, list | tuple):
                raise UserError(f"{key}={as_yaml(value)} is not a list, such as [a, b]{' or null' if optional else ''}")
            for element in value:
                _check_convertible(f"an element of {key}", element, item, "")


def _check_convertible(key: str, value: Any, kind: type, more: str) -> None:
    if kind is str and isinstance(value, bool | float):
        raise UserError(
            f"{key}: {as_yaml(value)} is {KINDS[type(value)]} and not a text{more}: write the text in quotes"
        )
    if not (kind is str and isinstance(value, int)):
        check_kind(key, value, kind, more)


def _item_kind(of: type, name: str) -> type | None:
    """Return the kind of the elements where the field is a list of one of `KINDS`, else None."""
    hint = typing.get_type_hints(of)[name]
    for option in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        if typing.get_origin(option) is list and (item := typing.get_args(option)[0]) in KINDS:
            found: type = item
            return found
    return None


def _leaves(config: Any, prefix: str) -> Iterator[tuple[str, Any, type | None, bool, dict[str, Any]]]:
    """Yield (dotted key, value, kind, whether None is allowed, metadata) of every leaf of a tree of dataclasses."""
    kinds = kinds_of(config.__class__)
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value, *kinds[f.name], dict(f.metadata)


@cache
def kinds_of(of: type) -> dict[str, tuple[type | None, bool]]:
    """Return {field: (its kind, None where it is not in `KINDS`; whether it may be None)} of a dataclass."""
    found: dict[str, tuple[type | None, bool]] = {}
    for name, hint in typing.get_type_hints(of).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        rest = [option for option in options if option is not types.NoneType]
        found[name] = (rest[0] if len(rest) == 1 and rest[0] in KINDS else None, len(rest) < len(options))
    return found
