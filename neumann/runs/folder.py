"""What lies in a run's folder, who may write to it, and how far the run is?

config.yaml          the resolved configuration; signed.json: what the signature covers
provenance.json      code, packages, hardware, data, seeds, one entry per attempt
status.json          pending | running | finished | diverged | failed | interrupted; its modification time is the
heartbeat measurements.jsonl   one line per evaluation
last.ckpt            the state to go on from; eval-weights.pt: the weights at the eval point
result.json          written last and atomically: where it is good, the run is over
error.txt            the traceback of a failed run; output.log: what a run of a launch printed
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from neumann.errors import UserError
from neumann.runs.files import plain, read_json, replace_file, write_json

STATUSES = ("pending", "running", "finished", "diverged", "failed", "interrupted")
OVER = ("finished", "diverged")  # diverged is a result and is kept as one
HEARTBEAT_S = 15.0


class Claimed(UserError):  # noqa: N818 - it is no error of whoever asked
    """Another process is training the run right now."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run; every method is safe to call on a folder that does not exist yet, except `claim`."""

    path: Path

    @property
    def config(self) -> Path:
        """Return the path of the resolved configuration."""
        return self.path / "config.yaml"

    @property
    def signed(self) -> Path:
        """Return the path of what the signature covers."""
        return self.path / "signed.json"

    @property
    def provenance(self) -> Path:
        """Return the path of the provenance record."""
        return self.path / "provenance.json"

    @property
    def measurements(self) -> Path:
        """Return the path of the measurements."""
        return self.path / "measurements.jsonl"

    @property
    def last(self) -> Path:
        """Return the path of the checkpoint to go on from."""
        return self.path / "last.ckpt"

    @property
    def eval_weights(self) -> Path:
        """Return the path of the weights at the eval point."""
        return self.path / "eval-weights.pt"

    @property
    def error(self) -> Path:
        """Return the path of a failed run's traceback."""
        return self.path / "error.txt"

    def status(self) -> dict[str, Any]:
        """Return status.json, or ``{"status": "pending"}``."""
        return read_json(self.path / "status.json") or {"status": "pending"}

    def result(self) -> dict[str, Any] | None:
        """Return the result where the run is over, else None. A damaged file is no result."""
        result = read_json(self.path / "result.json")
        return result if isinstance(result, dict) and result.get("status") in OVER else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, the last file of a run."""
        write_json(self.path / "result.json", result)

    def set_status(self, status: str, **details: Any) -> None:
        """Write status.json."""
        assert status in STATUSES, status
        write_json(
            self.path / "status.json",
            {"status": status, "time": time.time(), "pid": os.getpid(), "host": socket.gethostname(), **details},
        )

    def read_measurements(self) -> list[dict[str, Any]]:
        """Return the measurements that are whole; a line cut short by a kill is left out."""
        if not self.measurements.exists():
            return []
        lines = []
        for line in self.measurements.read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    def append_measurement(self, measurement: Mapping[str, Any]) -> None:
        """Append one line and sync it."""
        with open(self.measurements, "a") as file:
            file.write(json.dumps(plain(measurement), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rewind_measurements(self, step: int) -> list[dict[str, Any]]:
        """Drop what was measured after ``step``, the step a run goes on from, and return the rest."""
        kept = [m for m in self.read_measurements() if m["step"] <= step]
        if self.measurements.exists():
            replace_file(self.measurements, "".join(json.dumps(m) + "\n" for m in kept).encode())
        return kept

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the folder for this process; the claim ends with the block or with the process, however it dies.

        Raises UserError where the folder cannot be written, and Claimed where another process holds it.
        """
        make_folder(self.path)
        lock = FileLock(self.path / ".claim")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            status = self.status()
            raise Claimed(
                f"{self.path} is being trained right now by process {status.get('pid', '?')} on "
                f"{status.get('host', '?')}: wait for it or stop it"
            ) from None
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            yield
        finally:
            lock.release()

    def held(self) -> bool:
        """Return whether a process holds the claim at this moment."""
        if not self.path.exists():
            return False
        lock = FileLock(self.path / ".claim")
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            return True
        lock.release()
        return False

    @contextlib.contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Touch status.json every `HEARTBEAT_S` seconds while the block runs."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT_S):
                with contextlib.suppress(OSError):
                    os.utime(self.path / "status.json")

        thread = threading.Thread(target=beat, name="neumann-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def remove_refused(folder: RunFolder) -> None:
    """Remove a folder that was made for a run whose configuration was then refused: it leaves nothing behind."""
    for name in (".claim", "config.yaml", "signed.json", "provenance.json", "measurements.jsonl"):
        (folder.path / name).unlink(missing_ok=True)
    shutil.rmtree(folder.path / "wandb", ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: then it is not ours to remove
        folder.path.rmdir()


def make_folder(path: Path) -> None:
    """Create ``path`` and prove that it can be written to. Raises UserError naming the part that is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = (error.strerror or str(error)).lower()
    return UserError(f"the results folder {path} cannot be written ({reason}): name another with output=FOLDER")
