"""Does every key exist? An override or a composed configuration is held against the chosen files and the schema."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from neumann.config.schema import RunConfig
from neumann.errors import UserError, did_you_mean

OPEN_NODES = ("model.kwargs", "optimizer.kwargs", "launch.sbatch")  # free-form: checked by whom they are passed to
CHOSEN_SECTIONS = ("data", "optimizer", "schedule")  # their group's YAML is their schema
SECTIONS = tuple(f.name for f in fields(RunConfig))
FILLED_IN = ("derived",)  # by RunSpec, never by the user


def spelt(text: str) -> str:
    """Return an override with a list of GPUs in Hydra's spelling: ``launch.devices=0,1`` is one value, no sweep."""
    devices = re.fullmatch(r"launch\.devices=(\d+(?:,\d+)*)", text)
    return f"launch.devices=[{devices[1]}]" if devices else text


def refuse_hydra(override: Override) -> None:
    """Refuse what configures Hydra: its launchers are not used here, its sweepers only by `neumann.search.grid`."""
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
    """Refuse a group left without a choice, or an option that has no file."""
    group, option = override.key_or_group, override.value()
    if override.is_delete() or option is None:
        raise UserError(
            f"'{override.input_line}' leaves {group} without a choice: choose from {', '.join(groups[group])}"
        )
    if not isinstance(option, str) or option not in groups[group]:
        raise UserError(f"there is no {group} '{option}': {did_you_mean(str(option), groups[group])}")


def check_key(override: Override, baseline: DictConfig, choices: dict[str, str], groups: dict[str, list[str]]) -> None:
    """Walk the override's dotted key through the chosen files and stop at the first part they do not have."""
    key = override.key_or_group
    parts = key.split(".")
    if parts[0] in FILLED_IN:
        raise UserError(f"'{parts[0]}' follows from data, batch and trainer and cannot be set")
    if any(key == node or key.startswith(f"{node}.") for node in OPEN_NODES) and parts[1] in baseline[parts[0]]:
        return
    node: Any = baseline
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig) or not _has(node, part):
            _refuse_key(parts, depth, node, choices, groups)
        node = node._get_node(part)
    if override.is_delete():
        raise UserError(f"'{override.input_line}': a setting cannot be deleted, only set (null is a value)")


def _has(node: DictConfig, key: str) -> bool:
    keys = [str(k) for k in node]  # `in` says no where the value is still missing (???)
    return key in keys


def _refuse_key(parts: list[str], depth: int, node: Any, choices: dict[str, str], groups: dict[str, list[str]]) -> None:
    where, word = ".".join(parts[:depth]), parts[depth]
    if not isinstance(node, DictConfig):
        raise UserError(f"'{where}' is a single value and has no setting '{word}'")
    valid = [str(k) for k in node if k not in FILLED_IN]
    if not where:
        raise UserError(f"there is no setting or group '{word}': {did_you_mean(word, {*valid, *groups})}")
    of = f"{where}={choices[where]}" if where in choices else where
    raise UserError(f"{of} has no setting '{word}': {did_you_mean(word, [k for k in valid if k != '_target_'])}")


def check_keys(node: DictConfig, schema: DictConfig, choices: dict[str, str], prefix: str = "") -> None:
    """Refuse keys that the schema does not have, wherever they came from, and values that were required and not given.

    ``prefix`` is where ``node`` stands in the whole configuration.
    """
    for raw in node:
        key = f"{prefix}{raw!s}"
        if not _has(schema, str(raw)):
            parts = key.split(".")
            _refuse_key(parts, len(parts) - 1, schema, choices, {})
        child: Any = node._get_node(raw)
        if child._is_missing():
            group = key.split(".")[0]
            of = f"{group}={choices[group]}" if group in choices else "the configuration"
            raise UserError(f"{of} needs {key}: add {key}=... to the command")
        other: Any = schema._get_node(raw)
        if isinstance(other, DictConfig) and not isinstance(child, DictConfig):
            raise UserError(f"'{key}' is a section: set {key}.{next(iter(other), 'KEY')!s} or another of its settings")
        if isinstance(child, DictConfig) and key not in OPEN_NODES and not child._is_none():
            if not isinstance(other, DictConfig):
                raise UserError(f"'{key}' is a single value, not a section")
            check_keys(child, other, choices, f"{key}.")
        elif prefix.split(".")[0] in CHOSEN_SECTIONS:
            _check_kind(key, child, other)


def _check_kind(key: str, node: Any, default: Any) -> None:
    """Refuse a word where the chosen file has a number, and the like; null and interpolations are settled later."""
    if (
        node._is_interpolation()
        or default._is_interpolation()
        or node._is_none()
        or default._is_none()
        or default._is_missing()
    ):
        return
    value, example = getattr(node, "_value", lambda: node)(), getattr(default, "_value", lambda: default)()
    for kind, name in ((bool, "true or false"), (int | float, "a number"), (str, "a word")):
        if isinstance(example, kind):
            if not isinstance(value, kind) or (isinstance(value, bool) and not isinstance(example, bool)):
                raise UserError(f"{key}={value} is not {name}: its file has {key}={example}")
            return
