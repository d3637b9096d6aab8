"""Which run is this? A resolved configuration, the facts of its data, and the signature that names its results."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from neumann.config.compose import CHOSEN_SECTIONS, compose
from neumann.config.schema import RunConfig, check_values
from neumann.data import DataFacts, facts
from neumann.errors import UserError

RESULTS_VERSION = 1  # raise it when a change of the code changes what the same configuration yields

# What may differ between two requests for the same result, and why it cannot change that result. Everything else is
# signed.
NOT_SIGNED: dict[str, str] = {
    "output": "where results are written",
    "study": "the folder they are filed under",
    "name": "what the run is called",
    "logger": "a mirror is only written to",
    "checkpoint": "what is kept afterwards",
    "data.root": "where the images lie; what they are is signed by the fingerprint",
    "data.workers": "order and augmentation are keyed by sample, not by worker",
}


@dataclass(frozen=True)
class RunSpec:
    """One run, fully determined: its configuration, its data and its signature."""

    config: RunConfig
    facts: DataFacts
    signature: str
    choices: dict[str, str]

    @property
    def name(self) -> str:
        """Return what the run is called, from the choices where the user gave no name."""
        if self.config.name:
            return self.config.name
        parts = [self.choices.get(group, group) for group in ("data", "model", "optimizer")]
        for i, (section, key) in enumerate((("data", "root"), ("model", "name"), ("optimizer", "name"))):
            value = self.section(section).get(key)
            if value:  # image_folder, timm and torch say little: the folder's or the model's own name says more
                parts[i] = Path(str(value)).name if key == "root" else str(value).replace("/", "_")
        if "ablation" in self.choices:
            parts.append(self.choices["ablation"])
        return "-".join([*parts, f"s{self.config.seed}"])

    def section(self, name: str) -> dict[str, Any]:
        """Return one section of the resolved configuration as a plain dict."""
        return dict(self.as_dict()[name])

    @property
    def folder(self) -> Path:
        """Return the run's folder, <output>/<study>/<name>-<signature>."""
        return Path(self.config.output) / self.config.study / f"{self.name}-{self.signature}"

    def as_dict(self) -> dict[str, Any]:
        """Return the resolved configuration as plain data."""
        return asdict(self.config)

    def signed(self) -> dict[str, Any]:
        """Return exactly what the signature covers."""
        return signed_part(self.as_dict(), self.facts)


def signed_part(config: Mapping[str, Any], data: DataFacts) -> dict[str, Any]:
    """Return ``config`` without `NOT_SIGNED`, with the data's fingerprint and splits and the version of the results."""
    part = copy.deepcopy(dict(config))
    for dotted in NOT_SIGNED:
        *path, last = dotted.split(".")
        node: Any = part
        for key in path:
            node = node.get(key, {})
        node.pop(last, None)
    identity = {"fingerprint": data.fingerprint, "splits": data.split_digest}
    return {"config": part, "data": identity, "results_version": RESULTS_VERSION}


def sign(part: Mapping[str, Any]) -> str:
    """Return the signature: 12 hex digits over the canonical JSON of ``part``."""
    text = json.dumps(_canonical(part), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _canonical(value: Any) -> Any:
    """Write whole numbers one way, so that ``lr=1`` and ``lr=1.0`` are one run."""
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def make_spec(overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> RunSpec:
    """Compose, check, resolve and sign one run.

    ``overrides`` are Hydra's (``optimizer=sgd``, ``seed=3``), ``config_dirs`` folders with groups of the user's own.
    Raises UserError with one sentence for anything that is wrong with the configuration or the data. Nothing is written
    and torch is not imported.
    """
    composed, choices = compose(overrides, config_dirs)
    data = _resolved_section(composed, "data")
    data_facts = facts(data)
    config = _resolve(composed, data_facts)
    signature = sign(signed_part(asdict(config), data_facts))
    return RunSpec(config=config, facts=data_facts, signature=signature, choices=choices)


def _resolved_section(composed: DictConfig, section: str) -> dict[str, Any]:
    try:
        return dict(OmegaConf.to_container(composed[section], resolve=True))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise UserError(f"{section}: {_sentence(error)}") from error


def _resolve(composed: DictConfig, data_facts: DataFacts) -> RunConfig:
    """Fill in what follows from the data, then replace every interpolation and check every value."""
    fixed = ("batch", "trainer", "recipe", "checkpoint", "logger", "timing", "model")
    typed: Any = OmegaConf.structured(RunConfig)
    try:
        for section in ("trainer", "batch"):
            typed[section] = OmegaConf.merge(typed[section], composed[section])
        steps_per_epoch = data_facts.train_count // typed.batch.size if typed.batch.size > 0 else 0
        if steps_per_epoch < 1:
            raise UserError(
                f"batch.size={typed.batch.size} does not fit the {data_facts.train_count} training images: "
                f"choose from 1 to {data_facts.train_count}"
            )
        with open_dict(composed):
            composed["derived"] = {
                "train_examples": data_facts.train_count,
                "steps_per_epoch": steps_per_epoch,
                "total_steps": _at_least_one(typed.trainer.max_epochs * steps_per_epoch, "trainer.max_epochs"),
                "eval_every_steps": _at_least_one(
                    typed.trainer.check_val_every_n_epoch * steps_per_epoch, "trainer.check_val_every_n_epoch"
                ),
            }
        for section in fixed:  # checked before anything is computed from them
            typed[section] = OmegaConf.merge(typed[section], OmegaConf.to_container(composed[section], resolve=True))
        check_values(OmegaConf.to_object(typed))  # type: ignore[arg-type]
        resolved: Any = OmegaConf.create(OmegaConf.to_container(composed, resolve=True))
        for section in fixed:
            typed[section] = OmegaConf.merge(OmegaConf.structured(RunConfig)[section], resolved[section])
        merged = OmegaConf.merge(typed, {k: v for k, v in resolved.items() if k not in fixed})
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(_sentence(error)) from error
    assert isinstance(config, RunConfig)
    for section in CHOSEN_SECTIONS:
        _check_finite(section, getattr(config, section))
    check_values(config)
    return config


def _at_least_one(steps: float, key: str) -> int:
    if not math.isfinite(steps) or steps <= 0:
        raise UserError(f"{key} is out of range: it must be a number above 0")
    return max(1, round(steps))


def _check_finite(where: str, value: Any) -> None:
    """Refuse nan and inf: they have no place in a signature, and none of these settings means anything at them."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            _check_finite(f"{where}.{key}", child)
    elif isinstance(value, list | tuple):
        for child in value:
            _check_finite(where, child)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}={value} is not a finite number")


def _sentence(error: OmegaConfBaseException) -> str:
    """Turn OmegaConf's message into one sentence that names the key."""
    cause = error.__cause__
    if isinstance(cause, UserError):
        return str(cause)
    text = str(error).splitlines()[0].strip().split("raised while resolving interpolation: ")[-1]
    key = getattr(error, "full_key", None)
    return f"{key}: {text[0].lower()}{text[1:]}" if key else text
