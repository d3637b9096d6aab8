"""What is one job of a launch? A process a device, from the fork server, that train one run; what their parent knows.

Every process gets the run's specification and its rank. None reads a command line or starts another rank.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from neumann import compat
from neumann.config import RunSpec
from neumann.errors import Interrupted, UserError, first_line
from neumann.launch.fork_server import THREADS, without_main
from neumann.processes.ranks import RankPlace, world_size
from neumann.processes.signals import STOP_SIGNALS
from neumann.store.files import replace_file
from neumann.store.folder import Claimed, RunFolder
from neumann.store.lookup import find, finished_result

LOG = "output.log"
LAST_WORDS_S = 2.0  # between a rank's bad end and the end of the others
LONGEST = 2000  # characters of a message, which waits in a pipe until the job is over


class RunProcesses:
    """One run in processes of its own, one a device, from the moment that it is made.

    ``gpus`` are the only ones that it sees, as CUDA_VISIBLE_DEVICES names them; without any, it sees what we see.
    """

    def __init__(self, spec: RunSpec, threads: int, gpus: Sequence[str] = ()) -> None:
        self.spec, self.gpus = spec, list(gpus)
        self._began = time.monotonic()
        self._log = (spec.folder.parent / f".{spec.folder.name}.{os.getpid()}.log").resolve()
        self._log.write_bytes(b"")
        self._stopped = False
        self._first_bad: tuple[_Process, float] | None = None  # the rank that ended badly first, and when
        path = [os.path.abspath(folder) for folder in sys.path]
        environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})
        place = _Place(environment, os.getcwd(), path, threads, str(self._log))
        self._processes: list[_Process] = []
        try:
            with without_main(), contextlib.ExitStack() as ours:
                for ranks, listener in _places(spec, ours):
                    self._processes.append(_Process(spec, place, ranks, listener))
        except BaseException:
            self._kill()
            raise

    def waitables(self) -> list[int | Connection]:
        """Return what becomes readable when a process answers or ends."""
        return [one for process in self._processes for one in process.waitables()]

    def settled(self) -> bool:
        """Return whether every process has said how the run ended, or cannot any more; some may still finish mirrors.

        Where one has ended badly, the others are killed soon after: they hang, or learn of it from a broken connection.
        """
        waiting = [process for process in self._processes if process.alive() and process.answer() is None]
        if self._first_bad is None:
            bad = [process for process in self._processes if process not in waiting and process.bad()]
            if bad:
                self._first_bad = min(bad, key=_Process.ended), time.monotonic()
        elif time.monotonic() - self._first_bad[1] > LAST_WORDS_S:
            for process in waiting:
                process.kill()
        return not waiting

    def over(self) -> bool:
        """Return whether every process has ended."""
        if any(process.alive() for process in self._processes):
            return False
        for process in self._processes:
            process.close()
        return True

    def seconds(self) -> float:
        """Return the wall time since the job was made."""
        return time.monotonic() - self._began

    def stop(self, *, at_once: bool) -> None:
        """Ask the run to write a checkpoint and leave; ``at_once`` kills it and all that it has started."""
        self._stopped = True
        for process in self._processes:
            if not process.alive():
                continue
            if at_once:
                process.kill()
            else:
                process.terminate()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    def reap(self) -> tuple[str, str | None, dict[str, Any] | None]:
        """Return (status, message, result) of a settled job, whatever way it ended, and file its log.

        The status is finished, diverged, failed, interrupted, or "claimed" where another process trains this run.
        """
        if any(process.answer() is None for process in self._processes):
            self._kill()  # what they have started lives in their process groups
        result = finished_result(self.spec)
        _file(self._log, self.spec)
        if result is not None:  # whatever happened afterwards, the run is over
            status = str(result["status"])
            return status, _diverged(result) if status == "diverged" else None, result
        first = self._first_bad[0] if self._first_bad else self._processes[0]
        status, message = self._said(first)
        if status == "failed":
            self._record_failure(message, unheard=first.answer() is None)
        return status, message, None

    def _said(self, process: _Process) -> tuple[str, str | None]:
        """Return how ``process`` says that it ended, or what can be said of one that could not."""
        answer = process.answer()
        if self._stopped and (answer is None or len(self._processes) > 1):
            others = [other.answer() for other in self._processes]
            told = next((said for said in others if said and said[0] == "interrupted"), None)
            if told or answer is None:
                return told or ("interrupted", "stopped before it could write where it was")
        if answer is not None:
            return answer
        who = f"rank {process.rank} of {len(self._processes)} " if len(self._processes) > 1 else ""
        code = process.code()
        if code >= 0:
            return "failed", f"{who or 'its process '}left with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        killed = f"{who}{'was ' if who else ''}killed by signal {-code} ({name})"
        return "failed", killed + ("; out of memory?" if -code == signal.SIGKILL else "")

    def _record_failure(self, message: str | None, *, unheard: bool) -> None:
        """Write what the run could not write itself, where it has left a folder: it has ended, and its ranks know less.

        A rank that was killed leaves no words, and what the others write is that the connection to it broke.
        """
        folder = find(self.spec)
        if not folder.path.exists():
            return
        with contextlib.suppress(UserError, OSError), _patiently(folder):
            before = folder.status()
            said = before.get("message")
            if not unheard and before["status"] == "failed" and said == message:
                return
            step = max([int(before.get("step", 0)), *(m["step"] for m in folder.read_measurements()[-1:])])
            folder.set_status("failed", message=message, step=step, attempt=before.get("attempt", 1))
            if len(self._processes) > 1 and folder.error.exists() and unheard:
                others = folder.error.read_text()
                replace_file(folder.error, f"{message}\n\nWhat another rank saw of it:\n\n{others}".encode())


@contextlib.contextmanager
def _patiently(folder: RunFolder) -> Iterator[None]:
    """Claim a folder whose processes are dying, but not from another launcher that has begun it again."""
    with contextlib.ExitStack() as stack:
        for patience in (*[0.1] * 20, None):
            try:
                stack.enter_context(folder.claim())
                break
            except Claimed:
                if patience is None:
                    raise
                time.sleep(patience)
        yield


class _Process:
    """One process of a job."""

    def __init__(self, spec: RunSpec, place: _Place, ranks: RankPlace | None, listener: socket.socket | None) -> None:
        self.rank = ranks.rank if ranks else 0
        context = multiprocessing.get_context("forkserver")
        self._pipe, answer = context.Pipe(duplex=False)
        self._answer: tuple[str, str | None] | None = None
        self._ended = 0.0
        self._process = context.Process(
            target=_work,
            name=spec.name,
            args=(spec, place, ranks, listener, answer),
            daemon=False,  # decoding workers are children of the job, which a daemon may not have
        )
        self._process.start()
        answer.close()

    def waitables(self) -> list[int | Connection]:
        pipe = [self._pipe] if self._answer is None and not self._pipe.closed else []
        return [int(self._process.sentinel), *pipe] if self.alive() else []

    def alive(self) -> bool:
        return self._process.is_alive()

    def code(self) -> int:
        return self._process.exitcode or 0

    def answer(self) -> tuple[str, str | None] | None:
        """Return (status, message) as the process has said it, else None."""
        if self._answer is None and not self._pipe.closed:
            with contextlib.suppress(EOFError, OSError):
                if self._pipe.poll():
                    *said, self._ended = self._pipe.recv()
                    self._answer = said[0], said[1]
        return self._answer

    def bad(self) -> bool:
        """Return whether the process has failed, or has ended and could not say how."""
        said = self.answer()
        return said is None or said[0] == "failed"

    def ended(self) -> float:
        """Return when the process said that it was over. One that said nothing came first: victims of others do."""
        self.answer()
        return self._ended

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        pid = self._process.pid
        assert pid is not None
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self._process.join()
        self._pipe.close()


def _places(spec: RunSpec, ours: contextlib.ExitStack) -> list[tuple[RankPlace | None, socket.socket | None]]:
    """Return the place of each process of ``spec``, and rank 0's socket, whose other end ``ours`` closes."""
    size = world_size(spec)
    if size == 1:
        return [(None, None)]
    listener = ours.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = listener.getsockname()[1]
    places = [RankPlace(rank, size, rank, 0, "127.0.0.1", port, "neumann") for rank in range(size)]
    return [(ranks, listener if ranks.rank == 0 else None) for ranks in places]


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


