"""Training, validation and test images of a listed folder: its own split folders, and what is cut from them."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from neumann.bounds import as_yaml
from neumann.data import settings
from neumann.data.folder import Listing
from neumann.data.splits import Examples, Indices, stratified
from neumann.errors import UserError


def assign(listing: Listing, wanted: settings.ImageFolder) -> tuple[Examples, str, str]:
    """Return the three splits, and as sentences the rule that made them and what the test split is.

    Raises UserError for a class with fewer images than the splits that are cut from it, and for settings of a cut that
    is not made.
    """
    own, folders = dict(listing.parts), listing.folders
    _refuse_idle(listing, wanted)
    by = f"stratified, by split seed {wanted.split_seed}"
    source = listing.called("train") if folders else listing.whole
    if "validation" in own and "test" in own:
        rule = f"{source}, {listing.called('validation')} and {listing.called('test')} as they are"
        test_is = f"the {listing.kind} {listing.called('test')}"
    elif "validation" in own or "test" in own:
        # Published results are on the labelled folder beside train/, whatever its name (ImageNet's "val"): our test.
        part = "test" if "test" in own else "validation"
        own["test"] = own.pop("validation", own.get("test", own["train"]))
        own["validation"], own["train"] = _cut(listing, own["train"], (wanted.val_fraction,), wanted.split_seed)
        rule = f"{listing.called(part)} is the test split; validation is {wanted.val_fraction:g} of {source}, {by}"
        beside = f", the only labelled one beside {'train/' if listing.kind == 'folder' else source}"
        test_is = f"the {listing.kind} {listing.called(part)}{'' if part == 'test' else beside}"
    else:
        fractions = (wanted.test_fraction, wanted.val_fraction)
        own["test"], own["validation"], own["train"] = _cut(listing, own["train"], fractions, wanted.split_seed)
        rule = f"test is {wanted.test_fraction:g} of {source} and validation {wanted.val_fraction:g} of the rest, {by}"
        test_is = f"{wanted.test_fraction:g} of {source}, cut by us"
    examples = Examples(
        labels=listing.labels,
        root=str(listing.root),
        paths=tuple(file.path for file in listing.files),
        **{part: own[part] for part in ("train", "validation", "test")},
    )
    return examples, rule, test_is


def _refuse_idle(listing: Listing, wanted: settings.ImageFolder) -> None:
    """Raise UserError for a setting of a cut that the folder's own splits leave no room for."""
    own = [listing.called(part) for part in listing.folders if part != "train"]
    idle = ("test_fraction", "val_fraction", "split_seed")[: (0, 1, 3)[len(own)]]
    for field in fields(wanted):
        value = getattr(wanted, field.name)
        if field.name in idle and value != field.default:
            raise UserError(
                f"data.{field.name}={as_yaml(value)} has no effect on '{listing.root}', which has "
                f"{' and '.join(sorted(own))} beside {listing.called('train')}: leave it out"
            )


def _cut(listing: Listing, indices: Indices, fractions: tuple[float, ...], seed: int) -> list[Indices]:
    """Cut a stratified part of each fraction from ``indices``; return the parts, then the rest. Raises UserError."""
    labels = listing.labels[indices]
    counts = np.bincount(labels, minlength=len(listing.class_names))
    needed = len(fractions) + 1
    if counts.min() < needed:
        label, few = int(counts.argmin()), int((counts < needed).sum())
        where = listing.root / listing.folders.get("train", "") if listing.kind == "folder" else listing.root
        parts = "training, validation and test" if needed == 3 else "training and validation"
        others = f" ({few - 1} other class(es) have too few as well)" if few > 1 else ""
        raise UserError(
            f"class '{listing.class_names[label]}' in '{where}' has {counts[label]} image(s), too few to split: "
            f"{parts} need at least {needed}{others}"
        )
    totals: list[int] = []
    for fraction in fractions:  # each is a fraction of what the parts before it leave
        totals.append(round(fraction * (len(indices) - sum(totals))))
    return [indices[part] for part in stratified(labels, tuple(totals), seed)]
