"""Processes of a DataLoader that decode images: how they take the signals that ask a run to stop, and how they end.

A terminal, `timeout` and a cluster send such a signal to all processes of a run. The training process then finishes
its step, for which it wants its batches, and ends its workers itself. So they pass over stop signals, except a SIGTERM
that their own parent sends, which is how multiprocessing ends a process that hangs.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch.utils.data import DataLoader

from neumann.freed_memory import keep_freed_memory

IGNORED = {getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)}
ENDS_S = 2.0  # a killed process closes its connections before it is seen to have ended
LONG_S = 60.0  # without a batch, until it is told what the workers do
TORCHS_WORDS = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")  # of torch 2.15
LOOK_S = 5.0  # between two looks whether it is that long

_workers: WeakKeyDictionary[DataLoader[Any], list[BaseProcess]] = WeakKeyDictionary()  # that each loader has started


class WorkerEnded(RuntimeError):  # noqa: N818 - it names what happened
    """Decoding workers have ended before their work was done: they were killed, or crashed.

    Args:
        processes: their numbers.
    """

    def __init__(self, processes: list[int]) -> None:
        listed = ", ".join(map(str, processes))
        several = len(processes) > 1
        who = f"decoding workers (processes {listed}) were" if several else f"a decoding worker (process {listed}) was"
        super().__init__(
            f"{who} killed or ended by {'themselves' if several else 'itself'}; out of memory? The kernel's log "
            "(dmesg) tells; fewer data.workers need less"
        )


def decoded(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield from ``loader``, whose workers begin with stop signals blocked, in all of their threads.

    A signal that comes while a worker starts waits until ``pass_over_signals`` has said what is done with it. Where no
    batch comes for a minute, a warning tells what the workers do.

    Raises WorkerEnded here alone, at most seven seconds after a worker's end: the loader looks every five seconds
    whether its workers live.
    """
    workers = _workers.setdefault(loader, [])
    patience = _Patience(workers, decodes=loader.num_workers > 0)
    try:
        with patience.waiting():
            batches = _begun(loader, workers)
        while True:
            with patience.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    except Exception as error:
        told = TORCHS_WORDS.match(str(error))  # one that ended while it was started is not among ours
        if ended := _ended(workers) or [int(number) for number in (told[1].split(",") if told else ())]:
            raise WorkerEnded(ended) from error
        raise
    finally:
        patience.end()


def _begun(loader: DataLoader[Any], workers: list[BaseProcess]) -> Iterator[Any]:
    """Return the batches of ``loader`` from the first on, and add the processes that it starts to ``workers``."""
    with _no_handler_of_ended_workers():
        others = set(multiprocessing.active_children())
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED | {signal.SIGTERM})
        try:
            return iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            workers += [child for child in multiprocessing.active_children() if child not in others]


def _ended(workers: list[BaseProcess]) -> list[int]:
    """Return the numbers of the processes that have ended, or do within a moment."""
    deadline = time.monotonic() + ENDS_S
    while True:
        ended = sorted(worker.pid for worker in workers if worker.pid is not None and not worker.is_alive())
        if ended or not workers or time.monotonic() > deadline:
            return ended
        time.sleep(0.01)


class _Patience:
    """Warns once where a loader hands over nothing for `LONG_S` seconds.

    Args:
        workers: the loader's processes, once they have started.
        decodes: whether it has any; else nothing is looked at.
    """

    def __init__(self, workers: list[BaseProcess], *, decodes: bool) -> None:
        self._workers, self._over = workers, threading.Event()
        self._since: float | None = None  # when the wait under way began
        if decodes:
            threading.Thread(target=self._look, name="neumann-patience", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as a wait."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def end(self) -> None:
        """End the thread that looks at the clock."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            since = self._since
            if since is not None and time.monotonic() - since > LONG_S:
                warnings.warn(f"no images have come for {LONG_S:.0f} s: {_doing(self._workers)}", stacklevel=1)
                return


def _doing(workers: list[BaseProcess]) -> str:
    """Return what processes do by the system's word, as a sentence."""
    states = {worker.pid: _state(worker.pid) for worker in workers}
    stopped = [str(pid) for pid, state in states.items() if state in ("T", "t")]
    if stopped:
        return f"decoding workers are stopped, which `kill -CONT {' '.join(stopped)}` ends"
    pids = ", ".join(map(str, states))
    if "D" in states.values():
        return f"the decoding workers (processes {pids}) wait for the disk, or a network file system that is silent"
    return f"the decoding workers (processes {pids}) have not decoded a batch meanwhile; fewer images make one faster"


def _state(pid: int | None) -> str:
    """Return the letter of a process's state as Linux has it, "" where it cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


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
