"""The scan of a folder's files for their fingerprint and the images' size, kept in the cache.

The first scan of a folder reads every file, or only the headers where the files have more than 1 GiB together. The
result is kept under a digest of all paths, sizes and times, so that an unchanged folder is listed and not read.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from neumann.cache_folder import cache_folder
from neumann.data import cache
from neumann.data.folder import File, Listing
from neumann.errors import UserError

VERSION = 1  # of the kept file: raise it when its content or meaning changes
CONTENT_LIMIT = 1 << 30  # bytes in all; larger folders are told apart by names and sizes
SMALL_FILE = 1 << 16  # bytes a file; below it threads cost more than the waiting they hide, because of Python's lock
# raised by Pillow's readers for bytes that are not an image, or only a part of one
UNREADABLE: tuple[type[BaseException], ...] = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    MemoryError,
    ZeroDivisionError,
    OverflowError,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Scan:
    """The result of reading all files.

    ``stat_digest`` is of their names, sizes and times; ``fingerprint`` is as in `neumann.data.facts.DataFacts`;
    ``native_size`` is (height, width) in pixels where all images share it, else None.
    """

    stat_digest: str
    fingerprint: str
    native_size: tuple[int, int] | None


@dataclass(frozen=True)
class _Seen:
    """One file as the scan read it: its digest, its size, or why it cannot be decoded."""

    digest: bytes
    size: tuple[int, int]
    problem: str = ""


def scan(listing: Listing) -> Scan:
    """Return the scan of ``listing``, from the cache where nothing has changed.

    Raises UserError naming the first file that is not an image by its header, and how many there are.
    """
    stats = _stat_digest(listing.files)
    place = hashlib.sha256(str(listing.root).encode(errors="surrogateescape")).hexdigest()[:24]
    kept = cache_folder() / "scans" / f"{place}.json"
    with cache.lock(kept):
        if (known := _recall(kept, stats)) is not None:
            return known
        found = _read_all(listing, stats)
        cache.write(
            kept, lambda path: path.write_text(json.dumps({"version": VERSION, **asdict(found)}), encoding="utf-8")
        )
    return found


def report_unreadable(root: Path | str, problems: Iterable[tuple[str, str]], total: int) -> None:
    """Raise one UserError for all ``problems``, (path under ``root``, reason), of ``total`` files; nothing for none."""
    found = sorted(problems)
    if found:
        path, reason = found[0]
        more = f"; {len(found)} of the {total} image files cannot be read" if len(found) > 1 else ""
        raise UserError(f"'{Path(root, path)}' is not a readable image ({reason}){more}")


def explain(error: BaseException) -> str:
    """Return a short reason without the path or memory address that Pillow's messages carry."""
    text = str(error)
    return "no known image format" if "cannot identify image file" in text else text or type(error).__name__


def _stat_digest(files: tuple[File, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        line = f"{file.path}\0{file.size}\0{file.mtime_ns}\0{file.ctime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _recall(kept: Path, stats: str) -> Scan | None:
    try:
        record = json.loads(kept.read_text(encoding="utf-8"))
        if record["version"] != VERSION or record["stat_digest"] != stats:
            return None
        size = record["native_size"]
        return Scan(stats, str(record["fingerprint"]), None if size is None else (int(size[0]), int(size[1])))
    except cache.ABSENT:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        cache.log.warning("the kept scan '%s' is damaged, so the folder is read again (%s)", kept, error)
        return None


def _read_all(listing: Listing, stats: str) -> Scan:
    files = listing.files
    total = sum(file.size for file in files)
    whole = total <= CONTENT_LIMIT
    if total > CONTENT_LIMIT or len(files) > 100_000:
        cache.log.warning("reading the headers of %d images in '%s', once", len(files), listing.root)

    def look(file: File) -> _Seen:
        return _look(listing.root / file.path, whole=whole)

    if whole and total < SMALL_FILE * len(files):
        seen = [look(file) for file in files]
    else:
        with ThreadPoolExecutor(4) as pool:
            seen = list(pool.map(look, files, chunksize=64))
    problems = [(file.path, one.problem) for file, one in zip(files, seen, strict=True) if one.problem]
    report_unreadable(listing.root, problems, len(files))
    digest = hashlib.sha256()
    for file, one in zip(files, seen, strict=True):
        told = one.digest if whole else str(file.size).encode()
        digest.update(file.path.encode(errors="surrogateescape") + b"\0" + told + b"\n")
    sizes = {one.size for one in seen}
    prefix = "content:" if whole else "names-sizes:"
    return Scan(stats, prefix + digest.hexdigest(), sizes.pop() if len(sizes) == 1 else None)


def _look(path: Path, *, whole: bool) -> _Seen:
    try:
        if not whole:
            with Image.open(path) as image:
                return _Seen(b"", (image.height, image.width))
        content = path.read_bytes()
        if not content:
            return _Seen(b"", (0, 0), "the file is empty")
        with Image.open(io.BytesIO(content)) as image:
            return _Seen(hashlib.sha256(content).digest(), (image.height, image.width))
    except UNREADABLE as error:
        return _Seen(b"", (0, 0), explain(error))
