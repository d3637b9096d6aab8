"""Runs of a sweep as they lie in folders and archives, each held against what it signed and what it wrote.

The folders may be another user's, and a page of them must not show what none of the runs has measured: settings are
those of signed.json, which the signature in the folder's name vouches for, never those of config.yaml.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neumann.config.signature import sign
from neumann.errors import UserError
from neumann.store import OVER, RunFolder
from neumann.store.archive import Archive, ArchivedRun, is_same
from neumann.store.files import read_json
from neumann.store.folder import EDITED
from neumann.store.records import RUN
from neumann.store.scores import is_number
from neumann.store.selection import Selection
from neumann.store.vouching import is_edited
from neumann.studies.curves import Line, errors_along
from neumann.studies.study_run import NEEDED


@dataclass(frozen=True)
class SweepRun:
    """One run, finished or not.

    ``group`` is the signature of all that it signed but the seed: runs of one group are repeats. ``result`` is None
    before it is over, ``curve`` has its evaluations, with the validation error at its eval point; without a result it
    is empty. ``choices`` are the options of the groups of conf/ that it was composed of, as far as they are recorded.
    """

    folder: RunFolder | ArchivedRun
    signature: str
    group: str
    signed: Mapping[str, Any]
    seed: int
    status: str
    message: str | None
    result: Mapping[str, Any] | None
    curve: tuple[Line, ...]
    choices: Mapping[str, str]

    @property
    def diverged(self) -> bool:
        """Return whether the run's loss was no longer finite."""
        return self.result is not None and self.result["status"] == "diverged"

    @property
    def archived(self) -> bool:
        """Return whether it was read from an archive."""
        return isinstance(self.folder, ArchivedRun)


@dataclass(frozen=True)
class LeftOut:
    """A run that is on the page by name alone, and why."""

    folder: str
    why: str


def read_runs(selection: Selection) -> tuple[list[SweepRun], list[LeftOut]]:
    """Return the runs of ``selection``, each signature once, and those that cannot be used.

    A run that lies in several places counts by the first of them that has a result, folders before archives. Raises
    UserError where the system refuses to read a file.
    """
    out: list[LeftOut] = []
    found: dict[str, SweepRun] = {}
    for run in _all(selection, out):
        known = found.get(run.signature)
        if known is None or (known.result is None and run.result is not None):
            found[run.signature] = run
        if known and known.result is not None and run.result is not None and not is_same(known.result, run.result):
            why = f"it has the signature of {_path(known)}, which counts, and another result"
            out.append(LeftOut(_path(run), why))
    return list(found.values()), out


def _path(run: SweepRun) -> str:
    return str(run.folder.path)


def _all(selection: Selection, out: list[LeftOut]) -> Iterable[SweepRun]:
    for path in selection.folders:
        try:
            yield _of_folder(path)
        except _NotUsedError as error:
            out.append(LeftOut(str(path), str(error)))
    for file in selection.archives:
        archive = Archive.read(file)
        out += [LeftOut(str(file), sentence) for sentence in archive.unread]
        for run in archive.runs.values():
            try:
                yield _run(run, run.signature, run.signed, dict(run.result), run.attempts())
            except _NotUsedError as error:
                out.append(LeftOut(f"{file}: {run.path.name}", str(error)))


class _NotUsedError(ValueError):
    """A run cannot be used; the message says why, without its name."""


def _of_folder(path: Path) -> SweepRun:
    folder = RunFolder(path)
    called = RUN.fullmatch(path.resolve().name)
    assert called is not None
    signed = read_json(folder.signed)
    if signed is None:
        raise _NotUsedError(f"it is {folder.status()['status']}, and its signed.json is missing or damaged")
    return _run(folder, called[2], signed, folder.result(), folder.attempts())


def _run(
    folder: RunFolder | ArchivedRun,
    signature: str,
    signed: Any,
    result: dict[str, Any] | None,
    attempts: list[dict[str, Any]],
) -> SweepRun:
    seed, group = _seed_and_group(signed, signature)
    curve: tuple[Line, ...] = ()
    if result is not None:
        _check_result(folder, signature, result)
        try:
            curve = tuple(errors_along(folder, result, result["eval_point"]))
        except UserError as error:
            raise _NotUsedError(str(error).partition(":")[0].removeprefix(f"{folder.path}{os.sep}")) from error
        return SweepRun(
            folder, signature, group, signed, seed, str(result["status"]), None, result, curve, _choices(attempts)
        )
    told = folder.status()
    status = "pending" if told["status"] in OVER else str(told["status"])  # it may end after its result was looked for
    return SweepRun(
        folder, signature, group, signed, seed, status, told.get("message"), None, curve, _choices(attempts)
    )


def _seed_and_group(signed: Any, signature: str) -> tuple[int, str]:
    edited = _NotUsedError("its signed.json is not what its signature covers")
    try:
        config = signed["config"]
        seed, data = config["seed"], signed["data"]
        sound = type(seed) is int and isinstance(config["data"], Mapping) and {"fingerprint", "splits"} <= data.keys()
        if not sound or sign(signed) != signature:
            raise edited
        return seed, sign({**signed, "config": {key: v for key, v in config.items() if key != "seed"}})
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
        raise edited from error


def _check_result(folder: RunFolder | ArchivedRun, signature: str, result: Mapping[str, Any]) -> None:
    """Raise _NotUsedError where ``result`` is not that of the run, or has no scores."""
    if is_edited(result):
        raise _NotUsedError(EDITED)
    if lacking := NEEDED - result.keys():
        raise _NotUsedError(f"its result.json lacks {', '.join(sorted(lacking))}, as an earlier version's does")
    if result["signature"] != signature:
        raise _NotUsedError(f"its result.json is that of the run {result['signature']}")
    if result["status"] == "finished":
        for split in ("validation", "test"):
            scores = result[split]
            if split == "test" and scores is None:
                continue
            if not scores or not is_number(scores.get(result["eval_point"], {}).get("n")):
                raise _NotUsedError(f"its result.json has no {split} scores at its eval point")


def _choices(attempts: list[dict[str, Any]]) -> dict[str, str]:
    recorded = attempts[-1].get("choices") if attempts else None
    if not isinstance(recorded, Mapping):
        return {}
    return {k: v for k, v in recorded.items() if isinstance(k, str) and isinstance(v, str)}
