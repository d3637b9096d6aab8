"""The settings of an optimizer that schedule=spectral gives it in training, which a run's configuration leaves open.

They are null in the resolved configuration, so that two runs that differ in nothing else are one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neumann.config.override_text import key_of
from neumann.errors import UserError

SPECTRAL = "neumann.schedules.spectral"

# By target: the settings that follow the spectrum, each with the value that the optimizer is built with, which the
# first measurement replaces before the first step.
FOLLOWING: dict[str, dict[str, float]] = {
    "neumann.optim.Neumann": {"lr": 1.0, "momentum": 0.0, "momentum_unit": 1.0},
    "neumann.optimizers.two_loop_neumann": {"lr": 1.0, "lr_in": 1.0, "mu": 0.0},
    "neumann.optim.NesterovInner": {"lr": 1.0},
    "neumann.optim.BurnInSGD": {"lr": 1.0},
    "torch.optim.SGD": {"lr": 1.0},
}
TIMES = {"momentum_unit": "timing.momentum_unit"}  # the time scales that such settings are made of


def follows_spectrum(schedule: Mapping[str, Any]) -> bool:
    """Return whether a schedule's section is that of schedule=spectral."""
    return schedule.get("_target_") == SPECTRAL


def followed(optimizer: Mapping[str, Any]) -> dict[str, float]:
    """Return the settings of an optimizer's section that follow the spectrum, with what it is built with.

    Raises UserError for an optimizer whose rate is no multiple of 1/λ_max.
    """
    target = optimizer.get("_target_")
    if target not in FOLLOWING:
        name = str(optimizer.get("name") or str(target).rpartition(".")[2])
        raise UserError(
            f"schedule=spectral sets the rate to 1/λ_max, which is that of a plain gradient step, and {name} scales "
            "its steps by itself or is not known to take such: choose optimizer=neumann, two_loop_neumann, sgd, "
            "nesterov, nesterov_inner or sgd_burn_in, or another schedule"
        )
    return FOLLOWING[target]


def leave_open(optimizer: dict[str, Any], lr_scaling: str) -> None:
    """Set the settings of ``optimizer``'s section that follow the spectrum to null. Raises UserError as `followed`.

    So does a rule that would scale the rate with the batch: λ_max is measured on the batch as it is.
    """
    names = followed(optimizer)
    if lr_scaling != "none":
        raise UserError(
            f"recipe.lr_scaling={lr_scaling} scales optimizer.lr, and schedule=spectral measures the rate on the batch "
            "as it is: choose recipe.lr_scaling=none"
        )
    optimizer.update(dict.fromkeys(names))


def refuse_given(optimizer: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raise UserError where ``overrides`` set what follows the spectrum, so that nothing given is ignored."""
    names = followed(optimizer)
    keys = {f"optimizer.{name}" for name in names} | {TIMES[name] for name in names if name in TIMES}
    for word in overrides:
        if key_of(word) in keys:
            raise UserError(
                f"'{word}' has no effect with schedule=spectral, which measures it as the run trains: leave it out, or "
                "choose another schedule"
            )
