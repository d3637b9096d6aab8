"""Lookup of earlier runs by signature, not by name; the signed content is compared in full before reuse.

A run is looked for in the folder of its study, and where a command reads an archive, there too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumann.errors import UserError
from neumann.store.files import read_json
from neumann.store.folder import EDITED, RunFolder, is_untested, unwritable
from neumann.store.vouching import is_edited

if TYPE_CHECKING:
    from neumann.config import RunSpec
    from neumann.store.archive import Archive, ArchivedRun

WHOLE = {"status", "signature", "step", "validation"}


class Places:
    """The folders of runs by signature, each study's listed once: looking for 2,000 runs one by one lists it as often.

    What is made or removed after a study was listed is not seen.
    """

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, list[Path]]] = {}

    def of(self, spec: RunSpec) -> list[Path]:
        """Return the folders in the study of ``spec`` that have its signature, in order. Raises OSError."""
        study = spec.folder.parent
        if study not in self._listed:
            found = self._listed[study] = {}
            for path in sorted(study.glob("*-*")):
                found.setdefault(path.name.rpartition("-")[2], []).append(path)
        return self._listed[study].get(spec.signature, [])


def find(spec: RunSpec, places: Places | None = None) -> RunFolder:
    """Return the folder of ``spec``: one in its study with its signature, else the one that it would get.

    ``places`` is given where many runs are looked for at a time. Raises UserError where a folder with the same
    signature holds another configuration; signatures have 48 bits.
    """
    try:
        there = sorted(spec.folder.parent.glob(f"*-{spec.signature}")) if places is None else places.of(spec)
    except OSError as error:  # such as a path that is too long
        raise unwritable(spec.folder, error) from error
    for path in there:
        folder = RunFolder(path)
        signed = read_json(folder.signed)
        if signed is not None and signed != spec.signed_json:
            raise UserError(f"{path} has this run's signature and another configuration: move it away")
        return folder
    return RunFolder(spec.folder)


def find_with_archive(
    spec: RunSpec, archive: Archive, places: Places | None = None
) -> tuple[RunFolder | ArchivedRun, dict[str, Any] | None]:
    """Return where the run of ``spec`` is and its result, None before it is over.

    A result in its folder counts before one in ``archive``; one without test scores counts there as in a folder.
    ``places`` is as in `find`. Raises UserError as `find` and `result_in` do, and where the archive holds another
    configuration under its signature.
    """
    folder = find(spec, places)
    result = result_in(folder, spec)
    archived = archive.runs.get(spec.signature)
    if result is not None or archived is None or (spec.config.trainer.test and is_untested(archived.result)):
        return folder, result
    if archived.signed != spec.signed_json:
        raise UserError(
            f"{archive.file} has a run of the signature {spec.signature} and another configuration: move it away"
        )
    return archived.below(spec.folder.parent), dict(archived.result)


def finished_result(spec: RunSpec, places: Places | None = None) -> dict[str, Any] | None:
    """Return the result of ``spec`` where the run is over, else None; ``places`` is as in `find`.

    Raises UserError as `find` and `result_in` do.
    """
    return result_in(find(spec, places), spec)


def result_in(folder: RunFolder, spec: RunSpec) -> dict[str, Any] | None:
    """Return the result of ``spec`` in ``folder``, or None.

    A result without one of the keys `WHOLE` does not count, nor does one without test scores where ``spec`` asks for
    them. Raises UserError where it is the result of another run, or has been edited.
    """
    result = folder.result(tested=spec.config.trainer.test)
    if result is None or not result.keys() >= WHOLE:
        return None
    if result["signature"] != spec.signature:
        raise UserError(f"{folder.path}/result.json is that of the run {result['signature']}: move it away")
    if is_edited(result):
        raise UserError(f"{folder.path}/{EDITED}: put back what it wrote, or move it away to train the run again")
    return result
