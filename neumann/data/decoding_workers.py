"""Processes of a DataLoader that decode images, and how they take the signals that ask a run to stop.

A terminal, `timeout` and a cluster send such a signal to all processes of a run. The training process then finishes
its step, for which it wants its batches, and ends its workers itself. So they pass over stop signals, except a SIGTERM
that their own parent sends, which is how multiprocessing ends a process that hangs.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from neumann.errors import KILLED_WORKER
from neumann.freed_memory import keep_freed_memory

IGNORED = {getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)}


def decoded(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield from ``loader``, whose workers begin with stop signals blocked, in all of their threads.

    One that comes while a worker starts waits until ``pass_over_signals`` has said what is done with it.

    Raises RuntimeError for a worker that was killed, in our words where it was killed while it sent images. It is
    raised here alone, at most five seconds later, when the loader next looks whether its workers live.
    """
    with _no_handler_of_ended_workers():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED | {signal.SIGTERM})
        try:
            batches = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield from batches
    except (EOFError, ConnectionError) as error:  # its message in the pipe is cut short
        raise RuntimeError(KILLED_WORKER) from error


@contextmanager
def _no_handler_of_ended_workers() -> Iterator[None]:
    """Keep torch from leaving a handler of SIGCHLD, which the first loader with workers sets in the block.

    That handler raises for a worker that was killed wherever the main thread is, once for every worker and again while
    the first error is told: within the writing of a checkpoint, or of the run's end.
    """
    if threading.current_thread() is not threading.main_thread():  # no handler can be set here, torch sets none
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    pending = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGCHLD) is not before:
            signal.signal(signal.SIGCHLD, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, pending)


def begin(worker: int) -> None:
    """Prepare this process to decode: a loader calls it in each of its workers."""
    keep_freed_memory()  # the next image takes as much
    pass_over_signals(worker)


def pass_over_signals(worker: int) -> None:
    """Leave stop signals to the training process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})  # blocked while the workers were started
    for ignored in IGNORED:
        signal.signal(ignored, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_end_at_parents_word, name="neumann-signals", daemon=True).start()
    else:  # macOS does not tell who has sent a signal
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _end_at_parents_word() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # as torch's own handler of the signal does
