"""The check that every key exists: overrides and composed configurations against the chosen files and the schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig

from neumann import compat
from neumann.bounds import as_yaml, check_kind
from neumann.config import other_words
from neumann.config.schema import CHOSEN_SECTIONS, FILLED_IN, OPEN_NODES
from neumann.errors import UserError, did_you_mean


class MissingSetting(UserError):  # noqa: N818 - it is a sentence for the user
    """A file leaves a setting to the user, who has not given it."""


@dataclass(frozen=True)
class Chosen:
    """What is chosen, and what could be: the places that a wrong key is looked for in.

    files      the configuration that the chosen files make
    choices    {group: chosen option}
    groups     {group: its options}
    having     returns the options of a group whose files have a key
    """

    files: DictConfig
    choices: Mapping[str, str]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    having: Callable[[str, str], list[str]] = lambda group, key: []


def refuse_hydra(override: Override) -> None:
    """Refuse an override that configures Hydra, naming our setting for the same. Raises UserError.

    Hydra's launchers are not used here, and its sweepers only by `neumann.search.grid`.
    """
    key = override.key_or_group
    if key == "hydra/launcher" or key.startswith("hydra.launcher"):
        raise UserError(
            f"'{override.input_line}': runs are started by our own launcher, set launch.parallel=N or launch=slurm"
        )
    if key.startswith(("hydra/sweeper", "hydra.sweeper")):
        raise UserError(f"'{override.input_line}' is about a sweep, which is several runs: add -m to the command")
    if key == "hydra" or override.is_hydra_override():
        raise UserError(f"'{override.input_line}': hydra's own settings have no effect here, runs go to output=FOLDER")


def check_option(override: Override, groups: dict[str, list[str]]) -> None:
    """Refuse a group left without a choice, or an option that has no file. Raises UserError.

    ``groups`` is {group: its options}.
    """
    group, option = override.key_or_group, override.value()
    written = str(override.input_line).partition("=")[2].strip()
    if override.is_add() or override.is_force_add() or override.package is not None:
        raise UserError(
            f"'{override.input_line}': a choice is written {group}={option}, without a sign before or in it"
        )
    if isinstance(option, list):
        raise UserError(
            f"'{override.input_line}' is a list, and {group} is one choice: for a run of each write "
            f"{group}={','.join(part.strip() for part in written.strip('[]').split(','))} with -m, without brackets"
        )
    if isinstance(option, dict):
        key, value = next(((str(k), v) for k, v in option.items()), ("KEY", "VALUE"))
        raise UserError(
            f"'{override.input_line}' is a mapping, and {group} is one choice: choose a file, such as "
            f"{group}={groups[group][0]}, and set each setting by its name, such as {group}.{key}={as_yaml(value)}"
        )
    if override.is_delete() or option in (None, ""):
        raise UserError(
            f"'{override.input_line}' leaves {group} without a choice: choose from {', '.join(groups[group])}"
        )
    if not isinstance(option, str) and written in groups[group]:
        raise UserError(
            f"'{override.input_line}' gives a number for the name of a file: put it in quotes of its own, "
            f"\"{group}='{written}'\""
        )
    if not isinstance(option, str) or option not in groups[group]:
        word = option if isinstance(option, str) else written  # True was written true
        raise UserError(f"there is no {group} '{word}': {_option_meant(group, word, groups[group])}")


def _option_meant(group: str, option: str, options: list[str]) -> str:
    """Return what was meant by an ``option`` that is not among the group's ``options``."""
    if meant := other_words.option_meant(group, option):
        return f"did you mean {meant}?"
    any_other = other_words.any_other(group, option)
    if near := get_close_matches(option.lower(), options, n=1, cutoff=0.75):
        # resnet34 is as near to resnet32 as a misspelt name would be
        also = f" ({any_other})" if any_other and group == "model" else ""
        return f"did you mean '{near[0]}'?{also}"
    return did_you_mean("", options) + (f"; {any_other}" if any_other else "")


def check_key(override: Override, chosen: Chosen) -> None:
    """Refuse an override of a setting that does not exist, and one that deletes a setting. Raises UserError.

    ``override`` sets or deletes one dotted key, and is not a choice in a group. The key is checked part by part.
    """
    key = override.key_or_group
    parts = key.split(".")
    if parts[0] in FILLED_IN:
        raise UserError(f"'{parts[0]}' follows from data, batch and trainer and cannot be set")
    if key in OPEN_NODES and isinstance(override.value(), list):
        raise UserError(f"'{key}' is a section: set {key}.NAME")
    if any(key == node or key.startswith(f"{node}.") for node in OPEN_NODES) and parts[1] in chosen.files[parts[0]]:
        return
    node: Any = chosen.files
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig) or not _has(node, part):
            _refuse_key(parts, depth, node, chosen)
        node = compat.child(node, part)
    if isinstance(node, DictConfig) and isinstance(override.value(), list):
        raise UserError(f"'{key}' is a section: set {key}.{next(iter(node), 'KEY')!s} or another of its settings")
    if isinstance(node, ListConfig) and isinstance(override.value(), dict):
        raise UserError(f"'{key}' is a list, such as [a, b], and not a section")
    if override.is_delete():
        raise UserError(f"'{override.input_line}': a setting cannot be deleted, only set (null is a value)")


def _has(node: DictConfig, key: str) -> bool:
    keys = [str(k) for k in node]  # `in` says no where the value is still missing (???)
    return key in keys


