"""Has anything changed since this report was rendered? Answered from file sizes, times and the study's own bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neumann.store.files import read_json, write_json

NAME = ".stamp.json"
OWN = Path(__file__).resolve().parents[1]
READ_BY_A_REPORT = ("config", "data", "store", "studies")  # code whose change may change a page
RUN_FILES = ("result.json", "status.json", "measurements.jsonl", "provenance.json")


def current(study_file: Path, budget: str, words: Sequence[str], config_dirs: Sequence[str], runs: Path) -> str:
    """Return a digest of all that a report is made of: the study, the configuration, the code and the run folders."""
    digest = hashlib.sha256(repr((str(study_file.resolve()), budget, list(words))).encode())
    folders = [OWN / "conf", *map(Path, config_dirs)]
    yamls = [study_file, *(file for folder in folders for file in sorted(folder.rglob("*.yaml")))]
    for file in yamls:
        digest.update(str(file).encode() + b"\0" + file.read_bytes() + b"\0")
    code = [file for part in READ_BY_A_REPORT for file in sorted((OWN / part).rglob("*")) if file.is_file()]
    digest.update(repr(list(_states(file for file in code if file.suffix != ".pyc"))).encode())
    run_folders = sorted(path for path in runs.glob("*") if (path / "signed.json").exists())
    digest.update(repr(list(_states(path / name for path in run_folders for name in RUN_FILES))).encode())
    return digest.hexdigest()


def _states(files: Iterable[Path]) -> Iterable[tuple[str, int, int]]:
    for file in files:
        try:
            state = file.stat()
        except OSError:
            continue
        yield str(file), state.st_mtime_ns, state.st_size


def write(
    folder: Path, digest: str, data: Iterable[tuple[Mapping[str, Any], str]], written: Sequence[Path], **said: Any
) -> None:
    """Note what the report in ``folder`` was made of; ``data`` are the data sections and their fingerprints."""
    outputs = [[path.name, path.stat().st_size] for path in written]
    sections = [{"section": dict(section), "fingerprint": fingerprint} for section, fingerprint in data]
    write_json(folder / NAME, {"digest": digest, "data": sections, "outputs": outputs, **said})


def unchanged(folder: Path, digest: str) -> dict[str, Any] | None:
    """Return the stamp of ``folder`` where its report is whole and nothing it was made of has changed, else None."""
    stamp = read_json(folder / NAME)
    if not isinstance(stamp, dict) or stamp.get("digest") != digest:
        return None
    for name, size in stamp["outputs"]:
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return None
    from neumann.data import facts

    for one in stamp["data"]:
        if facts(one["section"]).fingerprint != one["fingerprint"]:
            return None
    return stamp
