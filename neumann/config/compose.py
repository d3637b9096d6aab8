"""What did the user ask for? Overrides go in, one strictly checked configuration comes out, or one sentence says what
is wrong.

Hydra composes. Around it stand two checks of our own, because a misspelt key must never train silently: every override
is held against what the chosen files define before Hydra sees it, and the keys of the composed result are held against
the schema, so that a `+optimizer.alpha=0` on an optimizer that has none, or a typing error inside an experiment file,
is refused as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from neumann.config.resolvers import register_resolvers
from neumann.config.schema import RunConfig
from neumann.errors import UserError, did_you_mean

CONF = Path(__file__).resolve().parents[1] / "conf"
OPEN_NODES = ("model.kwargs", "optimizer.kwargs")  # free-form: checked against the constructor before training
CHOSEN_SECTIONS = ("data", "optimizer", "schedule")  # their group's YAML is their schema
SECTIONS = tuple(f.name for f in fields(RunConfig))
FILLED_IN = ("derived",)  # by RunSpec, never by the user


@contextmanager
def _hydra(config_dirs: Sequence[str]) -> Iterator[ConfigLoader]:
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="neumann"):
        yield GlobalHydra.instance().config_loader()


class _Composer:
    """One composition: the user's overrides over our files and the user's folders."""

    def __init__(self, loader: ConfigLoader, config_dirs: Sequence[str]) -> None:
        self._loader = loader
        self._dirs = [Path(folder).resolve() for folder in config_dirs]
        self._paths = [f"hydra.searchpath=[{','.join(f'file://{d}' for d in self._dirs)}]"] if config_dirs else []

    def groups(self) -> dict[str, list[str]]:
        """Return {group: its options}, the user's folders included."""
        found = {
            group: set(self._loader.get_group_options(group, results_filter=ObjectType.CONFIG))
            for group in self._loader.list_groups("")
            if group != "hydra"
        }
        for path in (file for folder in self._dirs for file in folder.glob("*/*.yaml")):
            found.setdefault(path.parent.name, set()).add(path.stem)
        return {group: sorted(options) for group, options in sorted(found.items())}

    def _run(self, overrides: list[str]) -> DictConfig:
        try:
            return hydra_compose("train", [*self._paths, *overrides], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"the configuration does not compose: {_first_line(error)}") from error

    def run(self, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
        """Return the composed configuration and {group: chosen option}."""
        config = self._run(overrides)
        choices = {
            str(k): str(v)
            for k, v in config.hydra.runtime.choices.items()
            if v is not None and not str(k).startswith("hydra")
        }
        with open_dict(config):
            del config["hydra"]
        return config, choices


def _first_line(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:2] if line.strip())


def compose(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> tuple[DictConfig, dict[str, str]]:
    """Compose a run from Hydra overrides; interpolations are left in place.

    Returns the configuration and the option chosen in each group. Raises UserError naming the nearest valid spelling of
    an unknown group, option or key.
    """
    register_resolvers()
    parsed = _parse(overrides)
    with _hydra(config_dirs) as loader:
        composer = _Composer(loader, config_dirs)
        groups = composer.groups()
        # ablation=null asks for what is so anyway, and Hydra does not take it
        parsed = [
            o for o in parsed if o.key_or_group not in groups or o.key_or_group in SECTIONS or o.value() is not None
        ]
        chosen = [o for o in parsed if o.key_or_group in groups]
        for override in chosen:
            _check_option(override, groups)
        baseline, choices = composer.run([str(o.input_line) for o in chosen])
        for override in parsed:
            if override not in chosen:
                _check_key(override, baseline, choices, groups)
        config = baseline
        if len(chosen) < len(parsed):
            config, choices = composer.run([_line(o) for o in parsed])
        alone = baseline
        extra = [f"{group}={option}" for group, option in choices.items() if group not in SECTIONS]
        if extra:  # an ablation or an experiment file, whose keys are to be checked as well
            alone, _ = composer.run([f"{group}={choices[group]}" for group in CHOSEN_SECTIONS])
    try:
        check_keys(config, alone, choices)
    except UserError as error:
        raise (UserError(f"{', '.join(extra)} does not fit: {error}") if extra else error) from None
    return config, choices


def list_groups(config_dirs: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return {group: its options}, the user's folders included."""
    register_resolvers()
    with _hydra(config_dirs) as loader:
        return _Composer(loader, config_dirs).groups()


def _parse(overrides: Iterable[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise UserError(f"cannot read '{text}': an override is written key=value or group=option") from error
        if override.is_sweep_override():
            raise UserError(f"'{text}' names several values, and this command trains one run: give one value")
        parsed.append(override)
    return parsed


def _line(override: Override) -> str:
    """Return the override for Hydra; a free-form setting is added where it is new, with or without a plus before it."""
    line = str(override.input_line)
    free = any(override.key_or_group.startswith(f"{node}.") for node in OPEN_NODES)
    return f"++{line.lstrip('+')}" if free and not override.is_delete() else line


def _check_option(override: Override, groups: dict[str, list[str]]) -> None:
    group, option = override.key_or_group, override.value()
    if override.is_delete() or option is None:
        raise UserError(
            f"'{override.input_line}' leaves {group} without a choice: choose from {', '.join(groups[group])}"
        )
    if not isinstance(option, str) or option not in groups[group]:
        raise UserError(f"there is no {group} '{option}': {did_you_mean(str(option), groups[group])}")


def _check_key(override: Override, baseline: DictConfig, choices: dict[str, str], groups: dict[str, list[str]]) -> None:
    """Walk the override's dotted key through the chosen files and stop at the first part they do not have."""
    key = override.key_or_group
    if key.startswith("hydra.") or key == "hydra":
        raise UserError(f"'{override.input_line}': hydra's own settings have no effect here, runs go to output=FOLDER")
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


def check_keys(config: DictConfig, chosen: DictConfig, choices: dict[str, str]) -> None:
    """Refuse keys that the schema does not have, wherever they came from, and values that were required and not given.

    ``chosen`` is composed from the chosen files alone and is the schema of data, optimizer and schedule.
    """
    schema = OmegaConf.structured(RunConfig)
    for section in CHOSEN_SECTIONS:
        schema[section] = OmegaConf.to_container(chosen[section], resolve=False)
    _compare(config, schema, "", choices)


def _compare(node: DictConfig, schema: DictConfig, prefix: str, choices: dict[str, str]) -> None:
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
            _compare(child, other, f"{key}.", choices)
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
