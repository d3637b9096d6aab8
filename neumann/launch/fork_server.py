"""Fork server: it imports PyTorch once, and every process of a run is a fork of it.

It is the standard library's server. It has no threads and never touches CUDA, so its children may use both. If the
launcher ends before the imports are done, it kills the server; else the server exits with the last process that can
request a child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver, resource_tracker

from neumann import compat
from neumann.errors import UserError
from neumann.processes.signals import STOP_SIGNALS

# modules that every run imports, by name, so that this module imports no torch
PRELOADED = [
    "neumann.launch.run_main",
    "neumann.training.run",
    "neumann.training.build_check",
    "wandb",
    compat.TORCH_WORKER,
]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class ForkServer:
    """The fork server of this process."""

    def __init__(self) -> None:
        self._answered = threading.Event()
        self._asking: threading.Thread | None = None
        self._error: Exception | None = None

    def warm_up(self) -> None:
        """Start the server unless it runs already; it imports what runs need while the caller goes on."""
        if self._asking is not None:
            return
        # One thread per library, since a thread pool does not survive a fork; and the working directory not on the
        # path, where Python puts it first for a process that is started by a line of code
        with _environment({**dict.fromkeys(THREADS, "1"), "PYTHONSAFEPATH": "1"}), _stop_signals_blocked():
            resource_tracker.ensure_running()  # before the next line, as it unblocks SIGINT and SIGTERM
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            forkserver.set_forkserver_preload(PRELOADED)
            forkserver.ensure_running()
        self._asking = threading.Thread(target=self._ask, name="neumann-server", daemon=True)
        self._asking.start()

    def is_warm(self, timeout: float = 0.0) -> bool:
        """Return whether the server is warm, for which it waits at most ``timeout`` seconds.

        Raises UserError where the server could not start.
        """
        if not self._answered.wait(timeout):
            return False
        if self._error is not None:
            raise UserError("no run can be started: a module that training needs cannot be imported, see above")
        return True

    def close(self) -> None:
        """Kill the server where it is not warm yet: no process would use what it imports."""
        if self._asking is None or self._answered.is_set():
            return
        compat.kill_fork_server()
        self._asking.join()

    def _ask(self) -> None:
        """Ask the server for a child that does nothing, which it makes as soon as it is warm."""
        try:
            compat.wait_for_fork_server()
        except (OSError, EOFError) as error:
            self._error = error
        finally:
            self._answered.set()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the block, for the processes that it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Start processes that no stop signal reaches: it may go to the whole process group (Ctrl-C, `timeout`, a hangup).

    Without the fork server the launcher could not know how its runs end. One that comes meanwhile reaches this process
    at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Hide this process's main module, which multiprocessing would run again in each child started within the block."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
