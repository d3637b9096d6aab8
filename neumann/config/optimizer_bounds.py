"""Bounds of the settings of torch's and timm's optimizers, whose constructors let through what cannot train.

torch.optim.SGD takes momentum=5, Adam three betas, and timm's Lars a negative trust_coeff. Our own optimizers check
theirs themselves (`neumann.optim.argument_checks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neumann.bounds import Bounds, as_yaml, check_kind
from neumann.errors import UserError

SHARE = Bounds(at_least=0, below=1)
NOT_NEGATIVE = Bounds(at_least=0)
POSITIVE = Bounds(above=0)
COMMON = {"lr": NOT_NEGATIVE, "eps": NOT_NEGATIVE, "weight_decay": NOT_NEGATIVE}
ADAM = COMMON | {"betas": (SHARE, SHARE)}

# by target in lower case, as optimizer=torch and optimizer=timm take a name in any case; a tuple: bounds of a list
BOUNDS: dict[str, dict[str, Bounds | tuple[Bounds, ...]]] = {
    "torch.optim.sgd": {**COMMON, "momentum": SHARE, "dampening": SHARE},
    "torch.optim.adam": {**ADAM},
    "torch.optim.adamw": {**ADAM},
    "torch.optim.nadam": {**ADAM},
    "torch.optim.radam": {**ADAM},
    "torch.optim.adamax": {**ADAM},
    "torch.optim.rmsprop": {**COMMON, "momentum": SHARE, "alpha": SHARE},
    "timm.optim.rmsproptf": {**COMMON, "momentum": SHARE, "alpha": SHARE},
    "timm.optim.lars": {**COMMON, "momentum": SHARE, "dampening": SHARE, "trust_coeff": POSITIVE},
    "timm.optim.lamb": {**ADAM, "max_grad_norm": POSITIVE},
}


def check_optimizer(section: Mapping[str, Any]) -> None:
    """Check the settings of an optimizer that is in `BOUNDS`; null is its constructor's to judge. Raises UserError."""
    target, prefix = str(section.get("_target_")), "optimizer."
    settings = {key: value for key, value in section.items() if key != "kwargs"}
    if (package := {"neumann.optimizers.torch": "torch", "neumann.optimizers.timm": "timm"}.get(target)) is not None:
        target = f"{package}.optim.{section.get('name')}"
        free = section.get("kwargs")
        if isinstance(free, Mapping):
            _check(free, target, f"{prefix}kwargs.")
    _check(settings, target, prefix)


def _check(settings: Mapping[str, Any], target: str, prefix: str) -> None:
    for name, bounds in BOUNDS.get(target.lower(), {}).items():
        value = settings.get(name)
        if value is None:
            continue
        key = f"{prefix}{name}"
        if isinstance(bounds, Bounds):
            check_kind(key, value, float)
            bounds.check(key, value)
        elif not isinstance(value, list | tuple) or len(value) != len(bounds):
            raise UserError(f"{key}={as_yaml(value)} is not a list of {len(bounds)} numbers, such as [0.9, 0.999]")
        else:
            for i, (each, bound) in enumerate(zip(value, bounds, strict=True)):
                check_kind(f"{key}[{i}]", each, float)
                bound.check(f"{key}[{i}]", each)
