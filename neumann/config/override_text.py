"""Overrides as a user writes them: read by Hydra's grammar, and taken for what they mean.

The grammar knows no settings, so it makes a number of every word that looks like one. `as_meant` gives a setting that
is a text the text as it was written (``name=1.10``, ``study=2024_01``), and refuses for a number 1_0, and 1e-400, which
no float can hold.
"""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Sweep,
)
from hydra.errors import HydraException

from neumann.bounds import vanishes
from neumann.config.schema import OPEN_NODES, TEXTS
from neumann.errors import UserError

NUMBER = re.compile(r"(?<![\w.'\"-])[-+]?(?:\d+\.?\d*|\.\d+)[eE]-\d+(?![\w.'\"-])")  # 1e-400, with a negative exponent
CALL = re.compile(r"(?:choice|range|interval|glob|shuffle|sort|tag|extend_list|int|float|str|bool|json_str)\(")
INNER = {ChoiceSweep: "shuffle(…) or sort(…)", RangeSweep: "range(…)", IntervalSweep: "interval(…)", Glob: "glob(…)"}
BRACKETS = {"[": "]", "{": "}", "(": ")"}
UNDERSCORED = re.compile(r"(?<![\w.'\"-])[-+]?\d[\d.]*(?:_\d+)+(?:[.eE][-+\d]*)?(?![\w'\"-])")  # 1_000


def parse_override(parser: OverridesParser, text: str) -> Override:
    """Return an override as Hydra reads it. Raises UserError, which says how a value that it cannot read is quoted.

    A word with bytes that are no text in the locale's encoding is refused too: a run's files are UTF-8.
    """
    if re.search("[\ud800-\udfff]", text):  # what Python makes of such bytes
        raise UserError(
            f"'{text}' is not text in this locale's encoding, {sys.getfilesystemencoding()}: set LC_ALL=C.UTF-8, or "
            "write it in that encoding"
        )
    if text.startswith(("=", "+=")):
        raise UserError(f"cannot read '{text}': there is no setting before the equals sign")
    devices = re.fullmatch(r"launch\.devices=(\d+(?:,\d+)*)", text)  # one value, not a sweep
    try:
        (override,) = parser.parse_overrides([f"launch.devices=[{devices[1]}]" if devices else text])
    except HydraException as error:
        raise UserError(f"cannot read '{text}': {_remedy(parser, text)}") from error
    except (ValueError, RecursionError) as error:  # of Python: a number of 4,300 digits, brackets within brackets
        raise UserError(f"cannot read '{text[:40]}…': its value is too long a number, or too deep") from error
    if (inner := _inner_sweep(override.value())) is not None:
        raise UserError(
            f"cannot read '{text}': {inner} stands alone after the equals sign, not among other values: list the "
            f"values themselves, {override.key_or_group}=A,B,C"
        )
    return override


def _inner_sweep(value: Any) -> str | None:
    """Return what kind of sweep or glob lies within ``value``, None where there is none; it may be one itself."""
    parts = value.list if isinstance(value, ChoiceSweep) else value
    parts = list(parts.values()) if isinstance(parts, dict) else parts
    for part in parts if isinstance(parts, list) else ():
        inner = INNER[type(part)] if isinstance(part, Sweep | Glob) else _inner_sweep(part)
        if inner is not None:
            return inner
    return None


def _remedy(parser: OverridesParser, text: str) -> str:
    key, sign, value = text.partition("=")
    if not sign:
        return "an override is written key=value or group=option"
    if not _reads(parser, f"{key}=1"):
        if key.strip() != key:
            return f"write {key.strip()}={value.strip()}, without spaces around the equals sign"
        return f"'{key}' is not the name of a setting: it has letters, digits and dots"
    open_bracket = value[:1] in BRACKETS and value[-1:] != BRACKETS[value[:1]]
    if value[:1] in ("'", '"') or CALL.match(value) or open_bracket or value.count("${") > value.count("}"):
        return "its value is not one in Hydra's syntax: quotes and brackets must close"
    for wrong, shorter in (("equals sign before", value.removeprefix("=")), ("comma behind", value.rstrip(","))):
        if shorter != value and _reads(parser, f"{key}={shorter}"):
            return f"leave out the {wrong} its value"
    parts = [quoted_text(part.strip()) for part in value.strip("[]").split(",")]
    forms = [f"{key}={quoted_text(value)}"]
    if value[:1] == "[":
        forms = [f"{key}=[{','.join(parts)}]", *forms]
    elif len(parts) > 1:
        forms.append(f"{key}={','.join(parts)}")
    shown = " or ".join(_in_shell(form) for form in forms[:2] if _reads(parser, form))
    each = ", each of several in its own" if len(forms) > 1 else ""
    return f"a text with such characters stands in quotes of its own within those of the shell or YAML{each}: {shown}"


