"""The scan of a folder's files: fingerprint, size, copies, and what 8-bit pixels lose of them; kept in the cache.

The first scan of a folder decodes every file, so that an image that is cut short is met before training and not in the
last test. The result is kept under a digest of all paths, sizes and times: an unchanged folder is listed and not read.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image

from neumann.cache_folder import cache_folder
from neumann.cores import cores
from neumann.data import cache
from neumann.data.eight_bits import as_eight_bits, losses
from neumann.data.folder import File, Listing
from neumann.data.sources import Source
from neumann.errors import UserError

VERSION = 4  # of the kept file: raise it when its content or meaning changes
CONTENT_LIMIT = 1 << 30  # bytes in all; larger folders are told apart by names and sizes
SMALL_FILE = 1 << 12  # bytes a file; below it threads cost more than the waiting they hide, because of Python's lock
AT_ONCE = 4096  # files that the threads are given at a time
DAMAGED = "are PNG files with a wrong checksum or without an end, so their pixels may be wrong"
TELL_EVERY_S = 60  # while a folder is read
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

    Args:
        stat_digest: of their names, sizes and times.
        fingerprint: as in `neumann.data.facts.DataFacts`.
        native_size: (height, width) in pixels where all images share it, else None.
        copies: groups of images whose pixels are equal in 8-bit RGB, as indices into the listing's files.
        grey_copies: likewise in 8-bit grey.
        losses: {what 8-bit RGB loses: [number of images, the first one's path]}.
        odd_size: where sizes differ and more than half of the images share one, a sentence about it.
    """

    stat_digest: str
    fingerprint: str
    native_size: tuple[int, int] | None
    copies: list[list[int]] = field(default_factory=list)
    grey_copies: list[list[int]] = field(default_factory=list)
    losses: dict[str, tuple[int, str]] = field(default_factory=dict)
    odd_size: str = ""


@dataclass(frozen=True)
class _Seen:
    """One file as the scan read it: its size, digests of its bytes and its pixels, or why it cannot be decoded.

    ``pixels`` is of 8-bit RGB, ``grey`` of 8-bit grey.
    """

    digest: bytes
    size: tuple[int, int]
    pixels: bytes = b""
    grey: bytes = b""
    losses: tuple[str, ...] = ()
    problem: str = ""


def scan(listing: Listing) -> Scan:
    """Return the scan of ``listing``, from the cache where nothing has changed.

    Raises UserError naming the first file that is not a whole image, and how many there are.
    """
    stats = stat_digest(listing.files)
    place = hashlib.sha256(f"{listing.root}{listing.mark}".encode(errors="surrogateescape")).hexdigest()[:24]
    kept = cache_folder() / "scans" / f"{place}.json"
    with cache.lock(kept):
        if (known := _recall(kept, stats, len(listing.files))) is not None:
            return known
        found = _read_all(listing, stats)
        content = json.dumps({"version": VERSION, **asdict(found)})
        cache.write(kept, lambda path: path.write_text(content, encoding="utf-8"))
    return found


def report_unreadable(problems: Iterable[tuple[str, str]], total: int) -> None:
    """Raise one UserError for all ``problems``, (path, reason), of ``total`` files; nothing for none."""
    found = sorted(problems)
    if found:
        path, reason = found[0]
        more = f"; {len(found)} of the {total} image files cannot be read" if len(found) > 1 else ""
        raise UserError(f"'{path}' is not a readable image ({reason}){more}")


