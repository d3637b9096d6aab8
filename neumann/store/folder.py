"""What lies in a run's folder, who may write to it, and how far the run is?

config.yaml          the resolved configuration; signed.json: what the signature covers
provenance.json      code, packages, hardware, data, seeds, one entry per attempt
status.json          pending | running | finished | diverged | failed | interrupted
measurements.jsonl   one line per evaluation
last.ckpt            the state to go on from; eval-weights.pt: the weights at the eval point
result.json          written last and atomically: where it is good, the run is over
error.txt            the traceback of a failed run; output.log: what a run of a launch printed
.claim.N             who holds the run; its modification time is the heartbeat (see `neumann.store.claim`)

A folder may come from somebody else: what is read here is checked, and nothing of it is ever executed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neumann.errors import UserError
from neumann.store import claim
from neumann.store.claim import Claim, Claimed, Lost
from neumann.store.files import append_line, plain, read_file, read_json, replace_file, write_json

__all__ = ["OVER", "STATUSES", "Claimed", "Lost", "RunFolder", "make_folder", "remove_refused"]

STATUSES = ("pending", "running", "finished", "diverged", "failed", "interrupted")
OVER = ("finished", "diverged")  # diverged is a result and is kept as one


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
        """Return how far the run is, as every reader should show it: ``{"status": ..., ...}``, the status a valid one.

        A good result is the truth whatever status.json says. A run that is ``running`` by status.json and that nobody
        holds is ``interrupted``, with a message that says why. Where ``attempt`` and ``step`` are there, they are ints.
        """
        found = self._recorded()
        result = self.result()
        if result is not None:
            return {**found, "status": result["status"]}
        if found["status"] in OVER:
            return {**found, "status": "pending", "message": "its result.json is missing or damaged"}
        if found["status"] == "running" and (gone := self.why_free()) is not None:
            return {**found, "status": "interrupted", "message": f"it ended without a word: {gone}"}
        return found

    def _recorded(self) -> dict[str, Any]:
        """Return status.json as it stands, less what cannot be one; where it is lost, what the other files tell."""
        found = read_json(self.path / "status.json")
        if not isinstance(found, dict) or found.get("status") not in STATUSES:
            begun = self.last.exists() or self.measurements.exists()
            message = {"message": "its status.json is missing or damaged"} if begun else {}
            return {"status": "interrupted" if begun else "pending", **message}
        kinds: dict[str, type | tuple[type, ...]] = {"attempt": int, "step": int, "pid": int, "time": (int, float)}
        kinds |= {"status": str, "message": str, "host": str}
        return {key: found[key] for key, kind in kinds.items() if isinstance(found.get(key), kind)}

    def result(self) -> dict[str, Any] | None:
        """Return the result where the run is over, else None. A damaged file is no result."""
        result = read_json(self.path / "result.json")
        return result if isinstance(result, dict) and result.get("status") in OVER else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, the last file of a run; a damaged one is kept beside it as result.json.damaged.

        Raises NotWritten, or Lost where another process has taken the run over.
        """
        path = self.path / "result.json"
        if path.exists() and read_json(path) is None:
            claim.require(self.path)
            os.replace(path, path.with_name("result.json.damaged"))
        write_json(path, result)

    def set_status(self, status: str, **details: Any) -> None:
        """Write status.json. Raises NotWritten, or Lost where another process has taken the run over."""
        assert status in STATUSES, status
        write_json(
            self.path / "status.json",
            {"status": status, "time": time.time(), "pid": os.getpid(), "host": socket.gethostname(), **details},
        )

    def attempts(self) -> list[dict[str, Any]]:
        """Return the provenance record of every attempt, first to last; none where the file is missing or damaged."""
        recorded = read_json(self.provenance)
        attempts = recorded.get("attempts") if isinstance(recorded, dict) else None
        return attempts if isinstance(attempts, list) else []

    def read_measurements(self) -> list[dict[str, Any]]:
        """Return the measurements that are whole; a line cut short by a kill, or damaged, is left out."""
        return self._lines()[0]

    def _lines(self) -> tuple[list[dict[str, Any]], int]:
        """Return the measurements that are whole, and how many lines before the last one of them are not."""
        try:
            content = read_file(self.measurements)
        except OSError:
            return [], 0
        whole: list[dict[str, Any]] = []
        damaged = [0]
        for line in content.split(b"\n"):
            measured = None
            with contextlib.suppress(ValueError, RecursionError):
                measured = json.loads(line, parse_constant=lambda _: None)
            if isinstance(measured, dict) and type(measured.get("step")) is int:
                whole.append(measured)
                damaged.append(damaged[-1])
            elif line.strip():
                damaged[-1] += 1
        return whole, damaged[-2] if len(damaged) > 1 else 0

    def append_measurement(self, measurement: Mapping[str, Any]) -> None:
        """Append one line and sync it. Raises NotWritten, or Lost where another process has taken the run over."""
        append_line(self.measurements, json.dumps(plain(measurement), allow_nan=False).encode())

    def rewind_measurements(self, step: int) -> list[dict[str, Any]]:
        """Drop what was measured after ``step``, the step a run goes on from, and return the rest.

        Warns where a line before that is damaged: it was measured once and will not be again.
        """
        whole, damaged = self._lines()
        kept = [m for m in whole if m["step"] <= step]
        if damaged and kept:
            warnings.warn(f"{self.measurements} has lost {damaged} damaged line(s) of its curve", stacklevel=2)
        if self.measurements.exists():
            replace_file(self.measurements, "".join(json.dumps(m) + "\n" for m in kept).encode())
        return kept

    @contextlib.contextmanager
    def claim(self) -> Iterator[Claim]:
        """Hold the folder for this process, with a heartbeat, until the block or the process ends.

        Raises UserError where the folder cannot be written, and Claimed where another process holds it.
        """
        make_folder(self.path)
        with contextlib.ExitStack() as stack:
            try:
                held = stack.enter_context(claim.hold(self.path))
            except OSError as error:
                raise _unwritable(self.path, error) from error
            yield held

    def held(self) -> bool:
        """Return whether a living process holds the claim at this moment."""
        return self.why_free() is None

    def why_free(self) -> str | None:
        """Return why nobody holds the claim, in words, or None where somebody does."""
        try:
            lease = claim.current(self.path)
        except NotADirectoryError:
            return "there is no such folder"
        except OSError:
            return None  # it cannot be read: then nobody may say that it is free
        if lease is None:
            return "nobody holds it"
        return lease.why_dead(lambda: claim.file_system_time(self.path))

    def require_claim(self) -> None:
        """Raise Lost where this process held the claim and another has taken it over: nothing may be written then."""
        claim.require(self.path)


def remove_refused(folder: RunFolder) -> None:
    """Remove a folder that was made for a run whose configuration was then refused: it leaves nothing behind."""
    claim.require(folder.path)
    for name in ("config.yaml", "signed.json", "provenance.json", "measurements.jsonl"):
        (folder.path / name).unlink(missing_ok=True)
    for lease in folder.path.glob(f"{claim.PREFIX}*"):
        lease.unlink(missing_ok=True)
    shutil.rmtree(folder.path / "wandb", ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: then it is not ours to remove
        folder.path.rmdir()


def make_folder(path: Path) -> None:
    """Create ``path`` and prove that it can be written to. Raises UserError naming the part that is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        claim.touch_probe(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = (error.strerror or str(error)).lower()
    return UserError(f"the results folder {path} cannot be written ({reason}): name another with output=FOLDER")
