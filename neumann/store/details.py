"""The details of one run: what differs from the default configuration, its metrics, the ends of its logs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neumann.errors import UserError
from neumann.store import confusion, per_image
from neumann.store.files import opened, plain, read_json
from neumann.store.folder import RunFolder
from neumann.store.records import flat, read_config
from neumann.store.scores import is_number
from neumann.store.steps import TERMS, read_lines

TAIL = 12  # lines of error.txt and of output.log

ABSENT = "–"  # stands for a value that is not there
_NOT_COMPARED = ("derived.", "output", "study")  # they follow from the rest, or say where the run is filed


def differences(config: Mapping[str, Any], default: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (key, default's value, this run's value) where they differ; – stands for a key that is not there."""
    ours, theirs = dict(flat(config)), dict(flat(default))
    found = []
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        mine, other = ours.get(key, ABSENT), theirs.get(key, ABSENT)
        if mine != other and not key.startswith(_NOT_COMPARED):
            found.append((key, written(other), written(mine)))
    return found


def edited(folder: RunFolder) -> list[str]:
    """Return a sentence for each file of the run that is not what the run wrote, as far as the run vouches for it.

    result.json is not among them: its status says so. Nor are settings that cannot change a result.
    """
    result = folder.result()
    found = _edited_settings(folder)
    if result is not None:
        reads: list[Callable[[], object]] = [lambda: folder.curve(result), lambda: read_lines(folder.path, result)]
        if result.get(per_image.KEY) is not None:
            reads.append(lambda: per_image.read(folder.path, result))
        reads += [lambda: confusion.read(folder.path, result), lambda: folder.terms(result)]
        for read in reads:
            try:
                read()
            except UserError as error:
                found.append(str(error).partition(":")[0].removeprefix(f"{folder.path}{os.sep}"))
    return found


def _edited_settings(folder: RunFolder) -> list[str]:
    from neumann.config.signature import signed_config  # with what composes configurations, which a listing needs not

    signed = read_json(folder.signed)
    if not isinstance(signed, dict) or not isinstance(signed.get("config"), dict):
        return []
    try:
        now = dict(flat(json.loads(json.dumps(plain(signed_config(read_config(folder.path)))))))
    except (UserError, ValueError, TypeError, AttributeError, KeyError):
        return ["config.yaml is not there, or not what a run writes"]
    then = dict(flat(signed["config"]))
    differ = [key for key in (*then, *(key for key in now if key not in then)) if then.get(key) != now.get(key)]
    if not differ:
        return []
    more = f" and {len(differ) - 1} more" if len(differ) > 1 else ""
    values = [written(side.get(differ[0], ABSENT)) for side in (now, then)]
    return [
        f"config.yaml is not what the run was signed with: it says {differ[0]}={values[0]}, which was {values[1]}{more}"
    ]


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


_TERMS = {  # of terms.jsonl, in words
    "lambda_max": "λ_max",
    "lambda_min": "λ_min",
    "lambda_max_times_rate": "λ_max × rate",
    "gradient_norm": "‖∇f̂‖",
    "distance": "‖w − v‖",
    "noise_share": "noise share",
    "transport_error": "transport error",
    "newton_cosine_move": "step to Newton, cosine",
}


def terms(folder: RunFolder) -> list[tuple[str, str]]:
    """Return (name, value as text) of what the optimizer's terms did when they were last measured; none without."""
    try:
        lines = read_lines(folder.path, folder.result(), TERMS)
    except UserError:  # it is said to be edited
        return []
    if not lines:
        return []
    last = lines[-1]
    found = [(name, f"{last[key]:.4g}") for key, name in _TERMS.items() if is_number(last.get(key))]
    return [("step", str(last["step"])), *found]


def written(value: Any) -> str:
    """Return a value as a YAML file has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
