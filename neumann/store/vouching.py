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


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``record`` with its digest."""
    return {**record, DIGEST: _digest(record)}


def is_edited(record: Mapping[str, Any]) -> bool:
    """Return whether ``record`` is other than what was `sealed`; one without a digest is not judged."""
    return DIGEST in record and record[DIGEST] != _digest({k: v for k, v in record.items() if k != DIGEST})


def with_curve(result: Mapping[str, Any], measurements: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``result`` with the digest of the run's ``measurements``."""
    return {**result, CURVE: _digest(list(measurements))}


def has_curve(result: Mapping[str, Any], measurements: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether ``measurements`` are those that the run of ``result`` made."""
    return CURVE not in result or result[CURVE] == _digest(list(measurements))


def _digest(value: Any) -> str:
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
