"""The images of a folder, their classes and their splits, found by listing the folder; no file is opened.

A split folder is one named train, val, valid, validation or test (in any case) that itself holds folders, so a *class*
called "train" that holds images stays a class. With a train split, other folders of the root are ignored if they hold
no images, and refused if they do: the root would mix splits and classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neumann.data import settings
from neumann.data.splits import Examples, Indices, stratified
from neumann.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


class File(NamedTuple):
    """One image file: path under the root with forward slashes, size in bytes, and two times in nanoseconds."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, eq=False)
class Listing:
    """All N images of a folder, sorted by path.

    Args:
        root: absolute path of the folder.
        class_names: the class folders' names, by label.
        files: the images, [N].
        labels: their classes, int64 [N].
        parts: {train, validation or test: sorted indices of the images that lie in that split's folder}; bare class
            folders are all train.
        folders: {train, validation or test: the split folder's own name}; empty for bare class folders.
    """

    root: Path
    class_names: tuple[str, ...]
    files: tuple[File, ...]
    labels: Indices
    parts: dict[str, Indices]
    folders: dict[str, str]


def walk(root: str) -> Listing:
    """Return the listing of ``root``. Raises UserError, naming the path, where it is not a folder of class folders."""
    top = Path(root).expanduser().absolute()
    if not top.exists():
        raise UserError(f"data.root '{top}' does not exist")
    if not top.is_dir():
        raise UserError(f"data.root '{top}' is not a folder")
    folders = _split_folders(top)
    classes = {part: _class_folders(top / name) for part, name in folders.items()} or {"train": _class_folders(top)}
    names = classes["train"]
    for part, found in classes.items():
        if odd := sorted(set(names) ^ set(found)):
            has, lacks = (part, "train") if odd[0] in found else ("train", part)
            raise UserError(
                f"the splits of '{top}' must have the same classes, but class folder '{odd[0]}' is in {folders[has]}/ "
                f"and not in {folders[lacks]}/"
            )
    rows: list[tuple[File, int, str]] = []
    for part in classes:
        for label, name in enumerate(names):
            prefix = f"{folders[part]}/{name}" if folders else name
            rows.extend((file, label, part) for file in _images_of_class(top, prefix))
    rows.sort(key=lambda row: row[0].path)
    homes = np.array([row[2] for row in rows])
    return Listing(
        root=top,
        class_names=tuple(names),
        files=tuple(row[0] for row in rows),
        labels=np.array([row[1] for row in rows], dtype=np.int64),
        parts={part: np.flatnonzero(homes == part).astype(np.int64) for part in classes},
        folders=folders,
    )


def assign(listing: Listing, wanted: settings.ImageFolder) -> tuple[Examples, str, str]:
    """Return the three splits, and as sentences the rule that made them and what the test split is.

    Raises UserError for a class with fewer images than the splits that are cut from it.
    """
    own, folders = dict(listing.parts), listing.folders
    by = f"stratified, by split seed {wanted.split_seed}"
    source = f"{folders['train']}/" if folders else "the class folders"
    if "validation" in own and "test" in own:
        rule = f"{source}, {folders['validation']}/ and {folders['test']}/ as they are"
        test_is = f"the folder {folders['test']}/"
    elif "validation" in own or "test" in own:
        # Published results are on the labelled folder beside train/, whatever its name (ImageNet's "val"): our test.
        name = folders["test" if "test" in own else "validation"]
        own["test"] = own.pop("validation", own.get("test", own["train"]))
        own["validation"], own["train"] = _cut(listing, own["train"], (wanted.val_fraction,), wanted.split_seed)
        rule = f"{name}/ is the test split; validation is {wanted.val_fraction:g} of {source}, {by}"
        test_is = f"the folder {name}/" + ("" if name.lower() == "test" else ", the only labelled one beside train/")
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


def _cut(listing: Listing, indices: Indices, fractions: tuple[float, ...], seed: int) -> list[Indices]:
    """Cut a stratified part of each fraction from ``indices``; return the parts, then the rest. Raises UserError."""
    labels = listing.labels[indices]
    counts = np.bincount(labels, minlength=len(listing.class_names))
    needed = len(fractions) + 1
    if counts.min() < needed:
        label, few = int(counts.argmin()), int((counts < needed).sum())
        where = listing.root / listing.folders.get("train", "")
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


def _split_folders(top: Path) -> dict[str, str]:
    """Return the split folders of ``top`` by the part they hold, empty where it holds class folders."""
    names = _folders(top)
    found: dict[str, str] = {}
    for name in names:
        part = SPLITS.get(name.lower())
        if part is None or not _folders(top / name):
            continue
        if part in found:
            raise UserError(f"'{top}' has both {found[part]}/ and {name}/: only one of them can be the {part} split")
        found[part] = name
    if not found:
        return {}
    if "train" not in found:
        raise UserError(f"'{top}' has {next(iter(found.values()))}/ but no train/ with class folders in it")
    for name in names:
        if name not in found.values() and any(_is_image(entry.name) for entry in _scan(top / name)):
            if SPLITS.get(name.lower()):
                raise UserError(f"'{top / name}' has no class folders: its images lie directly in it")
            raise UserError(
                f"'{top}' has {found['train']}/ and beside it the class folder '{name}': it is either split folders or "
                f"class folders, so move one of them away"
            )
    return found


def _class_folders(top: Path) -> list[str]:
    names = _folders(top)
    if not names:
        if any(_is_image(entry.name) for entry in _scan(top)):
            raise UserError(f"'{top}' has no class folders: its images lie directly in it, put them in one per class")
        raise UserError(f"'{top}' has no class folders")
    if len(names) == 1:
        inner = top / names[0]
        hint = f"; did you mean data.root={inner}?" if _folders(inner) else ""
        raise UserError(f"'{top}' has only one class folder, '{names[0]}', and a classifier needs at least two{hint}")
    return names


def _images_of_class(top: Path, prefix: str) -> list[File]:
    files, others = [], 0
    for path, entry in _walk(top, prefix, ancestors=()):
        if not _is_image(entry.name):
            others += 1
            continue
        try:
            stat = entry.stat()
        except OSError as error:
            raise UserError(f"'{entry.path}' cannot be read ({error.strerror or error})") from error
        files.append(File(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    if not files:
        but = f" (its {others} file(s) are of other kinds)" if others else ""
        raise UserError(f"class folder '{top / prefix}' holds no images{but}: they end in {', '.join(SUFFIXES)}")
    return files


def _walk(top: Path, prefix: str, ancestors: tuple[str, ...]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every visible file under ``top/prefix`` with its path under ``top``; links are followed, but no cycle."""
    here = os.path.realpath(top / prefix)
    if here in ancestors:
        return
    for entry in _scan(top / prefix):
        if entry.is_dir():
            yield from _walk(top, f"{prefix}/{entry.name}", (*ancestors, here))
        else:
            yield f"{prefix}/{entry.name}", entry


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise UserError(f"the folder '{folder}' cannot be read ({error.strerror or error})") from error


def _folders(top: Path) -> list[str]:
    return sorted(entry.name for entry in _scan(top) if entry.is_dir())


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
