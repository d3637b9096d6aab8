"""Sweep as a file for `wandb sweep`, whose agents start single runs of `neumann train`.

A grid keeps its values; a search (`hydra/sweeper=optuna`) becomes W&B's own: bayes for TPE, random for random.
Overrides that are the same for every run stand in the command, word for word. A value keeps its type where the agent
passes it on unchanged, and is a string in Hydra's syntax otherwise: an agent writes null as `None`, which Hydra would
read as a string.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser

from neumann.config import make_specs
from neumann.config.override_text import key_of
from neumann.config.schema import OPEN_NODES, TEXTS
from neumann.errors import UserError
from neumann.search.grid import read_sweep
from neumann.search.space import SAMPLER, SAMPLERS, Choices, Interval, Search
from neumann.store.scores import OBJECTIVE

METHODS = {"tpe": "bayes", "random": "random"}


def sweep_file(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> str:
    """Return the YAML of the sweep that ``neumann train -m`` would run with the same overrides.

    Every run of a grid is composed, and the corners of a search. Raises UserError where one of them is wrong, where
    logger=none would report nothing to W&B, and where W&B has no such sweep.
    """
    asked = read_sweep(overrides, config_dirs)
    specs = make_specs(asked.corners() if isinstance(asked, Search) else asked, config_dirs)
    if any(spec.config.logger.kind == "none" for spec in specs):
        raise UserError("logger=none: a W&B sweep gets its metrics from the mirror, so leave the logger as it is")
    if isinstance(asked, Search):
        method, fixed, parameters = _searched(asked)
        runs = f"{asked.n_trials} runs at most"
    else:
        method, fixed, parameters = _grid(asked)
        runs = f"{len({spec.signature for spec in specs})} runs"
    if not parameters:
        raise UserError("the sweep has one run: give a setting several values, as KEY=A,B")
    logger = specs[0].config.logger
    folders = [word for folder in config_dirs for word in ("--config-dir", folder)]
    content: dict[str, Any] = {"program": "neumann", "name": specs[0].config.study, "project": logger.project}
    content |= {"entity": logger.entity} if logger.entity else {}
    content |= {"method": method, "metric": {"name": OBJECTIVE, "goal": "minimize"}}
    content |= {"run_cap": asked.n_trials} if isinstance(asked, Search) else {}
    fixed = [word for word in fixed if key_of(word) != "logger.mode"]
    content["command"] = ["neumann", "train", *folders, *fixed, "logger.mode=online", "${args_no_hyphens}"]
    content["parameters"] = parameters
    head = (
        f"# A W&B sweep of {runs}, made by: {shlex.join(['neumann', 'wandb-sweep', *folders, *overrides])}\n"
        "# `wandb sweep FILE` registers it and prints the `wandb agent` command; start that here, once for every run\n"
        "# that is to train at once. Both need the network and `wandb login`: the runs log with logger.mode=online.\n"
        f"# {OBJECTIVE} is the validation error at the eval point after the last step, 1 where the run diverged.\n"
    )
    return head + str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10_000))


def _grid(runs: Sequence[Sequence[str]]) -> tuple[str, list[str], dict[str, Any]]:
    """Return W&B's method, the fixed overrides and the parameters of a grid.

    Every run of a grid sets the same keys, in the same order.
    """
    columns = [list(dict.fromkeys(column)) for column in zip(*runs, strict=True)]
    fixed = [words[0] for words in columns if len(words) == 1]
    parameters = {}
    for words in columns:
        if len(words) > 1:
            key = words[0].split("=", 1)[0]
            parameters[_name(key)] = {"values": [_value(key, word.split("=", 1)[1]) for word in words]}
    return "grid", fixed, parameters


def _searched(search: Search) -> tuple[str, list[str], dict[str, Any]]:
    """Return W&B's method, the fixed overrides and the parameters of a search. Raises UserError as `sweep_file`."""
    if search.sampler not in METHODS:
        raise UserError(f"{SAMPLER}={search.sampler}: W&B has no such search, choose {SAMPLER}=tpe or random")
    if len(search.seeds) > 1:
        raise UserError("W&B judges every run by itself, so a search there cannot average over seeds: give one seed")
    if search.n_jobs is not None:
        raise UserError("hydra.sweeper.n_jobs has no meaning for W&B: as many runs train at once as there are agents")
    other = [key for key, value in search.settings.items() if value != SAMPLERS[search.sampler][key]]
    if other:
        raise UserError(f"hydra.sweeper.sampler.{other[0]} has no meaning for W&B, which has a sampler of its own")
    parameters = {_name(key): _parameter(key, dimension) for key, dimension in search.space.items()}
    return METHODS[search.sampler], [*search.fixed, *(f"seed={seed}" for seed in search.seeds)], parameters


def _parameter(key: str, dimension: Interval | Choices) -> dict[str, Any]:
    if isinstance(dimension, Choices):
        return {"values": [_value(key, text) for text in dimension.values]}
    if dimension.integer and dimension.log:
        raise UserError(f"'{dimension.line}': W&B has no logarithmic interval of whole numbers, so list its values")
    name = "int_uniform" if dimension.integer else "log_uniform_values" if dimension.log else "uniform"
    return {"distribution": name, "min": dimension.low, "max": dimension.high}


def _name(key: str) -> str:
    """Return a parameter's name: W&B's sweep file needs no plus before a free-form setting."""
    return key.lstrip("+") if key.lstrip("+").startswith(tuple(f"{node}." for node in OPEN_NODES)) else key


def _value(key: str, text: str) -> Any:
    """Return the value of Hydra's ``text`` where the agent passes it on unchanged, else ``text``."""
    if key in TEXTS:
        return text
    value = OverridesParser.create().parse_override(f"x={text}").value()
    plain = isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else text
