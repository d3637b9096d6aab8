"""The report of a study on W&B: written beside report.html as a file, and sent where the user asks for it.

`neumann.studies.report.wandb_blocks` builds it. What is sent is what the file holds, as a new report each time, since
one that is there may have been edited or commented on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console

from neumann.errors import UserError, first_line
from neumann.fitting import say
from neumann.store.files import replace_file
from neumann.studies.collect import StudyRuns
from neumann.studies.mirrored import mirrored
from neumann.studies.results import StudyResults


def check_installed() -> None:
    """Raise UserError where the package wandb-workspaces is missing."""
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        raise UserError(
            "--wandb-report needs the package wandb-workspaces, which is not installed: "
            "pip install 'neumann[wandb-report]'"
        ) from None


def write(results: StudyResults, runs: StudyRuns, file: Path, console: Console, *, push: bool) -> None:
    """Write the W&B report of ``results`` to ``file``, say what its panels lack, and with ``push`` send it.

    Raises UserError where W&B cannot be reached, knows no login or refuses the report; the file is written then.
    """
    from neumann.studies.report.wandb_blocks import specification

    known = mirrored(runs)
    model = specification(results, known)
    replace_file(file, f"{model.model_dump_json(by_alias=True, exclude_none=True, indent=1)}\n".encode())
    for note in known.notes:
        say(console, f"W&B report: {note}")
    say(console, f"W&B report: {file}" if push else f"W&B report: {file}, not sent (--push sends it)")
    if push:
        say(console, f"sent: {_sent(model, file)}")


def _sent(model: Any, file: Path) -> str:
    """Return the address of the report that W&B has made of ``model``, which is in ``file``."""
    from neumann import compat
    from neumann.config.wandb_settings import hide_variables
    from neumann.training.wandb_run import log_in

    hide_variables()
    log_in(
        "--push", f"the report is in {file}, and the same command sends it once W&B answers and `wandb login` is done"
    )
    import wandb

    try:
        given = model.project.entity_name or os.environ.get("WANDB_ENTITY")
        model.project.entity_name = given or wandb.Api().default_entity or ""
        if not model.project.entity_name:
            raise UserError("--push: W&B names no entity for this account: set logger.entity to a user or a team")
        report = compat.from_wandb_spec(model)
        report.save()
    except UserError:
        raise
    except Exception as error:  # whatever the client raises of a server's answer
        raise UserError(
            f"--push: W&B has not taken the report ({first_line(error)}); it is in {file}, and the same command tries "
            "again"
        ) from error
    return str(report.url)
