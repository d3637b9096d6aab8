"""What lies in a folder of images and is not trained on, and what of it a user is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath

COMPANIONS = ("thumbs.db", "desktop.ini", ".ds_store", ".gitkeep", ".gitignore", ".directory")  # nobody misses them


@dataclass
class LeftOut:
    """Paths under the root, with forward slashes.

    Args:
        folders: hidden ones, litter and thumbnails.
        hidden: images whose names begin with a dot, among them macOS's ``._NAME``.
        other_kinds: files in class folders that are not images by their names.
        beside_classes: images that lie beside the class folders.
        empty_splits: split folders beside train/ without class folders or images in them.
        split_files: what is named as a split and is no folder.
        beside_splits: folders of class folders beside train/ whose names are not a split's.
        lost_links: links beside the class folders that lead nowhere.
        other_splits: splits of a set that are none of training, validation and test.
        same_but_case: pairs of class folders whose names differ in upper and lower case alone; both are classes.
        nested: images that lie in a folder inside their class folder; these alone are trained on.
    """

    folders: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    other_kinds: list[str] = field(default_factory=list)
    beside_classes: list[str] = field(default_factory=list)
    empty_splits: list[str] = field(default_factory=list)
    split_files: list[str] = field(default_factory=list)
    beside_splits: list[str] = field(default_factory=list)
    lost_links: list[str] = field(default_factory=list)
    other_splits: list[str] = field(default_factory=list)
    same_but_case: list[str] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)

    def told(self) -> list[str]:
        """Return what a user is told: counts with an example each, no more than one phrase a kind."""
        others = [path for path in self.other_kinds if PurePosixPath(path).name.lower() not in COMPANIONS]
        suffixes = Counter(PurePosixPath(path).suffix.lower() or "no suffix" for path in others)
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(3))
        phrases = [
            _some(self.folders, "folder(s) that are hidden, a system's or of thumbnails"),
            _some(self.hidden, "hidden image(s)"),
            _some(others, f"file(s) that are not images by name ({kinds})"),
            _some(self.beside_classes, "image(s) beside the class folders"),
            _some(self.empty_splits, "split folder(s) that hold no images"),
            _some(self.split_files, "thing(s) named as a split that are no folder"),
            _some(self.beside_splits, "folder(s) beside train/ that are no split by name (val/ and test/ are)"),
            _some(self.other_splits, "split(s) that are none of training, validation and test"),
            _some(self.lost_links, "link(s) that lead nowhere"),
        ]
        left_out = [phrase for phrase in phrases if phrase]
        told = [f"left out: {', '.join(left_out)}"] if left_out else []
        if self.same_but_case:  # as letters are, of which some sets have both
            told.append(f"{min(self.same_but_case)} differ in upper and lower case alone and are two classes")
        if self.nested:
            told.append(f"{_some(self.nested, 'image(s) lie in folders inside a class folder and count as its class')}")
        return told


def _some(paths: list[str], what: str) -> str:
    return f"{len(paths)} {what}, e.g. '{min(paths)}'" if paths else ""
