"""The list of the runs in a results folder, filtered.

Everything that is read may be damaged or another user's: a value of the wrong kind counts as missing.
"""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from neumann.errors import UserError, did_you_mean
from neumann.store.files import read_json
from neumann.store.folder import STATUSES, RunFolder
from neumann.store.index import Index
from neumann.store.records import RUN, flat, read_config
from neumann.store.scores import headline, is_number

FOLLOWS = re.compile(r"^seed$|^(derived|timing)\.|_steps$|\.reset_period$")  # the seed, and what follows from others
SEED = re.compile(r"-s\d+$")  # the end of a run's name
FILES = ("status.json", "result.json", "measurements.jsonl", "signed.json")


@dataclass(frozen=True)
class Row:
    """One run in a list."""

    folder: str  # path of its folder
    study: str  # name of the folder above
    name: str  # its folder's name without the signature
    signature: str  # of the run
    status: str  # one of `STATUSES`
    message: str | None  # why it has this status
    step: int  # optimizer steps of the last measurement
    total: int | None  # optimizer steps that it is to take
    validation: float | None  # last validation error at the eval point, a fraction
    test: float | None  # test error of a finished run at the eval point, a fraction
    seed: int | None  # of the run's random streams
    attempt: int  # number of attempts begun
    time: float  # of its last progress, in Unix seconds
    differs: Mapping[str, Any] = field(default_factory=dict)  # {key: value}, where runs have its name but for the seed

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Filters:
    """Chooses runs that fit one of ``studies``, one of ``statuses``, one of ``names``, and all of ``where``.

    Studies and names are globs; ``where`` holds pairs (dotted configuration key, value or glob). Empty means any.
    Raises UserError for an unknown status.
    """

    studies: Sequence[str] = ()
    statuses: Sequence[str] = ()
    names: Sequence[str] = ()
    where: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        for status in self.statuses:
            if status not in STATUSES:
                raise UserError(f"--status {status} is not a status: {did_you_mean(status, STATUSES)}")


def list_runs(output: Path, filters: Filters) -> list[Row]:
    """Return the runs of ``output`` (a results folder, or one study's in it) that ``filters`` choose, newest last.

    Raises UserError where there is no such folder, and where no run has a key of ``filters.where``.
    """
    folders = find_folders(output)
    index = Index(output)
    met: list[tuple[Row, Path]] = []
    for folder in folders:
        if filters.studies and not _fits(folder.parent.name, filters.studies):
            continue
        if filters.names and not is_called(folder, filters.names):
            continue
        try:
            row = _row(folder, index)
        except (UserError, OSError) as error:
            warnings.warn(f"{_sentence(error)}; {folder} is left out of the list", stacklevel=2)
            continue
        if not filters.statuses or row.status in filters.statuses:
            met.append((row, folder))
    for key, value in filters.where:
        met = _where(met, key, value, index)
    index.save(folders)
    return sorted(_told_apart(met, index), key=lambda row: (row.time, row.folder))


def _told_apart(met: Iterable[tuple[Row, Path]], index: Index) -> Iterable[Row]:
    """Return the rows; those of one study whose names differ in the seed alone have the settings that differ."""
    named: dict[tuple[str, str], list[tuple[Row, Path]]] = {}
    for row, folder in met:
        named.setdefault((row.study, SEED.sub("", row.name)), []).append((row, folder))
    for alike in named.values():
        if len(alike) == 1:
            yield alike[0][0]
            continue
        configs = [dict(flat(index.config(folder) or _signed_config(folder))) for _, folder in alike]
        keys = [key for key in dict.fromkeys(key for config in configs for key in config) if not FOLLOWS.search(key)]
        differing = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
        for (row, _), config in zip(alike, configs, strict=True):
            yield replace(row, differs={key: config.get(key) for key in differing})


