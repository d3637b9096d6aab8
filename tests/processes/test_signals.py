"""The signals that ask to stop: heard within a block, raised before a run trains, and ignored at its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from neumann.processes.signals import (
    STOP_SIGNALS,
    StoppedBySignal,
    ignore_signals,
    listening,
    raise_at_signals,
)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_every_stop_signal_is_heard_in_the_block_and_the_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    heard: list[int] = []

    def work() -> None:
        with listening(heard.append):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
                signal.raise_signal(number)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert heard == [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_in_another_thread_the_block_runs_without_handlers() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    seen: list[object] = []

    def work() -> None:
        with listening(seen.append):
            seen.extend(signal.getsignal(number) for number in STOP_SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before


def test_before_a_run_trains_a_signal_raises_and_at_its_end_nothing_does() -> None:
    raise_at_signals()
    for number in STOP_SIGNALS:
        with pytest.raises(StoppedBySignal, match=r"^stopped before its first step$") as caught:
            signal.raise_signal(number)
        assert caught.value.signal == number
        assert isinstance(caught.value, KeyboardInterrupt)  # so that no `except Exception` takes it
    ignore_signals()
    for number in STOP_SIGNALS:
        signal.raise_signal(number)


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a process
    heard: list[int] = []
    with listening(heard.append):
        signal.raise_signal(signal.SIGHUP)
    assert heard == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    raise_at_signals()
    signal.raise_signal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with listening(heard.append):
        signal.raise_signal(signal.SIGHUP)
    assert heard == [signal.SIGHUP]
