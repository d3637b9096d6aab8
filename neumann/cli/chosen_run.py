"""The run that a command is asked about, by its path, its name or the beginning of its signature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neumann.errors import UserError
from neumann.folders import folder_of
from neumann.store.listing import pick
from neumann.store.records import RUN

ABOUT_RUN = (
    "RUN is a path, a name or a signature's beginning, as in neumann runs show; it is looked for in ./runs, or in the "
    "folder that output=FOLDER names"
)


def take_output(words: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the results folder and the other words. Raises UserError where it is named twice or is empty."""
    given = [word for word in words if word.startswith("output=")]
    rest = [word for word in words if not word.startswith("output=")]
    if len(given) > 1:
        raise UserError(f"output is given twice: {given[0]} and {given[1]}")
    if not given:
        return Path("runs"), rest
    from neumann.config.override_text import value_of  # it imports Hydra

    text = given[0].removeprefix("output=")
    text = value_of(given[0]) if text[:1] in ("'", '"') else text
    if not text:
        raise UserError("output is empty: name a results folder, or . for the working directory")
    return Path(folder_of("output", text)), rest


def chosen_run(output: Path, wanted: str) -> Path:
    """Return the folder of the run ``wanted``. Raises UserError where there is none, or more than one."""
    path = Path(wanted)
    if path.is_dir() and RUN.fullmatch(path.resolve().name):  # also one of the working directory
        return path
    return pick(output, wanted)
