"""Images as pretrained weights expect them: what the user leaves open in the data's settings is filled in.

The filled-in values are recorded and signed like the user's own. timm is imported for pretrained models alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neumann.data import settings
from neumann.data.checked_settings import parse
from neumann.errors import UserError, did_you_mean


def filled_in(data: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``data`` that are null and follow from the pretrained weights of ``model``.

    Empty where the model has none, and for a kind whose images keep their size. Raises UserError for an interpolation
    that is not ours, and for wrong settings of the data.
    """
    kwargs = model.get("kwargs")
    if not isinstance(kwargs, Mapping) or not kwargs.get("pretrained"):
        return {}
    wanted = parse(data)
    if not isinstance(wanted, settings.ImageFolder | settings.TorchvisionSet):
        return {}
    from neumann.models.input_of_weights import input_of_weights

    found = input_of_weights(str(model.get("name")), kwargs)
    if found is None:
        return {}
    answer: dict[str, Any] = {}
    if wanted.image_size is None:
        height, width = found.image_size
        answer["image_size"] = height if height == width else [height, width]
    if wanted.interpolation is None:
        if found.interpolation not in settings.INTERPOLATIONS:
            raise UserError(
                f"the weights of model.name={model.get('name')} were made with interpolation {found.interpolation}: "
                f"say data.interpolation; {did_you_mean(found.interpolation, settings.INTERPOLATIONS)}"
            )
        answer["interpolation"] = found.interpolation
    if wanted.crop_pct is None:
        answer["crop_pct"] = found.crop_pct
    if wanted.mean is None:
        mean, std = found.of_channels(wanted.channels)
        answer |= {"mean": list(mean), "std": list(std)}
    return answer
