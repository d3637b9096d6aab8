"""What the processes of a run print: a hidden file beside the run's folder, moved into it when the run has ended.

It begins beside the folder, since a run that cannot be built or that another process trains must leave no folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from neumann.store.claim import file_system_time
from neumann.store.folder import RunFolder

LOG = "output.log"
LEFT = re.compile(r"\.(.+-[0-9a-f]{12})\.[0-9a-f]+\.log", re.DOTALL)
STALE_S = 3600.0  # of a log; its process may be another machine's, and its run not claimed yet


def new_log(folder: Path) -> Path:
    """Make an empty log beside a run's ``folder`` and return its path. Raises OSError.

    Its name is drawn at random: processes of two machines or containers that share the folder may have one id.
    """
    log = (folder.parent / f".{folder.name}.{secrets.token_hex(4)}.log").resolve()
    log.touch(exist_ok=False)
    return log


def file_log(log: Path, folder: Path) -> None:
    """Move a run's log into its folder; delete a log that is empty or whose run has no folder."""
    with contextlib.suppress(OSError):
        if log.stat().st_size and folder.is_dir():
            os.replace(log, folder / LOG)
        else:
            log.unlink()


def file_stale_logs(study: Path, signature: str = "") -> None:
    """File the logs in ``study`` that processes have left which were killed, on this machine or another.

    study       a folder of runs
    signature   of the only run to look at; where it is empty, all are looked at

    A log is left where no process holds its run and the run is over, so none trains it again, or the log has not been
    written to for `STALE_S`. It becomes the run's output.log unless that is newer.
    """
    for log in study.glob(f".*-{signature}.*.log" if signature else ".*.log"):
        match = LEFT.fullmatch(log.name)
        if match is None:
            continue
        folder = RunFolder(study / match[1])
        with contextlib.suppress(OSError):
            written = log.lstat().st_mtime
            over = folder.result() is not None
            if folder.held() or not (over or file_system_time(study) - written >= STALE_S):
                continue
            filed = folder.path / LOG
            if filed.exists() and filed.stat().st_mtime >= written:
                log.unlink()
            else:
                file_log(log, folder.path)
