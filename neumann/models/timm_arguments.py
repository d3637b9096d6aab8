"""The arguments that timm's factory gives to a model of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neumann.errors import UserError


def own_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``settings``, timm's arguments for the model ``name``, that are meant for its class.

    timm's factory gives every model arguments on pretrained weights, which are None where the user gave none.

    Raises UserError for ``pretrained``: our own models have no pretrained weights.
    """
    if settings.get("pretrained"):
        raise UserError(f"model.kwargs.pretrained=true: {name} has no pretrained weights")
    by_timm = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    return {
        key: value
        for key, value in settings.items()
        if key != "pretrained" and (key not in by_timm or value is not None)
    }