def _work(
    spec: RunSpec, place: _Place, ranks: RankPlace | None, listener: socket.socket | None, answer: Connection
) -> None:
    """Train ``spec`` in this process, which the fork server has just made, and answer how it ended."""
    os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the launcher alone, which tells each job once
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)  # before the run listens itself
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(place.environment | dict.fromkeys(THREADS, str(place.threads)))
    os.chdir(place.cwd)
    sys.path[:], sys.argv[:] = place.path, ["neumann"]
    importlib.invalidate_caches()
    _redirect(place.log)
    threading.Thread(target=_leave_with_parent, name="neumann-parent", daemon=True).start()
    with contextlib.ExitStack() as closing:
        try:
            status, message = _train(spec, place.threads, ranks, listener, closing)
        except KeyboardInterrupt:
            status, message = "interrupted", "stopped before its first step"
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # everything is on disk
        with contextlib.suppress(OSError):  # the parent may be gone
            answer.send((status, message and message[:LONGEST], time.monotonic()))
    compat.run_exit_functions()
    parent = multiprocessing.parent_process()
    if (ranks is None or ranks.rank == 0) and (parent is None or not parent.is_alive()):
        _file(Path(place.log), spec)


def _train(
    spec: RunSpec, threads: int, ranks: RankPlace | None, listener: socket.socket | None, closing: contextlib.ExitStack
) -> tuple[str, str | None]:
    from rich.console import Console

    from neumann.training.run import run

    who = f"rank {ranks.rank}: " if ranks else ""
    try:
        result = run(
            spec, Console(file=sys.stdout, width=120), threads=threads, ranks=ranks, listener=listener, closing=closing
        )
    except Claimed as error:
        return "claimed", str(error)
    except Interrupted as stop:
        return "interrupted", str(stop)
    except UserError as error:
        return "failed", str(error)
    except SystemExit as error:
        return "failed", who + f"the program left with exit code {error.code}"
    except Exception as error:  # noqa: BLE001 - the launcher tells the user, and the others go on
        traceback.print_exc()
        folder = find(spec)
        if not hasattr(error, "__notes__") and folder.path.exists():  # it came before the run could record it
            with contextlib.suppress(OSError):
                replace_file(folder.error, traceback.format_exc().encode())
        return "failed", who + first_line(error)
    return str(result["status"]), None


def _redirect(log: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # what was said before a kill is in the log
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
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
