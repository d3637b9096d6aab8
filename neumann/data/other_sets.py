"""The images that a trained run is scored on: a split of its own data, or of another set, by the run's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np

from neumann.data import settings
from neumann.data.assignment import assign
from neumann.data.checked_settings import parse
from neumann.data.facts import DataFacts, facts
from neumann.data.folder import walk
from neumann.data.scan import scan
from neumann.data.splits import Examples, Indices
from neumann.errors import UserError, did_you_mean, printable

SPLITS = ("test", "validation", "train", "all")


@dataclass(frozen=True, eq=False)
class ChosenImages:
    """Images of a set with the run's labels.

    Args:
        facts: of the set; its examples have the run's labels.
        indices: the images that are scored, int64 [N] into the set.
        split: one of `SPLITS`.
        said: what they are, as a sentence.
        absent: classes of the run that the set does not have.
    """

    facts: DataFacts
    indices: Indices
    split: str
    said: str
    absent: tuple[str, ...]


def own_images(data: Mapping[str, Any], recorded: Mapping[str, Any], split: str) -> ChosenImages:
    """Return a split of the run's own data.

    ``data`` is its section of the configuration, ``recorded`` what its signature covers of the data. Raises UserError
    where its images or splits are no longer those that the run was trained on.
    """
    found = facts(data)
    if recorded != {"fingerprint": found.fingerprint, "splits": found.split_digest}:
        raise UserError(
            f"the images that the run was trained on have changed, so its own {split} split is not there any more: put "
            "them back; data.root=FOLDER says where they lie now"
        )
    return _chosen(found, split)


def other_images(
    data: Mapping[str, Any],
    class_names: Sequence[str],
    *,
    image_size: tuple[int, int],
    channels: int,
    interpolation: str,
    crop_pct: float,
    split: str | None,
    own: str | None,
) -> ChosenImages:
    """Return a split of the set that ``data`` names.

    Args:
        data: a data section of a configuration.
        class_names: the run's, by which the set's labels are told.
        image_size: the run's.
        channels: the run's.
        interpolation: the run's, of every change of size.
        crop_pct: the run's, the side of the centre cut over the scaled image's.
        split: one of `SPLITS`; None: test, or all images of class folders without split folders.
        own: the fingerprint of the run's own data, of which None never means all.

    Raises UserError as `neumann.data.facts.facts`, for a class that the run does not know, and for images of another
    size than the run's where they cannot be scaled.
    """
    wanted = parse(data)
    scaling: dict[str, Any] = {"interpolation": interpolation, "crop_pct": crop_pct}
    if is_folder(wanted):
        wanted = replace(wanted, image_size=image_size, channels=channels, **scaling)
        chosen = _of_folder(wanted, split, own)
    else:
        if isinstance(wanted, settings.Fitted):
            data = {**data, "image_size": list(image_size), **scaling}
        if isinstance(wanted, settings.Timm):
            data = {**data, "channels": channels}
        found = facts(data)
        if (found.image_size, found.channels) != (image_size, channels):
            raise UserError(
                f"data={data['kind']} has images of {_size(found.image_size, found.channels)}, and the run takes "
                f"{_size(image_size, channels)}: score a set of such images, or a folder, whose images are scaled"
            )
        chosen = _chosen(found, split or "test")
    return _labelled(chosen, class_names)


def is_folder(wanted: settings.Settings) -> TypeGuard[settings.ImageFolder]:
    """Return whether ``wanted`` is a folder of class folders, and not a set that timm's factory names."""
    return isinstance(wanted, settings.ImageFolder) and not isinstance(wanted, settings.Timm)


def _size(size: tuple[int, int], channels: int) -> str:
    return f"{size[0]}×{size[1]} pixels and {channels} channel(s)"


def _chosen(found: DataFacts, split: str) -> ChosenImages:
    examples = found.examples
    if split == "all":
        return ChosenImages(found, np.arange(len(examples.labels)), split, "all images", ())
    said = found.test_is if split == "test" else f"the {split} split ({found.split_rule})"
    return ChosenImages(found, getattr(examples, split), split, said, ())


def _of_folder(wanted: settings.ImageFolder, split: str | None, own: str | None) -> ChosenImages:
    """Return a split of a folder. All images of it take no cut, so a class may have a single one."""
    listing = walk(wanted.root)
    found = scan(listing)
    split = split or ("test" if listing.folders or found.fingerprint == own else "all")
    everything = np.arange(len(listing.files))
    paths = tuple(file.path for file in listing.files)
    examples = Examples(listing.labels, everything, everything, everything, root=str(listing.root), paths=paths)
    rule, said = "all images are in every split", "all images"
    if split != "all":
        examples, rule, said = assign(listing, wanted)
        said = said if split == "test" else f"the {split} split ({rule})"
    assert wanted.image_size is not None
    made = DataFacts(
        kind="image_folder",
        fingerprint=found.fingerprint,
        num_classes=len(listing.class_names),
        class_names=listing.class_names,
        image_size=wanted.image_size,
        native_size=found.native_size,
        channels=wanted.channels,
        pixel_max=255,
        train_count=len(examples.train),
        validation_count=len(examples.validation),
        test_count=len(examples.test),
        split_rule=rule,
        test_is=said,
        split_digest=examples.digest(),
        in_memory=False,
        copies={},
        interpolation=wanted.interpolation,
        crop_pct=wanted.crop_pct,
        examples=examples,
        stat_digest=found.stat_digest,
    )
    return ChosenImages(made, everything if split == "all" else getattr(examples, split), split, said, ())


def _labelled(chosen: ChosenImages, class_names: Sequence[str]) -> ChosenImages:
    """Return ``chosen`` with the labels that the run gives classes of the same names. Raises UserError."""
    own, places = chosen.facts.class_names, {name: at for at, name in enumerate(class_names)}
    unknown = [name for name in own if name not in places]
    if unknown:
        others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"the class '{printable(unknown[0])}'{others} of the set is none of the run's {len(class_names)}, and "
            f"classes are matched by name: {printable(did_you_mean(unknown[0], class_names))}"
        )
    labels = np.array([places[name] for name in own], dtype=np.int64)[chosen.facts.examples.labels]
    there = {class_names[at] for at in np.unique(labels[chosen.indices])}
    return replace(
        chosen,
        facts=replace(
            chosen.facts,
            class_names=tuple(class_names),
            num_classes=len(class_names),
            examples=replace(chosen.facts.examples, labels=labels),
        ),
        absent=tuple(name for name in class_names if name not in there),
    )
