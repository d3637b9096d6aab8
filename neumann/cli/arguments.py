"""Reading of a command's options: argparse, with every error as one sentence."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, NoReturn

from neumann import compat
from neumann.errors import UserError, did_you_mean

SAID = (  # what argparse says: the same in words of the command; of several spellings the long one is named
    (r"argument (?:-\w+/)?(--[\w-]+)\S*: invalid int value: '(.*)'", "{0} {1} is not a whole number"),
    (r"argument (?:-\w+/)?(--[\w-]+)\S*: invalid float value: '(.*)'", "{0} {1} is not a number"),
    (r"argument (?:-\w+/)?(--[\w-]+)\S*: invalid choice: '(.*)' \(choose from (.*)\)", "{0} {1}: choose from {2}"),
    (r"argument (?:-\w+/)?(--[\w-]+)\S*: expected one argument", "{0} takes a value"),
    (r"argument (?:-\w+/)?(--[\w-]+)\S*: not allowed with argument (\S+)", "{0} and {1} exclude each other"),
    (r"the following arguments are required: (.*)", "give {0}"),
)


class Parser(argparse.ArgumentParser):
    """argparse's parser, which raises its errors as UserError and leaves --help to `parsed`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(add_help=False, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise UserError, with argparse's ``message`` in the words of the command."""
        for pattern, words in SAID:
            if found := re.fullmatch(pattern, message):
                message = words.format(*found.groups())
                break
        raise UserError(f"{self.prog}: {message}")

    def take_help(self) -> None:
        """Take --help."""
        self.add_argument("-h", "--help", action="store_true", help="print this")

    def take_config_dirs(self) -> None:
        """Take --config-dir, any number of times, as ``config_dirs``."""
        self.add_argument(
            "-cd",
            "--config-dir",
            dest="config_dirs",
            action="append",
            default=[],
            metavar="DIR",
            help="a folder with groups of your own",
        )

    def take_estimate(self) -> None:
        """Take --estimate and --estimate=RATE, as the text of the rate; None where it is not given."""
        self.add_argument(
            "--estimate",
            metavar="RATE",
            help="print what the runs cost, and train nothing: by a few measured steps, or with --estimate=RATE at "
            "images/s of a device, such as 1200, or FLOP/s, such as 60TFLOPS",
        )


def asks_for_help(words: Sequence[str]) -> bool:
    """Return whether -h or --help is among the words of a command."""
    return bool({"-h", "--help"} & set(words))


def asks_estimate(words: Sequence[str]) -> bool:
    """Return whether --estimate is among the words of a command, with a rate or without."""
    return any(word == "--estimate" or word.startswith("--estimate=") for word in words)


def parsed(parser: Parser, words: Sequence[str]) -> argparse.Namespace | None:
    """Return the arguments, or None where help was asked for and printed. Raises UserError for wrong options."""
    if asks_for_help(words):  # before the parser refuses missing arguments
        parser.print_help()
        return None
    given, unknown = parser.parse_known_intermixed_args(_with_rates(words))
    if "overrides" in given:
        from neumann.config.override_text import refuse_twice

        refuse_twice(given.overrides)
    if unknown:
        options = compat.long_options(parser)
        word = unknown[0].partition("=")[0]
        near = get_close_matches(word, options, n=1, cutoff=0.7)
        if "overrides" in given and not near:
            name = word.lstrip("-")
            raise UserError(f"{parser.prog} takes no {unknown[0]}: a setting has no dashes before it, {name}=VALUE")
        raise UserError(f"{parser.prog} takes no {unknown[0]}: {did_you_mean(word if near else '', options)}")
    return given


def _with_rates(words: Sequence[str]) -> list[str]:
    """Return ``words`` with the empty rate after a bare --estimate, which would take the next word for its rate.

    Raises UserError where the next word is meant for a rate.
    """
    for word, following in pairwise(words):
        if word == "--estimate" and following[:1].isdigit() and "=" not in following:
            raise UserError(f"--estimate {following}: write --estimate={following}")
    return ["--estimate=" if word == "--estimate" else word for word in words]
