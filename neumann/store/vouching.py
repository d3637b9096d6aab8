"""Digests by which a result vouches for itself and for the run's curve, so that a later edit of either is noticed.

They find an edit, a doubled line or a file of another run, and stop no forger, who can write the digest too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from neumann.store.files import plain

DIGEST, CURVE = "digest", "measurements_digest"  # keys of result.json; results of earlier versions have neither
CODE = "code"  # another, which every result has that has a digest


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``record`` with its digest."""
    return {**record, DIGEST: _digest(plain(record))}


def is_edited(record: Mapping[str, Any]) -> bool:
    """Return whether ``record``, from JSON, is other than what was `sealed`.

    One without a digest is not judged, unless it has a key that came with the digest: then somebody took that away.
    """
    if DIGEST not in record:
        return CURVE in record or CODE in record
    return not _has(record[DIGEST], {k: v for k, v in record.items() if k != DIGEST})


def with_curve(result: Mapping[str, Any], measurements: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``result`` with the digest of the run's ``measurements``."""
    return {**result, CURVE: _digest(plain(list(measurements)))}


def has_curve(result: Mapping[str, Any], measurements: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether ``measurements``, from JSON, are those that the run of ``result`` made."""
    return CURVE not in result or _has(result[CURVE], list(measurements))


def _has(digest: object, value: Any) -> bool:
    try:
        return digest == _digest(value)
    except (ValueError, RecursionError):  # a number beyond floats (1e999), or a depth, that no run writes
        return False


def _digest(value: Any) -> str:
    """Return the digest of JSON types, finite numbers alone."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
