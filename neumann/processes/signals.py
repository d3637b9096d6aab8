"""The signals that ask to stop, and what each process does at one.

SIGINT (Ctrl-C), SIGTERM (kill, scancel), SIGUSR1 and SIGUSR2 (a cluster before its time limit) all ask to stop:

- Training finishes its step, writes a checkpoint and leaves the run ``interrupted`` (`neumann.training.stopping`). A
  second SIGINT raises KeyboardInterrupt at once.
- A process that was started for one run and has not begun to train leaves by `StoppedBySignal`.
- The local launcher asks each of its runs once; a second signal kills them (`neumann.launch.local`).
- A Slurm worker asks its runs; after SIGUSR1 and SIGUSR2 it also requeues its job (`neumann.launch.slurm.worker`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
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

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ignoring(numbers: Sequence[int]) -> Iterator[None]:
    """Ignore signals within the block; processes that are started in it ignore them too, until they set handlers."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_at_signals() -> None:
    """Raise StoppedBySignal at each stop signal from now on; training replaces these handlers by its own."""
    for number in STOP_SIGNALS:
        signal.signal(number, _raise)


def ignore_signals() -> None:
    """Ignore every stop signal from now on: what must be written at the end of a process may not be cut off."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _raise(number: int, frame: FrameType | None) -> None:
    raise StoppedBySignal(number)
