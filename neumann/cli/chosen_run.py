"""The run that a command is asked about, by its path, its name or the beginning of its signature."""

from __future__ import annotations

import shlex
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
    try:
        return pick(output, wanted)
    except UserError:
        if (archived := _archived(wanted)) is not None:
            raise UserError(archived) from None
        raise


def _archived(wanted: str) -> str | None:
    """Return a sentence where ``wanted`` names a run that is in the archive of a study alone, else None."""
    from neumann.store.archive import NAME, Archive
    from neumann.studies.definition import list_studies
    from neumann.studies.schema import FULL

    name = Path(wanted).name
    if len(name) < 4:  # of a signature: fewer digits name a run by chance
        return None
    for study, file in list_studies().items():
        results = file.parent / "results"
        for archive in sorted(results.rglob(NAME)):
            *other, budget = archive.parent.relative_to(results).parts or (FULL,)
            asked = [str(file.parent / f"{other[0]}.yaml") if other else study]
            asked += ["--budget", budget] if budget != FULL else []
            for signature, run in Archive.read(archive, name).runs.items():
                if signature.startswith(name) or name in (run.path.name, run.path.name.removesuffix(f"-{signature}")):
                    return (
                        f"{run.path.name} has no folder here: it is a run of {archive}, which holds results and no "
                        f"weights; {shlex.join(['neumann', 'study', *asked])} --no-archive trains the study's runs here"
                    )
    return None
