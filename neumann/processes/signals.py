"""The signals that ask to stop, and what each process does at one.

SIGINT (Ctrl-C), SIGTERM (kill, scancel), SIGHUP (the terminal or its connection has closed), SIGUSR1 and SIGUSR2 (a
cluster before its time limit) all ask to stop. A SIGHUP that the process was started to ignore, as by nohup, stays so.

- Training finishes its step, writes a checkpoint and leaves the run ``interrupted`` (`neumann.training.stopping`). A
  second SIGINT raises KeyboardInterrupt at once.
- A process that was started for one run and has not begun to train leaves by `StoppedBySignal`.
- The local launcher asks each of its runs once; a second signal kills them (`neumann.launch.local`).
- A Slurm worker asks its runs; after SIGUSR1 and SIGUSR2 it also requeues its job (`neumann.launch.slurm.worker`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)


class StoppedBySignal(KeyboardInterrupt):
    """A stop signal reached a process before its run had made a step; ``signal`` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped before its first step")
        self.signal = number


@contextmanager
def listening(heard: Callable[[int], object]) -> Iterator[None]:
    """Call ``heard`` with the number of each stop signal within the block, then put the handlers back.

    Python allows handlers in the main thread only; in another one, nothing is heard.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        heard(number)

    before = {number: signal.signal(number, handle) for number in _heard_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_at_signals() -> None:
    """Raise StoppedBySignal at each stop signal from now on; training replaces these handlers by its own."""
    for number in _heard_signals():
        signal.signal(number, _raise)


def ignore_signals() -> None:
    """Ignore every stop signal from now on: what must be written at the end of a process may not be cut off."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _heard_signals() -> list[int]:
    """Return the stop signals, without a SIGHUP that is ignored."""
    hangup = getattr(signal, "SIGHUP", None)
    return [n for n in STOP_SIGNALS if n != hangup or signal.getsignal(n) is not signal.SIG_IGN]


def _raise(number: int, frame: FrameType | None) -> None:
    raise StoppedBySignal(number)
