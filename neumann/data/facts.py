"""What is this data set? Everything a signature and a record need, learnt without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neumann.data import digits, folder, settings
from neumann.data.scan import scan
from neumann.data.splits import Examples

DEFAULT_SIZE = (224, 224)  # pixels, for images of several sizes
MEMORY_LIMIT = 2 << 30  # bytes of decoded uint8


@dataclass(frozen=True)
class DataFacts:
    """A data set's description; equal facts mean the same images in the same splits at the same size.

    ``fingerprint`` is a hex digest after what it covers (``content:`` or ``names-sizes:``), ``split_digest`` 12 hex
    digits of who is in which split; ``image_size`` is (height, width) as trained on and ``native_size`` that of the
    files, None where they differ; ``pixel_max`` is the decoded value that counts as 1; ``examples`` holds the indices
    (and the paths, of a folder) and takes no part in comparison or record.
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
    examples: Examples = field(repr=False, compare=False)
    stat_digest: str = field(default="", repr=False, compare=False)  # of names, sizes and times, to key caches by

    def as_record(self) -> dict[str, Any]:
        """Return the facts as plain JSON types."""
        record = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("examples", "stat_digest")
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}


def facts(data: Mapping[str, Any]) -> DataFacts:
    """Return the facts of the data set that the ``data`` group of a configuration names.

    Raises UserError, one sentence, for a wrong setting, a missing or misshapen folder, a class with too few images,
    or a file that is no image.
    """
    wanted = settings.parse(data)
    return _digits(wanted) if isinstance(wanted, settings.Digits) else _image_folder(wanted)


def _digits(wanted: settings.Digits) -> DataFacts:
    images, labels = digits.read()
    examples = digits.examples(labels, wanted.split_seed)
    return DataFacts(
        kind="digits",
        fingerprint=digits.fingerprint(images, labels),
        num_classes=10,
        class_names=tuple("0123456789"),
        image_size=(8, 8),
        native_size=(8, 8),
        channels=1,
        pixel_max=digits.PIXEL_MAX,
        in_memory=True,
        split_rule=f"300 test and 300 validation images of all 1,797, stratified, by split seed {wanted.split_seed}",
        test_is="300 images cut from the whole set",
        **_counts(examples),
    )


def _image_folder(wanted: settings.ImageFolder) -> DataFacts:
    listing = folder.walk(wanted.root)
    examples, split_rule, test_is = folder.assign(listing, wanted)
    found = scan(listing)
    size = wanted.image_size or found.native_size or DEFAULT_SIZE
    decoded = len(listing.files) * wanted.channels * size[0] * size[1]
    return DataFacts(
        kind="image_folder",
        fingerprint=found.fingerprint,
        num_classes=len(listing.class_names),
        class_names=listing.class_names,
        image_size=size,
        native_size=found.native_size,
        channels=wanted.channels,
        pixel_max=255,
        in_memory=decoded <= MEMORY_LIMIT if wanted.in_memory is None else wanted.in_memory,
        split_rule=split_rule,
        test_is=test_is,
        stat_digest=found.stat_digest,
        **_counts(examples),
    )


def _counts(examples: Examples) -> dict[str, Any]:
    return {
        "train_count": len(examples.train),
        "validation_count": len(examples.validation),
        "test_count": len(examples.test),
        "split_digest": examples.digest(),
        "examples": examples,
    }