def explain(error: BaseException) -> str:
    """Return a short reason without the path or memory address that Pillow's messages carry."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error)
    return "no known image format" if "cannot identify image file" in text else text or type(error).__name__


def stat_digest(files: tuple[File, ...]) -> str:
    """Return a digest of the names, sizes and times of ``files``."""
    digest = hashlib.sha256()
    for file in files:
        line = f"{file.path}\0{file.size}\0{file.mtime_ns}\0{file.ctime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def fingerprint_by_names(listing: Listing) -> str | None:
    """Return the fingerprint of a folder too large for one over its bytes, without reading a file; else None."""
    if _is_small(listing):
        return None
    return _fingerprint(listing, (str(file.size).encode() for file in listing.files))


def _recall(kept: Path, stats: str, count: int) -> Scan | None:
    try:
        record = json.loads(kept.read_text(encoding="utf-8"))
        if record["version"] != VERSION or record["stat_digest"] != stats:
            return None
        size = record["native_size"]
        copies, grey = ([list(map(int, group)) for group in record[key]] for key in ("copies", "grey_copies"))
        if any(not 0 <= index < count for group in (*copies, *grey) for index in group):
            raise ValueError("its copies are not among the files")
        return Scan(
            stats,
            str(record["fingerprint"]),
            None if size is None else (int(size[0]), int(size[1])),
            copies,
            grey,
            {str(what): (int(told[0]), str(told[1])) for what, told in record["losses"].items()},
            str(record["odd_size"]),
        )
    except cache.ABSENT:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        cache.log.warning("the kept scan '%s' is damaged, so the folder is read again (%s)", kept, error)
        return None


def _read_all(listing: Listing, stats: str) -> Scan:
    files = listing.files
    if not _is_small(listing) or len(files) > 100_000:
        cache.log.warning("reading %d images in '%s', once", len(files), listing.root)
    seen = list(_told(_looks(listing), len(files)))
    problems = [(listing.source.path(index), one.problem) for index, one in enumerate(seen) if one.problem]
    report_unreadable(problems, len(files))
    lost: dict[str, tuple[int, str]] = {}
    for file, one in zip(files, seen, strict=True):
        for what in one.losses:
            count, first = lost.get(what, (0, file.path))
            lost[what] = (count + 1, first)
    sizes = Counter(one.size for one in seen)
    return Scan(
        stats,
        fingerprint_by_names(listing) or _fingerprint(listing, (one.digest for one in seen)),
        next(iter(sizes)) if len(sizes) == 1 else None,
        _equal(one.pixels for one in seen),
        _equal(one.grey for one in seen),
        lost,
        _odd_size(sizes, seen, files),
    )


def _equal(digests: Iterable[bytes]) -> list[list[int]]:
    """Return the groups of places that have the same digest."""
    groups: dict[bytes, list[int]] = {}
    for place, digest in enumerate(digests):
        groups.setdefault(digest, []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def _is_small(listing: Listing) -> bool:
    """Return whether the fingerprint covers the files' bytes."""
    return sum(file.size for file in listing.files) <= CONTENT_LIMIT


def _fingerprint(listing: Listing, told: Iterable[bytes]) -> str:
    """Return the fingerprint over the names and what is ``told`` of each file: its size, or the digest of its bytes."""
    digest = hashlib.sha256()
    for file, one in zip(listing.files, told, strict=True):
        digest.update(file.path.encode(errors="surrogateescape") + b"\0" + one + b"\n")
    if listing.mark:  # of a folder, the paths say the classes
        digest.update(listing.labels.astype("<i8").tobytes() + "\0".join(listing.class_names).encode())
    return ("content:" if _is_small(listing) else "names-sizes:") + digest.hexdigest()


def _looks(listing: Listing) -> Iterator[_Seen]:
    places, whole = range(len(listing.files)), _is_small(listing)

    def look(index: int) -> _Seen:
        return _look(listing.source, index, whole=whole)

    if sum(file.size for file in listing.files) < SMALL_FILE * len(places):
        yield from map(look, places)
        return
    with ThreadPoolExecutor(max(4, cores())) as pool:  # four hide the waiting for a disk on a single core too
        for start in range(0, len(places), AT_ONCE):
            yield from pool.map(look, places[start : start + AT_ONCE])


def _told(looks: Iterator[_Seen], count: int) -> Iterator[_Seen]:
    """Pass on ``looks`` and say now and then how many there have been."""
    last = time.monotonic()
    for number, one in enumerate(looks):
        if time.monotonic() - last > TELL_EVERY_S:
            last = time.monotonic()
            cache.log.warning("%d of %d images are read", number, count)
        yield one


def _odd_size(sizes: Counter[tuple[int, int]], seen: list[_Seen], files: tuple[File, ...]) -> str:
    (common, count), *others = sizes.most_common()
    if not others or 2 * count <= len(files):
        return ""
    path, odd = next((file.path, one.size) for file, one in zip(files, seen, strict=True) if one.size != common)
    return (
        f"{count} of {len(files)} images are {_sides(common)} and the others are not, e.g. '{path}' is {_sides(odd)}, "
        "so all are scaled"
    )


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _look(source: Source, index: int, *, whole: bool) -> _Seen:
    try:
        content, _ = source.read(index)
        if not content:
            return _Seen(b"", (0, 0), problem="the file is empty")
        with Image.open(io.BytesIO(content)) as image:
            size = (image.height, image.width)
            lost = losses(image)
            pixels, grey = (_digest(size, as_eight_bits(image, channels)) for channels in (3, 1))
            lost += (DAMAGED,) if image.format == "PNG" and not _is_whole(content) else ()
        return _Seen(hashlib.sha256(content).digest() if whole else b"", size, pixels, grey, lost)
    except UNREADABLE as error:
        return _Seen(b"", (0, 0), problem=explain(error))


def _digest(size: tuple[int, int], pixels: Image.Image) -> bytes:
    return hashlib.blake2b(str(size).encode() + pixels.tobytes(), digest_size=16).digest()


def _is_whole(png: bytes) -> bool:
    """Return whether a PNG file has its end and every checksum fits, neither of which decoding it checks."""
    with Image.open(io.BytesIO(png)) as image:
        try:
            image.verify()
        except UNREADABLE:
            return False
    return True
