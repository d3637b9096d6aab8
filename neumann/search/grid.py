"""The grid of `neumann train -m`: from overrides in Hydra's multirun syntax to a list of overrides for each run.

`a,b`, `range(0,3)`, `glob(*)`, `shuffle(...)` and quoted values are Hydra's: its parser reads them, and they are
multiplied out in the order of its basic sweeper, each value once. `+sweeps=NAME` names a file in sweeps/ (ours or one
under --config-dir) with a grid under `hydra.sweeper.params` and, beside it, settings that are the same for every run.
With `hydra/sweeper=optuna`, on the command line or in the file's defaults list, the same overrides span a space to
search instead (`neumann.search.space`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString

from neumann import compat
from neumann.config.compose import SWEEPS, list_groups, search_path
from neumann.config.keys import refuse_hydra
from neumann.config.override_text import parse_override, refuse_twice
from neumann.config.schema import OPEN_NODES, TEXTS
from neumann.config.yaml_files import read_yaml
from neumann.errors import UserError, did_you_mean
from neumann.search.space import (
    MOST_RUNS,
    SAMPLER,
    SWEEPER,
    Search,
    chosen_sweeper,
    count_values,
    is_sweeper,
    listed_values,
    read_search,
)


def expand(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[list[str]]:
    """Return the overrides of each run of a grid, as `make_specs` takes them.

    Raises UserError where `read_sweep` does, and for a search, whose runs are not known beforehand.
    """
    asked = read_sweep(overrides, config_dirs)
    if isinstance(asked, Search):
        raise UserError(f"{SWEEPER}=optuna chooses its runs as it goes, so they cannot be listed beforehand")
    return asked


def read_sweep(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[list[str]] | Search:
    """Return the overrides of each run of a grid, or the search that is to choose the runs.

    The command line's value of a key replaces the sweep file's. Raises UserError for a sweep file that does not exist
    or cannot be read, a grid without a run in it, and a sweep over settings of the launch, which all runs share.
    """
    groups = list_groups(config_dirs)
    parser = OverridesParser.create(config_loader=_GroupOptions(groups))  # type: ignore[arg-type]
    given = [parse_override(parser, text) for text in overrides]
    files = [o for o in given if o.key_or_group == SWEEPS]
    given = [o for o in given if o.key_or_group != SWEEPS]
    if len(files) > 1 or any(o.is_sweep_override() for o in files):
        raise UserError("one command runs one sweep: give +sweeps=NAME once, with one name")
    said = {o.key_or_group for o in given}
    listed = [o for file in files for o in _read_file(parser, file, groups, config_dirs) if o.key_or_group not in said]
    both = [*listed, *given]
    sweeper = [o for o in both if is_sweeper(o)]
    settings = [o for o in both if not is_sweeper(o)]
    searched = chosen_sweeper(sweeper) == "optuna"
    for override in settings:
        refuse_hydra(override)
        _check_sweep(override, searched)
    if searched:
        return read_search(sweeper, settings)
    if (count := math.prod(count_values(override) for override in settings)) > MOST_RUNS:
        raise UserError(f"the sweep has {count:,} runs, and one command trains at most {MOST_RUNS:,}: split it")
    keyed = {o.get_key_element(): listed_values(o) for o in settings}
    jobs = [[f"{key}={value}" for key, value in zip(keyed, values, strict=True)] for values in product(*keyed.values())]
    if not jobs:
        raise UserError(f"the sweep holds no run: one of its settings has no value in '{' '.join(overrides)}'")
    return jobs


def varying(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the overrides of each run that not all runs share, which tell it from the others."""
    shared = set.intersection(*(set(job) for job in jobs)) if jobs else set()
    return [[override for override in job if override not in shared] for job in jobs]


class _GroupOptions:
    """The config loader that Hydra's parser asks for the options of a group when it meets glob().

    It knows the groups of --config-dir as well.
    """

    def __init__(self, groups: Mapping[str, list[str]]) -> None:
        self._groups = groups

    def get_group_options(self, group_name: str, results_filter: Any = None) -> list[str]:
        """Return the options of a group."""
        if group_name not in self._groups:
            raise UserError(f"glob() lists the options of a group: {did_you_mean(group_name, self._groups)}")
        return self._groups[group_name]


