"""The specification of a run: its resolved configuration, the facts of its data, and its signature."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from neumann.config.schema import RunConfig
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
            value = self.section(group).get(key)
            # image_folder, timm and torch say little: the folder's or the model's own name says more
            if group == "data" and str(self.section("data").get("name", "")).lower().startswith("hfds/"):
                parts[i] = _safe(Path(str(self.section("data")["name"])).name) or parts[i]
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

    def as_dict(self) -> dict[str, Any]:
        """Return the resolved configuration as plain data."""
        return asdict(self.config)

    def signed(self) -> dict[str, Any]:
        """Return exactly what the signature covers."""
        return signed_part(self.as_dict(), self.facts, self.weights)

    def at_precision(self, precision: str) -> RunSpec:
        """Return the run that differs in trainer.precision alone."""
        config = replace(self.config, trainer=replace(self.config.trainer, precision=precision))
        signature = sign(signed_part(asdict(config), self.facts, self.weights))
        return replace(self, config=config, signature=signature)

    def as_record(self) -> dict[str, Any]:
        """Return the run's record in JSON types, from which `load_spec` makes the run again. The data stays outside."""
        return {"config": self.as_dict(), "choices": dict(self.choices), "signature": self.signature}


def _safe(name: str) -> str:
    """Return ``name`` as the beginning of a folder's name: no control characters, no dash or dot in front."""
    return printable(name).lstrip("-.")
