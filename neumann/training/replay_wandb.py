"""A run replayed to W&B afterwards, from its own files: the same rows under the same names as the live mirror's."""

from __future__ import annotations

import shlex
from pathlib import Path

from neumann.config.wandb_settings import hide_variables
from neumann.errors import EXIT_FAILED, EXIT_INTERRUPTED, UserError, first_line
from neumann.store.folder import OVER, make_folder
from neumann.training import wandb_run
from neumann.training.mirror_rows import Recorded

EXIT_CODES = {**dict.fromkeys(OVER, 0), "interrupted": EXIT_INTERRUPTED}


def log_in() -> None:
    """Log in to W&B. Raises UserError where that fails."""
    hide_variables()
    wandb_run.log_in("--mode online", "--mode offline writes files for wandb sync")


def replay(run: Recorded, *, mode: str, project: str, entity: str | None, folder: Path | None = None) -> list[str]:
    """Log ``run`` as one W&B run and return sentences on what there is now.

    Args:
        run: the run.
        mode: offline or online, as W&B calls them.
        project: the project on W&B.
        entity: user or team; None: the account's own.
        folder: where the client writes, in wandb/ in it; None: the run's folder.

    Raises:
        UserError: the folder cannot be written, or its wandb leads elsewhere; or W&B refuses something.
    """
    import wandb

    hide_variables()
    place = (run.folder.path if folder is None else folder).resolve()
    if (place / "wandb").is_symlink():
        raise UserError(f"{place / 'wandb'} is a link: W&B would write outside the folder; name another with --dir")
    make_folder(place, "--dir")
    before = {path.name for path in place.glob(f"wandb/*run-*-{run.described.id}")}
    config = run.described.config.get("logger")
    job_type = config.get("job_type") if isinstance(config, dict) else None
    logger = {"mode": mode, "project": project, "entity": entity, "job_type": str(job_type or "train")}
    try:
        client = wandb_run.start(run.described, place, logger, system_metrics=False)
        for row in run.rows:
            client.log(row)
        exit_code = EXIT_CODES.get(run.status, EXIT_FAILED)
        wandb_run.finish(client, run.described, run.summary, exit_code, run.confused)
    except wandb.Error as error:
        raise UserError(f"W&B refuses it ({first_line(error)})") from error
    said = [f"W&B run {run.described.id} of project {project}, {mode}"]
    for path in sorted(place.glob(f"wandb/offline-run-*-{run.described.id}")):
        if path.name not in before:
            said.append(f"wandb sync {shlex.quote(str(path))} uploads it")
    if before:
        other = ", ".join(sorted(before))
        said.append(f"it was mirrored before ({other}): of two with one id, W&B keeps the one that is uploaded last")
    return said
