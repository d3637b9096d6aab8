"""Webdataset shards as a set whose samples can be read in any order: a shard is a tar file of KEY.jpg and KEY.cls.

What lies where in a shard is kept in the cache, so that an unchanged one is not read through again. Which shards are
which split is said by the set's info.json, by a pattern, or by the shards' names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neumann.cache_folder import cache_folder
from neumann.data import cache, tars
from neumann.data.split_names import SPLITS
from neumann.errors import UserError, first_line

VERSION = 1  # of the kept index: raise it when its content or meaning changes
SUFFIXES = "jpg;png;webp;jpeg"  # timm's and jpeg
INFO = ("_info.json", "info.json")  # as timm looks for them
KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # webdataset's: the key ends at the first dot of the file's name
Sample = tuple[str, int, int, int]  # name, offset, size, label


@dataclass(frozen=True)
class Shards:
    """The shards of a split.

    Args:
        paths: the tar files.
        counts: {path: number of samples that the set's info.json says}, where it says so.
        field: the field of a sample's .json that holds the label, of the set's info.json; "" for none.
    """

    paths: tuple[Path, ...]
    counts: Mapping[Path, int]
    field: str = ""


def splits_of(root: Path) -> dict[str, Shards]:
    """Return the shards under ``root`` by the name of their split. Raises UserError where there are none."""
    for name in INFO:
        if (root / name).is_file():
            return _told_by(root / name)
    found: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    for path in sorted([*root.glob("*.tar"), *root.glob("*/*.tar")]):
        inside = path.relative_to(root)
        words = [inside.parts[0].lower()] if len(inside.parts) > 1 else re.split(r"[^a-z]+", path.stem.lower())
        named = [word for word in words if word in SPLITS]
        found.setdefault(named[0], []).append(path) if named else unnamed.append(path)
    if found and unnamed:
        raise UserError(
            f"'{root}' has shards of the split '{min(found)}' and '{unnamed[0].name}', whose name says no split: name "
            "the shards of each split, as data.train_split='NAME-{000..019}.tar' and data.test_split alike"
        )
    if not found and not unnamed:
        packed = next(iter(root.glob("*.tar.gz")), None)
        hint = f" ('{packed.name}' is compressed: unpack it with gunzip)" if packed else ""
        raise UserError(f"'{root}' has no shards: files that end in .tar, in it or in a folder for each split{hint}")
    return {name: Shards(tuple(paths), {}) for name, paths in (found or {"train": unnamed}).items()}


def by_pattern(root: Path, pattern: str, setting: str) -> Shards:
    """Return the shards that ``pattern`` names under ``root``; what follows | is their number of samples."""
    pattern = pattern.partition("|")[0]
    paths = tuple(root / name for name in tars.expand(pattern))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{setting}={pattern}: {len(missing)} of {len(paths)} shards are missing, e.g. '{missing[0]}'")
    return Shards(paths, {})


def samples(path: Path, *, suffixes: Sequence[str], field: str, count: int | None) -> list[Sample]:
    """Return the samples in the shard ``path``, in the order of their keys.

    ``suffixes`` are those of images, ``field`` the one of a .json that holds the label, "" where it is a .cls, and
    ``count`` the number of samples that there should be. Raises UserError naming the shard and the sample.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"the shard '{path}' cannot be read ({error.strerror or error})") from error
    about = [VERSION, str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, list(suffixes), field]
    place = hashlib.sha256(repr((str(path), suffixes, field)).encode(errors="surrogateescape")).hexdigest()[:24]
    kept = cache_folder() / "scans" / f"{place}.json"
    with cache.lock(kept):
        found = _recall(kept, about)
        if found is None:
            found = _index(path, suffixes, field)
            content = json.dumps({"about": about, "samples": found})
            cache.write(kept, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    if count is not None and count != len(found):
        raise UserError(f"the shard '{path}' has {len(found)} samples where the set's info.json says {count}")
    return found


def _told_by(info: Path) -> dict[str, Shards]:
    try:
        splits = json.loads(info.read_text(encoding="utf-8"))["splits"]
        found = {}
        for name, said in splits.items():
            paths = tuple(info.parent / str(file) for file in said["filenames"])
            counts = dict(zip(paths, map(int, said.get("shard_lengths", ())), strict=False))
            found[str(name)] = Shards(paths, counts, str(said.get("alt_label") or ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{info}' does not tell the shards of each split ({first_line(error)})") from error
    return found


def _recall(kept: Path, about: list[Any]) -> list[Sample] | None:
    try:
        record = json.loads(kept.read_text(encoding="utf-8"))
        if record["about"] != about:
            return None
        return [(str(name), int(offset), int(size), int(label)) for name, offset, size, label in record["samples"]]
    except cache.ABSENT:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        cache.log.warning("the kept index '%s' is damaged, so the shard is read again (%s)", kept, first_line(error))
        return None


def _index(path: Path, suffixes: Sequence[str], field: str) -> list[Sample]:
    grouped: dict[str, dict[str, tars.Member]] = {}
    for member in tars.members(path):
        matched = KEY.fullmatch(member.name)
        if matched is None or Path(member.name).name.startswith("__"):  # what webdataset leaves out, too
            continue
        key, suffix = matched[1], matched[2].lower()
        if suffix in grouped.setdefault(key, {}):
            raise UserError(f"the shard '{path}' has two files '{member.name}': every key must be there once")
        grouped[key][suffix] = member
    if not grouped:
        raise UserError(f"the shard '{path}' holds no samples")
    found = []
    with path.open("rb") as file:
        for key, parts in sorted(grouped.items()):
            image = next((parts[suffix] for suffix in suffixes if suffix in parts), None)
            if image is None:
                has = ", ".join(f".{suffix}" for suffix in sorted(parts))
                wanted = ", ".join(f".{suffix}" for suffix in suffixes)
                raise UserError(f"the shard '{path}' has no image ({wanted}) for '{key}', only {has}")
            beside = parts.get("json" if field else "cls")
            if beside is None:
                kind = "json" if field else "cls"
                raise UserError(f"the shard '{path}' has no label for '{key}': there is no '{key}.{kind}' in it")
            file.seek(beside.offset)
            label = _label(file.read(beside.size), field, f"'{beside.name}' in the shard '{path}'")
            found.append((image.name, image.offset, image.size, label))
    return found


def _label(content: bytes, field: str, where: str) -> int:
    said: Any = content.decode("utf-8", "replace").strip()
    if field:
        try:
            said = json.loads(said)
            for key in field.split("."):
                said = said[key]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{where} has no label under '{field}'") from error
    try:
        label = int(said) if isinstance(said, str) and not isinstance(said, bool) else said
    except ValueError:
        label = None
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise UserError(f"{where} has the label {said!r:.40}, which is no class number from 0 on")
    return label
