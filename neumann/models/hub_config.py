"""The config.json by which timm makes a network of a folder: ``timm.create_model("local-dir:…", pretrained=True)``.

The layout is that of timm's `save_for_hf`, which writes it only for networks of timm's own: ``architecture`` and
``model_args`` make the network, ``pretrained_cfg`` says how its images are prepared and what its classes are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
from torch import nn


def in_timm(name: str) -> bool:
    """Return whether timm alone makes the network ``name``, which a package of ours or the user's may have added."""
    return str(timm.model_entrypoint(name).__module__).partition(".")[0] == "timm"


def hub_config(
    model: nn.Module,
    name: str,
    arguments: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    input_size: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float,
    interpolation: str,
) -> dict[str, Any]:
    """Return the content of config.json.

    Args:
        model: the network.
        name: its name in timm's registry.
        arguments: what timm makes it of, beside the number of classes.
        class_names: by class index.
        input_size: (channels, height, width).
        mean: per channel, images in [0, 1].
        std: as ``mean``.
        crop_pct: the side of the centre cut, as a fraction of the scaled image.
        interpolation: of the scaling, as timm calls it.
    """
    own = getattr(model, "pretrained_cfg", None) or {}
    return {
        "architecture": name.partition(".")[0],
        "num_classes": len(class_names),
        "num_features": getattr(model, "num_features", None),
        "model_args": dict(arguments),
        "label_names": list(class_names),
        "pretrained_cfg": {
            "tag": "neumann",
            "custom_load": False,
            "input_size": list(input_size),
            "fixed_input_size": bool(own.get("fixed_input_size", False)),
            "interpolation": interpolation,
            "crop_pct": crop_pct,
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": len(class_names),
            "pool_size": None,
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
        },
    }