def _check_sweep(override: Override, searched: bool) -> None:
    if not override.is_sweep_override():
        return
    if not override.is_discrete_sweep() and not searched:
        raise UserError(
            f"'{override.input_line}' is a continuous range: list its values, as KEY=A,B or range(A,B,STEP), or add "
            f"{SWEEPER}=optuna to search it"
        )
    if override.key_or_group.split(".")[0] == "launch":
        raise UserError(f"'{override.input_line}': all runs of one command are launched alike, so give one value")


def _read_file(
    parser: OverridesParser, choice: Override, groups: Mapping[str, list[str]], config_dirs: Sequence[str]
) -> Iterator[Override]:
    """Yield the overrides of the sweep file that ``choice`` names: its fixed settings, then its grid.

    Raises UserError where there is no such file, something else in it, or a setting both in its grid and beside it.
    """
    name = choice.value()
    if choice.is_delete() or name not in groups.get(SWEEPS, []):
        raise UserError(f"there is no sweep '{name}': {did_you_mean(str(name), groups.get(SWEEPS, []))}")
    path = next(p for p in (f / SWEEPS / f"{name}.yaml" for f in search_path(config_dirs)) if os.path.lexists(p))
    match read_yaml(path):
        case {"hydra": {"sweeper": {"params": dict() as params, **settings}, **more}, **fixed} if not more:
            pass
        case _:
            raise UserError(f"{path}: a sweep file has its grid under hydra.sweeper.params and nothing else of Hydra")
    for key, value in params.items():
        if isinstance(value, dict) and key.lstrip("+") not in OPEN_NODES:
            inner = next(iter(value), "KEY")
            raise UserError(f"{path}: {key}: {inner} is a section in the grid: write '{key}.{inner}: A,B' there")
    lines = [*_defaults(path, fixed.pop("defaults", [])), *_settings(settings, "hydra.sweeper.")]
    for key, value in [*_leaves(fixed), *params.items()]:
        if key in TEXTS and isinstance(value, bool | float):
            raise UserError(f"{path}: {key}: {value} is not a text: write the text in quotes")
    lines += [*_settings(fixed), *(f"{key}={_text(value)}" for key, value in params.items())]
    try:
        refuse_twice(lines)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for line in lines:
        try:
            override = parse_override(parser, line)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if override.key_or_group == SWEEPS:
            raise UserError(f"{path}: a sweep file cannot name another")
        yield override


def _defaults(path: Path, items: Any) -> Iterator[str]:
    """Yield the sweeper and the sampler that a defaults list chooses. Raises UserError for other groups in it."""
    chosen = {f"override {slash}{group}": group for group in (SWEEPER, SAMPLER) for slash in ("", "/")}
    for item in items if isinstance(items, list) else [items]:
        match item:
            case "_self_":
                pass
            case dict() if len(item) == 1 and next(iter(item)) in chosen:
                ((key, value),) = item.items()
                yield f"{chosen[key]}={_text(value)}"
            case _:
                raise UserError(
                    f"{path}: choose groups in its hydra.sweeper.params, as 'optimizer: sgd', not in a defaults list"
                )


def _text(value: Any) -> str:
    """Return a parameter of the grid as on the command line; a string in the file is Hydra's syntax already."""
    return value if isinstance(value, str) else compat.as_override(_quoted(value))


def _settings(node: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Yield nested settings as overrides, one for each leaf."""
    yield from (f"{key}={compat.as_override(_quoted(value))}" for key, value in _leaves(node, prefix))


def _leaves(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf of nested settings."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _quoted(value: Any) -> Any:
    """Return ``value`` with its strings quoted, so that Hydra's parser reads them as they stand in the YAML."""
    if isinstance(value, str):
        if value.isidentifier() and value.lower() not in ("null", "true", "false", "nan", "inf"):
            return value
        return QuotedString(text=value, quote=Quote.single)
    if isinstance(value, list):
        return [_quoted(child) for child in value]
    if isinstance(value, dict):
        return {key: _quoted(child) for key, child in value.items()}
    return value
