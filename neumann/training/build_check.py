"""Trial builds: the parts of many runs built once without their data, to find wrong settings before any run trains."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import nn

from neumann.config import RunSpec
from neumann.errors import UserError
from neumann.processes.ranks import world_size
from neumann.training.instantiate import build_schedule
from neumann.training.parts import build_model_of, build_optimizer_of, check_device, load_start


def wrong_settings(specs: Sequence[RunSpec], *, here: bool = True) -> list[str | None]:
    """Return for each run the sentence that says why it cannot be built on this machine, or None where it can.

    Where it is not trained ``here``, this machine need not have its devices.

    Models are built on the meta device, which takes neither time nor memory for weights, and each distinct one once.
    What fails there is built again on the CPU, whose answer counts: not every model knows the meta device.
    """
    models: dict[str, nn.Module | UserError] = {}
    return [_wrong(spec, models, here) for spec in specs]


def _wrong(spec: RunSpec, models: dict[str, nn.Module | UserError], here: bool) -> str | None:
    try:
        if here:
            check_device(spec)
        build_schedule(spec.config.schedule)
        with contextlib.suppress(UserError), torch.device("meta"):
            build_optimizer_of(spec, _model(spec, models, "meta"))
            return None
        build_optimizer_of(spec, _model(spec, models, "cpu"))
    except UserError as error:
        return str(error)
    return None


def _model(spec: RunSpec, models: dict[str, nn.Module | UserError], device: str) -> nn.Module:
    """Return the run's model on ``device``; ``models`` holds those that were made, and why others were not."""
    facts = spec.facts
    batch = asdict(spec.config.batch)
    fitted = facts.channels, facts.num_classes, facts.image_size, world_size(spec), batch
    recipe = spec.config.recipe.recalibrate_batch_norm
    key = json.dumps([device, spec.section("model"), recipe, fitted], default=str)
    if key not in models:
        try:
            model = build_model_of(spec)
            load_start(spec, model)
            models[key] = model
        except UserError as error:
            models[key] = error
    made = models[key]
    if isinstance(made, UserError):
        raise made
    return made
