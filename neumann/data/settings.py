"""The settings of the `data` group of the configuration: one frozen dataclass per kind, checked before any reading.

The fields and defaults are those of conf/data/*.yaml; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any, ClassVar

from neumann.bounds import as_yaml, check_fields, choice, number
from neumann.errors import UserError, did_you_mean

AUGMENTATIONS = ("none", "crop", "crop_flip", "random_resized_crop")
INTERPOLATIONS = ("bilinear", "bicubic")
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
class Fitted(Settings):
    """What every kind has whose images can be brought to another size.

    For a model with pretrained weights, `neumann.config.resolution` replaces None by what the weights were made with.

    Args:
        image_size: (height, width) in pixels; None: the images' own where they share one.
        interpolation: one of `INTERPOLATIONS`, of every change of size; None: bilinear.
        crop_pct: the side of evaluation's centre cut over the scaled image's; None: 0.875.
        in_memory: whether images are decoded once and held on the device; None: by size.
        mean: per channel, in units of the full pixel range (0 to 1); None: the data set's own.
        std: as ``mean``, every value above 0; given together with it.
        workers: processes that decode images; 0 decodes in the process that trains.
        augmentation: see `Settings`.
    """

    image_size: tuple[int, int] | None = None
    interpolation: str | None = field(default=None, metadata={"choices": INTERPOLATIONS, "also": {}})
    crop_pct: float | None = number(None, above=0)
    in_memory: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int = number(2, at_least=0)


@dataclass(frozen=True)
class TorchvisionSet(Fitted):
    """One of torchvision's sets, in the files that torchvision reads.

    Args:
        root: the folder that torchvision calls root.
        download: whether torchvision fetches what is missing there.
        val_fraction: validation's share of the training images.
        split_seed: seed of this cut.
        image_size: see `Fitted`, as for all that follow.
        interpolation: see `Fitted`.
        crop_pct: see `Fitted`.
        in_memory: see `Fitted`.
        mean: see `Fitted`.
        std: see `Fitted`.
        workers: see `Fitted`.
        augmentation: see `Settings`.
    """

    torchvision_name: ClassVar[str] = ""  # of the class in torchvision.datasets
    channels: ClassVar[int] = 1

    root: str = MISSING
    download: bool = False
    val_fraction: float = number(0.1, above=0, below=1)
    split_seed: int = number(0, at_least=0)


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
class ImageFolder(Fitted):
    """A folder of class folders, with or without train/, val/ and test/ above them.

    Args:
        root: path of the folder.
        channels: 1 (grey) or 3 (RGB).
        val_fraction: share of the images that are not test, where there is no val/ beside test/.
        test_fraction: share of all images, where there is neither val/ nor test/.
        split_seed: seed of these cuts.
        image_size: see `Fitted`, as for all that follow.
        interpolation: see `Fitted`.
        crop_pct: see `Fitted`.
        in_memory: see `Fitted`.
        mean: see `Fitted`.
        std: see `Fitted`.
        workers: see `Fitted`.
        augmentation: see `Settings`.
    """

    root: str = MISSING
    channels: int = 3
    val_fraction: float = number(0.1, above=0, below=1)
    test_fraction: float = number(0.2, above=0, below=1)
    split_seed: int = number(0, at_least=0)


@dataclass(frozen=True)
class Timm(ImageFolder):
    """A set as timm's dataset factory names it: Hugging Face's, webdataset shards, tar files, torchvision's.

    Args:
        name: ``hfds/NAME``, ``wds/``, ``torch/NAME``, or "" for tar files and folders, as timm has them.
        root: the folder or tar file; of ``hfds/`` the cache folder, None for Hugging Face's own.
        download: whether Hugging Face's hub is asked for what is not there.
        train_split: the set's name of its training split, or a pattern of shards.
        val_split: the same of its validation split; None: found by its name.
        test_split: the same of its test split; None: found by its name.
        input_key: the column of images, or of shards the images' suffixes with ; between; None: as timm.
        target_key: the column of labels, or of shards a field of the .json beside an image; None: as timm.
        val_fraction: see `ImageFolder`, as for all that follow.
        test_fraction: see `ImageFolder`.
        split_seed: see `ImageFolder`.
        channels: see `ImageFolder`.
        image_size: see `Fitted`.
        interpolation: see `Fitted`.
        crop_pct: see `Fitted`.
        in_memory: see `Fitted`.
        mean: see `Fitted`.
        std: see `Fitted`.
        workers: see `Fitted`.
        augmentation: see `Settings`.
    """

    name: str = MISSING
    root: str | None = None  # type: ignore[assignment] # hfds/ alone goes without
    download: bool = False
    train_split: str = "train"
    val_split: str | None = None
    test_split: str | None = None
    input_key: str | None = None
    target_key: str | None = None

    @property
    def prefix(self) -> str:
        """What stands before the first slash of the name, in lower case as timm reads it; "" for none."""
        before, slash, _ = self.name.partition("/")
        return before.lower() if slash else ""


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
    "timm": Timm,
    "fake": Fake,
}

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
        near = did_you_mean(wanted.prefix or wanted.name, ("hfds", "wds", "torch"))
        raise UserError(f"data.name={wanted.name} begins with none of timm's prefixes hfds/, wds/ and torch/: {near}")
    if wanted.prefix == "hfds" and not rest:
        raise UserError("data.name=hfds/ names no set: write hfds/NAME, or hfds/FOLDER for one on this machine")
    if wanted.prefix != "hfds":
        _root(wanted.root)
    unused = {"wds": ("download",), "": ("download", "input_key", "target_key")}.get(wanted.prefix, ())
    for key in unused:
        if getattr(wanted, key):
            raise UserError(f"data.{key}={getattr(wanted, key)} has no effect on data.name={wanted.name}: leave it out")
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
                f"data.{field_.name}={value} has no effect on data.name={wanted.name}, whose splits, channels and "
                "labels are its own: leave it out"
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
