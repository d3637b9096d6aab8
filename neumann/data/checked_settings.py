"""The check of the data's settings: those of one kind, each in its own type, or one sentence on what is wrong.

The names of timm's dataset factory are read here too: torchvision's sets by timm's names are the kinds that they are by
ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from numbers import Real
from typing import Any

from neumann.bounds import as_yaml, check_fields
from neumann.data.settings import (
    KINDS,
    MISSING,
    Cifar10,
    Cifar100,
    Fake,
    FashionMnist,
    Fitted,
    ImageFolder,
    Mnist,
    Settings,
    Timm,
    TorchvisionSet,
)
from neumann.errors import UserError, did_you_mean

TORCH: dict[str, type[Fitted]] = {
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "mnist": Mnist,
    "fashion_mnist": FashionMnist,
    "image_folder": ImageFolder,
    "folder": ImageFolder,
}
ELSEWHERE = {
    "imagenet": "use data=imagenet, whose class folders torchvision's ImageNet unpacks",
    **dict.fromkeys(
        ("inaturalist", "inat"),
        "use data=image_folder with the folder of one version as data.root, which holds a folder for each class",
    ),
}
IN_ORDER_ONLY = {
    "tfds": (
        "timm reads TFDS in order only, and a run of it could not be repeated or resumed to the bit, nor is TensorFlow "
        "among what neumann installs: use hfds/ for the same set, or write it as class folders (data=image_folder)"
    ),
    "hfids": (
        "a stream is read in order only, and a run of it could not be repeated or resumed to the bit: write hfds/ for "
        "hfids/, which downloads the set and reads it in any order"
    ),
}


def parse(data: Mapping[str, Any]) -> Settings:
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
            raise UserError(f"data.kind={kind} has no setting '{key}': {did_you_mean(str(key), known)}")
    if KINDS[kind] is Timm:
        return _timm(given)
    if "root" in known:
        given["root"] = _root(given.get("root"))
    return _checked(KINDS[kind](**given))


def _checked(wanted: Settings) -> Settings:
    """Return ``wanted`` with every value checked and in its own type. Raises UserError."""
    check_fields(wanted, "data.")
    if (why := wanted.spoils.get(wanted.augmentation)) is not None:
        raise UserError(f"data.augmentation={wanted.augmentation} {why}")
    if isinstance(wanted, ImageFolder) and wanted.channels not in (1, 3):
        given = as_yaml(wanted.channels)
        raise UserError(f"data.channels={given} is not a choice: images have 1 channel (grey) or 3 (RGB)")
    if isinstance(wanted, Fake):
        if (size := _image_size(wanted.image_size)) is None:
            raise UserError("data.image_size=null is not a size: noise has none of its own, give a number of pixels")
        return replace(wanted, image_size=size)
    if not isinstance(wanted, ImageFolder | TorchvisionSet):
        return wanted
    if wanted.crop_pct is not None and wanted.crop_pct > 1:
        percent = f": did you mean {wanted.crop_pct / 100:g}?" if wanted.crop_pct <= 100 else ""
        raise UserError(f"data.crop_pct={wanted.crop_pct} is out of range: it is a fraction, at most 1{percent}")
    return _normalised(replace(wanted, image_size=_image_size(wanted.image_size)))


def _timm(given: dict[str, Any]) -> Settings:
    """Return the settings of a set by timm's name; those of torchvision's sets are the same as by our own name.

    Raises UserError for a name that timm does not read, or in an order that cannot be resumed.
    """
    if given.get("name") in (None, MISSING):
        raise UserError("data.name is missing: give timm's name of the set, such as data.name=hfds/NAME or wds/")
    wanted = Timm(**given)
    check_fields(wanted, "data.")
    rest = wanted.name.partition("/")[2]
    if wanted.prefix in IN_ORDER_ONLY:
        raise UserError(f"data.name={wanted.name}: {IN_ORDER_ONLY[wanted.prefix]}")
    if wanted.prefix == "torch":
        return _torchvision(wanted, rest.split("/")[-1].lower(), given)
    if wanted.prefix not in ("hfds", "wds", "") or (wanted.name and not wanted.prefix):
        near = did_you_mean(wanted.prefix or wanted.name, ("hfds/", "wds/", "torch/"))
        raise UserError(f"data.name={wanted.name} begins with none of timm's prefixes hfds/, wds/ and torch/: {near}")
    if wanted.prefix == "hfds" and not rest:
        raise UserError("data.name=hfds/ names no set: write hfds/NAME, or hfds/FOLDER for one on this machine")
    if wanted.prefix != "hfds":
        _root(wanted.root)
    unused = {"wds": ("download",), "": ("download", "input_key", "target_key")}.get(wanted.prefix, ())
    for key in unused:
        if getattr(wanted, key):
            raise UserError(
                f"data.{key}={as_yaml(getattr(wanted, key))} has no effect on data.name={wanted.name}: leave it out"
            )
    return _checked(wanted)


def _torchvision(wanted: Timm, name: str, given: Mapping[str, Any]) -> Settings:
    """Return the settings of the kind that timm's ``torch/name`` is here. Raises UserError where there is none."""
    kind: type[Settings] | None = TORCH.get(name)
    if kind is None:
        other = ELSEWHERE.get(name) or f"{did_you_mean(name, TORCH)} Or use data=image_folder on class folders"
        raise UserError(f"data.name={wanted.name} is not read: {other}")
    _root(wanted.root)
    known = {field.name for field in fields(kind)}
    for field_ in fields(Timm):
        value = getattr(wanted, field_.name)
        if field_.name not in known and field_.name != "name" and value != field_.default:
            raise UserError(
                f"data.{field_.name}={as_yaml(value)} has no effect on data.name={wanted.name}, whose splits, channels "
                "and labels are its own: leave it out"
            )
    return _checked(kind(**{key: value for key, value in given.items() if key in known}))


def _root(value: Any) -> str:
    if value is None or str(value) in (MISSING, ""):
        raise UserError("data.root is missing: give the folder of the images, as data.root=/path/to/folder")
    return str(value)


def _normalised(given: ImageFolder | TorchvisionSet) -> ImageFolder | TorchvisionSet:
    """Return ``given`` with mean and std checked, and as tuples."""
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
    return replace(given, mean=mean, std=std)


def _image_size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = _as_list(value, 2)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise UserError(
            f"data.image_size={as_yaml(value)} is not a size: it is null, a number of pixels, or [height, width]"
        )
    return sides[0], sides[1]


def _per_channel(value: Any, name: str, channels: int) -> tuple[float, ...] | None:
    if value is None:
        return None
    numbers = _as_list(value, 1)
    if len(numbers) != channels or any(isinstance(n, bool) or not isinstance(n, Real) for n in numbers):
        raise UserError(
            f"data.{name}={as_yaml(value)} does not fit: it is null or {channels} number(s), one per channel"
        )
    return tuple(float(n) for n in numbers)


def _as_list(value: Any, times: int) -> list[Any]:
    """Return a sequence as a list, and a single value ``times`` times."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value] * times