def _refuse_key(parts: list[str], depth: int, node: Any, chosen: Chosen) -> None:
    """Raise UserError for the key ``parts``, of which ``node`` at ``parts[:depth]`` lacks the next."""
    where, word = ".".join(parts[:depth]), parts[depth]
    if not isinstance(node, DictConfig):
        raise UserError(f"'{where}' is a single value and has no setting '{word}'")
    valid = [str(k) for k in node if k not in FILLED_IN and k != "_target_"]
    if not where:
        meant = _inner(word, chosen) or _elsewhere(word, chosen)
        raise UserError(f"there is no setting or group '{word}': {meant or _nearest(word, valid, chosen)}")
    of = f"{where}={chosen.choices[where]}" if where in chosen.choices else where
    raise UserError(f"{of} has no setting '{word}': {_in_section(where, word, valid, chosen)}")


def _in_section(where: str, word: str, valid: list[str], chosen: Chosen) -> str:
    """Return what was meant by a word that the section ``where`` does not have among its settings ``valid``."""
    near = get_close_matches(word.lower(), valid, n=1, cutoff=0.8)
    others = [option for option in chosen.having(where, word) if option != chosen.choices.get(where)]
    if not near and not others:
        if word in ("name", "type") and where in chosen.groups and where != "logger":  # a mirror has a name too
            return f"did you mean {where}=OPTION, which is one of {', '.join(chosen.groups[where])}?"
        meant = _elsewhere(word, chosen) or _inner(word, chosen)
        if meant:
            return meant
    told = did_you_mean("" if others and not near else word, near or valid)
    return f"{told} ('{word}' is a setting of {where}={', '.join(others)})" if others else told


def _elsewhere(word: str, chosen: Chosen) -> str | None:
    """Return what says here what ``word`` says in another framework; None where it is not known."""
    plain = other_words.plain(word)
    key = other_words.KEY_OF.get(plain)
    if key is None:
        return other_words.SENTENCE_OF.get(plain)
    section, _, name = key.partition(".")
    node = compat.child(chosen.files, section) if section in chosen.files else None
    if name and "=" not in key and isinstance(node, DictConfig) and not _has(node, name):
        options = chosen.having(section, name)
        if options:
            having = f"{section}={', '.join(options)}"
            return f"did you mean '{key}' of {having}, which {section}={chosen.choices[section]} lacks?"
    return f"did you mean '{key}'?"


def _inner(word: str, chosen: Chosen) -> str | None:
    """Return the setting that is called ``word``, or those of sections that are; None where there is none."""
    top = [word] if word in chosen.files and word not in FILLED_IN else []
    same = top or [key for key in _inner_keys(chosen.files) if key.partition(".")[2] == word]
    listed = " or ".join(f"'{key}'" for key in same)
    return f"did you mean {listed}?" if same else None


def _inner_keys(files: DictConfig) -> list[str]:
    return [
        f"{section!s}.{key!s}"
        for section in files
        if section not in FILLED_IN and isinstance(child := compat.child(files, section), DictConfig)
        for key in child
        if key != "_target_"
    ]


def _nearest(word: str, valid: Sequence[str], chosen: Chosen) -> str:
    """Return the setting or group that is spelt most like ``word``, or those that are without a dot."""
    top = {*valid, *chosen.groups}

    def likeness(name: str) -> float:
        forms = {name, name.partition(".")[2] or name}
        return max(SequenceMatcher(None, word.lower(), form.lower()).ratio() for form in forms)

    best = max([*sorted(top), *_inner_keys(chosen.files)], key=likeness)
    return f"did you mean '{best}'?" if likeness(best) >= 0.7 else did_you_mean("", top, listed=len(top))


def check_keys(node: DictConfig, schema: DictConfig, choices: dict[str, str], prefix: str = "") -> None:
    """Refuse keys that the schema does not have, and required values that were not given. Raises UserError.

    It catches the keys of files, which `check_key` does not see.

    Args:
        node: the composed configuration, or a section of it.
        schema: every valid key at ``node``, with an example of its value.
        choices: {group: chosen option}, to name the file that lacks a key.
        prefix: where ``node`` stands in the whole configuration, with a dot at the end.
    """
    for raw in node:
        key = f"{prefix}{raw!s}"
        if not _has(schema, str(raw)):
            parts = key.split(".")
            _refuse_key(parts, len(parts) - 1, schema, Chosen(schema, choices))
        child, other = compat.child(node, raw), compat.child(schema, raw)
        if compat.is_missing(child):
            group = key.split(".")[0]
            of = f"{group}={choices[group]}" if group in choices else "the configuration"
            raise MissingSetting(f"{of} needs {key}: add {key}=... to the command")
        if isinstance(other, DictConfig) and not isinstance(child, DictConfig):
            raise UserError(f"'{key}' is a section: set {key}.{next(iter(other), 'KEY')!s} or another of its settings")
        if isinstance(child, DictConfig) and key not in OPEN_NODES and not compat.is_null(child):
            if not isinstance(other, DictConfig):
                raise UserError(f"'{key}' is a single value, not a section")
            check_keys(child, other, choices, f"{key}.")
        elif prefix.split(".")[0] in CHOSEN_SECTIONS:
            _check_like(key, child, other)


def _check_like(key: str, node: Any, default: Any) -> None:
    """Refuse a value of another kind than the chosen file's; null and interpolations are checked later."""
    if not (compat.is_plain(node) and compat.is_plain(default)):
        return
    if isinstance(default, ListConfig):
        if isinstance(node, ListConfig) and len(default):
            for i in range(len(node)):
                _check_like(f"{key}[{i}]", compat.child(node, i), compat.child(default, min(i, len(default) - 1)))
        return
    example = compat.value_of(default)
    for kind, of in ((bool, bool), (float, int | float), (str, str)):  # an example cannot tell 1 from 1.0
        if isinstance(example, of):
            check_kind(key, compat.value_of(node), kind, f": its file has {key}={example}")
            return
