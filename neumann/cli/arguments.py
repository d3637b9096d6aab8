"""How are a command's options read? By argparse, with every complaint as one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from neumann import compat
from neumann.errors import UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints as one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{self.prog}: {message}")


def parsed(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace | None:
    """Return the arguments, or None where help was asked for and printed. Raises UserError for an unknown option."""
    given, unknown = parser.parse_known_intermixed_args(words)
    if given.help:
        parser.print_help()
        return None
    if unknown:
        raise UserError(f"{parser.prog} takes no {unknown[0]}: {did_you_mean(unknown[0], compat.long_options(parser))}")
    return given
