"""The report that is there already, and the runs that it stands on and today's study no longer asks for.

Runs are found by signature. Where an image was added, a YAML gained a key or this package a version, every signature is
another, and a report of what is found then would be empty. It must not take the place of a finished one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neumann.config import RunSpec
from neumann.store import OVER, RunFolder
from neumann.store.archive import Archive
from neumann.store.files import read_json
from neumann.store.records import flat
from neumann.studies.numbers import printable, value
from neumann.studies.plan import TUNING
from neumann.studies.study_run import StudyRun

SHOWN = 3  # differing settings that are named


def lost_runs(folder: Path, tuning: Sequence[StudyRun], archive: Archive) -> str | None:
    """Return a sentence on the runs that the report in ``folder`` stands on and that the study no longer asks for.

    ``tuning`` are the study's tuning runs; those of evaluation follow from them. ``archive`` is the study's. None where
    every run that the report stands on is asked for, or is no longer there.
    """
    asked = {run.spec.signature: run.spec for run in tuning}
    reported = [line for line in _runs_csv(folder) if line.get("role") == TUNING and line.get("status") in OVER]
    signatures = dict.fromkeys(line.get("signature", "") for line in reported)
    unasked = [s for s in signatures if s and s not in asked]
    listed = {path.name[-12:]: path for path in sorted(folder.parent.glob("*-*"))}
    paths = {s: listed[s] for s in unasked if s in listed and RunFolder(listed[s]).result() is not None}
    there = {str(path): read_json(RunFolder(path).signed) for path in paths.values()}
    there |= {f"{s} of {archive.file}": archive.runs[s].signed for s in unasked if s in archive.runs and s not in paths}
    if not there:
        return None
    first = next(iter(there))
    example = f", such as {first}" if len(there) > 1 else f", {first}"
    return (
        f"{len(there)} of the {len(signatures)} tuning runs that {folder} stands on are not what the study asks for "
        f"now{example}: {differences(there.values(), list(asked.values()))}"
    )


def stands_on(folder: Path) -> int:
    """Return how many finished and diverged runs the report in ``folder`` stands on, 0 where there is none."""
    return len({line.get("signature") for line in _runs_csv(folder) if line.get("status") in OVER})


def _runs_csv(folder: Path) -> list[dict[str, str]]:
    try:
        with open(folder / "runs.csv", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return []


def differences(there: Iterable[object], asked: Sequence[RunSpec]) -> str:
    """Return what was signed otherwise by runs ``there``, each held against the nearest one that is asked for.

    Each is the content of a signed.json, which may be anything.
    """
    now = [_flat(spec.signed_json) for spec in asked]
    found: dict[str, str] = {}
    for signed in there:
        if isinstance(signed, dict) and now:
            then = _flat(signed)
            nearest = min(now, key=lambda one: len(_changed(then, one)))
            for key in _changed(then, nearest):
                found.setdefault(key, f"{key} was {_shown(then, key)} and is {_shown(nearest, key)}")
    said = list(found.values())
    if not said:
        return "what they signed is not recorded"
    more = len(said) - SHOWN
    return ", ".join(said[:SHOWN]) + (f" and {more} more differences" if more > 0 else "")


def _flat(signed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was signed by dotted key, without what follows from it."""
    return {key.removeprefix("config."): v for key, v in flat(signed) if not key.startswith("config.derived.")}


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    keys = dict.fromkeys([*then, *now])
    return [key for key in keys if key not in then or key not in now or then[key] != now[key]]


def _shown(signed: Mapping[str, Any], key: str) -> str:
    if key not in signed:
        return "not there"
    text = value(signed[key]) if isinstance(signed[key], int | float | str) else printable(signed[key])
    return text if len(text) <= 24 else f"{text[:20]}…"
