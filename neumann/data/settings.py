"""The settings of the `data` group of the configuration: one frozen dataclass per kind, checked before any reading.

The fields and defaults are those of conf/data/*.yaml; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

from neumann.bounds import check_fields, choice, number
from neumann.errors import UserError, did_you_mean

AUGMENTATIONS = ("none", "crop", "crop_flip", "random_resized_crop")
MISSING = "???"  # OmegaConf's mark for a value that the user has not given yet
SPOILS_DIGITS = {  # augmentations that digits do not survive, and why
    "crop_flip": "mirrors the image and a mirrored digit is not a digit",
    "random_resized_crop": "leaves too little of an 8×8 digit (and mirrors it)",
}


@dataclass(frozen=True)
class Digits:
    """scikit-learn's embedded 8×8 digits.

    Args:
        split_seed: seed of the cut into training, validation and test images.
        augmentation: one of `AUGMENTATIONS` that is not in `SPOILS_DIGITS`.
    """

    split_seed: int = number(0, at_least=0)
    augmentation: str = choice("none", *AUGMENTATIONS)


@dataclass(frozen=True)
class ImageFolder:
    """A folder of class folders, with or without train/, val/ and test/ above them.

    Args:
        root: path of the folder.
        image_size: (height, width) in pixels; None: the images' own where they share one.
        channels: 1 (grey) or 3 (RGB).
        val_fraction: share of the images that are not test, where there is no val/ beside test/.
        test_fraction: share of all images, where there is neither val/ nor test/.
        split_seed: seed of these cuts.
        augmentation: one of `AUGMENTATIONS`.
        in_memory: whether images are decoded once and held on the device; None: by size.
        mean: per channel, in units of the full pixel range (0 to 1); None: the data set's own.
        std: as ``mean``, every value above 0; given together with it.
        workers: processes that decode images; 0 decodes in the process that trains.
    """

    root: str = MISSING
    image_size: tuple[int, int] | None = None
    channels: int = 3
    val_fraction: float = number(0.1, above=0, below=1)
    test_fraction: float = number(0.2, above=0, below=1)
    split_seed: int = number(0, at_least=0)
    augmentation: str = choice("none", *AUGMENTATIONS)
    in_memory: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int = number(2, at_least=0)


KINDS: dict[str, type[Digits] | type[ImageFolder]] = {"digits": Digits, "image_folder": ImageFolder}


def parse(data: Mapping[str, Any]) -> Digits | ImageFolder:
    """Return the checked settings of ``data``, a mapping with ``kind`` and the settings of that kind.

    Raises UserError naming the key and what it may be.
    """
    given = dict(data)
    kind = given.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f"data.kind={kind} is not a choice: {did_you_mean(str(kind), KINDS)}")
    known = [field.name for field in fields(KINDS[kind])]
    for key in given:
        if key not in known:
            raise UserError(f"data={kind} has no setting '{key}': {did_you_mean(str(key), known)}")
    if kind == "image_folder":
        given["root"] = _root(given.get("root"))
    wanted = KINDS[kind](**given)
    check_fields(wanted, "data.")
    if isinstance(wanted, ImageFolder):
        return _per_image(wanted)
    if (why := SPOILS_DIGITS.get(wanted.augmentation)) is not None:
        raise UserError(f"data.augmentation={wanted.augmentation} {why}: use crop")
    return wanted


def _root(value: Any) -> str:
    if value is None or str(value) in (MISSING, ""):
        raise UserError("data.root is missing: give the folder of the images, as data.root=/path/to/folder")
    return str(value)


def _per_image(given: ImageFolder) -> ImageFolder:
    """Return ``given`` with the settings that are lists checked, and as tuples."""
    if given.channels not in (1, 3):
        raise UserError(f"data.channels={given.channels} is not a choice: images have 1 channel (grey) or 3 (RGB)")
    mean, std = (_per_channel(getattr(given, name), name, given.channels) for name in ("mean", "std"))
    if (mean is None) != (std is None):
        raise UserError("data.mean and data.std go together: give both or neither")
    if std is not None and min(std) <= 0:
        raise UserError(f"data.std={list(std)} is out of range: every value must be above 0")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and not 0 <= min(values) <= max(values) <= 1:
            bytes_ = f", so for bytes divide by 255: {[round(value / 255, 4) for value in values]}"
            raise UserError(
                f"data.{name}={list(values)} is out of range: its unit is the full pixel range, 0 to 1"
                f"{bytes_ if 0 <= min(values) <= max(values) <= 255 else ''}"
            )
    return replace(given, image_size=_image_size(given.image_size), mean=mean, std=std)


def _image_size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = _as_list(value, 2)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise UserError(f"data.image_size={value} is not a size: it is null, a number of pixels, or [height, width]")
    return sides[0], sides[1]


def _per_channel(value: Any, name: str, channels: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    numbers = _as_list(value, 1)
    if len(numbers) != channels or any(isinstance(n, bool) or not isinstance(n, Real) for n in numbers):
        raise UserError(f"data.{name}={value} does not fit: it is null or {channels} number(s), one per channel")
    return tuple(float(n) for n in numbers)


def _as_list(value: Any, times: int) -> list[Any]:
    """Return a sequence as a list, and a single value ``times`` times."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value] * times
