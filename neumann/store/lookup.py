"""Lookup of earlier runs by signature, not by name; the signed content is compared in full before reuse.

A run is looked for in the folder of its study, and where a command reads an archive, there too.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from neumann.errors import UserError
from neumann.store.files import plain, read_json
from neumann.store.folder import EDITED, RunFolder, is_untested, unwritable
from neumann.store.vouching import is_edited

if TYPE_CHECKING:
    from neumann.config import RunSpec
    from neumann.store.archive import Archive, ArchivedRun

WHOLE = {"status", "signature", "step", "validation"}


def find(spec: RunSpec) -> RunFolder:
    """Return the folder of ``spec``: one in its study with its signature, else the one that it would get.

    Raises UserError where a folder with the same signature holds another configuration; signatures have 48 bits.
    """
    try:
        there = sorted(spec.folder.parent.glob(f"*-{spec.signature}"))
    except OSError as error:  # such as a path that is too long
        raise unwritable(spec.folder, error) from error
    for path in there:
        folder = RunFolder(path)
        signed = read_json(folder.signed)
        if signed is not None and signed != _signed(spec):
            raise UserError(f"{path} has this run's signature and another configuration: move it away")
        return folder
    return RunFolder(spec.folder)


def _signed(spec: RunSpec) -> Any:
    return json.loads(json.dumps(plain(spec.signed())))


def find_with_archive(spec: RunSpec, archive: Archive) -> tuple[RunFolder | ArchivedRun, dict[str, Any] | None]:
    """Return where the run of ``spec`` is and its result, None before it is over.

    A result in its folder counts before one in ``archive``; one without test scores counts there as in a folder. Raises
    UserError as `find` and `result_in` do, and where the archive holds another configuration under its signature.
    """
    folder = find(spec)
    result = result_in(folder, spec)
    archived = archive.runs.get(spec.signature)
    if result is not None or archived is None or (spec.config.trainer.test and is_untested(archived.result)):
        return folder, result
    if archived.signed != _signed(spec):
        raise UserError(
            f"{archive.file} has a run of the signature {spec.signature} and another configuration: move it away"
        )
    return archived.below(spec.folder.parent), dict(archived.result)


def finished_result(spec: RunSpec) -> dict[str, Any] | None:
    """Return the result of ``spec`` where the run is over, else None. Raises UserError as `find` and `result_in` do."""
    return result_in(find(spec), spec)


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
