"""Settings in which the groups of a sweep differ: the columns of its table, and the names of its rows.

Of an optimizer and a schedule follow the settings that only it has, of a horizon and a batch the counts of steps: they
differ too, and are no columns unless nothing else tells two rows apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neumann.store.listing import FOLLOWS
from neumann.store.records import flat
from neumann.store.scores import is_number
from neumann.studies.numbers import DASH, printable, value

CHOSEN = ("optimizer", "schedule")  # sections whose `_target_` stands for one option of a group of conf/
TARGET = "_target_"
Shown = float | int | str


@dataclass(frozen=True)
class Columns:
    """The settings that differ.

    ``keys`` are the columns of the table and ``cells`` their values for each group, in the order of the groups; a group
    that lacks a setting has no entry. ``names`` are the rows' names. ``every`` has the values of all settings that
    differ, as texts, {key: (value of each group)}.
    """

    keys: tuple[str, ...]
    cells: tuple[Mapping[str, Shown], ...]
    names: tuple[str, ...]
    every: Mapping[str, tuple[str, ...]]


def columns_of(signed: Sequence[Mapping[str, Any]], choices: Sequence[Mapping[str, str]], alone: str) -> Columns:
    """Return the columns of groups that have ``signed`` this, each one its own, the seed apart.

    ``choices`` are each group's options of the groups of conf/, as far as its runs agree on them. ``alone`` is the name
    of the row where there is one group.
    """
    leaves = [_leaves(one) for one in signed]
    for section in CHOSEN:
        names = _options(section, leaves, choices)
        if len(set(names)) > 1:
            leaves = [_with_option(section, name, its) for name, its in zip(names, leaves, strict=True)]
    differing = [k for k in _keys(leaves) if len({_same(its.get(k, _ABSENT)) for its in leaves}) > 1]
    shown = [k for k in differing if not FOLLOWS.search(k) and not _belongs_to_option(k, leaves)]
    shown = _told_apart(shown, differing, leaves)
    cells = [{k: _shown(its[k]) for k in shown if k in its} for its in leaves]
    every = {k: tuple(_text(_shown(its[k])) if k in its else DASH for its in leaves) for k in differing}
    return Columns(tuple(shown), tuple(cells), row_names(shown, cells, alone), every)


def title(key: str) -> str:
    """Return the name of a setting as a table's header and a row's name have it: optimizer.lr is "lr"."""
    return printable(key).removeprefix("optimizer.")


_ABSENT = object()


def _leaves(signed: Mapping[str, Any]) -> dict[str, Any]:
    config = {key: v for key, v in signed["config"].items() if key != "seed"}
    others = {key: v for key, v in signed.items() if key not in ("config", "data")}
    identity = {f"images.{key}": v for key, v in signed["data"].items() if key not in ("fingerprint", "splits")}
    return {**dict(flat(config)), **dict(flat(others)), **identity}


def _keys(leaves: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return every key, those of a section beside each other."""
    found = dict.fromkeys(key for its in leaves for key in its)
    sections = list(dict.fromkeys(key.partition(".")[0] for key in found))
    return sorted(found, key=lambda key: sections.index(key.partition(".")[0]))


def _same(one: Any) -> str:
    """Return a text that equal values share: 1 and 1.0 are one setting, and true is another."""
    if one is _ABSENT:
        return ""
    if isinstance(one, int | float) and not isinstance(one, bool):
        return repr(float(one)) if abs(one) < 2**53 else repr(one)
    return json.dumps(one, sort_keys=True)


def _options(section: str, leaves: Sequence[Mapping[str, Any]], choices: Sequence[Mapping[str, str]]) -> list[str]:
    """Return each group's option of a section: by its record, else, where two targets share one, its target."""
    targets = [str(its.get(f"{section}.{TARGET}", "")) for its in leaves]
    names = [its.get(section) for its in choices]
    if None not in names and len(set(zip(names, targets, strict=True))) == len(set(names)):
        return [str(name) for name in names]
    short = [target.rpartition(".")[2] for target in targets]
    return short if len(set(short)) == len(set(targets)) else targets


def _with_option(section: str, name: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``leaves`` with the section's option before its settings, in place of its target."""
    found: dict[str, Any] = {}
    for key, v in leaves.items():
        if key.startswith(f"{section}.") and section not in found:
            found[section] = name
        if key != f"{section}.{TARGET}":
            found[key] = v
    return found


def _belongs_to_option(key: str, leaves: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a setting is one that not all options of its section have, and that has one value in each."""
    section = key.partition(".")[0]
    if section == key or section not in CHOSEN or not all(section in its for its in leaves):
        return False
    by_option: dict[str, set[str]] = {}
    for its in leaves:
        by_option.setdefault(str(its[section]), set()).add(_same(its.get(key, _ABSENT)))
    return any(key not in its for its in leaves) and all(len(values) == 1 for values in by_option.values())


def _told_apart(shown: list[str], differing: Sequence[str], leaves: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return ``shown`` and what else it takes for no two groups to have the same cells, lengths in epochs first."""
    others = sorted((k for k in differing if k not in shown), key=lambda k: (k.startswith("derived."), "_steps" in k))
    for key in others:
        if _distinct(shown, leaves) == len(leaves):
            break
        if _distinct([*shown, key], leaves) > _distinct(shown, leaves):
            shown = [*shown, key]
    return [key for key in differing if key in shown]


def _distinct(keys: Sequence[str], leaves: Sequence[Mapping[str, Any]]) -> int:
    return len({tuple(_same(its.get(k, _ABSENT)) for k in keys) for its in leaves})


def _shown(one: Any) -> Shown:
    if isinstance(one, bool) or one is None:
        return {None: "null", True: "true", False: "false"}[one]
    if isinstance(one, str) or is_number(one):
        return one
    if isinstance(one, list):
        return ", ".join(_text(_shown(part)) for part in one)
    return json.dumps(one, sort_keys=True)  # a number that no float holds, too


def _text(one: Shown) -> str:
    return value(one)


def row_names(keys: Sequence[str], cells: Sequence[Mapping[str, Shown]], alone: str) -> tuple[str, ...]:
    """Return a name for each row, of the first columns that tell the rows apart."""
    if len(cells) == 1:
        return (printable(alone),)
    used: list[str] = []
    for key in keys:
        if len(_tuples([*used, key], cells)) > len(_tuples(used, cells)):
            used.append(key)
    names = [", ".join(_part(key, its[key]) for key in used if key in its) for its in cells]
    if len({*names}) < len(names) or "" in names:
        names = [", ".join(_part(key, its.get(key, DASH)) for key in used) for its in cells]
    return tuple(f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names))


def _tuples(keys: Sequence[str], cells: Sequence[Mapping[str, Shown]]) -> set[tuple[str, ...]]:
    return {tuple(_text(its[key]) if key in its else "" for key in keys) for its in cells}


def _part(key: str, of: Shown) -> str:
    return _text(of) if key in CHOSEN else f"{title(key)} {_text(of)}"


def in_order(cells: Sequence[Mapping[str, Shown]], keys: Sequence[str]) -> list[int]:
    """Return the order of the rows: by their columns, numbers by size, a setting that a row lacks last."""

    def place(its: Mapping[str, Shown], key: str) -> tuple[int, float, str]:
        if key not in its:
            return 2, 0.0, ""
        one = its[key]
        return (1, 0.0, one) if isinstance(one, str) else (0, float(one), "")

    return sorted(range(len(cells)), key=lambda i: [place(cells[i], key) for key in keys])
