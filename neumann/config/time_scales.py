"""How do epochs in a YAML become steps? By two resolvers, usable in anybody's YAML.

``${steps:X}`` is X epochs in optimizer steps, ``${share:X}`` the share X of the run in epochs. Both read the
configuration they stand in, so they follow the data set, the batch size and the horizon.
"""

from __future__ import annotations

import math

from omegaconf import DictConfig, OmegaConf

from neumann.errors import UserError


def steps(epochs: float | None, *, _root_: DictConfig) -> int | None:
    """Return ``epochs`` in whole optimizer steps, at least one unless ``epochs`` is zero; None stays None."""
    if epochs is None:
        return None
    if isinstance(epochs, bool) or not isinstance(epochs, int | float) or not 0 <= epochs < math.inf:
        raise UserError(f"${{steps:{epochs}}} is not a number of epochs: write a number from 0 up")
    return max(1, round(epochs * _root_.derived.steps_per_epoch)) if epochs > 0 else 0


def share(part: float, *, _root_: DictConfig) -> float:
    """Return ``part`` of the run, in epochs."""
    return part * float(_root_.trainer.max_epochs)


def register_resolvers() -> None:
    """Make ``${steps:}`` and ``${share:}`` known to OmegaConf; asking again changes nothing."""
    OmegaConf.register_new_resolver("steps", steps, replace=True)
    OmegaConf.register_new_resolver("share", share, replace=True)
