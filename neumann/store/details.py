"""The details of one run: what differs from the default configuration, its metrics, the ends of its logs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neumann.store.files import opened
from neumann.store.folder import RunFolder
from neumann.store.records import flat
from neumann.store.scores import is_number

TAIL = 12  # lines of error.txt and of output.log

_ABSENT = "–"
_NOT_COMPARED = ("derived.", "output", "study")  # they follow from the rest, or say where the run is filed


def differences(config: Mapping[str, Any], default: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (key, default's value, this run's value) where they differ; – stands for a key that is not there."""
    ours, theirs = dict(flat(config)), dict(flat(default))
    found = []
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        mine, other = ours.get(key, _ABSENT), theirs.get(key, _ABSENT)
        if mine != other and not key.startswith(_NOT_COMPARED):
            found.append((key, _written(other), _written(mine)))
    return found


def tail(path: Path) -> list[str]:
    """Return the last `TAIL` lines of a text file, none where it cannot be read."""
    try:
        with opened(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16_384))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line.rsplit("\r", 1)[-1] for line in lines if line.strip()][-TAIL:]


def metrics(folder: RunFolder) -> list[tuple[str, str]]:
    """Return (name, value as text) for each metric of the result, else of the latest evaluation."""
    result = folder.result()
    last = result or folder.last_measurement()
    if last is None:
        return []
    rows = [("step", str(last.get("step")))]
    for key in ("epoch", "train_loss", "lr", "best_validation_error", "train_seconds"):
        if is_number(last.get(key)):
            rows.append((key.replace("_", " "), f"{last[key]:.6g}"))
    for split in ("validation", "test"):
        scores = last.get(split)
        for point, values in scores.items() if isinstance(scores, Mapping) else ():
            if isinstance(values, Mapping) and is_number(values.get("error")):
                loss = f", loss {values['loss']:.4g}" if is_number(values.get("loss")) else ""
                count = f" (n = {values['n']:.0f})" if is_number(values.get("n")) else ""
                rows.append((f"{split} error, {point}", f"{100 * values['error']:.2f} %{loss}{count}"))
    return rows


def _written(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
