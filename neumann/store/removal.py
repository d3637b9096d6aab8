"""Removal of a run's folder that no process uses: it is claimed, looked at again, renamed, and only then deleted."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from neumann.errors import UserError
from neumann.store.folder import RunFolder, remove_refused

REMOVABLE = ("failed", "interrupted")  # never a result, never one that trains
GRAVE = ".removed-"


def remove(folder: Path, statuses: Sequence[str]) -> str | None:
    """Remove ``folder`` where its run has one of ``statuses``; return None, or a sentence that says why it was kept."""
    if folder.is_symlink():
        return "it is a link, and what it points to may belong elsewhere"
    if not folder.is_dir():
        return None  # another process has removed it
    run = RunFolder(folder)
    grave = folder.with_name(f"{GRAVE}{secrets.token_hex(8)}")
    try:
        with run.claim():
            status = run.status()["status"]
            if status not in statuses or status not in REMOVABLE:
                if status == "pending":
                    remove_refused(run)  # another process removed it, and claiming has made it again
                return f"it is {status} by now"
            run.require_claim()
            os.rename(folder, grave)  # at once for every reader; a process that wants the run makes a new folder
        shutil.rmtree(grave)
    except UserError as error:
        return str(error)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None
