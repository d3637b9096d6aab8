"""The public names of our own functions that a YAML may give as ``_target_``.

A target is part of the signature, so it must not change when a file moves. `TARGETS` says where the function of each
public name is today. Optimizers need no line: the classes that `neumann.optim` exports are public as they are.
"""

from __future__ import annotations

import re
from typing import Any

from neumann.bounds import as_yaml
from neumann.errors import UserError, did_you_mean

TARGETS = {
    "neumann.schedules.constant": "neumann.training.rate_schedules.constant",
    "neumann.schedules.cosine": "neumann.training.rate_schedules.cosine",
    "neumann.schedules.exponential": "neumann.training.rate_schedules.exponential",
    "neumann.schedules.spectral": "neumann.training.rate_schedules.spectral",
    "neumann.schedules.synchronous": "neumann.training.rate_schedules.synchronous",
    "neumann.optimizers.two_loop_neumann": "neumann.training.optimizers.two_loop_neumann",
    "neumann.optimizers.timm": "neumann.training.optimizers.timm_optimizer",
    "neumann.optimizers.torch": "neumann.training.optimizers.torch_optimizer",
}
EXPORTED = re.compile(r"neumann\.optim\.[A-Z]\w*")  # an optimizer by its public name


def check_target(target: Any, where: str) -> None:
    """Refuse a name of ours that is not public, such as the path of a module, which moves with the file.

    ``where`` is the key of the setting. Names outside ``neumann`` pass. Raises UserError with the nearest public name.
    """
    if target is not None and not isinstance(target, str):
        raise UserError(f"{where}={as_yaml(target)} is not the dotted name of a class or a function")
    if target is None or not target.startswith("neumann."):
        return
    if target in TARGETS or EXPORTED.fullmatch(target):
        return
    public = {place: name for name, place in TARGETS.items()}.get(target)
    optimizer = f"neumann.optim.{target.rpartition('.')[2]}"
    if public is None and target.startswith("neumann.optim.") and EXPORTED.fullmatch(optimizer):
        public = optimizer
    near = f"write {public}" if public else did_you_mean(target, TARGETS)
    raise UserError(f"{where}={target} is not a public name of neumann: {near}")


def place_of(target: str) -> str:
    """Return where the function called ``target`` is imported from."""
    return TARGETS.get(target, target)