def _reads(parser: OverridesParser, text: str) -> bool:
    try:
        parser.parse_overrides([text])
    except HydraException:
        return False
    return True


def _in_shell(word: str) -> str:
    return shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'


def quoted_text(text: str) -> str:
    """Return ``text`` in quotes, as the grammar reads it back letter for letter."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def as_text_value(text: str) -> str:
    """Return ``text`` as the value of an override of a text setting, in quotes where the grammar needs them."""
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) and text.lower() != "null" else quoted_text(text)


FOLLOWS = {  # a time scale in epochs: the setting that is computed from it where it is not given
    "timing.burn_in": "optimizer.burn_in_steps",
    "timing.reset_period": "optimizer.reset_period",
    "timing.average": "optimizer.gamma",
    "timing.momentum_unit": "optimizer.momentum_unit",
    "timing.ramp": "schedule.ramp_steps",
    "timing.drop_every": "schedule.every_steps",
    "timing.decay_every": "schedule.every_steps",
}


def refuse_twice(overrides: Sequence[str]) -> None:
    """Refuse a setting or a group that ``overrides`` name twice: one of the two would be ignored. Raises UserError.

    So it would where one names a whole mapping and another a setting in it, and where one gives a time scale in epochs
    and another the steps that would follow from it.
    """
    first: dict[str, str] = {}
    for text in overrides:
        key = key_of(text)
        if key in first:
            raise UserError(f"'{first[key]}' and '{text}' both set {key}: leave out one of the two")
        first[key] = text
    for key, text in first.items():
        for above in itertools.accumulate(key.split(".")[:-1], "{}.{}".format):
            if above in first and ("." in above or first[above].partition("=")[2].startswith("{")):
                raise UserError(f"'{first[above]}' and '{text}' both set {key}: leave out one of the two")
    for scale, key in FOLLOWS.items():
        if scale in first and key in first:
            raise UserError(
                f"'{first[scale]}' and '{first[key]}' both set {key}, the first in epochs: leave out one of the two"
            )


def value_of(text: str) -> str:
    """Return the value of an override of a text setting: without the quotes of the grammar, otherwise as written."""
    value = parse_override(OverridesParser.create(), text).value()
    return value if isinstance(value, str) else text.partition("=")[2].strip()


def plain_value(text: str) -> Any:
    """Return the value of an override, a number where it reads as one."""
    return parse_override(OverridesParser.create(), text).value()


def key_of(text: str) -> str:
    """Return the setting or the group that an override names."""
    return text.partition("=")[0].lstrip("+~")


def as_meant(override: Override) -> str:
    """Return an override as Hydra is to take it.

    A setting that is a text by the schema gets the text as it was written. A new setting in a free-form section needs
    no plus before it. Raises UserError for a number with underscores, which is another number elsewhere or none, and
    for one that would become zero.
    """
    line, key, value = str(override.input_line), override.key_or_group, override.value()
    written = line.partition("=")[2].strip()
    if isinstance(value, bool | int | float) and key in TEXTS:
        line = f"{line.partition('=')[0]}={quoted_text(written)}"
    else:
        refuse_misread(line, value)
    free = any(key.startswith(f"{node}.") or (key == node and isinstance(value, dict)) for node in OPEN_NODES)
    return f"++{line.lstrip('+')}" if free and not override.is_delete() else line


def refuse_misread(line: str, value: Any) -> None:
    """Refuse an override ``line`` with a number like 1_0 or 1e-400 in its ``value``, outside its texts.

    Raises UserError.
    """
    texts = set(_texts(value))
    for number in NUMBER.findall(line.partition("=")[2]):
        if vanishes(number) and not any(number in text for text in texts):
            raise UserError(f"'{line}': {number} is nearer to zero than a number can be here: write 0 if you mean it")
    for number in UNDERSCORED.findall(line.partition("=")[2]):
        if not any(number in text for text in texts):
            raise UserError(
                f"'{line}': write {number.replace('_', '')} for the number, or '{number}' in quotes for the text"
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, QuotedString):
        yield value.text
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from (*_texts(key), *_texts(child))
    elif isinstance(value, list):
        for child in value:
            yield from _texts(child)
