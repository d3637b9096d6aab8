"""The specification of a run: its resolved configuration, the facts of its data, and its signature."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from neumann.config.schema import LoggerConfig, RunConfig
from neumann.config.signature import sign, signed_part
from neumann.data import DataFacts
from neumann.errors import printable


@dataclass(frozen=True)
class RunSpec:
    """One run, fully determined.

    ``config`` is resolved: no interpolation is left and every value is checked. ``facts`` describe the data,
    ``weights`` are digests of the local files that the model starts from (`neumann.config.weights`). ``signature`` is
    that of all three (see `neumann.config.signature`), and ``choices`` is {group: chosen option}, which only names the
    run. ``precision_left_open`` says that nobody named trainer.precision, so that another device has another one.
    """

    config: RunConfig
    facts: DataFacts
    signature: str
    choices: dict[str, str]
    weights: Mapping[str, str] = field(default_factory=dict)
    precision_left_open: bool = field(default=False, compare=False)  # of the command, not of the run

    @cached_property
    def name(self) -> str:
        """The run's name: the user's, or data-model-optimizer[-ablation]-sSEED after the choices.

        No part is empty, and none begins with a dash, which a command would take for an option, or a dot, which hides a
        folder.
        """
        if self.config.name:
            return self.config.name
        parts = [self.choices.get(group, group) for group in ("data", "model", "optimizer")]
        for i, (group, key) in enumerate((("data", "root"), ("model", "name"), ("optimizer", "name"))):
            value = self.plain[group].get(key)
            # image_folder, timm and torch say little: the folder's or the model's own name says more
            if group == "data" and str(self.plain["data"].get("name", "")).lower().startswith("hfds/"):
                parts[i] = _safe(Path(str(self.plain["data"]["name"])).name) or parts[i]
            elif value and (key != "root" or self.facts.kind in ("image_folder", "timm")):
                own = os.path.basename(os.path.abspath(value)) if key == "root" else str(value).replace("/", "_")
                parts[i] = _safe(own) or parts[i]
        if "ablation" in self.choices:
            parts.append(self.choices["ablation"])
        return "-".join([*parts, f"s{self.config.seed}"])

    def section(self, name: str) -> dict[str, Any]:
        """Return one section of the resolved configuration as a plain dict."""
        return dict(self.as_dict()[name])

    @cached_property
    def folder(self) -> Path:
        """The run's folder, <output>/<study>/<name>-<signature>."""
        return Path(self.config.output) / self.config.study / f"{self.name}-{self.signature}"

    @cached_property
    def plain(self) -> Mapping[str, Any]:
        """The resolved configuration as plain data, made once: to be read, while `as_dict` is the caller's own."""
        return asdict(self.config)

    @cached_property
    def signed_json(self) -> Mapping[str, Any]:
        """What the signature covers as signed.json has it, in JSON types, made once: to be read alone."""
        found: dict[str, Any] = json.loads(json.dumps(self.signed(), allow_nan=False))
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the resolved configuration as plain data."""
        return asdict(self.config)

    def signed(self) -> dict[str, Any]:
        """Return exactly what the signature covers."""
        return signed_part(self.plain, self.facts, self.weights)

    def with_logger(self, logger: LoggerConfig) -> RunSpec:
        """Return the same run with another ``logger``, which is not signed."""
        made = replace(self, config=replace(self.config, logger=logger))
        plain = {**self.plain, "logger": asdict(logger)}
        made.__dict__.update(plain=plain, signed_json=self.signed_json)
        return made

    def at_seed(self, seed: int) -> RunSpec:
        """Return the same run at another seed: studies vary the seed most, and composing takes a hundred times as long.

        The two share every section of their configurations, which nothing changes.
        """
        plain = {**self.plain, "seed": seed}
        signed = {**self.signed_json, "config": {**self.signed_json["config"], "seed": seed}}
        made = replace(self, config=replace(self.config, seed=seed), signature=sign(signed))
        made.__dict__.update(plain=plain, signed_json=signed)  # a frozen dataclass, and these are cached properties
        return made

    def at_precision(self, precision: str) -> RunSpec:
        """Return the run that differs in trainer.precision alone."""
        config = replace(self.config, trainer=replace(self.config.trainer, precision=precision))
        signed = dict(self.signed_json)
        signed["config"] = {**signed["config"], "trainer": {**signed["config"]["trainer"], "precision": precision}}
        return replace(self, config=config, signature=sign(signed))

    def as_record(self) -> dict[str, Any]:
        """Return the run's record in JSON types, from which `load_spec` makes the run again. The data stays outside."""
        return {"config": self.as_dict(), "choices": dict(self.choices), "signature": self.signature}


def _safe(name: str) -> str:
    """Return ``name`` as the beginning of a folder's name: no control characters, no dash or dot in front."""
    return printable(name).lstrip("-.")
