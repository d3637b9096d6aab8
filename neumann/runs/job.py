"""What is one job of a launch? A process from the fork server that trains one run, and what its parent knows of it."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from neumann.config import RunSpec
from neumann.errors import Interrupted, UserError, first_line
from neumann.runs.files import replace_file
from neumann.runs.folder import Claimed
from neumann.runs.reuse import find, finished_result
from neumann.runs.server import THREADS, without_main

LOG = "output.log"
LONGEST = 2000  # characters of a message, which waits in a pipe until the job is over


class Job:
    """One run in a process of its own, from the moment that it is made."""

    def __init__(self, spec: RunSpec, threads: int) -> None:
        self.spec = spec
        self._began = time.monotonic()
        self._log = (spec.folder.parent / f".{spec.folder.name}.{os.getpid()}.log").resolve()
        context = multiprocessing.get_context("forkserver")
        self._answer, answer = context.Pipe(duplex=False)
        self._stopped = False
        path = [os.path.abspath(folder) for folder in sys.path]
        place = _Place(dict(os.environ), os.getcwd(), path, threads, str(self._log))
        with without_main():
            self._process = context.Process(
                target=_work,
                name=spec.name,
                args=(spec, place, answer),
                daemon=False,  # decoding workers are children of the job, which a daemon may not have
            )
            self._process.start()
        answer.close()

    @property
    def sentinel(self) -> int:
        """Return what becomes readable when the process ends."""
        return int(self._process.sentinel)

    def over(self) -> bool:
        """Return whether the process has ended."""
        return not self._process.is_alive()

    def seconds(self) -> float:
        """Return the wall time since the job was made."""
        return time.monotonic() - self._began

    def stop(self, *, at_once: bool) -> None:
        """Ask the run to write a checkpoint and leave; ``at_once`` kills it and all that it has started."""
        self._stopped = True
        if self.over():
            return
        if at_once:
            self._kill()
        else:
            self._process.terminate()

    def _kill(self) -> None:
        pid = self._process.pid
        assert pid is not None
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)

    def reap(self) -> tuple[str, str | None, dict[str, Any] | None]:
        """Return (status, message, result) of a job that is over, whatever way it ended, and file its log.

        The status is finished, diverged, failed, interrupted, or "claimed" where another process trains this run.
        """
        self._process.join()
        answer: tuple[str, str | None] | None = None
        with contextlib.suppress(EOFError, OSError):
            if self._answer.poll():
                answer = self._answer.recv()
        self._answer.close()
        result = finished_result(self.spec)
        status, message = answer or self._unheard()
        _file(self._log, self.spec)
        if result is not None:  # whatever happened afterwards, the run is over
            status = str(result["status"])
            return status, _diverged(result) if status == "diverged" else None, result
        if status == "failed":
            self._record_failure(message, unheard=answer is None)
        return status, message, None

    def _unheard(self) -> tuple[str, str]:
        """Say how a process ended that could not say it, and end what it has left behind."""
        self._kill()
        code = self._process.exitcode or 0
        if self._stopped:
            return "interrupted", "stopped before it could write where it was"
        if code >= 0:
            return "failed", f"its process left with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        return "failed", f"killed by signal {-code} ({name})" + ("; out of memory?" if -code == signal.SIGKILL else "")

    def _record_failure(self, message: str | None, *, unheard: bool) -> None:
        """Write the status that the run could not write itself, where it has left a folder."""
        folder = find(self.spec)
        if not folder.path.exists():
            return
        with contextlib.suppress(UserError), folder.claim():  # another launcher may have begun it again
            before = folder.status()
            if unheard or before["status"] != "failed":
                kept = {key: before[key] for key in ("attempt", "step") if key in before}
                folder.set_status("failed", message=message, **kept)


def _diverged(result: dict[str, Any]) -> str:
    return f"the training loss was no longer finite at step {result['step']}"


def _file(log: Path, spec: RunSpec) -> None:
    """Move a job's log into its run's folder, where it has anything in it and there is a folder."""
    with contextlib.suppress(OSError):
        folder = find(spec).path
        if log.stat().st_size and folder.is_dir():
            os.replace(log, folder / LOG)
        else:
            log.unlink()


@dataclass(frozen=True)
class _Place:
    """The surroundings of the parent at the start of a job; the server's are those of its own start."""

    environment: dict[str, str]
    cwd: str
    path: list[str]
    threads: int
    log: str


def _work(spec: RunSpec, place: _Place, answer: Connection) -> None:
    """Train ``spec`` in this process, which the fork server has just made, and answer how it ended."""
    os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the launcher alone, which tells each job once
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)  # before the run listens itself
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(place.environment | dict.fromkeys(THREADS, str(place.threads)))
    os.chdir(place.cwd)
    sys.path[:], sys.argv[:] = place.path, ["neumann"]
    importlib.invalidate_caches()
    _redirect(place.log)
    threading.Thread(target=_leave_with_parent, name="neumann-parent", daemon=True).start()
    try:
        status, message = _train(spec, place.threads)
    except KeyboardInterrupt:
        status, message = "interrupted", "stopped before its first step"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # everything is on disk
    with contextlib.suppress(OSError):  # the parent may be gone
        answer.send((status, message and message[:LONGEST]))
    atexit._run_exitfuncs()  # multiprocessing leaves them out, and W&B's service waits for one
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        _file(Path(place.log), spec)


def _train(spec: RunSpec, threads: int) -> tuple[str, str | None]:
    from rich.console import Console

    from neumann.training.run import run

    try:
        result = run(spec, Console(file=sys.stdout, width=120), threads=threads)
    except Claimed as error:
        return "claimed", str(error)
    except Interrupted as stop:
        return "interrupted", str(stop)
    except UserError as error:
        return "failed", str(error)
    except SystemExit as error:
        return "failed", f"the program left with exit code {error.code}"
    except Exception as error:  # noqa: BLE001 - the launcher tells the user, and the others go on
        traceback.print_exc()
        folder = find(spec)
        if not hasattr(error, "__notes__") and folder.path.exists():  # it came before the run could record it
            replace_file(folder.error, traceback.format_exc().encode())
        return "failed", first_line(error)
    return str(result["status"]), None


def _redirect(log: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # what was said before a kill is in the log
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.close(file)
    os.close(nothing)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _leave_with_parent() -> None:
    """Stop this run where its launcher is gone: nobody would start the next, and the same command goes on from it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
