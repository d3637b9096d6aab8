"""Folder of one run: its files, its claim and its status.

config.yaml          the resolved configuration; signed.json: what the signature covers
provenance.json      code, packages, hardware, data, seeds, one entry per attempt
status.json          pending | running | finished | diverged | failed | interrupted
measurements.jsonl   one line per evaluation; steps.jsonl: one per trainer.log_every_n_steps, terms.jsonl:
                     one per terms.every (see `steps`)
last.ckpt            the state to go on from; eval-weights.pt: the weights at the eval point
result.json          written atomically once training is over: where it is good, the run is over
error.txt            the traceback of a failed run; output.log: what a run of a launch printed
.claim.N             the lease of the process that trains; its modification time is the heartbeat (see `claim`)

A folder may come from another user: what is read here is checked, and nothing of it is ever executed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neumann.errors import UserError
from neumann.store import claim
from neumann.store.claim import Claim, Claimed, Lost
from neumann.store.files import (
    append_line,
    opened,
    plain,
    read_file,
    read_json,
    replace_file,
    require_absent,
    write_json,
)
from neumann.store.scores import is_number
from neumann.store.steps import TERMS, read_lines
from neumann.store.vouching import has_curve, is_edited

__all__ = ["OVER", "STATUSES", "STYLES", "Claimed", "Lost", "RunFolder", "make_folder", "remove_refused"]

STATUSES = ("pending", "running", "finished", "diverged", "failed", "interrupted")
STYLES = {"finished": "green", "running": "cyan", "diverged": "yellow", "failed": "red", "interrupted": "yellow"}
MEASURED = 2**26  # bytes of measurements that are read; 10,000 evaluations take about 10 million
END = 2**20  # bytes at the end of the measurements in which the latest is looked for
EDITED = "result.json is not what the run wrote"
OVER = ("finished", "diverged")  # diverged is a result and is kept as one


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. Reading is safe in a folder that is missing, damaged or being written.

    Training writes through `neumann.store.session` instead, which keeps the order of the writes.
    """

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
        """Return how far the run is: ``{"status": ..., ...}``, the status one of `STATUSES`.

        A good result counts, whatever status.json says. A run that is ``running`` by status.json and that no process
        holds is ``interrupted``, with a ``message`` that says why. ``attempt`` and ``step`` may be missing, else they
        are ints.
        """
        found = self._recorded()
        result = self.result()
        if result is not None:
            return {**found, "status": result["status"], **({"message": EDITED} if is_edited(result) else {})}
        if found["status"] in OVER:
            return {**found, "status": "pending", "message": "its result.json is missing or damaged"}
        if found["status"] == "running" and (gone := self.why_free()) is not None:
            return {**found, "status": "interrupted", "message": f"it ended without writing its status: {gone}"}
        return found

    def _recorded(self) -> dict[str, Any]:
        """Return the valid entries of status.json; where it is lost, the status that follows from the other files."""
        found = read_json(self.path / "status.json")
        if not isinstance(found, dict) or found.get("status") not in STATUSES:
            begun = self.last.exists() or self.measurements.exists()
            message = {"message": "its status.json is missing or damaged"} if begun else {}
            return {"status": "interrupted" if begun else "pending", **message}
        kinds: dict[str, type | tuple[type, ...]] = {"attempt": int, "step": int, "pid": int, "time": (int, float)}
        kinds |= {"status": str, "message": str, "host": str}
        return {key: found[key] for key, kind in kinds.items() if isinstance(found.get(key), kind)}

    def result(self, *, tested: bool = False) -> dict[str, Any] | None:
        """Return the content of result.json where the run is over, else None.

        A file that is damaged, or has a value that no run writes, counts as none; so does, where it is to be
        ``tested``, that of a run which finished and was not scored on the test images.
        """
        return sound_result(read_json(self.path / "result.json"), tested=tested)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json atomically; only status.json and the removal of checkpoints follow.

        A damaged one is kept beside it as result.json.damaged.
        Raises NotWritten, or Lost where another process has taken the run over.
        """
        path = self.path / "result.json"
        if path.exists() and self.result() is None:
            claim.require(self.path)
            aside = path.with_name("result.json.damaged")
            aside.unlink(missing_ok=True)
            try:
                os.link(path, aside)  # a second name: the file keeps its own until the new one is whole
            except OSError:  # a file system without links
                os.replace(path, aside)
        write_json(path, result)

    def remove_result(self) -> None:
        """Remove result.json, so that the run is not over. Raises Lost where another process has taken it over."""
        claim.require(self.path)
        (self.path / "result.json").unlink()

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
        return [one for one in attempts if isinstance(one, dict)] if isinstance(attempts, list) else []

    def last_measurement(self) -> dict[str, Any] | None:
        """Return the latest measurement that is whole, read from the end of the file; None where there is none."""
        try:
            with opened(self.measurements) as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - END))
                content = file.read(END)
        except OSError as error:
            require_absent(self.measurements, error)
            return None
        return next((one for line in reversed(content.split(b"\n")) if (one := _measurement(line)) is not None), None)

    def read_measurements(self) -> list[dict[str, Any]]:
        """Return the measurements in the order written, without lines that are damaged or that a kill cut short.

        Warns where the file is too large to be a run's, and returns none.
        """
        return self._lines()[0]

    def curve(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the measurements of the run of ``result``. Raises UserError where they are not those that it made."""
        measured, damaged = self._lines()
        if damaged or not has_curve(result, measured):
            raise UserError(
                f"{self.measurements} is not what the run measured: put back what it wrote, or move {self.path} away "
                "to train the run again"
            )
        return measured

    def terms(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what the terms of the run of ``result`` did; none where they were not measured.

        Raises UserError where the file is not what the run wrote.
        """
        return read_lines(self.path, result, TERMS) if TERMS.key in result else []

    def _lines(self) -> tuple[list[dict[str, Any]], int]:
        """Return the whole measurements, and the number of damaged lines before the last of them."""
        try:
            content = read_file(self.measurements, MEASURED)
        except OSError as error:
            if error.errno == errno.EFBIG:
                warnings.warn(f"{self.measurements} is not read: {error.strerror}", stacklevel=3)
            require_absent(self.measurements, error)
            return [], 0
        whole: list[dict[str, Any]] = []
        damaged = [0]
        for line in content.split(b"\n"):
            measured = _measurement(line)
            if measured is not None:
                whole.append(measured)
                damaged.append(damaged[-1])
            elif line.strip():
                damaged[-1] += 1
        return whole, damaged[-2] if len(damaged) > 1 else 0

    def append_measurement(self, measurement: Mapping[str, Any]) -> None:
        """Append one line and sync it. Raises NotWritten, or Lost where another process has taken the run over."""
        append_line(self.measurements, _line(measurement))

    def keep_measurements(self, measured: Sequence[Mapping[str, Any]]) -> None:
        """Write the file again where it is not what was ``measured``: another process has changed it meanwhile."""
        kept = [_line(one) for one in measured]
        if self._lines() != ([json.loads(line) for line in kept], 0):
            warnings.warn(f"{self.measurements} is not what was measured, and is written again", stacklevel=2)
            replace_file(self.measurements, b"".join(line + b"\n" for line in kept))

    def restore_measurements(self, measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Make the file hold what a checkpoint says was ``measured`` until then, and return that as JSON types.

        Lines after it are dropped, since the run measures them again. The lines before it may have been lost or edited
        since; they are restored then, with a warning.
        """
        kept: list[dict[str, Any]] = [json.loads(_line(one)) for one in measured]
        whole, damaged = self._lines()
        if kept and (damaged or whole[: len(kept)] != kept):
            warnings.warn(
                f"{self.measurements} is not what was measured until the checkpoint that the run goes on from: its "
                f"{len(kept)} line(s) are restored from there",
                stacklevel=2,
            )
        if kept or os.path.lexists(self.measurements):  # a link is replaced, not written through
            replace_file(self.measurements, b"".join(_line(one) + b"\n" for one in kept))
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
                raise unwritable(self.path, error) from error
            yield held

    def held(self) -> bool:
        """Return whether a living process holds the folder at this moment."""
        return self.why_free() is None

    def why_free(self) -> str | None:
        """Return a sentence that says why no process holds the folder, or None where one does."""
        try:
            lease = claim.current(self.path)
        except NotADirectoryError:
            return "there is no such folder"
        except OSError:
            return None  # it cannot be read, so it may be held
        if lease is None:
            return "no process holds it"
        return lease.why_dead(lambda: claim.file_system_time(self.path))

    def require_claim(self) -> None:
        """Raise Lost where this process held the folder and another has taken it over: it may write nothing then."""
        claim.require(self.path)


def sound_result(value: object, *, tested: bool = False) -> dict[str, Any] | None:
    """Return ``value`` where it is the result of a run that is over, and every value in it one that a run writes.

    One that is to be ``tested`` and `is_untested` is none.
    """
    if not isinstance(value, dict) or value.get("status") not in OVER or not _has_sound_values(value):
        return None
    return None if tested and is_untested(value) else value


def is_untested(result: Mapping[str, Any]) -> bool:
    """Return whether the run of ``result`` finished and was not scored on the test images."""
    return result["status"] == "finished" and result.get("test", {}) is None


def _has_sound_values(result: Mapping[str, Any]) -> bool:
    """Return whether what commands compute with and write as numbers is such: the file may have been edited."""
    kinds: dict[str, Any] = dict.fromkeys(("step", "examples", "attempts"), int)
    kinds |= dict.fromkeys(("signature", "name", "study", "eval_point"), str)
    if not all(type(result[key]) is kind for key, kind in kinds.items() if key in result):
        return False
    numbers = ("train_seconds", "eval_seconds", "epoch", "train_loss", "best_validation_error", *kinds)
    if not all(result.get(k) is None or kinds.get(k) is str or is_number(result[k]) for k in numbers):
        return False
    for split in ("validation", "test", "validation_recalibrated", "test_recalibrated"):
        scores = result.get(split)
        if scores is not None and not (isinstance(scores, Mapping) and all(map(_is_score, scores.values()))):
            return False
    return result.get("eval_weights") is None or isinstance(result["eval_weights"], str)


def _is_score(score: object) -> bool:
    if not isinstance(score, Mapping) or not is_number(score.get("error")):
        return False
    return all(score.get(key) is None or is_number(score[key]) for key in ("loss", "n", "wrong"))


def _measurement(line: bytes) -> dict[str, Any] | None:
    """Return the measurement in a line, None where it is damaged."""
    try:
        measured = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return measured if is_measurement(measured) else None


def is_measurement(value: object) -> bool:
    """Return whether ``value`` is an evaluation of a run."""
    return isinstance(value, dict) and type(value.get("step")) is int


def _line(measurement: Mapping[str, Any]) -> bytes:
    return json.dumps(plain(measurement), allow_nan=False).encode()


def remove_refused(folder: RunFolder) -> None:
    """Remove a folder that was made for a run which then did not begin, such as one with a wrong configuration."""
    claim.require(folder.path)
    for name in ("config.yaml", "signed.json", "provenance.json", "measurements.jsonl"):
        (folder.path / name).unlink(missing_ok=True)
    for lease in folder.path.glob(f"{claim.PREFIX}*"):
        lease.unlink(missing_ok=True)
    shutil.rmtree(folder.path / "wandb", ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: other files are not ours to remove
        folder.path.rmdir()  # those above it, where they were made for it, are `left_out_if_refused`'s to remove


def make_folder(path: Path, option: str | None = None) -> None:
    """Create the folder ``path`` and write a file to it to prove that it can be. Raises UserError.

    ``option`` is that of the command which names the folder, None for output=.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        claim.touch_probe(path)
    except OSError as error:
        raise unwritable(path, error, option) from error


def unwritable(path: Path, error: OSError, option: str | None = None) -> UserError:
    """Return the error that says why the folder ``path`` cannot be used, and what to do; ``option`` names it."""
    reason = (error.strerror or str(error)).lower()
    if error.errno == errno.ENAMETOOLONG:
        long = max(path.parts, key=lambda part: len(os.fsencode(part)))
        return UserError(
            f"the {'' if option else 'results '}folder has a path of {len(os.fsencode(path))} bytes, and in it a name "
            f"of {len(os.fsencode(long))}, {long[:20]}… ({reason}): shorten {option or 'output, study or name'}"
        )
    if option:
        return UserError(f"the folder {path} cannot be written ({reason}): name another with {option} FOLDER")
    return UserError(f"the results folder {path} cannot be written ({reason}): name another with output=FOLDER")
