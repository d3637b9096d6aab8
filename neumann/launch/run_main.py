"""Main function of a run's process: it takes over the parent's environment, trains as one rank, sends how it ended.

The fork server makes the process. It gets the run's specification and its rank, reads no command line and starts no
other rank.
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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from neumann import compat
from neumann.config import RunSpec
from neumann.errors import UserError, ending_of
from neumann.launch.fork_server import THREADS
from neumann.launch.run_logs import file_log
from neumann.processes.output import open_streams, warn_in_sentences
from neumann.processes.ranks import RankPlace
from neumann.processes.signals import STOP_SIGNALS, ignore_signals, raise_at_signals
from neumann.store.files import replace_file
from neumann.store.lookup import find

LONGEST = 2000  # characters of a message: it waits in a pipe until the run is over, and must not fill it


@dataclass(frozen=True)
class ProcessEnvironment:
    """Environment that a run's process takes over from its parent, since the fork server keeps that of its own start.

    variables   the environment variables
    cwd         the working directory
    path        sys.path, as absolute folders
    threads     of torch in each process
    log         the file that standard output and standard error go to
    """

    variables: dict[str, str]
    cwd: str
    path: list[str]
    threads: int
    log: str

    def enter(self) -> None:
        """Take it over in this process, a child of the fork server, as a process group of its own."""
        os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the launcher alone, which then stops each process once
        os.environ.clear()
        os.environ.update(self.variables | dict.fromkeys(THREADS, str(self.threads)))
        os.chdir(self.cwd)
        sys.path[:], sys.argv[:] = self.path, ["neumann"]
        importlib.invalidate_caches()
        _redirect(self.log)


def run_main(
    spec: RunSpec,
    environment: ProcessEnvironment,
    ranks: RankPlace | None,
    listener: socket.socket | None,
    answer: Connection,
) -> None:
    """Train ``spec`` in this process, and send (status, message, monotonic seconds) once the run is over.

    ranks      its place among the run's processes, or None where it is the only one
    listener   rank 0's listening socket, to which the other ranks connect
    answer     the writing end of a pipe to the parent
    """
    raise_at_signals()  # until the run listens itself
    environment.enter()
    threading.Thread(target=_leave_with_parent, name="neumann-parent", daemon=True).start()
    with contextlib.ExitStack() as closing:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # the fork server blocks them
            status, message = _train(spec, environment.threads, ranks, listener, closing)
        except KeyboardInterrupt as stop:
            status, message = ending_of(stop)
        ignore_signals()  # everything is on disk
        with contextlib.suppress(OSError):  # the parent may be gone
            answer.send((status, message and message[:LONGEST], time.monotonic()))
    compat.run_exit_functions()
    parent = multiprocessing.parent_process()
    if (ranks is None or ranks.rank == 0) and (parent is None or not parent.is_alive()):
        with contextlib.suppress(UserError, OSError):
            file_log(Path(environment.log), find(spec).path)


def _train(
    spec: RunSpec, threads: int, ranks: RankPlace | None, listener: socket.socket | None, closing: contextlib.ExitStack
) -> tuple[str, str | None]:
    from rich.console import Console

    from neumann.training.run import run

    prefix = f"rank {ranks.rank}: " if ranks else ""
    try:
        result = run(
            spec, Console(file=sys.stdout, width=120), threads=threads, ranks=ranks, listener=listener, closing=closing
        )
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the launcher tells the user, and the others go on
        status, message = ending_of(error)
        if isinstance(error, UserError) or status != "failed":
            return status, message
        if isinstance(error, Exception):
            traceback.print_exc()
            folder = find(spec)
            if not hasattr(error, "__notes__") and folder.path.exists():  # it came before the run could record it
                with contextlib.suppress(OSError):
                    replace_file(folder.error, traceback.format_exc().encode())
        return status, prefix + message
    return str(result["status"]), None


def _redirect(log: str) -> None:
    """Send what this process and its children print to ``log``, and give them no standard input."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # no locale lacks a letter of the log
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.close(file)
    os.close(nothing)
    open_streams(line_buffering=True)  # what was said before a kill is in the log
    warn_in_sentences()


def _leave_with_parent() -> None:
    """Wait for the launcher's end and stop this run then: the same command goes on from its checkpoint."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
