"""The command that trains a run again, from its record."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from neumann.config.from_overrides import MakeSpecs, making_specs
from neumann.errors import UserError

FIRST = ("data", "model", "trainer", "batch", "recipe", "timing", "seed")  # others follow from some of these
LEFT_OUT = ("output", "study", "name", "launch", "logger", "checkpoint", "derived")  # they change no result
DEMANDED = ("data.root", "model.name", "optimizer.name", "batch.size")  # the first words need them, or may
BARE = re.compile(r"[A-Za-z_./][\w./-]*")  # a text that stands in an override as it is
ABSENT = object()


def words_of(record: Mapping[str, Any], make: MakeSpecs | None = None) -> list[str] | None:
    """Return the overrides that make the run of ``record`` (see `RunSpec.as_record`); None where none are known.

    ``make`` is one of `making_specs`, given where the words of several runs are asked for. They are composed and signed
    here, so they are those of the run or none: where its data is not there, where it was made of another version's
    files or of a group of the user's own, there are none.
    """
    config = {key: value for key, value in record["config"].items() if key not in LEFT_OUT}
    words = [f"{group}={option}" for group, option in record["choices"].items() if group not in LEFT_OUT]
    words += [f"{key}={as_override(value)}" for key, value in _leaves(config) if key in DEMANDED and value is not None]
    try:
        with nullcontext(make) if make is not None else making_specs() as make:
            for sections in (FIRST, tuple(config)):
                made = make([words])[0].as_dict()
                words += _changed({s: made.get(s) for s in sections}, {s: config.get(s) for s in sections})
            if make([words])[0].signature != record["signature"]:
                return None
            default = {f"{group}={option}" for group, option in make([[]])[0].choices.items()}
            words = [word for word in words if word not in default]
            for idle in ("timing.", *(f"{key}=" for key in DEMANDED)):  # they may follow from the others
                fewer = [word for word in words if not word.startswith(idle)]
                if fewer != words and _gives(make, fewer, record["signature"]):
                    words = fewer
            if config["trainer"]["accelerator"] == "auto" and not any(
                w.startswith("trainer.precision=") for w in words
            ):
                words.append(f"trainer.precision={config['trainer']['precision']}")  # another device's default differs
    except UserError:
        return None
    return words


def _gives(make: MakeSpecs, words: Sequence[str], signature: str) -> bool:
    try:
        return make([words])[0].signature == signature
    except UserError:  # a setting that has no default
        return False


def _changed(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return an override for every setting of ``wanted`` that is another in ``made``."""
    before = dict(_leaves(made))
    return [
        f"{'' if key in before else '+'}{key}={as_override(value)}"
        for key, value in _leaves(wanted)
        if before.get(key, ABSENT) != value
    ]


def _leaves(config: Mapping[str, Any], prefix: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, [*prefix, str(key)])
        else:
            yield ".".join([*prefix, str(key)]), value


def as_override(value: Any) -> str:
    """Return a value as Hydra's grammar of overrides has it."""
    if isinstance(value, str):
        if BARE.fullmatch(value) and value.lower() not in ("null", "true", "false", "inf", "nan"):
            return value
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{quoted}'"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_override, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_override(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
