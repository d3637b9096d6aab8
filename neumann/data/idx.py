"""The idx format of MNIST's files: a big-endian header of type and shape, then the elements; plain or compressed."""

from __future__ import annotations

import gzip
import lzma
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neumann.errors import UserError

UNSIGNED_BYTE = 8  # the element type of every file of MNIST's kind
READERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress}  # by suffix
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


def read(path: Path) -> NDArray[np.uint8]:
    """Return the array of the idx file ``path``, which may end in .gz or .xz.

    Raises UserError naming the file where it cannot be read, is cut short, or is not an idx file of unsigned bytes.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror or error})") from error
    try:
        return unpack(READERS.get(path.suffix, bytes)(content))
    except DAMAGED as error:
        raise UserError(f"'{path}' is not a whole idx file ({error})") from error


def unpack(content: bytes) -> NDArray[np.uint8]:
    """Return the array in ``content``, read-only. Raises ValueError where it is no idx file of unsigned bytes."""
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError("it does not begin as one")
    kind, axes = content[2], content[3]
    if kind != UNSIGNED_BYTE:
        raise ValueError(f"its elements are of type {kind:#04x}, not unsigned bytes")
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    if len(content) != start + math.prod(shape):
        raise ValueError(f"it has {len(content):,} bytes and its header asks for {start + math.prod(shape):,}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def pack(array: NDArray[np.uint8]) -> bytes:
    """Return ``array`` as the bytes of an uncompressed idx file."""
    header = bytes((0, 0, UNSIGNED_BYTE, array.ndim)) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return header + array.tobytes()
