"""The images that pretrained weights were made with: size, interpolation, centre cut, mean and standard deviation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm.data
from timm.models import get_pretrained_cfg

import neumann.models.classifiers  # noqa: F401 - registers our own models with timm


@dataclass(frozen=True)
class WeightsInput:
    """What pretrained weights expect of an image.

    Args:
        image_size: (height, width) in pixels.
        interpolation: of the change to this size, as timm calls it.
        crop_pct: the side of evaluation's centre cut over the scaled image's.
        mean: per channel, of red, green and blue, in units of the full pixel range.
        std: as ``mean``.
    """

    image_size: tuple[int, int]
    interpolation: str
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of_channels(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and std for images of ``channels``; of grey ones the means over RGB, as timm sums the weights."""
        if channels == len(self.mean):
            return self.mean, self.std
        return (sum(self.mean) / len(self.mean),), (sum(self.std) / len(self.std),)


def input_of_weights(name: str, kwargs: Mapping[str, Any]) -> WeightsInput | None:
    """Return what the pretrained weights of timm's model ``name`` expect, None where timm knows none.

    ``kwargs`` are the model's: ``pretrained_cfg`` names other weights, ``pretrained_cfg_overlay`` replaces single
    values, and ``img_size`` is a transformer's size.
    """
    tag, overlay = kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
    if isinstance(tag, Mapping):
        known: dict[str, Any] = dict(tag)
    else:
        try:
            found = get_pretrained_cfg(f"{name}.{tag}" if isinstance(tag, str) else name)
        except RuntimeError:  # an unknown tag, which building the model refuses
            return None
        if found is None:
            return None
        known = found.to_dict()
    known |= dict(overlay) if isinstance(overlay, Mapping) else {}
    config = timm.data.resolve_data_config(pretrained_cfg=known)
    side = kwargs.get("img_size")
    height, width = (side, side) if isinstance(side, int) else config["input_size"][1:]
    return WeightsInput(
        image_size=(int(height), int(width)),
        interpolation=str(config["interpolation"]),
        crop_pct=float(config["crop_pct"]),
        mean=tuple(map(float, config["mean"])),
        std=tuple(map(float, config["std"])),
    )
