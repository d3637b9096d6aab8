"""How does the user hear that something is wrong? As one sentence: what, where, and the nearest valid choice."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


class UserError(Exception):
    """The input is wrong and the message says so in one sentence; the command line prints it without a traceback."""


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The run was asked to stop, by ``signal`` if that is known; started again, it goes on from its last checkpoint."""

    signal: int | None = None


def did_you_mean(word: str, choices: Iterable[str], *, listed: int = 12) -> str:
    """Return ``did you mean 'x'?`` for the nearest of ``choices``, or the list of them where none is near."""
    names = sorted(choices)
    spelt = {name.lower(): name for name in names}  # upper case is no distance
    near = difflib.get_close_matches(word.lower(), spelt, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{spelt[near[0]]}'?"
    more = f" and {len(names) - listed} more" if len(names) > listed else ""
    return f"choose from {', '.join(names[:listed])}{more}" if names else "there is nothing to choose from"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type's name where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def printable(text: object, *, lines: bool = False) -> str:
    """Return ``text`` as it may go to a terminal: what would steer one (escapes, bidirectional marks) is spelt out.

    ``lines`` keeps line breaks. Names, messages and logs may come from somebody else's run.
    """
    return "".join(
        c if unicodedata.category(c)[0] != "C" or (lines and c in "\n\t") else ascii(c)[1:-1] for c in str(text)
    )