def is_called(folder: Path, globs: Iterable[str]) -> bool:
    """Return whether the name of a run's folder, with its signature or without, fits one of ``globs``."""
    return any(_fits(name, globs) for name in (folder.name, RUN.sub(r"\1", folder.name)))


def find_folders(output: Path) -> list[Path]:
    """Return the run folders in ``output``. Raises UserError where it cannot be listed."""
    if not output.is_dir():
        raise UserError(f"there is no results folder {output}: name one with output=FOLDER")
    try:
        below = [Path(entry.path) for entry in os.scandir(output) if _is_folder(entry)]
    except OSError as error:
        raise UserError(f"{output} cannot be listed ({(error.strerror or str(error)).lower()})") from error
    found = []
    for path in below:
        if RUN.fullmatch(path.name):
            found.append(path)
            continue
        try:
            found += [Path(e.path) for e in os.scandir(path) if RUN.fullmatch(e.name) and _is_folder(e)]
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError as error:
            warnings.warn(f"{_sentence(error)}; its runs, if there are any, are left out", stacklevel=2)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether ``entry`` is a folder; a link that leads to itself is none, and hides no other."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _sentence(error: UserError | OSError) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"{error.filename} cannot be read: {(error.strerror or str(error)).lower()}"


def pick(output: Path, wanted: str) -> Path:
    """Return the one run folder that ``wanted`` names: a path, a beginning of its signature, or a name.

    Raises UserError where there is none, with the nearest there is, or where there are several.
    """
    if not wanted:
        raise UserError("the run's name is empty: give a signature's beginning, a name or a path")
    if os.sep in wanted and Path(wanted).is_dir() and RUN.fullmatch(Path(wanted).resolve().name):
        return Path(wanted)
    folders = find_folders(output)
    by_name: dict[str, list[Path]] = {}
    for folder in folders:
        match = RUN.fullmatch(folder.name)
        assert match is not None
        for key in (folder.name, match[1], match[2]):
            by_name.setdefault(key, []).append(folder)
    found = by_name.get(wanted) or [path for path in folders if path.name.rpartition("-")[2].startswith(wanted)]
    if not found:
        names = by_name if re.search("[^0-9a-f]", wanted) else {path.name.rpartition("-")[2] for path in folders}
        raise UserError(f"there is no run {wanted} in {output}: {did_you_mean(wanted, names)}")
    if len(found) > 1:
        signatures = sorted({path.name.rpartition("-")[2] for path in found})
        by_path = len(signatures) < len(found)  # two studies share a signature
        named = sorted(str(path) for path in found) if by_path else signatures
        listed = ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
        by = "path" if by_path else "signature"
        raise UserError(f"{wanted} is {len(found)} runs in {output}: name one by its {by}, {listed}")
    return found[0]


def error_of(scores: object) -> float | None:
    """Return the error at the eval point, or None where ``scores`` hold none."""
    try:
        error = headline(scores)["error"]  # type: ignore[arg-type]
    except (AttributeError, KeyError, TypeError):
        return None
    return error if is_number(error) else None


def read_row(folder: Path) -> Row:
    """Return one run, read from its files. ``folder`` must be named as a run's is."""
    return _read(folder, _stamp(folder))[0]


def _row(folder: Path, index: Index) -> Row:
    stamp = _stamp(folder)
    known = index.row(folder, stamp)
    if known is not None:
        try:
            return Row(**{**known, "folder": str(folder)})
        except TypeError:  # of another version
            pass
    row, settled = _read(folder, stamp)
    config = _signed_config(folder) if settled else {}
    if config:
        index.add(folder, stamp, row.as_record(), config)
    else:
        index.drop(folder)
    return row


def _stamp(folder: Path) -> list[int]:
    """Return inode, size and modification time of each file that a row is made from, zeros where it is missing."""
    states = []
    for name in FILES:
        try:
            state = os.stat(f"{folder}/{name}")
            states += [state.st_ino, state.st_size, state.st_mtime_ns]
        except OSError:
            states += [0, 0, 0]
    return states


