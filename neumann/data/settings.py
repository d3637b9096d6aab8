"""The settings of the `data` group of the configuration: one frozen dataclass a kind. `checked_settings` checks them.

The fields and defaults are those of conf/data/*.yaml; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from neumann.bounds import choice, number

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
