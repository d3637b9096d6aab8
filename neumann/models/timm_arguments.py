"""The settings of timm's factory that say which weights a network begins at, and what is left for the network.

timm has five of them beside those of each network. Every room that has to know them reads them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neumann.errors import UserError

SOURCES = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # where pretrained weights are looked for
WEIGHTS = ("pretrained", "checkpoint_path", *SOURCES)


def names_a_file(kwargs: Mapping[str, Any]) -> bool:
    """Return whether ``kwargs`` may name a file of weights, rather than those that timm would fetch."""
    return any(kwargs.get(key) for key in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"))


def without_weights(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the network alone, which then begins at random weights."""
    return {key: value for key, value in kwargs.items() if key not in WEIGHTS}


def check_weights(kwargs: Mapping[str, Any]) -> None:
    """Raise UserError where timm would take a setting of ``WEIGHTS`` and load nothing by it."""
    if kwargs.get("pretrained"):
        if kwargs.get("checkpoint_path"):
            raise UserError(
                "model.kwargs.pretrained and model.kwargs.checkpoint_path both name weights to start from, and timm "
                "would keep the second: leave one out"
            )
        return
    for key in SOURCES:
        if kwargs.get(key):
            raise UserError(
                f"model.kwargs.{key} says where pretrained weights are, and none are loaded without "
                "+model.kwargs.pretrained=true: add it, or leave the other out"
            )


def own_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``settings``, timm's arguments for the model ``name``, that are meant for its class.

    timm's factory gives every model arguments on pretrained weights, which are None where the user gave none.

    Raises UserError for ``pretrained``: our own models have no pretrained weights.
    """
    if settings.get("pretrained"):
        raise UserError(f"model.kwargs.pretrained=true: {name} has no pretrained weights")
    return {
        key: value
        for key, value in settings.items()
        if key != "pretrained" and (key not in WEIGHTS or value is not None)
    }
