"""A reader of pickles that hold plain data and arrays of bytes, as CIFAR's files do; nothing in a file is executed.

Python's own reader calls whatever function a file names, so a file from elsewhere can run any program. This one knows
four names, which make arrays of unsigned bytes and byte strings, and stand for functions of its own.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neumann.errors import UserError, first_line, printable

DAMAGED = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError),
    *(MemoryError, OverflowError, ImportError, RecursionError),
)


def load(path: Path) -> dict[str, Any]:
    """Return the dictionary in the pickle ``path``: texts as str or bytes, arrays as uint8.

    Raises UserError naming the file where it cannot be read, is damaged, or holds anything but plain data.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror or error})") from error
    try:
        found = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()  # bytes: it was written by Python 2
    except DAMAGED as error:
        raise UserError(f"'{path}' is not a whole file of plain data ({printable(first_line(error))})") from error
    if not isinstance(found, dict):
        raise UserError(f"'{path}' is not a dictionary of plain data")
    return {text(key): value.pixels if isinstance(value, _Array) else value for key, value in found.items()}


def text(value: Any) -> str:
    """Return a text as Python 2 (bytes) or Python 3 (str) has written it, and anything else as its representation."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else repr(value)


class _Kind:
    """NumPy's dtype in a file: unsigned bytes, since no other is known."""

    def __init__(self, name: Any, *_: Any) -> None:
        if text(name) not in ("u1", "|u1", "uint8"):
            raise ValueError(f"it has an array of {text(name)}, not of unsigned bytes")

    def __setstate__(self, state: Any) -> None:
        """Ignore the byte order, which bytes do not have."""


class _Array:
    """NumPy's array in a file."""

    pixels: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)

    def __setstate__(self, state: Any) -> None:
        """Take the shape, the kind, whether columns come first, and the bytes."""
        _, shape, kind, columns_first, content = state
        if not isinstance(kind, _Kind):
            raise ValueError("it has an array of no known kind")
        raw = content.encode("latin1") if isinstance(content, str) else content
        self.pixels = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if columns_first else "C")


def _reconstruct(kind: Any, shape: Any, dtype: Any) -> _Array:
    if kind is not _Array:
        raise ValueError("it has an array of an unknown class")
    return _Array()


def _encode(content: str, encoding: str) -> bytes:
    """Return bytes as Python 3 writes them for Python 2."""
    if encoding != "latin1":
        raise ValueError(f"it has bytes in {encoding}")
    return content.encode("latin1")


def _empty() -> bytes:
    """Return no bytes, which Python 3 writes for Python 2 without a text."""
    return b""


KNOWN = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Kind,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _empty,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name; nothing is imported."""
        if (found := KNOWN.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data have no use for")
        return found
