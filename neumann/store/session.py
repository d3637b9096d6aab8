"""Session of one run with its files: find or begin it, then write measurements, checkpoints and the result.

Training holds a `Session` while it works on a run and touches none of the run's files itself. Of several ranks, rank 0
holds it. Every other rank has a `Follower`: the same methods, no writes except error.txt from the first rank that
fails.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import neumann
from neumann.errors import UserError, ending_of
from neumann.folders import left_out_if_refused
from neumann.seeds import AXES, derive
from neumann.store import confusion, per_image
from neumann.store.checkpoint_files import read_checkpoint, remove_checkpoints, write_checkpoint
from neumann.store.claim import Claim
from neumann.store.code_digests import code_of, codes, contributing, differing, in_words, targets_of
from neumann.store.files import create_file, plain, replace_file, write_json
from neumann.store.folder import RunFolder, remove_refused
from neumann.store.lookup import find, result_in
from neumann.store.provenance import provenance
from neumann.store.steps import STEPS, TERMS, LoggedLines
from neumann.store.vouching import sealed, with_curve

if TYPE_CHECKING:
    from neumann.config import RunSpec

Measurement = dict[str, Any]
State = dict[str, Any]  # of a checkpoint; ``format`` and ``signature`` say what it is


@contextmanager
def session(spec: RunSpec, decode: Callable[[BinaryIO], Any], state_format: int) -> Iterator[Session]:
    """Hold the run of ``spec`` within the block: claimed, with its result or the state that it goes on from.

    How the block ends before the run trains decides what is left. After UserError or KeyboardInterrupt, a folder that
    was made for the run is removed again, and one that was there before KeyboardInterrupt becomes ``interrupted``.
    After any other exception the run is ``failed``, with the traceback in error.txt.

    Args:
        spec: the run; its folder is the one in its study that carries its signature, whatever its name.
        decode: makes a checkpoint's state from its file; raises ValueError where it is damaged.
        state_format: the ``format`` that a state must have.

    Raises:
        Claimed: another process trains the run.
        UserError: the folder cannot be written, or holds files of another run.
    """
    folder = find(spec)
    with left_out_if_refused([folder.path]), folder.claim() as claim:
        fresh = not folder.config.exists()
        held = Session(spec, folder, claim)
        try:
            held._look(decode, state_format)
            yield held
        except (UserError, KeyboardInterrupt) as stop:
            if held.trains:
                pass  # the attempt has said how it ended
            elif fresh:
                remove_refused(folder)
            elif isinstance(stop, KeyboardInterrupt):
                folder.set_status("interrupted", attempt=folder.status().get("attempt", 0))
            raise
        except Exception as error:
            if not held.trains:
                with contextlib.suppress(OSError):  # a full disk has no room for it
                    _failed_before_training(folder, error)
            raise


class Session:
    """The run that this process holds. Every write raises NotWritten, or Lost where another process took the run over.

    ``result`` is the result of a run that is over, ``state`` the checkpoint that an unfinished one goes on from;
    either may be None. From `begin` on, ``attempt`` is the attempt's number, counted from 1, ``record`` its
    provenance, and ``measurements`` the run's evaluations and ``attempts`` the records of all attempts, earlier ones
    included. ``trains`` is true from `training` on.
    """

    def __init__(self, spec: RunSpec, folder: RunFolder, claim: Claim) -> None:
        self._spec, self._folder, self._claim = spec, folder, claim
        self._keep = spec.config.checkpoint.keep
        self.path = folder.path
        self.result: dict[str, Any] | None = None
        self.state: State | None = None
        self.attempt = 0
        self.record: dict[str, Any] = {}
        self.measurements: list[Measurement] = []
        self.attempts: list[dict[str, Any]] = []
        self.trains = False
        self._steps, self._terms = LoggedLines(folder.path, STEPS), LoggedLines(folder.path, TERMS)
        self._codes: list[dict[str, str]] = []

    def _look(self, decode: Callable[[BinaryIO], Any], state_format: int) -> None:
        self.result = result_in(self._folder, self._spec)
        if self.result is not None or self._keep == "none":
            return
        found = read_checkpoint(self._folder.last, decode)
        if found is None:
            return
        file, state = found
        known = isinstance(state, dict) and state.get("format") == state_format
        if not known or state.get("signature") != self._spec.signature:
            raise UserError(f"{file} is not a checkpoint of this run: move it away to begin again")
        self.state = state

    def begin(self, hardware: Mapping[str, Any]) -> None:
        """Record an attempt that goes on from ``state``; the measurements become those that the checkpoint holds.

        ``hardware`` is training's part of the provenance record: devices, ranks, threads. Warns where other code than
        today's has trained the steps until then, and where a run that was finished without test scores begins again.
        """
        folder, spec = self._folder, self._spec
        for rest in folder.path.glob(".*.tmp"):  # of an attempt that was killed while it wrote: the claim is ours
            rest.unlink()
        earlier = self._earlier()
        self.attempt = 1 + max(folder.status().get("attempt", 0), *_numbers(earlier))
        self._write_config()
        write_json(folder.signed, spec.signed())
        self.record = {
            "attempt": self.attempt,
            "time": time.time(),
            "step": self.state["global_step"] if self.state else 0,
            "code": code_of(targets_of(spec.plain)),
            "package": str(Path(neumann.__file__).resolve().parent),
            **provenance(),
            **hardware,
            "data": spec.facts.as_record(),
            "seeds": {axis: derive(spec.config.seed, axis) for axis in AXES},
            "choices": spec.choices,
        }
        self.attempts = [*earlier, json.loads(json.dumps(plain(self.record)))]
        write_json(folder.provenance, {"attempts": self.attempts})
        self._codes = codes(contributing(self.attempts))
        if names := differing(self._codes):
            warnings.warn(
                f"{in_words(names)} changed since the first {self.record['step']} steps of the run were trained: it "
                "goes on from there with today's code, and its result names both; to train it all with today's, stop "
                f"it and remove {folder.path}",
                stacklevel=2,
            )
        self._warn_of_another_device()
        if self.state is None and folder.result() is not None and folder.result(tested=True) is None:
            warnings.warn(
                f"{folder.path} has no test scores, and its last state was not kept (checkpoint=last keeps it): it is "
                "trained again from the start",
                stacklevel=2,
            )
            folder.remove_result()
        self.measurements = folder.restore_measurements(self.state["measurements"] if self.state else [])
        logged = self.state or {}
        self._steps = LoggedLines(self.path, STEPS, logged.get("steps", ""))
        self._terms = LoggedLines(self.path, TERMS, logged.get("terms", ""))
        self._steps.restore()
        self._terms.restore()
        folder.error.unlink(missing_ok=True)

    def _warn_of_another_device(self) -> None:
        """Warn where the steps of a checkpoint were taken on another device than the rest will be."""
        here = self.record.get("device")
        devices = dict.fromkeys(str(one["device"]) for one in contributing(self.attempts) if one.get("device"))
        others = [device for device in devices if device != here]
        if others:
            warnings.warn(
                f"the first {self.record['step']} steps of the run were trained on {' and '.join(others)}, and it goes "
                f"on from there on {here}, which rounds otherwise: provenance.json names both",
                stacklevel=3,
            )

    def _earlier(self) -> list[dict[str, Any]]:
        """Return the records of earlier attempts: those that the checkpoint holds, and later ones as they lie there."""
        recorded = self._folder.attempts()
        held = self.state.get("attempts") if self.state else None
        if not isinstance(held, list):  # a checkpoint of an earlier version
            return recorded
        if recorded[: len(held)] != held:
            warnings.warn(
                f"{self._folder.provenance} does not record the attempts that led to the checkpoint from which the run "
                "goes on: they are restored from there",
                stacklevel=3,
            )
        return [*held, *recorded[len(held) :]]

    def _write_config(self) -> None:
        from omegaconf import OmegaConf

        name = self._spec.folder.name
        comment = f"# The resolved configuration of {name}; signed.json holds what its signature covers.\n"
        text = comment + OmegaConf.to_yaml(OmegaConf.create(self._spec.as_dict()))
        replace_file(self._folder.config, text.encode())

    def follower(self) -> Follower:
        """Return the session of the other ranks, to be sent to them."""
        return Follower(self.path, self.attempt, list(self.measurements))

    @contextmanager
    def training(self, step: int, lost: Callable[[], None]) -> Iterator[None]:
        """Set the status ``running`` for the block, which trains from ``step`` on.

        ``lost`` is called, from another thread, when another process has taken the run over.
        """
        self.trains = True
        self._set_status("running", step)
        self._claim.when_lost = lost
        try:
            yield
        finally:
            self._claim.when_lost = None

    def measured(self, measurement: Measurement) -> None:
        """Append one evaluation to the measurements."""
        self.measurements.append(measurement)
        self._folder.append_measurement(measurement)

    def logged(self, line: Mapping[str, Any]) -> None:
        """Append one step line."""
        self._steps.append(line)

    def termed(self, line: Mapping[str, Any]) -> None:
        """Append one line of what the optimizer's terms did."""
        self._terms.append(line)

    @property
    def steps(self) -> str:
        """Return the step lines so far, as a checkpoint holds them."""
        return self._steps.text

    @property
    def terms(self) -> str:
        """Return the lines of the terms so far, as a checkpoint holds them."""
        return self._terms.text

    def checkpoint(self, content: bytes) -> None:
        """Write the state to go on from; the one before it is kept until the next."""
        write_checkpoint(self._folder.last, content)

    def finish(
        self,
        result: dict[str, Any],
        eval_weights: bytes | None,
        right: per_image.Right | None = None,
        confused: confusion.Pairs | None = None,
    ) -> dict[str, Any]:
        """Write the weights that are kept, then ``result``, which is returned as written; the run is over then.

        ``right`` says which test images were right, see `neumann.store.per_image`, and ``confused`` which classes were
        taken for which, see `neumann.store.confusion`.
        """
        result = {**result, "code": self._codes}
        if right:
            content, described = per_image.pack(right)
            replace_file(self.path / per_image.FILE, content)
            result = {**result, per_image.KEY: described}
        if confused is not None:
            content, described = confusion.pack(confused, result["eval_point"])
            replace_file(self.path / confusion.FILE, content)
            result = {**result, confusion.KEY: described}
        if eval_weights is not None:
            replace_file(self._folder.eval_weights, eval_weights)
            result = {**result, "eval_weights": self._folder.eval_weights.name}
        result = sealed(with_curve({**result, **self._steps.finish(), **self._terms.finish()}, self.measurements))
        self._folder.keep_measurements(self.measurements)
        self._folder.write_result(result)
        with contextlib.suppress(OSError):  # the result is written, and it is what counts
            self._set_status(result["status"], result["step"])
        remove_checkpoints(self._folder.last, but_the_last=self._keep == "last")
        return result

    def interrupted(self, step: int) -> None:
        """Record that a signal has stopped the run after ``step``."""
        self._set_status("interrupted", step)

    def failed(self, step: int, message: str, trace: str, rank: int | None = None) -> None:
        """Record an error after ``step``, or the one that another rank was the first to record.

        ``rank`` is this process's, None in a run of one process; ``trace`` is the traceback.
        """
        self._set_status("failed", step, message=_first_error(self._folder, message, trace, rank))

    def _set_status(self, status: str, step: int, **details: Any) -> None:
        self._folder.set_status(status, attempt=self.attempt, step=step, **details)


