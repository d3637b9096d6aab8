"""The images of a folder, their classes and their splits, found by listing the folder; no file is opened.

A split folder is one of `SPLITS` (in any case) that itself holds folders, so a *class* called "train" that holds images
stays a class. With a train split, other folders of the root are ignored if they hold no images, and refused if they do:
the root would mix splits and classes.

As in torchvision's ImageFolder, links are followed, and folders inside a class folder count as their class. Unlike
there, hidden files and what systems and tools leave behind (`LITTER`) are left out. `neumann.data.left_out` says what.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neumann.data.left_out import LeftOut
from neumann.data.sources import FolderSource, Source, Stamp, stamp_of
from neumann.data.split_names import SPLITS, splits_among
from neumann.data.splits import Indices
from neumann.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
# folders that systems and tools leave behind, in lower case: of NAS boxes, recycle bins, file managers, version control
LITTER = (
    *("__macosx*", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found"),
    "__pycache__",
    *("system volume information", ".trash*", ".@__thumb", ".thumb*", ".appledouble", ".spotlight-v100"),
    *(".fseventsd", ".temporaryitems", ".picasaoriginals", ".snapshot*", ".zfs", ".ipynb_checkpoints"),
    *(".git", ".hg", ".svn", ".dvc", ".cache", ".venv", ".vscode", ".idea", ".launches"),
)
THUMBNAILS = ("thumbs", "thumbnails")  # inside a class folder; above it they may be classes


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
        left_out: what lies in the folder and is not among ``files``.
        source: reads a file's bytes by its place in ``files``.
        places: {path: stamp} of the folders that were listed, or of the tar files, taken before they were read: while
            they are the same, no image is added or removed. None where nothing tells that.
        kind: what a split is, for sentences: a folder, or a split of another kind of set.
        whole: what a set without splits is cut from, likewise.
        mark: what tells two sets of one root apart, "" for a folder.
    """

    root: Path
    class_names: tuple[str, ...]
    files: tuple[File, ...]
    labels: Indices
    parts: dict[str, Indices]
    folders: dict[str, str]
    left_out: LeftOut
    source: Source
    places: Mapping[str, Stamp] | None
    kind: str = "folder"
    whole: str = "the class folders"
    mark: str = ""

    def called(self, part: str) -> str:
        """Return the name of a split as a user knows it, "train/" of a folder."""
        return f"{self.folders[part]}/" if self.kind == "folder" else f"'{self.folders[part]}'"

    def stamps(self) -> NDArray[np.int64]:
        """Return the stamps of the images, [N, 3]."""
        return np.array([file[1:] for file in self.files], dtype=np.int64).reshape(-1, 3)


