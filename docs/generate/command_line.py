"""The page on the command line, from what every command prints for --help."""

from __future__ import annotations

import contextlib
import io
import os

from neumann.cli.main import main

COMMANDS = (
    "train",
    "study",
    "report",
    "report --runs",
    "runs",
    "runs show",
    "runs compare",
    "runs watch",
    "runs clean",
    "runs resume",
    "runs mirror",
    "runs pack",
    "evaluate",
    "curvature",
    "lr-range",
    "predict",
    "export",
    "challenge",
    "wandb-sweep",
    "cache",
    "worker",
)


def help_of(command: str) -> str:
    """Return what ``neumann COMMAND --help`` prints, 100 columns wide."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = main([*command.split(), "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    if code != 0:
        raise RuntimeError(f"neumann {command} --help exited with {code}")
    return out.getvalue().rstrip()


def page() -> str:
    """Return the page as Markdown."""
    parts = [
        "# Command line",
        "This page is what the commands say of themselves. They exit with 0 when everything is done, 1 when something "
        "failed, 2 for wrong input and 130 when they were interrupted.",
        _block(help_of("")),
    ]
    for command in COMMANDS:
        parts += [f"## neumann {command}", _block(help_of(command))]
    return "\n\n".join(parts) + "\n"


def _block(text: str) -> str:
    return f"```text\n{text}\n```"
