"""A function in a second process, while this one goes on: for work that another core can take."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

T = TypeVar("T")


def beside(function: Callable[..., T], *arguments: object) -> Callable[[], T]:
    """Begin ``function(*arguments)`` in a forked process, and return a function that waits for its result.

    What the function returns or raises is handed over, so it must be picklable; what it changes is not. Where a fork
    gains nothing or is not safe (one core, not Linux, other threads, torch loaded), and where the process dies, the
    function that waits calls it in this process. The process ends with this one at the latest.
    """
    here = partial(function, *arguments)
    if not _can_fork():
        return here
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, receiver, here), daemon=True)
    process.start()
    sender.close()

    def wait() -> T:
        with receiver:
            try:
                result, error = receiver.recv()
            except EOFError:  # it died, as where memory runs out
                return here()
        process.join()
        if error is not None:
            raise error
        return result

    return wait


def _work(sender: Connection, receiver: Connection, function: Callable[[], object]) -> None:
    receiver.close()  # so that sending fails once the parent is gone
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; what is said of it is the parent's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        answer: tuple[object, Exception | None] = function(), None
    except Exception as error:  # noqa: BLE001 - it is raised again in the parent
        answer = None, error
    sender.send(answer)


def _can_fork() -> bool:
    return (
        sys.platform == "linux"
        and len(os.sched_getaffinity(0)) > 1
        and threading.active_count() == 1
        and "torch" not in sys.modules  # its own threads do not come along
    )
