"""The errors that a user reads, each one sentence: what is wrong, where, and the nearest valid choice."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input. The message is one sentence, which the command line prints without a traceback."""

    status = "failed"  # of the run that it ends


class Interrupted(Exception):  # noqa: N818 - it is not an error
    """A stop signal has ended training or a launch; the same command goes on from the last checkpoint.

    ``signal`` is the signal's number, None where it is not known, and ``again`` what the same command does.
    """

    signal: int | None = None
    again: str = "goes on from there"


LONGEST = 1000  # characters of a message that is not ours

# exit codes of a command: something failed, the input is wrong, Ctrl-C (128 + SIGINT, as shells report it)
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def ending_of(error: BaseException) -> tuple[str, str]:
    """Return (status, message in one line) of the run that ``error`` has ended.

    The status is ``failed``, ``interrupted``, or ``claimed`` where another process trains the run.
    """
    if isinstance(error, UserError):
        return error.status, str(error)
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return "interrupted", str(error) or "stopped"
    if isinstance(error, SystemExit):
        return "failed", f"the program left with exit code {error.code}"
    return "failed", first_line(error)


def did_you_mean(word: str, choices: Iterable[str], *, listed: int = 12) -> str:
    """Return ``did you mean 'x'?`` for the nearest of ``choices``, or up to ``listed`` of them where none is near."""
    names = sorted(choices)
    lower = {name.lower(): name for name in names}  # a match in another case is near
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{lower[near[0]]}'?"
    more = f" and {len(names) - listed} more" if len(names) > listed else ""
    return f"choose from {', '.join(names[:listed])}{more}" if names else "there is nothing to choose from"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its type where it has none.

    A line that only announces what follows (``Error(s) in loading state_dict:``) takes the next one with it, and the
    key of a KeyError stands behind that word.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, KeyError):
        return f"{type(error).__name__}: {lines[0]}"
    said = f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and lines[1:] else lines[0]
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 1]}…"


def printable(text: object, *, lines: bool = False) -> str:
    """Return ``text`` with every character that steers a terminal (escapes, bidirectional marks) spelt out.

    ``lines`` keeps line breaks. Names, messages and logs may come from another user's run.
    """
    return "".join(
        c if unicodedata.category(c)[0] != "C" or (lines and c in "\n\t") else ascii(c)[1:-1] for c in str(text)
    )
