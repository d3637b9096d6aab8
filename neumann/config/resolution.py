"""The step from a composed configuration to a specification: data facts, time scales, values, types and bounds.

Slow parts are done once per distinct section, since a study resolves thousands of configurations.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from neumann.bounds import as_yaml, check_fields, check_plain, is_finite
from neumann.config.global_batch import rate_factor
from neumann.config.hydra_words import interpolation
from neumann.config.launch_settings import SlurmLaunchConfig, whole_paths
from neumann.config.optimizer_bounds import check_optimizer
from neumann.config.precision import OPEN, precision_of
from neumann.config.pretrained_images import filled_in
from neumann.config.schema import (
    CHOSEN_SECTIONS,
    TYPED_SECTIONS,
    BatchConfig,
    RecipeConfig,
    RunConfig,
    TrainerConfig,
    check_values,
    solver_of,
    structured,
)
from neumann.config.signature import sign, signed_part
from neumann.config.spec import RunSpec
from neumann.config.spectral import follows_spectrum, leave_open
from neumann.config.targets import check_target
from neumann.config.time_scales import horizon, steps_per_epoch
from neumann.config.weights import weights_file, weights_of
from neumann.data import DataFacts, facts
from neumann.errors import UserError
from neumann.folders import folder_of

READ_BY_DERIVED = {
    "trainer": ("max_epochs", "check_val_every_n_epoch", "devices", "num_nodes"),
    "batch": tuple(f.name for f in fields(BatchConfig)),
    "recipe": ("lr_scaling", "lr_base_size"),
}

# by what a word is in YAML 1.1 and in Python
MEANT = {"yes": "true", "on": "true", "no": "false", "off": "false", "None": "null"}


class Resolver:
    """Makes specifications of composed configurations."""

    def __init__(self) -> None:
        self._facts: dict[str, DataFacts] = {}
        self._typed: dict[tuple[str, str], Any] = {}
        self._asked: dict[str, tuple[TrainerConfig, BatchConfig, RecipeConfig]] = {}
        self._schema = structured()

    def spec(self, composed: DictConfig, choices: dict[str, str]) -> RunSpec:
        """Return the specification of a composed configuration; changes ``composed`` in place. Raises UserError."""
        try:
            data: Any = OmegaConf.to_container(composed.data, resolve=True)
            filled = filled_in(data, _plain(composed.get("model")))
        except OmegaConfBaseException as error:
            raise UserError(f"data: {interpolation(error)}") from error
        if isinstance(root := data.get("root"), str):
            composed.data.root = data["root"] = folder_of("data.root", root)
        for name, value in filled.items():
            composed.data[name] = data[name] = value
        key = as_text(data)
        if key not in self._facts:
            self._facts[key] = facts(data)
        data_facts = self._facts[key]
        config, left_open = self._config(composed, data_facts)
        values = asdict(config)
        weights = weights_of(values["model"])
        signature = sign(signed_part(values, data_facts, weights))
        return RunSpec(config, data_facts, signature, choices, weights, precision_left_open=left_open)

    def _config(self, composed: DictConfig, data_facts: DataFacts) -> tuple[RunConfig, bool]:
        """Fill in what follows from the data, then replace every interpolation and check every value.

        The second part of what is returned says whether trainer.precision was left to the device.
        """
        try:
            with open_dict(composed):
                composed["derived"] = self._derived(composed, data_facts.train_count)
                composed.batch.size = composed.derived.pop("batch_size")
            # the typed sections are checked before the others, whose interpolations are computed from them
            values = {section: self._value(section, composed) for section in TYPED_SECTIONS}
            check_values(RunConfig(**values))
            trainer = values["trainer"]
            left_open = trainer.precision == OPEN
            trainer.precision = precision_of(trainer.precision, trainer.accelerator, values["launch"])
            values |= {str(key): self._value(str(key), composed) for key in composed if key not in values}
        except OmegaConfBaseException as error:
            raise UserError(interpolation(error)) from error
        for section in CHOSEN_SECTIONS:
            _check_finite(section, values[section])
            check_target(values[section].get("_target_"), f"{section}._target_")
        for section, settings in (("optimizer", values["optimizer"]), ("schedule", values["schedule"])):
            _check_words(section, settings)
            if settings.get("_target_") is None:
                raise UserError(f"{section} has no _target_: its YAML must name a class or a function")
        _check_words("model.kwargs", values["model"].kwargs)
        if follows_spectrum(values["schedule"]):
            leave_open(values["optimizer"], values["recipe"].lr_scaling)
        check_optimizer(values["optimizer"])
        _check_rate(values["optimizer"], values["recipe"])
        values["output"] = folder_of("output", values["output"])
        if isinstance(values["launch"], SlurmLaunchConfig):
            values["launch"] = replace(values["launch"], sbatch=whole_paths(values["launch"].sbatch))
        if (checkpoint := values["model"].checkpoint) is not None:
            values["model"].checkpoint = weights_file(checkpoint, values["output"])
        config = RunConfig(**values)
        check_values(config)
        return config, left_open

    def _derived(self, composed: DictConfig, train_count: int) -> dict[str, Any]:
        """Return the section ``derived``, and with it ``batch_size``, the global batch after rounding."""
        trainer, batch, recipe = self._known(composed)
        steps_per_epoch(batch.size, train_count)  # refuses a batch that is too large, whatever its split
        for section, name in ((trainer, "trainer"), (batch, "batch"), (recipe, "recipe")):
            check_fields(section, f"{name}.")
        solver = solver_of(batch, trainer)
        split = (solver.rounded if batch.round else solver.split)(batch.size, train_count)
        return {
            **horizon(
                max_epochs=trainer.max_epochs,
                eval_every_epochs=trainer.check_val_every_n_epoch,
                batch_size=split.size,
                train_count=train_count,
            ),
            "batch_size": split.size,
            "asked_batch_size": batch.size,
            "micro_batch": split.micro_batch,
            "accumulation": split.accumulation,
            "rate_factor": rate_factor(recipe.lr_scaling, split.size, recipe.lr_base_size),
        }

    def _known(self, composed: DictConfig) -> tuple[TrainerConfig, BatchConfig, RecipeConfig]:
        """Return the sections that ``derived`` follows from, as far as it does."""
        kinds = {"trainer": TrainerConfig, "batch": BatchConfig, "recipe": RecipeConfig}
        asked = {
            name: {str(key): composed[name][key] for key in composed[name] if key in READ_BY_DERIVED[name]}
            for name in kinds
        }
        known = as_text(asked)
        if known not in self._asked:
            for name, kind in kinds.items():
                check_plain(asked[name], kind, f"{name}.")
            made = (OmegaConf.to_object(OmegaConf.merge(self._schema[name], asked[name])) for name in kinds)
            self._asked[known] = tuple(made)  # type: ignore[assignment]
        return self._asked[known]

    def _value(self, key: str, composed: DictConfig) -> Any:
        """Return a section or a setting with its interpolations replaced and its types those of the schema."""
        value = composed[key]
        plain: Any = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        known = key, as_text(plain)
        if known not in self._typed:
            if OmegaConf.is_config(self._schema[key]):
                schema = structured(plain) if key == "launch" else self._schema
                if key in TYPED_SECTIONS:
                    check_plain(plain, type(OmegaConf.to_object(schema[key])), f"{key}.")
                self._typed[known] = OmegaConf.to_object(OmegaConf.merge(schema[key], plain))
            else:
                check_plain({key: plain}, RunConfig)
                self._schema[key] = plain
                self._typed[known] = self._schema[key]
        return copy.deepcopy(self._typed[known])


def as_text(value: Any) -> str:
    """Return plain data as canonical text, for use as a cache key."""
    return json.dumps(value, sort_keys=False, default=repr)


def _check_rate(optimizer: Mapping[str, Any], recipe: RecipeConfig) -> None:
    """Refuse to scale the rate of an optimizer whose YAML has none."""
    rate = optimizer.get("lr")
    if recipe.lr_scaling != "none" and (isinstance(rate, bool) or not isinstance(rate, int | float)):
        raise UserError(
            f"recipe.lr_scaling={recipe.lr_scaling} scales optimizer.lr, which is {as_yaml(rate)}: give the optimizer "
            "an lr, or choose recipe.lr_scaling=none"
        )


def _plain(section: Any) -> dict[str, Any]:
    """Return a section of a composed configuration as it is written, empty where there is none."""
    found: Any = OmegaConf.to_container(section) if section is not None else {}
    return found if isinstance(found, dict) else {}


def _check_words(where: str, value: Any) -> None:
    """Refuse words that are true, false or nothing elsewhere: a text is true to the code that gets it, `no` as well."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            _check_words(f"{where}.{key}", child)
    elif isinstance(value, list | tuple):
        for child in value:
            _check_words(where, child)
    elif isinstance(value, str) and (meant := MEANT.get(value if value == "None" else value.lower())) is not None:
        raise UserError(f"{where}={value} is a text here: write {meant}")


def _check_finite(where: str, value: Any) -> None:
    """Refuse nan and inf: JSON, and so a signature, has neither, and none of these settings means anything at them."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            _check_finite(f"{where}.{key}", child)
    elif isinstance(value, list | tuple):
        for child in value:
            _check_finite(where, child)
    elif isinstance(value, int | float) and not is_finite(value):
        raise UserError(f"{where}={value} is not a finite number")
