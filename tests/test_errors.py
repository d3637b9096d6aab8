"""The one way from an exception to a run's status, and the sentences that go with it."""

from __future__ import annotations

import pytest

from neumann.errors import Interrupted, UserError, did_you_mean, ending_of, printable
from neumann.processes.signals import StoppedBySignal
from neumann.store.claim import Claimed, Lost


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (UserError("seed=x is no number"), ("failed", "seed=x is no number")),
        (Claimed("another process trains it"), ("claimed", "another process trains it")),
        (Lost("it was taken over"), ("claimed", "it was taken over")),
        (Interrupted("stopped at step 3"), ("interrupted", "stopped at step 3")),
        (StoppedBySignal(15), ("interrupted", "stopped before its first step")),
        (KeyboardInterrupt(), ("interrupted", "stopped")),
        (SystemExit(4), ("failed", "the program left with exit code 4")),
        (RuntimeError("it broke\nin two lines"), ("failed", "it broke")),
        (ZeroDivisionError(), ("failed", "ZeroDivisionError")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_an_exception_makes_of_a_run(error: BaseException, ending: tuple[str, str]) -> None:
    assert ending_of(error) == ending


def test_the_nearest_choice_or_all_of_them() -> None:
    assert did_you_mean("nesterof", ["sgd", "nesterov"]) == "did you mean 'nesterov'?"
    assert did_you_mean("sgdd", ["Adam", "SGD"]) == "did you mean 'SGD'?"
    assert did_you_mean("x", ["b", "a"]) == "choose from a, b"
    assert did_you_mean("x", ["b", "a", "c"], listed=2) == "choose from a, b and 1 more"
    assert did_you_mean("x", []) == "there is nothing to choose from"


def test_nothing_steers_the_terminal() -> None:
    assert printable("a\x1b[31m\u202eb\n") == "a\\x1b[31m\\u202eb\\n"
    assert printable("a\n\tb\r", lines=True) == "a\n\tb\\r"
