"""The facts of a data set that a signature and a record need, found without importing torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neumann.data import arrays, cache, folder, noise, settings
from neumann.data.assignment import assign
from neumann.data.checked_settings import parse
from neumann.data.copies import find_copies
from neumann.data.eight_bits import counted
from neumann.data.scan import Scan, scan
from neumann.data.sources import Source, Stamp
from neumann.data.splits import Examples
from neumann.data.timm_sets import listing_of
from neumann.errors import printable

CENTRE = 0.875  # the side of the centre cut over the scaled image's, where nothing else is said
DEFAULT_SIZE = (224, 224)  # pixels, for images of several sizes
MEMORY_LIMIT = 2 << 30  # bytes of decoded uint8


@dataclass(frozen=True)
class DataFacts:
    """A data set's description; equal facts mean the same images in the same splits at the same size.

    Args:
        kind: one of `neumann.data.settings.KINDS`.
        fingerprint: SHA-256 as hex digits, after what it covers: ``content:``, ``names-sizes:`` or ``noise:``.
        num_classes: number of classes.
        class_names: their names, by label.
        image_size: (height, width) as trained on, in pixels.
        native_size: (height, width) of the files; None where they differ.
        channels: 1 (grey) or 3 (RGB), of noise any number.
        pixel_max: the decoded value of a full pixel.
        train_count, validation_count, test_count: images of each split.
        split_rule: how the splits were made, as a sentence.
        test_is: what the test split is, as a sentence.
        split_digest: 12 hex digits of the assignment of examples to splits.
        in_memory: whether the decoded images are held on the device.
        interpolation: of every change of size, bilinear or bicubic; None for a kind whose images keep theirs.
        crop_pct: the side of evaluation's centre cut over the scaled image's; None likewise.
        copies: images that lie in two splits or in two classes, counted; see `neumann.data.copies.Copies`.
        examples: the indices of each split and, of a folder, the paths; neither compared nor recorded.
        stat_digest: digest of the files' names, sizes and times, for the keys of caches; neither compared nor recorded.
        source: reads the bytes of image files; None for arrays and noise; neither compared nor recorded.
        stamps: of the image files, int64 [N, 3], as `neumann.data.sources.Stamp`; None likewise.
        places: see `neumann.data.folder.Listing`; None likewise.
    """

    kind: str
    fingerprint: str
    num_classes: int
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    native_size: tuple[int, int] | None
    channels: int
    pixel_max: int
    train_count: int
    validation_count: int
    test_count: int
    split_rule: str
    test_is: str
    split_digest: str
    in_memory: bool
    copies: Mapping[str, int]
    interpolation: str | None
    crop_pct: float | None
    examples: Examples = field(repr=False, compare=False)
    stat_digest: str = field(default="", repr=False, compare=False)
    source: Source | None = field(default=None, repr=False, compare=False)
    stamps: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    places: Mapping[str, Stamp] | None = field(default=None, repr=False, compare=False)

    def as_record(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        beside = ("examples", "stat_digest", "source", "stamps", "places")
        record = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in beside}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}


def facts(data: Mapping[str, Any]) -> DataFacts:
    """Return the facts of the data set that the ``data`` group of a configuration names.

    Raises UserError, one sentence, for a wrong setting, a missing or misshapen folder, a class with too few images,
    or a file that is not an image.
    """
    wanted = parse(data)
    if isinstance(wanted, settings.ImageFolder):
        return _image_folder(wanted)
    return _fake(wanted) if isinstance(wanted, settings.Fake) else _arrays(str(data["kind"]), wanted)


def _fake(wanted: settings.Fake) -> DataFacts:
    counts = (wanted.train_count, wanted.validation_count, wanted.test_count)
    shape = (wanted.channels, *wanted.image_size)
    count = sum(counts)
    return DataFacts(
        kind="fake",
        fingerprint=noise.fingerprint(seed=wanted.noise_seed, shape=shape, count=count, num_classes=wanted.num_classes),
        num_classes=wanted.num_classes,
        class_names=tuple(str(label) for label in range(wanted.num_classes)),
        image_size=wanted.image_size,
        native_size=wanted.image_size,
        channels=wanted.channels,
        pixel_max=255,
        in_memory=_fits(count * math.prod(shape), wanted.in_memory),
        copies={},
        interpolation=None,
        crop_pct=None,
        split_rule="training, validation and test images by their numbers, in this order",
        test_is="noise, as all others",
        **_counts(noise.examples(counts, wanted.num_classes)),
    )


def _arrays(kind: str, wanted: settings.Settings) -> DataFacts:
    found = arrays.read(wanted)
    where = str(getattr(wanted, "root", kind))
    copies = find_copies(found.copies(), found.examples, name=lambda index: f"image {index}", of=where)
    _tell(where, (*found.told, *copies.told))
    _, channels, *native = found.images.shape
    size = getattr(wanted, "image_size", None) or (native[0], native[1])
    return DataFacts(
        kind=kind,
        fingerprint=found.fingerprint(),
        num_classes=len(found.class_names),
        class_names=found.class_names,
        image_size=size,
        native_size=(native[0], native[1]),
        channels=channels,
        pixel_max=found.pixel_max,
        in_memory=_fits(len(found.images) * channels * math.prod(size), getattr(wanted, "in_memory", None)),
        copies=copies.counts(),
        **_scaling(wanted),
        stat_digest=found.stat_digest,
        split_rule=found.split_rule,
        test_is=found.test_is,
        **_counts(found.examples),
    )


def _image_folder(wanted: settings.ImageFolder) -> DataFacts:
    listing = listing_of(wanted)
    examples, split_rule, test_is = assign(listing, wanted)
    found = scan(listing)
    size = wanted.image_size or found.native_size or DEFAULT_SIZE
    lost = "".join(f"; {counted(count, what)}" for what, (count, _) in found.losses.items())
    equal = found.copies
    if wanted.channels == 1 and found.grey_copies != found.copies:
        equal, lost = found.grey_copies, f"; data.channels=1 drops colours, which data.channels=3 keeps{lost}"
    copies = find_copies(equal, examples, name=lambda index: listing.files[index].path, of=str(listing.root), lost=lost)
    _tell(str(listing.root), (*_told_of_splits(listing), *listing.left_out.told(), *_told(found, wanted), *copies.told))
    decoded = len(listing.files) * wanted.channels * size[0] * size[1]
    return DataFacts(
        kind=next(kind for kind, known in settings.KINDS.items() if known is type(wanted)),
        fingerprint=found.fingerprint,
        num_classes=len(listing.class_names),
        class_names=listing.class_names,
        image_size=size,
        native_size=found.native_size,
        channels=wanted.channels,
        pixel_max=255,
        in_memory=_fits(decoded, wanted.in_memory),
        copies=copies.counts(),
        **_scaling(wanted),
        split_rule=split_rule,
        test_is=test_is,
        stat_digest=found.stat_digest,
        source=listing.source,
        stamps=listing.stamps(),
        places=listing.places,
        **_counts(examples),
    )


def _fits(decoded: int, wanted: bool | None) -> bool:
    """Return whether images of ``decoded`` bytes are held in memory: as is ``wanted``, else by size."""
    return decoded <= MEMORY_LIMIT if wanted is None else wanted


def _scaling(wanted: settings.Settings) -> dict[str, Any]:
    """Return how images of ``wanted`` are brought to another size, as two of `DataFacts`."""
    if not isinstance(wanted, settings.Fitted):
        return {"interpolation": None, "crop_pct": None}
    return {"interpolation": wanted.interpolation or "bilinear", "crop_pct": wanted.crop_pct or CENTRE}


def _told_of_splits(listing: folder.Listing) -> list[str]:
    """Return what a user is told of a validation folder that is not the validation split."""
    own = listing.folders
    if "validation" not in own or "test" in own:
        return []
    return [
        f"{listing.called('validation')} is the test split, the only labelled one beside {listing.called('train')}, "
        f"and validation is cut from {listing.called('train')}"
    ]


def _told(found: Scan, wanted: settings.ImageFolder) -> list[str]:
    """Return what a user is told of the images as they are decoded."""
    told = [f"{counted(count, what)}, e.g. '{first}'" for what, (count, first) in found.losses.items()]
    if found.odd_size and wanted.image_size is None:
        told.append(f"{found.odd_size} to {DEFAULT_SIZE[0]}×{DEFAULT_SIZE[1]}; data.image_size says to what else")
    return told


@functools.cache
def _tell(root: str, told: tuple[str, ...]) -> None:
    """Say once in a process, in one line, what is odd about the images under ``root``."""
    if told:
        cache.log.warning("'%s': %s", printable(root), printable("; ".join(told)))


def _counts(examples: Examples) -> dict[str, Any]:
    return {
        "train_count": len(examples.train),
        "validation_count": len(examples.validation),
        "test_count": len(examples.test),
        "split_digest": examples.digest(),
        "examples": examples,
    }
