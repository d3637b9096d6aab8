"""Sets that timm's dataset factory reads, listed as a folder is, so that all that folders get they get too.

Their images can be read in any order (`neumann.data.sources`): a row of a Hugging Face set, a member of a tar file.
Order, augmentation, splits, copies, fingerprint and resuming are then those of every other set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from neumann.data import hugging_face, settings, tars, webdataset
from neumann.data.class_names import refuse_equal_names
from neumann.data.folder import SUFFIXES, File, Listing, walk
from neumann.data.left_out import LeftOut
from neumann.data.sources import HuggingFaceSource, Stamp, TarSource, stamp_of
from neumann.data.split_names import SPLITS
from neumann.errors import UserError, did_you_mean

Split = TypeVar("Split")
Row = tuple[Path, str, int, int, int | str, str]  # tar file, member, offset, size, label or class, part


def listing_of(wanted: settings.ImageFolder) -> Listing:
    """Return the listing of the set that ``wanted`` names. Raises UserError, one sentence, naming what is wrong."""
    if not isinstance(wanted, settings.Timm):
        return walk(wanted.root)
    if wanted.prefix == "hfds":
        return _hugging_face(wanted)
    assert wanted.root is not None  # `checked_settings.parse` asks for one
    root = _existing(wanted.root)
    if wanted.prefix == "wds":
        return _shards(root, wanted)
    if root.is_file() or (any(root.glob("*.tar")) and not any(path.is_dir() for path in root.iterdir())):
        return _tar_of_classes(root, wanted)
    return walk(wanted.root)


def chosen(available: Mapping[str, Split], wanted: settings.Timm, where: str) -> tuple[dict[str, str], list[str]]:
    """Return {train, validation or test: name among ``available``}, and the names that are none of them.

    Raises UserError for a name that is not there.
    """
    found: dict[str, str] = {}
    for part in ("train", "validation", "test"):
        setting = {"train": "train_split", "validation": "val_split", "test": "test_split"}[part]
        given = getattr(wanted, setting)
        names = [name for name in available if name not in found.values()]
        if given in names:
            found[part] = given
        elif given is None or given == "train":
            alike = [name for name in names if SPLITS.get(name.lower()) == part]
            if len(alike) > 1:
                raise UserError(f"{where} has the splits {' and '.join(alike)}: say which with data.{setting}")
            if alike:
                found[part] = alike[0]
        if given is not None and part not in found:
            listed = ", ".join(available)
            raise UserError(
                f"data.{setting}={given} is not a split of {where}, which has {listed}: "
                f"{did_you_mean(given, available)}"
            )
    return found, [name for name in available if name not in found.values()]


def _existing(root: str) -> Path:
    try:
        path = Path(root).expanduser().absolute()
        if not path.exists():
            raise UserError(f"data.root '{path}' does not exist")
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"data.root '{root}' cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return path


def _shards(root: Path, wanted: settings.Timm) -> Listing:
    if root.is_file():
        raise UserError(f"data.root '{root}' is a file: give the folder of the shards")
    given = {"train": wanted.train_split, "validation": wanted.val_split, "test": wanted.test_split}
    patterns = {part: name for part, name in given.items() if name is not None and ".tar" in name}
    if patterns:
        if "train" not in patterns:
            raise UserError("data.train_split names no shards and another split does: give a pattern for each")
        settings_of = {"train": "data.train_split", "validation": "data.val_split", "test": "data.test_split"}
        shards = {part: webdataset.by_pattern(root, given, settings_of[part]) for part, given in patterns.items()}
        folders: dict[str, str] = patterns
        beside: list[str] = []
    else:
        available = webdataset.splits_of(root)
        folders, beside = chosen(available, wanted, f"'{root}'")
        shards = {part: available[name] for part, name in folders.items()}
    suffixes = tuple(word.strip(" .").lower() for word in (wanted.input_key or webdataset.SUFFIXES).split(";"))
    taken: dict[Path, str] = {}
    rows: list[Row] = []
    for part, of_part in shards.items():
        field = wanted.target_key or of_part.field
        for path in of_part.paths:
            if path in taken:
                raise UserError(f"the shard '{path}' is in the {taken[path]} and in the {part} split")
            taken[path] = part
            found = webdataset.samples(path, suffixes=suffixes, field=field, count=of_part.counts.get(path))
            rows += [(path, name, offset, size, label, part) for name, offset, size, label in found]
    labels = np.array([row[4] for row in rows], dtype=np.int64)
    homes = [row[5] for row in rows]
    seen = np.unique(labels[[home == "train" for home in homes]])
    top = int(labels.max())
    if len(seen) <= top:
        first = next(label for label in range(top + 1) if label not in set(seen.tolist()))
        at = int(labels.argmax())
        raise UserError(
            f"'{rows[at][1]}' in the shard '{rows[at][0]}' has the label {top}, and no training image has label "
            f"{first}: labels must be 0 to the number of classes less one"
        )
    names = tuple(str(label) for label in range(top + 1))
    return _of_tars(root, rows, names, folders, beside, wanted)


def _tar_of_classes(root: Path, wanted: settings.Timm) -> Listing:
    """Return the images of one tar file, or of a folder of them, by the folders in it, as timm reads it."""
    paths = [root] if root.is_file() else sorted(root.glob("*.tar"))
    splits = {path: SPLITS.get(path.stem.lower()) for path in paths}
    named = {path.stem: path for path in paths if splits[path]}
    if named and len(named) < len(paths):
        odd = next(path for path in paths if not splits[path])
        raise UserError(f"'{root}' has '{min(named)}.tar' and '{odd.name}', whose name is no split: move it away")
    folders, beside = chosen(named, wanted, f"'{root}'") if len(paths) > 1 and named else ({}, [])
    rows: list[Row] = []
    for path in paths:
        part = next((part for part, name in folders.items() if path.stem == name), "train")
        if folders and path.stem not in folders.values():
            continue
        for member in tars.members(path):
            place = PurePosixPath(member.name)
            if place.suffix.lower() == ".tar":
                raise UserError(f"'{path}' holds tar files such as '{member.name}': unpack it once")
            if place.suffix.lower() not in SUFFIXES or place.name.startswith("."):
                continue
            inside = [word for word in place.parent.parts if word != "."]
            label = "/".join(inside if folders or len(paths) == 1 else [path.stem, *inside])
            rows.append((path, member.name, member.offset, member.size, label, part))
    if not folders and rows:  # one tar file may hold train/CLASS/ and val/CLASS/
        rows, folders = _split_inside(rows)
    names = tuple(sorted({str(row[4]) for row in rows if row[5] == "train"}))
    if "" in names or len(names) < 2:
        raise UserError(f"'{root}' has {len(names)} class folder(s) of images, and a classifier needs at least two")
    if odd_row := next((row for row in rows if row[4] not in names), None):
        raise UserError(
            f"the splits of '{root}' must have the same classes, but '{odd_row[4]}' of '{odd_row[1]}' has no training "
            "image"
        )
    number = {name: label for label, name in enumerate(names)}
    numbered: list[Row] = [(*row[:4], number[str(row[4])], row[5]) for row in rows]
    return _of_tars(root, numbered, names, folders, beside, wanted)


def _split_inside(rows: list[Row]) -> tuple[list[Row], dict[str, str]]:
    tops = {str(row[4]).partition("/")[0] for row in rows}
    parts = {top: SPLITS.get(top.lower()) for top in tops}
    if not all(parts.values()) or "train" not in parts.values() or len(set(parts.values())) < len(parts):
        return rows, {}
    found: list[Row] = []
    for row in rows:
        top, _, label = str(row[4]).partition("/")
        found.append((*row[:4], label, str(parts[top])))
    return found, {str(part): top for top, part in parts.items()}


def _of_tars(
    root: Path,
    rows: list[Row],
    names: tuple[str, ...],
    folders: Mapping[str, str],
    beside: Iterable[str],
    wanted: settings.Timm,
) -> Listing:
    base = root.parent if root.is_file() else root
    paths = tuple(dict.fromkeys(row[0] for row in rows))
    stats = {path: path.stat() for path in paths}
    number = {path: place for place, path in enumerate(paths)}
    inside = {path: path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path) for path in paths}
    files = tuple(
        File(f"{inside[path]}/{name}", size, stats[path].st_mtime_ns, stats[path].st_ctime_ns)
        for path, name, _, size, _, _ in rows
    )
    source = TarSource(
        tuple(map(str, paths)), [(number[row[0]], row[2], row[3]) for row in rows], tuple(row[1] for row in rows)
    )
    labels, homes = [int(row[4]) for row in rows], [row[5] for row in rows]
    around = {} if root.is_file() else {folder: folder.stat() for folder in (root, *(path.parent for path in paths))}
    places = {str(path): stamp_of(found) for path, found in (stats | around).items()}
    return _listing(root, files, labels, homes, names, folders, beside, source, places, wanted)


def _hugging_face(wanted: settings.Timm) -> Listing:
    found = hugging_face.load(wanted)
    folders, beside = chosen(found, wanted, f"'{wanted.name}'")
    column, label = wanted.input_key or "image", wanted.target_key or "label"
    files: list[File] = []
    labels: list[int] = []
    homes: list[str] = []
    names: tuple[str, ...] = ()
    for part, name in folders.items():
        rows, said, classes = hugging_face.rows(found[name], name, wanted.name, column, label)
        if names and classes != names:
            raise UserError(f"the splits of '{wanted.name}' must have the same classes, and '{name}' has others")
        files += rows
        labels += said
        homes += [part] * len(rows)
        names = classes
    source = HuggingFaceSource(
        tuple((name, hugging_face.undecoded(found[name], column)) for name in folders.values()), column
    )
    if not names:
        names = tuple(str(number) for number in range(max(labels) + 1))
    return _listing(Path(wanted.name), tuple(files), labels, homes, names, folders, beside, source, None, wanted)


def _listing(
    root: Path,
    files: tuple[File, ...],
    labels: list[int],
    homes: list[str],
    names: tuple[str, ...],
    folders: Mapping[str, str],
    beside: Iterable[str],
    source: TarSource | HuggingFaceSource,
    places: Mapping[str, Stamp] | None,
    wanted: settings.Timm,
) -> Listing:
    at = np.array(homes)
    if len(names) < 2:
        raise UserError(f"'{root}' has images of {len(names)} class only, and a classifier needs at least two")
    refuse_equal_names(names, root)
    own = dict(folders) if len(folders) > 1 else {}
    return Listing(
        root=root,
        class_names=names,
        files=files,
        labels=np.array(labels, dtype=np.int64),
        parts={part: np.flatnonzero(at == part).astype(np.int64) for part in dict.fromkeys(homes)},
        folders=own,
        left_out=LeftOut(other_splits=list(beside)),
        source=source,
        places=places,
        kind="split",
        whole=f"'{folders.get('train', 'train')}'",
        mark=f"\0{wanted.name}\0{wanted.input_key}\0{wanted.target_key}\0{sorted(folders.items())}",
    )
