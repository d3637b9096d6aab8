"""The settings of the `data` group of the configuration: one frozen dataclass per kind, checked before any reading.

The fields and defaults are those of conf/data/*.yaml; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, ClassVar

from neumann.bounds import as_yaml, check_fields, choice, number
from neumann.errors import UserError, did_you_mean

AUGMENTATIONS = ("none", "crop", "crop_flip", "random_resized_crop")
MISSING = "???"  # OmegaConf's mark for a value that the user has not given yet


@dataclass(frozen=True)
class Settings:
    """What every kind of data has.

    Args:
        augmentation: one of `AUGMENTATIONS` that is not in `spoils`.
    """

    title: ClassVar[str] = ""  # what a report calls the data set; "": by its folder
    spoils: ClassVar[Mapping[str, str]] = {}  # augmentations that the images do not survive: why, and what to use

    augmentation: str = choice("none", *AUGMENTATIONS)


@dataclass(frozen=True)
class Digits(Settings):
    """scikit-learn's embedded 8×8 digits.

    Args:
        split_seed: seed of the cut into training, validation and test images.
        augmentation: see `Settings`.
    """

    title: ClassVar[str] = "digits (scikit-learn's 8×8 handwritten digits)"
    spoils: ClassVar[Mapping[str, str]] = {
        "crop_flip": "mirrors the image and a mirrored digit is not a digit: use crop",
        "random_resized_crop": "leaves too little of an 8×8 digit (and mirrors it): use crop",
    }

    split_seed: int = number(0, at_least=0)


@dataclass(frozen=True)
class Fashion14(Settings):
    """The embedded part of Fashion-MNIST at 14×14 pixels.

    Args:
        split_seed: seed of the cut into training and validation images.
        augmentation: see `Settings`.
    """

    title: ClassVar[str] = "fashion14 (clothes of Fashion-MNIST at 14×14 pixels)"
    spoils: ClassVar[Mapping[str, str]] = {
        "random_resized_crop": "leaves too little of a 14×14 image: use crop_flip or crop",
    }

    split_seed: int = number(0, at_least=0)


@dataclass(frozen=True)
class TorchvisionSet(Settings):
    """One of torchvision's sets, in the files that torchvision reads.

    Args:
        root: the folder that torchvision calls root.
        download: whether torchvision fetches what is missing there.
        val_fraction: validation's share of the training images.
        split_seed: seed of this cut.
        mean: per channel, in units of the full pixel range (0 to 1); None: the training split's own.
        std: as ``mean``, every value above 0; given together with it.
        augmentation: see `Settings`.
    """

    torchvision_name: ClassVar[str] = ""  # of the class in torchvision.datasets
    channels: ClassVar[int] = 1

    root: str = MISSING
    download: bool = False
    val_fraction: float = number(0.1, above=0, below=1)
    split_seed: int = number(0, at_least=0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Cifar10(TorchvisionSet):
    """CIFAR-10: 32×32 photographs of 10 classes; see `TorchvisionSet`."""

    title: ClassVar[str] = "CIFAR-10"
    torchvision_name: ClassVar[str] = "CIFAR10"
    channels: ClassVar[int] = 3

    augmentation: str = choice("crop_flip", *AUGMENTATIONS)


@dataclass(frozen=True)
class Cifar100(Cifar10):
    """CIFAR-100: 32×32 photographs of 100 classes; see `TorchvisionSet`."""

    title: ClassVar[str] = "CIFAR-100"
    torchvision_name: ClassVar[str] = "CIFAR100"


@dataclass(frozen=True)
class Mnist(TorchvisionSet):
    """MNIST: 28×28 handwritten digits; see `TorchvisionSet`."""

    title: ClassVar[str] = "MNIST"
    torchvision_name: ClassVar[str] = "MNIST"
    spoils: ClassVar[Mapping[str, str]] = {
        "crop_flip": "mirrors the image and a mirrored digit is not a digit: use crop",
        "random_resized_crop": "leaves too little of a digit (and mirrors it): use crop",
    }


@dataclass(frozen=True)
class FashionMnist(TorchvisionSet):
    """Fashion-MNIST: 28×28 pictures of clothes; see `TorchvisionSet`."""

    title: ClassVar[str] = "Fashion-MNIST"
    torchvision_name: ClassVar[str] = "FashionMNIST"


@dataclass(frozen=True)
class ImageFolder(Settings):
    """A folder of class folders, with or without train/, val/ and test/ above them.

    Args:
        root: path of the folder.
        image_size: (height, width) in pixels; None: the images' own where they share one.
        channels: 1 (grey) or 3 (RGB).
        val_fraction: share of the images that are not test, where there is no val/ beside test/.
        test_fraction: share of all images, where there is neither val/ nor test/.
        split_seed: seed of these cuts.
        augmentation: see `Settings`.
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
    in_memory: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int = number(2, at_least=0)


@dataclass(frozen=True)
class Fake(Settings):
    """Noise of any shape, for timing.

    Args:
        image_size: (height, width) in pixels.
        channels: any number of them.
        num_classes: number of classes; the label of image i is i modulo it.
        train_count: number of training images; ``validation_count`` and ``test_count`` likewise.
        validation_count: see ``train_count``.
        test_count: see ``train_count``.
        noise_seed: seed of the pixels.
        in_memory: whether all images are made at the start and held on the device; None: by size.
        workers: processes that make images that are not held; 0 makes them in the process that trains.
        augmentation: see `Settings`.
    """

    title: ClassVar[str] = "fake (noise, for timing)"

    image_size: tuple[int, int] = 32  # type: ignore[assignment] # as in the YAML; a pair once it is parsed
    channels: int = number(3, at_least=1)
    num_classes: int = number(10, at_least=2)
    train_count: int = number(45_000, at_least=1)
    validation_count: int = number(5_000, at_least=1)
    test_count: int = number(10_000, at_least=1)
    noise_seed: int = number(0, at_least=0, below=1 << 63)
    in_memory: bool | None = None
    workers: int = number(2, at_least=0)


KINDS: dict[str, type[Settings]] = {
    "digits": Digits,
    "fashion14": Fashion14,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "mnist": Mnist,
    "fashion_mnist": FashionMnist,
    "image_folder": ImageFolder,
    "fake": Fake,
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
            raise UserError(f"data={kind} has no setting '{key}': {did_you_mean(str(key), known)}")
    if "root" in known:
        given["root"] = _root(given.get("root"))
    wanted = KINDS[kind](**given)
    check_fields(wanted, "data.")
    if (why := wanted.spoils.get(wanted.augmentation)) is not None:
        raise UserError(f"data.augmentation={wanted.augmentation} {why}")
    if isinstance(wanted, ImageFolder):
        if wanted.channels not in (1, 3):
            raise UserError(
                f"data.channels={as_yaml(wanted.channels)} is not a choice: images have 1 channel (grey) or 3 (RGB)"
            )
        wanted = replace(wanted, image_size=_image_size(wanted.image_size))
    if isinstance(wanted, Fake):
        if (size := _image_size(wanted.image_size)) is None:
            raise UserError("data.image_size=null is not a size: noise has none of its own, give a number of pixels")
        wanted = replace(wanted, image_size=size)
    return _normalised(wanted) if isinstance(wanted, ImageFolder | TorchvisionSet) else wanted


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
