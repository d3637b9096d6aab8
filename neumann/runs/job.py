"""What is one job of a launch? A process from the fork server that trains one run, and what its parent knows of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

from neumann.config import RunSpec
from neumann.errors import Interrupted, UserError, first_line
from neumann.runs.folder import Claimed
from neumann.runs.reuse import find, finished_result

PRELOADED = ["neumann.training.run", "wandb"]  # started by name: nothing here imports torch
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
GRACE_S = 60.0  # for a job whose parent is gone to write its checkpoint
LOG = "output.log"


def warm_up(threads: int) -> None:
    """Start the fork server where it is not running yet; it imports what jobs need while the caller goes on.

    It is started with one thread per numerical library: a pool of threads does not survive a fork.
    """
    forkserver.set_forkserver_preload(PRELOADED)
    with _environment(dict.fromkeys(THREADS, "1")):
        forkserver.ensure_running()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


class Job:
    """One run in a process of its own, from the moment that it is made."""

    def __init__(self, spec: RunSpec, threads: int) -> None:
        self.spec = spec
        self._began = time.monotonic()
        self._log = spec.folder.parent / f".{spec.folder.name}.{os.getpid()}.log"
        context = multiprocessing.get_context("forkserver")
        self._answer, answer = context.Pipe(duplex=False)
        self._stopped = False
        self._process = context.Process(
            target=_work,
            name=spec.name,
            args=(spec, dict(os.environ), os.getcwd(), threads, str(self._log.resolve()), answer),
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
        pid = self._process.pid
        if pid is None or self.over():
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if at_once:
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGTERM)

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
        self._file_log()
        if result is not None:  # whatever happened afterwards, the run is over
            return str(result["status"]), None, result
        if answer is not None:
            return answer[0], answer[1], None
        return self._ended_unheard()

    def _ended_unheard(self) -> tuple[str, str | None, None]:
        code = self._process.exitcode
        if self._stopped:
            return "interrupted", None, None
        message = f"the process left with exit code {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                message = f"killed by signal {-code} ({signal.Signals(-code).name})"
            message += ": out of memory?" if -code == signal.SIGKILL else ""
        folder = find(self.spec)
        if folder.path.exists():  # the run could not say so itself
            folder.set_status("failed", message=message, attempt=folder.status().get("attempt", 0))
        return "failed", message, None

    def _file_log(self) -> None:
        folder = find(self.spec).path
        with contextlib.suppress(OSError):
            if self._log.stat().st_size and folder.is_dir():
                os.replace(self._log, folder / LOG)
            else:
                self._log.unlink()


def _work(spec: RunSpec, environment: dict[str, str], cwd: str, threads: int, log: str, answer: Connection) -> None:
    """Train ``spec`` in this process, which the fork server has just made, and answer how it ended."""
    os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the launcher alone, which tells each job once
    os.environ.clear()  # the server's environment is that of its first start
    os.environ.update(environment | dict.fromkeys(THREADS, str(threads)))
    os.chdir(cwd)
    _redirect(log)
    threading.Thread(target=_leave_with_parent, name="neumann-parent", daemon=True).start()
    answer.send(_train(spec, threads))
    answer.close()


def _train(spec: RunSpec, threads: int) -> tuple[str, str | None]:
    import torch
    from rich.console import Console

    from neumann.training.run import run

    torch.set_num_threads(threads)
    try:
        result = run(spec, Console(file=sys.stdout, width=120))
    except Claimed:
        return "claimed", None
    except Interrupted as stop:
        return "interrupted", str(stop)
    except UserError as error:
        return "failed", str(error)
    except BaseException as error:  # noqa: BLE001 - the launcher tells the user, and the others go on
        traceback.print_exc()
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        return "failed", first_line(error) + notes
    return str(result["status"]), None


def _redirect(log: str) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.close(file)
    os.close(nothing)


def _leave_with_parent() -> None:
    """Stop this run where its launcher is gone; the same command goes on from its checkpoint."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)