def walk(root: str) -> Listing:
    """Return the listing of ``root``. Raises UserError, naming the path, where it is not a folder of class folders."""
    try:
        top = Path(root).expanduser().absolute()
        is_folder = stat.S_ISDIR(top.stat().st_mode)
    except FileNotFoundError as error:
        raise UserError(f"data.root '{top}' does not exist") from error
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; no home folder; a null byte
        raise UserError(f"data.root '{root}' cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not is_folder:
        raise UserError(f"data.root '{top}' is not a folder")
    left_out, places = LeftOut(), dict[str, Stamp]()
    folders = _split_folders(top, left_out, places)
    classes = {part: _class_folders(top / name, left_out, places) for part, name in folders.items()}
    classes = classes or {"train": _class_folders(top, left_out, places)}
    for part, found in classes.items():
        if odd := sorted(classes["train"].keys() ^ found.keys()):
            has, lacks = (part, "train") if odd[0] in found else ("train", part)
            raise UserError(
                f"the splits of '{top}' must have the same classes, but class folder '{classes[has][odd[0]]}' is in "
                f"{folders[has]}/ and not in {folders[lacks]}/"
            )
    if not folders:
        _refuse_splits(top, list(classes["train"].values()))
    rows: list[tuple[File, str, str]] = []
    for part, found in classes.items():
        for key, name in list(found.items()):
            prefix = f"{folders[part]}/{name}" if folders else name
            listed: dict[str, Stamp] = {}
            files = _images_of_class(top, prefix, left_out, listed)
            within = not any(file.path.count("/") == 1 for file in files)
            if within and not folders and _holds_runs(top / name):  # our own results, where data.root=. is trained
                del found[key]
                continue
            if not files:
                _refuse_empty(top / prefix)
            rows.extend((file, key, part) for file in files)
            places |= listed
    if len(classes["train"]) == 1:
        _refuse_single(top / folders.get("train", ""), next(iter(classes["train"].values())))
    labels = {key: label for label, key in enumerate(classes["train"])}
    rows.sort(key=lambda row: row[0].path)
    homes = np.array([row[2] for row in rows])
    found_files = tuple(row[0] for row in rows)
    return Listing(
        root=top,
        class_names=tuple(classes["train"].values()),
        files=found_files,
        labels=np.array([labels[row[1]] for row in rows], dtype=np.int64),
        parts={part: np.flatnonzero(homes == part).astype(np.int64) for part in classes},
        folders=folders,
        left_out=left_out,
        source=FolderSource(str(top), tuple(file.path for file in found_files)),
        places=places,
    )


def _split_folders(top: Path, left_out: LeftOut, places: dict[str, Stamp]) -> dict[str, str]:
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
        if name in found.values():
            continue
        if _holds_images(top / name):
            if SPLITS.get(name.lower()):
                raise UserError(f"'{top / name}' has no class folders: its images lie directly in it")
            raise UserError(
                f"'{top}' has {found['train']}/ and beside it the class folder '{name}': it is either split folders or "
                f"class folders, so move one of them away"
            )
        if any(_holds_images(top / name / inner) for inner in _folders(top / name)):
            left_out.beside_splits.append(name)
        elif SPLITS.get(name.lower()):
            left_out.empty_splits.append(name)
    for entry in _scan(top, places):
        if entry.is_symlink() and not os.path.exists(entry.path):
            left_out.lost_links.append(entry.name)
        elif SPLITS.get(entry.name.lower()) and not _is_folder(entry):  # such as a link of a checkout on Windows
            left_out.split_files.append(entry.name)
    return found


def _refuse_splits(top: Path, names: list[str]) -> None:
    """Raise UserError where class folders read as splits and hold the same folders, which are the classes then."""
    splits = splits_among(names)
    inner = [set(_folders(top / name)) for name in splits if not _holds_images(top / name)]
    if len(inner) == len(splits) > 0 and (shared := set.intersection(*inner)):
        listed = " and ".join(f"'{name}'" for name in splits[:2])
        raise UserError(
            f"the class folders {listed} of '{top}' read as splits and both hold '{min(shared)}': rename them to train "
            "and test (or val), or put each one's images directly in it"
        )


def _class_folders(top: Path, left_out: LeftOut, places: dict[str, Stamp]) -> dict[str, str]:
    """Return the class folders' names by themselves in Unicode's composed form, which not every system writes."""
    found: dict[str, str] = {}
    for entry in _scan(top, places):
        if not _is_folder(entry):
            if entry.is_symlink() and not os.path.exists(entry.path):
                left_out.lost_links.append(entry.name)
            elif _is_image(entry.name) and not entry.name.startswith("."):
                left_out.beside_classes.append(entry.name)
        elif _is_litter(entry.name):
            left_out.folders.append(entry.name)
        elif not entry.name.startswith("."):
            key = unicodedata.normalize("NFC", entry.name)
            if key in found:
                raise UserError(
                    f"'{top}' has two class folders that read '{key}', one with composed and one with decomposed "
                    "letters (Unicode NFC and NFD): move the images of one to the other"
                )
            found[key] = entry.name
        elif _holds_images(Path(entry.path)):
            raise UserError(
                f"'{entry.path}' holds images and is hidden, because its name begins with a dot: rename it if it is a "
                "class, else move it away"
            )
    if not found:
        if left_out.beside_classes:
            raise UserError(f"'{top}' has no class folders: its images lie directly in it, put them in one per class")
        raise UserError(f"'{top}' has no class folders")
    if len(found) == 1:
        _refuse_single(top, next(iter(found.values())))
    by_case: dict[str, str] = {}
    for key, name in sorted(found.items()):
        if (other := by_case.setdefault(key.casefold(), name)) != name:
            left_out.same_but_case.append(f"the class folders '{other}' and '{name}'")
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _refuse_single(top: Path, name: str) -> None:
    inner = top / name
    hint = f"; did you mean data.root={inner}?" if _folders(inner) else ""
    raise UserError(f"'{top}' has only one class folder, '{name}', and a classifier needs at least two{hint}")


def _images_of_class(top: Path, prefix: str, left_out: LeftOut, places: dict[str, Stamp]) -> list[File]:
    files = []
    for path, entry in _walk(top, prefix, left_out, places, ancestors=()):
        if not _is_image(entry.name):
            left_out.other_kinds.append(path)
            continue
        if entry.name.startswith("."):
            left_out.hidden.append(path)
            continue
        try:
            found = entry.stat()
        except OSError as error:
            raise UserError(f"'{entry.path}' cannot be read ({error.strerror or error})") from error
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            raise UserError(f"'{entry.path}' cannot be read (it is a pipe, a socket or a device, not a file)")
        if path.count("/") > prefix.count("/") + 1:
            left_out.nested.append(path)
        files.append(File(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return files


def images_below(top: Path) -> list[str]:
    """Return the paths under ``top`` of all images in it, sorted; hidden files and litter are left out.

    Raises UserError for a folder that cannot be read.
    """
    entries = _walk(top, "", LeftOut(), {}, ancestors=())
    found = (path.removeprefix("/") for path, entry in entries if _is_image(entry.name))
    return sorted(path for path in found if not path.rpartition("/")[2].startswith("."))


def _refuse_empty(folder: Path) -> None:
    others = LeftOut()
    _images_of_class(folder.parent, folder.name, others, {})
    but = f" (its {len(others.other_kinds)} file(s) are of other kinds)" if others.other_kinds else ""
    raise UserError(f"class folder '{folder}' holds no images{but}: they end in {', '.join(SUFFIXES)}")


def _walk(
    top: Path, prefix: str, left_out: LeftOut, places: dict[str, Stamp], ancestors: tuple[str, ...]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every file under ``top/prefix`` with its path under ``top``; links are followed, but no cycle."""
    folder = top / prefix.removeprefix("/")
    here = os.path.realpath(folder)
    if here in ancestors:
        return
    for entry in _scan(folder, places):
        path = f"{prefix}/{entry.name}"
        if not _is_folder(entry):
            yield path, entry
        elif _is_litter(entry.name) or entry.name.startswith(".") or entry.name.lower() in THUMBNAILS:
            left_out.folders.append(path)
        else:
            yield from _walk(top, path, left_out, places, (*ancestors, here))


def _scan(folder: Path, places: dict[str, Stamp] | None = None) -> list[os.DirEntry[str]]:
    """Return what is in ``folder``, and note its stamp in ``places`` before: what changes meanwhile shows later."""
    try:
        if places is not None:
            places[str(folder)] = stamp_of(os.stat(folder))
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"the folder '{folder}' cannot be read ({error.strerror or error})") from error


def _folders(top: Path) -> list[str]:
    """Return the sorted names of the folders in ``top`` that are neither hidden nor litter."""
    return sorted(e.name for e in _scan(top) if not e.name.startswith(".") and not _is_litter(e.name) and _is_folder(e))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself, which leads nowhere, as one to a missing folder
            return False
        raise UserError(f"'{entry.path}' cannot be read ({error.strerror or error})") from error


def _is_litter(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in LITTER)


def _holds_images(folder: Path) -> bool:
    """Return whether an image that is not hidden lies directly in ``folder``."""
    return any(_is_image(entry.name) and not entry.name.startswith(".") for entry in _scan(folder))


def _holds_runs(folder: Path) -> bool:
    """Return whether ``folder`` is a results folder: FOLDER/STUDY/RUN/status.json, or only the claim of a run that
    begins, which is there while its images are looked for.
    """
    return any(path for pattern in ("status.json", ".claim.*") for path in folder.glob(f"*/*/{pattern}"))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
