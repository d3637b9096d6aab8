"""Where the bytes of an image come from: a file in a folder, a member of a tar file, a row of a Hugging Face set.

A source answers for any image at any time, in any process, so that order and augmentation are the project's own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Stamp(NamedTuple):
    """What tells a file or folder from one written later: its size in bytes, and two times in nanoseconds."""

    size: int
    mtime_ns: int
    ctime_ns: int


def stamp_of(found: os.stat_result) -> Stamp:
    """Return the stamp of what was ``found``."""
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Source(Protocol):
    """The encoded images of a set, by their places in its listing; it can be sent to other processes."""

    def read(self, index: int) -> tuple[bytes, Stamp | None]:
        """Return the bytes of image ``index``, and the stamp of their file after they were read, as the listing has it.

        The stamp is None where the listing has none that can be compared. Raises OSError or ValueError where the bytes
        are not there.
        """

    def path(self, index: int) -> str:
        """Return where image ``index`` lies, for a sentence about it."""


@dataclass(frozen=True)
class FolderSource:
    """Files of a folder.

    Args:
        root: the folder.
        paths: the files under it.
    """

    root: str
    paths: tuple[str, ...] = field(repr=False)

    def read(self, index: int) -> tuple[bytes, Stamp | None]:
        """Return the file's bytes and its stamp."""
        with open(os.path.join(self.root, self.paths[index]), "rb") as file:
            content = file.read()
            return content, stamp_of(os.fstat(file.fileno()))

    def path(self, index: int) -> str:
        """Return the file's path."""
        return str(Path(self.root, self.paths[index]))

    def stamps(self) -> NDArray[np.int64]:
        """Return the stamps of all files as they are now, [N, 3]. Raises OSError where one is not there."""
        prefix = os.path.join(self.root, "")
        found = (stamp_of(os.stat(prefix + path)) for path in self.paths)
        return np.array(list(found), dtype=np.int64).reshape(-1, 3)


@dataclass(frozen=True)
class TarSource:
    """Members of tar files, read at their offsets without the tar file being opened as one.

    Args:
        tars: the paths of the tar files.
        places: (number of the tar file, offset, size in bytes) of each image.
        names: the members' names, after the tar file's.
    """

    tars: tuple[str, ...]
    places: Sequence[tuple[int, int, int]] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)

    def read(self, index: int) -> tuple[bytes, Stamp | None]:
        """Return the member's bytes, and its size with the times of the tar file."""
        tar, offset, size = self.places[index]
        with open(self.tars[tar], "rb") as file:
            file.seek(offset)
            content = file.read(size)
            stamp = stamp_of(os.fstat(file.fileno()))
        if len(content) < size:
            raise ValueError("the tar file ends before the image does")
        return content, Stamp(size, stamp.mtime_ns, stamp.ctime_ns)

    def path(self, index: int) -> str:
        """Return the tar file's path and the member's name."""
        return f"{self.tars[self.places[index][0]]}: {self.names[index]}"


@dataclass(frozen=True)
class HuggingFaceSource:
    """Rows of splits of a Hugging Face set.

    Args:
        splits: (name, ``datasets.Dataset`` with one column of images that are not decoded), one after the other.
        column: that column.
    """

    splits: tuple[tuple[str, Any], ...]
    column: str

    def read(self, index: int) -> tuple[bytes, Stamp | None]:
        """Return the bytes in the row, or those of the file that it names, without a stamp."""
        _, split, row = self._row(index)
        image = split[row][self.column]
        if image is None:
            raise ValueError("the row has no image")
        content: bytes = image["bytes"] or Path(image["path"]).read_bytes()
        return content, None

    def path(self, index: int) -> str:
        """Return the split and the row."""
        name, _, row = self._row(index)
        return f"row {row} of split '{name}'"

    def _row(self, index: int) -> tuple[str, Any, int]:
        for name, split in self.splits:
            if index < len(split):
                return name, split, index
            index -= len(split)
        raise IndexError(index)