class Follower:
    """Session of a rank other than 0: the same methods, no writes except error.txt from the first rank that fails."""

    def __init__(self, path: Path, attempt: int, measurements: list[Measurement]) -> None:
        self.path, self.attempt, self.measurements = path, attempt, measurements
        self.attempts: list[dict[str, Any]] = []  # rank 0 records them
        self.steps = self.terms = ""  # likewise

    @contextmanager
    def training(self, step: int, lost: Callable[[], None]) -> Iterator[None]:
        """Do nothing around the block."""
        yield

    def measured(self, measurement: Measurement) -> None:
        """Remember one evaluation."""
        self.measurements.append(measurement)

    def logged(self, line: Mapping[str, Any]) -> None:
        """Do nothing."""

    def termed(self, line: Mapping[str, Any]) -> None:
        """Do nothing."""

    def checkpoint(self, content: bytes) -> None:
        """Do nothing."""

    def finish(
        self,
        result: dict[str, Any],
        eval_weights: bytes | None,
        right: per_image.Right | None = None,
        confused: confusion.Pairs | None = None,
    ) -> dict[str, Any]:
        """Return ``result``."""
        return result

    def interrupted(self, step: int) -> None:
        """Do nothing."""

    def failed(self, step: int, message: str, trace: str, rank: int | None = None) -> None:
        """Write error.txt where this rank is the first to fail."""
        _first_error(RunFolder(self.path), message, trace, rank)


def _numbers(attempts: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the numbers that ``attempts`` have taken: those recorded, and how many there are, in case none is.

    status.json or provenance.json may be lost, and what is filed under a number elsewhere (W&B) must not be again.
    """
    return [len(attempts), *(one["attempt"] for one in attempts if type(one.get("attempt")) is int)]


def _failed_before_training(folder: RunFolder, error: Exception) -> None:
    replace_file(folder.error, traceback.format_exc().encode())
    folder.set_status("failed", attempt=folder.status().get("attempt", 0), message=ending_of(error)[1])
    error.add_note(f"traceback in {folder.error}")


def _first_error(folder: RunFolder, message: str, trace: str, rank: int | None) -> str:
    """Write error.txt unless another rank has failed before; return the message of the first rank that has.

    The other ranks learn of it when the connection to it breaks, and their own errors say nothing about the cause.
    """
    if rank is None:
        create_file(folder.error, trace.encode())
        return message
    message = f"rank {rank}: {message}"
    if not create_file(folder.error, f"{message}\n\n{trace}".encode()):
        with contextlib.suppress(OSError, IndexError):
            return folder.error.read_text(encoding="utf-8", errors="replace").splitlines()[0]
    return message
