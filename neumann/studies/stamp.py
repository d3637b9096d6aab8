"""Stamp of a report: a digest of its inputs, by which a command detects changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neumann.store import RunFolder, archive
from neumann.store.code_digests import code_of
from neumann.store.files import LARGEST, read_file, read_json, write_json
from neumann.store.vouching import is_edited, sealed
from neumann.studies import calibration
from neumann.studies.plan import ON_THE_PAGE, Study

NAME = ".stamp.json"
PACKAGE = Path(__file__).resolve().parents[1]
CODE, RECORDS = (".py", ".j2", ".css", ".js"), (".json", ".jsonl")  # by kind: a list of names would go stale unseen


def digest(study: Study, runs: Path) -> str:
    """Return the digest of the study, its configuration, this package's code and the records of the runs in ``runs``.

    YAML and the archive count by their bytes; code and records, of which there are many, by size and times. The time of
    the last change of a file's entry is among them, since cp -p, rsync and touch set the other one.
    """
    words = [word for word in study.extra if word.startswith(ON_THE_PAGE)]
    made_of = hashlib.sha256(repr((str(study.file.resolve()), study.budget, words, study.uses_archive)).encode())
    if study.uses_archive:
        made_of.update(_content(study.results / archive.NAME, archive.LARGEST))
    made_of.update(_content(calibration.FILE))
    folders = [PACKAGE / "conf", *map(Path, study.config_dirs)]
    for file in [study.file, *(file for folder in folders for file in sorted(folder.rglob("*.yaml")))]:
        made_of.update(str(file).encode() + b"\0" + _content(file) + b"\0")
    found = (path for path in sorted(runs.glob("*")) if RunFolder(path).signed.exists())
    made_of.update(repr([list(states(code_files())), list(states(records_of(found)))]).encode())
    return made_of.hexdigest()


def code_files() -> list[Path]:
    """Return the files of this package that make a report."""
    return [file for file in sorted(PACKAGE.rglob("*")) if file.suffix in CODE]


def records_of(folders: Iterable[Path]) -> Iterable[Path]:
    """Yield the files of runs that a report is made of."""
    for folder in folders:
        yield from (file for file in sorted(folder.iterdir()) if file.suffix in RECORDS)


def _content(file: Path, largest: int = LARGEST) -> bytes:
    """Return what is in ``file``, or why that cannot be read: where the study needs it, reading it says so."""
    try:
        return read_file(file, largest)
    except OSError as error:
        return str(error.errno).encode()


def states(files: Iterable[Path]) -> Iterable[tuple[str, int, int, int]]:
    """Yield path, times and size of each file that is there."""
    for file in files:
        try:
            state = file.stat()
        except OSError:
            continue
        yield str(file), state.st_mtime_ns, state.st_ctime_ns, state.st_size


def write(
    folder: Path,
    digest: str,
    data: Iterable[tuple[Mapping[str, Any], str]],
    targets: Iterable[str],
    written: Sequence[Path],
    **said: Any,
) -> None:
    """Write the stamp of the report in ``folder``: its inputs, and the sentences that it ``said``.

    ``data`` are the data sections of its runs, each with its fingerprint; ``targets`` what their configurations name as
    ``_target_``, whose code is looked at again; ``written`` are the report's files.
    """
    outputs = [[path.name, sum_of(path)] for path in written]
    sections = [{"section": dict(section), "fingerprint": fingerprint} for section, fingerprint in data]
    names = sorted(set(targets))
    made_of = {"inputs": digest, "data": sections, "targets": names, "code": code_of(names), "outputs": outputs}
    write_json(folder / NAME, sealed({**made_of, **said}))


def sum_of(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def unchanged(folder: Path, digest: str) -> dict[str, Any] | None:
    """Return the stamp of ``folder`` where its report is whole and nothing it was made of has changed, else None."""
    stamp = read_json(folder / NAME)
    if not isinstance(stamp, dict) or stamp.get("inputs") != digest or is_edited(stamp):
        return None
    try:
        for name, content in stamp["outputs"]:
            path = folder / name
            if not path.is_file() or sum_of(path) != content:
                return None
        if code_of(stamp["targets"]) != stamp["code"]:
            return None
        from neumann.data import facts

        for one in stamp["data"]:
            if facts(one["section"]).fingerprint != one["fingerprint"]:
                return None
    except (KeyError, TypeError, ValueError, OSError):  # a file that was edited or is of another version
        return None
    return stamp
