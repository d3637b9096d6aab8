"""What may the `data` group of the configuration say? One frozen dataclass per kind, checked before anything is read.

The fields and defaults are those of conf/data/*.yaml; a test holds the two together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from neumann.errors import UserError, did_you_mean

AUGMENTATIONS = ("none", "crop", "crop_flip", "random_resized_crop")
MISSING = "???"  # OmegaConf's mark for a value the user still owes


@dataclass(frozen=True)
class Digits:
    """scikit-learn's embedded 8×8 digits."""

    split_seed: int = 0
    augmentation: str = "none"


@dataclass(frozen=True)
class ImageFolder:
    """A folder of class folders, with or without train/, val/ and test/ above them.

    ``image_size`` is (height, width) or None for the native one, ``in_memory`` None for by size, ``mean`` and ``std``
    are per channel in units of the full pixel range (0 to 1) or None for the data set's own.
    """

    root: str = MISSING
    image_size: tuple[int, int] | None = None
    channels: int = 3
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    split_seed: int = 0
    augmentation: str = "none"
    in_memory: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int = 2


KINDS: dict[str, type[Digits] | type[ImageFolder]] = {"digits": Digits, "image_folder": ImageFolder}


def parse(data: Mapping[str, Any]) -> Digits | ImageFolder:
    """Return the checked settings of ``data``; raises UserError naming the key and what it may be."""
    given = dict(data)
    kind = given.pop("kind", None)
    if kind not in KINDS:
        raise UserError(f"data.kind is {kind!r}: {did_you_mean(str(kind), KINDS)}")
    known = {field.name for field in dataclasses.fields(KINDS[kind])}
    for key in given:
        if key not in known:
            raise UserError(f"data={kind} has no setting {key!r}: {did_you_mean(str(key), known)}")
    _check_augmentation(given.get("augmentation", "none"), kind)
    split_seed = _whole(given.get("split_seed", 0), "data.split_seed", least=0)
    augmentation = given.get("augmentation", "none")
    if kind == "digits":
        return Digits(split_seed=split_seed, augmentation=augmentation)
    channels = _whole(given.get("channels", 3), "data.channels", least=1)
    if channels not in (1, 3):
        raise UserError(f"data.channels is {channels}: images are decoded to 1 channel (grey) or 3 (RGB)")
    in_memory = given.get("in_memory")
    if in_memory is not None and not isinstance(in_memory, bool):
        raise UserError(f"data.in_memory is {in_memory!r}: it is true, false or null (by size)")
    mean, std = (_per_channel(given.get(name), name, channels) for name in ("mean", "std"))
    if (mean is None) != (std is None):
        raise UserError("data.mean and data.std go together: give both or neither")
    return ImageFolder(
        root=_root(given.get("root", MISSING)),
        image_size=_image_size(given.get("image_size")),
        channels=channels,
        val_fraction=_fraction(given.get("val_fraction", 0.1), "data.val_fraction"),
        test_fraction=_fraction(given.get("test_fraction", 0.2), "data.test_fraction"),
        split_seed=split_seed,
        augmentation=augmentation,
        in_memory=in_memory,
        mean=mean,
        std=std,
        workers=_whole(given.get("workers", 2), "data.workers", least=0),
    )


def _check_augmentation(name: Any, kind: str) -> None:
    if name not in AUGMENTATIONS:
        raise UserError(f"data.augmentation is {name!r}: {did_you_mean(str(name), AUGMENTATIONS)}")
    if kind == "digits" and name == "crop_flip":
        raise UserError("data.augmentation=crop_flip mirrors the image and a mirrored digit is no digit: use crop")
    if kind == "digits" and name == "random_resized_crop":
        raise UserError(
            "data.augmentation=random_resized_crop leaves too little of an 8×8 digit (and mirrors it): use crop"
        )


def _root(value: Any) -> str:
    if value is None or str(value) in (MISSING, ""):
        raise UserError("data.root is missing: give the folder of the images, as data.root=/path/to/folder")
    return str(value)


def _whole(value: Any, name: str, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} is {value!r}: it is a whole number, at least {least}")
    return value


def _fraction(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < 1:
        raise UserError(f"{name} is {value!r}: it is a number between 0 and 1, both excluded")
    return float(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _image_size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = list(value) if _is_sequence(value) else [value, value]
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise UserError(f"data.image_size is {value!r}: it is null, a number of pixels, or [height, width]")
    return sides[0], sides[1]


def _per_channel(value: Any, name: str, channels: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    numbers = list(value) if _is_sequence(value) else [value]
    if len(numbers) != channels or any(isinstance(n, bool) or not isinstance(n, Real) for n in numbers):
        raise UserError(f"data.{name} is {value!r}: it is null or {channels} number(s), one per channel")
    if name == "std" and min(float(n) for n in numbers) <= 0:
        raise UserError(f"data.std is {value!r}: every value must be above 0")
    return tuple(float(n) for n in numbers)
