"""A run on Weights & Biases, as the live mirror and the replay both make it: its identity, its axes and its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neumann import compat
from neumann.config.wandb_settings import under_agent
from neumann.training.mirror_rows import AXES, BY_EXAMPLES, Described


def start(described: Described, folder: Path, logger: Mapping[str, Any]) -> Any:
    """Return a W&B run for one attempt at a run, its id signature-attempt.

    Resuming a W&B run offline would overwrite what was synced first (wandb#5865), so it is never resumed. Under an
    agent the id is the agent's, or its sweep would wait for a run that never reports. W&B's sweep parameters overwrite
    configuration keys of the same name (such as ``optimizer``), so the run's own configuration is also under
    ``resolved``.

    Args:
        described: the run.
        folder: where the client writes: in wandb/ in it.
        logger: mode, project, entity and job_type, under W&B's names.
    """
    import wandb

    agent = under_agent()
    run = wandb.init(
        mode=logger["mode"],
        project=None if agent else logger["project"],
        entity=None if agent else logger["entity"],
        dir=str(folder),  # the client's service has a working directory of its own
        id=None if agent else described.id,
        name=described.name,
        group=described.study,
        job_type=logger["job_type"],
        tags=described.tags,
        config={**described.as_config(), **({"resolved": described.config} if agent else {})},
        # no git: a remote's URL may hold a token, and provenance has the commit
        settings=wandb.Settings(console="off", silent=True, disable_git=True, **compat.WANDB_SETTINGS),
        reinit="finish_previous",
    )
    for axis in AXES:
        run.define_metric(axis, hidden=True)
    run.define_metric("*", step_metric="step")
    run.define_metric(f"{BY_EXAMPLES}*", step_metric="examples")
    return run


def finish(run: Any, described: Described, summary: Mapping[str, Any], exit_code: int) -> None:
    """Write what is known at the end of a run, and end it. A run that is over has the command that repeats it."""
    if exit_code == 0 and (command := described.command()) is not None:
        run.config.update({"command": command})
    run.summary.update(dict(summary))
    run.finish(exit_code=exit_code)
