"""Processes of one run, one per device, as the launcher or Slurm worker that started them controls them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from neumann.config import RunSpec
from neumann.errors import UserError
from neumann.launch.fork_server import without_main
from neumann.launch.run_logs import file_log, file_stale_logs, new_log
from neumann.launch.run_main import ProcessEnvironment, run_main
from neumann.processes.ranks import RankPlace, world_size
from neumann.store.files import replace_file
from neumann.store.folder import Claimed, RunFolder
from neumann.store.lookup import find, finished_result
from neumann.store.scores import diverged_at
from neumann.visible_gpus import variables_for

UNKNOWN = 255  # the exit code that Python gives to a process whose fork server is gone
FAILURE_WAIT_S = 2.0  # between a rank's failure and the kill of the others


class RunProcesses:
    """The processes of one run, started by the constructor.

    spec      the run
    threads   torch's threads in each process
    gpus      the only GPUs that the run sees, as CUDA_VISIBLE_DEVICES names them; where empty, it sees all of ours

    Raises OSError or EOFError where a process cannot be started; none is left then.
    """

    def __init__(self, spec: RunSpec, threads: int, gpus: Sequence[str] = ()) -> None:
        self.spec, self.gpus = spec, list(gpus)
        self._began = time.monotonic()
        self._log = new_log(spec.folder)
        self._stopped = False
        self._first_bad: tuple[_RankProcess, float] | None = None  # the rank that ended badly first, and when
        self._ended_others = False  # whether the others were killed since
        path = [os.path.abspath(folder) for folder in sys.path]
        variables = dict(os.environ) | (variables_for(gpus) if gpus else {})
        environment = ProcessEnvironment(variables, os.getcwd(), path, threads, str(self._log))
        self._processes: list[_RankProcess] = []
        try:
            with without_main(), contextlib.ExitStack() as ours:
                for ranks, listener in _places(spec, ours):
                    self._processes.append(_RankProcess(spec, environment, ranks, listener))
        except BaseException:
            self._kill()
            self._log.unlink(missing_ok=True)
            raise

    def waitables(self) -> list[int | Connection]:
        """Return what becomes readable when a process answers or exits."""
        return [one for process in self._processes for one in process.waitables()]

    def settled(self) -> bool:
        """Return whether every process has answered how the run ended or has exited; some may still end mirrors.

        `FAILURE_WAIT_S` after one has failed the others are killed: until then they learn of it from a broken
        connection, or they hang.
        """
        waiting = [process for process in self._processes if process.alive() and process.answer() is None]
        bad = [process for process in self._processes if process not in waiting and process.bad()]
        if bad and not self._ended_others:
            # Asked again each time: a killed rank's end may be seen after the answer of one that failed because of it
            since = self._first_bad[1] if self._first_bad else time.monotonic()
            self._first_bad = min(bad, key=lambda process: process.answered_at()), since
            if time.monotonic() - since > FAILURE_WAIT_S:
                self._ended_others = True
                for process in waiting:
                    process.kill()
        return not waiting

    def exited(self) -> bool:
        """Return whether every process has exited."""
        if any(process.alive() for process in self._processes):
            return False
        for process in self._processes:
            process.close()
        return True

    def seconds(self) -> float:
        """Return the wall time since the processes were started."""
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
        """Return (status, message, result) of a settled run, and move its log into its folder.

        The status is finished, diverged, failed, interrupted, or "claimed" where another process trains this run.
        """
        if any(process.answer() is None for process in self._processes):
            self._kill()  # what they have started lives in their process groups
        result = finished_result(self.spec)
        file_log(self._log, find(self.spec).path)
        if result is not None:  # whatever happened afterwards, the run is over
            file_stale_logs(self.spec.folder.parent, self.spec.signature)
            status = str(result["status"])
            return status, diverged_at(result) if status == "diverged" else None, result
        first = self._first_bad[0] if self._first_bad else self._processes[0]
        status, message = self._how_it_ended(first)
        if status == "failed":
            self._record_failure(message, silent=first.answer() is None)
        return status, message, None

    def made_result(self) -> bool:
        """Return whether one of these processes has trained the run to its end; another may have before it began."""
        status = find(self.spec).status()
        return status.get("host") == socket.gethostname() and status.get("pid") in [p.pid() for p in self._processes]

    def _how_it_ended(self, process: _RankProcess) -> tuple[str, str | None]:
        """Return (status, message) as ``process`` has answered; where it has not, by its exit code or signal."""
        answer = process.answer()
        if self._stopped and (answer is None or len(self._processes) > 1):
            others = [other.answer() for other in self._processes]
            told = next((said for said in others if said and said[0] == "interrupted"), None)
            if told or answer is None:
                return told or ("interrupted", "stopped before it could write where it was")
        if answer is not None:
            return answer
        who = f"rank {process.rank} of {len(self._processes)} " if len(self._processes) > 1 else ""
        code = process.exit_code()
        if code == UNKNOWN:
            starter = "or the fork server that had started it was killed; out of memory?"
            return "failed", f"{who or 'its process '}left with exit code {code}, {starter}"
        if code >= 0:
            return "failed", f"{who or 'its process '}left with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        killed = f"{who}{'was ' if who else ''}killed by signal {-code} ({name})"
        return "failed", killed + ("; out of memory?" if -code == signal.SIGKILL else "")

    def _record_failure(self, message: str | None, *, silent: bool) -> None:
        """Write into the run's folder, where there is one, the failure that its processes could not write.

        A rank that was killed is ``silent``: it writes nothing, and the others write that the connection to it broke.
        """
        folder = find(self.spec)
        if not folder.path.exists():
            return
        with contextlib.suppress(UserError, OSError), _patiently(folder):
            before = folder.status()
            said = before.get("message")
            if not silent and before["status"] == "failed" and said == message:
                return
            step = max([int(before.get("step", 0)), (folder.last_measurement() or {"step": 0})["step"]])
            folder.set_status("failed", message=message, step=step, attempt=before.get("attempt", 1))
            if len(self._processes) > 1 and folder.error.exists() and silent:
                others = folder.error.read_text(encoding="utf-8", errors="replace")
                replace_file(folder.error, f"{message}\n\nAnother rank's traceback:\n\n{others}".encode())


@contextlib.contextmanager
def _patiently(folder: RunFolder) -> Iterator[None]:
    """Claim a folder whose processes are dying, which may take 2 s. Raises Claimed where another launcher has it."""
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


class _RankProcess:
    """One process of a run, which trains as one of its ranks.

    spec          the run
    environment   taken over from this process
    ranks         its place among the run's processes, or None where it is the only one
    listener      rank 0's listening socket
    """

    def __init__(
        self, spec: RunSpec, environment: ProcessEnvironment, ranks: RankPlace | None, listener: socket.socket | None
    ) -> None:
        self.rank = ranks.rank if ranks else 0
        context = multiprocessing.get_context("forkserver")
        self._pipe, answer = context.Pipe(duplex=False)
        self._answer: tuple[str, str | None] | None = None
        self._answered_at = 0.0
        self._process = context.Process(
            target=run_main,
            name=spec.name,
            args=(spec, environment, ranks, listener, answer),
            daemon=False,  # decoding workers are its children, which a daemon may not have
        )
        self._process.start()
        answer.close()

    def waitables(self) -> list[int | Connection]:
        pipe = [self._pipe] if self._answer is None and not self._pipe.closed else []
        return [int(self._process.sentinel), *pipe] if self.alive() else []

    def alive(self) -> bool:
        return self._process.is_alive()

    def pid(self) -> int | None:
        return self._process.pid

    def exit_code(self) -> int:
        return self._process.exitcode or 0

    def answer(self) -> tuple[str, str | None] | None:
        """Return (status, message) as the process has sent it, else None."""
        if self._answer is None and not self._pipe.closed:
            with contextlib.suppress(EOFError, OSError):
                if self._pipe.poll():
                    *said, self._answered_at = self._pipe.recv()
                    self._answer = said[0], said[1]
        return self._answer

    def bad(self) -> bool:
        """Return whether a process that runs no more has failed or left without an answer."""
        said = self.answer()
        return said is None or said[0] == "failed"

    def answered_at(self) -> float:
        """Return the monotonic seconds of its answer; 0 without one, as a rank that was killed ended before the others.

        The others fail because of it, and answer.
        """
        self.answer()
        return self._answered_at

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
    """Return each process's place and, for rank 0, a listening socket, of which ``ours`` closes this process's copy."""
    size = world_size(spec)
    if size == 1:
        return [(None, None)]
    listener = ours.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = listener.getsockname()[1]
    places = [RankPlace(rank, size, rank, 0, "127.0.0.1", port, "neumann") for rank in range(size)]
    return [(ranks, listener if ranks.rank == 0 else None) for ranks in places]