def _read(folder: Path, stamp: Sequence[int]) -> tuple[Row, bool]:
    """Return the run, and whether its files alone say how far it is: a process decides that for one that is running."""
    run = RunFolder(folder)
    recorded = read_json(folder / "status.json")
    status, result = run.status(), run.result()
    config = _signed_config(folder)
    last = result if result is not None else run.last_measurement() or {}
    match = RUN.fullmatch(folder.name)
    assert match is not None
    running = isinstance(recorded, dict) and recorded.get("status") == "running"
    derived = config.get("derived")
    step = last.get("step", status.get("step", 0))
    try:
        touched = max(*stamp[2::3]) / 1e9 or folder.stat().st_mtime
    except OSError:
        touched = 0.0  # removed at this moment
    row = Row(
        folder=str(folder),
        study=folder.parent.name,
        name=match[1],
        signature=match[2],
        status=status["status"],
        message=status.get("message"),
        step=step if type(step) is int else 0,
        total=_int(derived.get("total_steps")) if isinstance(derived, Mapping) else None,
        validation=error_of(last.get("validation")),
        test=error_of(last.get("test")) if result is not None else None,
        seed=_int(config.get("seed")),
        attempt=status.get("attempt", 0),
        time=touched,
    )
    return row, result is not None or (not running and row.status != "pending")


def _int(value: object) -> int | None:
    return value if type(value) is int else None


def _signed_config(folder: Path) -> dict[str, Any]:
    signed = read_json(folder / "signed.json")
    config = signed.get("config") if isinstance(signed, dict) else None
    return config if isinstance(config, dict) else {}


def _yaml_config(folder: Path) -> dict[str, Any]:
    """Return config.yaml, or nothing and a warning where it cannot be read: the other runs are listed all the same."""
    try:
        return read_config(folder)
    except UserError as error:
        warnings.warn(f"{error}; the run counts as one without that key", stacklevel=2)
        return {}


def _fits(text: str, globs: Iterable[str]) -> bool:
    return any(text == glob or fnmatchcase(text, glob) for glob in globs)  # a name may hold [ or ?


def _where(met: list[tuple[Row, Path]], key: str, value: str, index: Index) -> list[tuple[Row, Path]]:
    """Return the runs whose configuration has ``value`` at ``key``."""
    from neumann.config import NOT_SIGNED  # takes a second to import

    from_yaml = any(key == name or key.startswith(f"{name}.") for name in NOT_SIGNED)
    kept, keys, found = [], set[str](), False
    for row, folder in met:
        config = _yaml_config(folder) if from_yaml else index.config(folder) or _signed_config(folder)
        node: Any = config
        for part in key.split("."):
            node = node.get(part, _ABSENT) if isinstance(node, Mapping) else _ABSENT
        if node is _ABSENT:
            if len(keys) < 1000:
                keys.update(name for name, _ in flat(config))
            continue
        found = True
        if isinstance(node, Mapping) and node:
            raise UserError(f"--where {key}={value}: {key} is a section: {did_you_mean(key, _below(node, key))}")
        if _same(node, value):
            kept.append((row, folder))
    if met and not found:
        raise UserError(f"--where {key}={value}: no run has such a key: {did_you_mean(key, keys)}")
    return kept


_ABSENT = object()


def _below(node: Mapping[str, Any], key: str) -> list[str]:
    return [f"{key}.{child}" for child in node]


def _same(value: Any, asked: str) -> bool:
    """Return whether a value of a configuration is the one that was typed: numbers by value, strings as globs."""
    if isinstance(value, bool) or value is None:
        return asked.lower() in ({None: ("null", "none"), True: ("true",), False: ("false",)}[value])
    if isinstance(value, int | float):
        try:
            return float(asked) == value
        except ValueError:
            return False
    if isinstance(value, str):
        return value == asked or fnmatchcase(value, asked)
    try:
        return bool(json.loads(asked) == value)
    except ValueError:
        return False
