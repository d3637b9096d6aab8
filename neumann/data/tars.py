"""The members of tar files: where each one's bytes lie, so that any can be read at any time without the others.

A tar file that is cut short ends where a reader may take it for whole: Python's own stops in silence at a damaged
header, and at a missing end. Both are refused here.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from neumann.errors import UserError, first_line

BLOCK = 512  # bytes of a header, and of the zeros at the end
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"(\xb5": "unzstd"}
NUMBERS = re.compile(r"(\d+)\.\.(\d+)")


class Member(NamedTuple):
    """One file in a tar file: its name, the offset of its first byte, and its size in bytes."""

    name: str
    offset: int
    size: int


def members(path: Path) -> list[Member]:
    """Return the files in the tar file ``path``. Raises UserError naming it where it is damaged or cut short."""
    try:
        with path.open("rb") as file:
            begin = file.read(2)
            file.seek(0)
            if begin in COMPRESSED:
                raise UserError(
                    f"'{path}' is compressed, so no image in it can be read by itself: unpack it once with "
                    f"{COMPRESSED[begin]}"
                )
            with tarfile.open(fileobj=file, mode="r:") as tar:
                found = [Member(one.name, one.offset_data, one.size) for one in tar if _plain(one)]
                end = tar.offset
            file.seek(end)
            after = file.read(BLOCK)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise UserError(f"'{path}' is not a whole tar file ({_reason(error)})") from error
    if len(after) < BLOCK:
        raise UserError(f"'{path}' is not a whole tar file (it is cut short: its end is missing)")
    if any(after):
        raise UserError(f"'{path}' is not a whole tar file (what lies at byte {end:,} is no header)")
    return found


def expand(pattern: str) -> Iterator[str]:
    """Yield the names that ``pattern`` means, as webdataset writes them: ``set-{000..019}.tar``, ``{a,b}.tar``."""
    before, brace, rest = pattern.partition("{")
    inside, closing, after = rest.partition("}")
    if not brace or not closing:
        yield pattern
        return
    if (numbers := NUMBERS.fullmatch(inside)) is not None:
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    for chosen in choices:
        for ending in expand(after):
            yield f"{before}{chosen}{ending}"


def _plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or first_line(error)).replace("unexpected end of data", "it is cut short")
