"""A run on Weights & Biases, as the live mirror and the replay both make it: its identity, its axes and its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neumann import compat
from neumann.config.wandb_settings import under_agent
from neumann.errors import UserError, first_line
from neumann.network import why_unreachable
from neumann.training.mirror_rows import AXES, BY_EXAMPLES, Confused, Described


def log_in(asked: str, otherwise: str) -> None:
    """Log in to W&B's server.

    Args:
        asked: the setting or option that asks for the server.
        otherwise: what does without it.

    Raises UserError with both where that fails, within seconds where no server answers.
    """
    import wandb

    if (why := why_unreachable(wandb.setup().settings.base_url)) is None:
        try:
            wandb.login()
            return
        except wandb.Error as error:
            why = first_line(error)
    raise UserError(f"{asked}: W&B cannot log in ({why}); {otherwise}")


def start(described: Described, folder: Path, logger: Mapping[str, Any], *, system_metrics: bool) -> Any:
    """Return a W&B run for one attempt at a run, its id signature-attempt.

    Resuming a W&B run offline would overwrite what was synced first (wandb#5865), so it is never resumed. Under an
    agent the id is the agent's, or its sweep would wait for a run that never reports. W&B's sweep parameters overwrite
    configuration keys of the same name (such as ``optimizer``), so the run's own configuration is also under
    ``resolved``.

    Args:
        described: the run.
        folder: where the client writes: in wandb/ in it.
        logger: mode, project, entity and job_type, under W&B's names.
        system_metrics: whether the client measures this machine, every 15 s in a process of its own: 0.1 s of
            processor time a minute with and without. A replay does not: it is not the machine that trained.
    """
    import wandb

    agent, measuring = under_agent(), {} if system_metrics else compat.NO_SYSTEM_METRICS
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
        settings=wandb.Settings(console="off", silent=True, disable_git=True, **measuring),
        reinit="finish_previous",
    )
    for axis in AXES:
        run.define_metric(axis, hidden=True)
    run.define_metric("*", step_metric="step")
    run.define_metric(f"{BY_EXAMPLES}*", step_metric="examples")
    return run


def finish(
    run: Any, described: Described, summary: Mapping[str, Any], exit_code: int, confused: Confused | None = None
) -> None:
    """Write what is known at the end of a run, and end it. A run that is over has the command that repeats it."""
    if exit_code == 0 and (command := described.command()) is not None:
        run.config.update({"command": command})
    if confused is not None:
        run.log({"test/confusion": _chart(confused), "step": confused.step, "examples": confused.examples})
    run.summary.update(dict(summary))
    run.finish(exit_code=exit_code)


def _chart(confused: Confused) -> Any:
    """Return the confusion matrix as W&B draws it, or where it has more cells than W&B draws, a table of those > 0."""
    import wandb

    names, pairs = confused.class_names, confused.pairs
    if len(names) ** 2 <= wandb.Table.MAX_ROWS:
        classes, answers = (np.repeat(pairs[:, at], pairs[:, 2]).tolist() for at in (0, 1))
        return wandb.plot.confusion_matrix(
            y_true=classes, preds=answers, class_names=list(names), title=f"test, {confused.point} point"
        )
    most = pairs[np.argsort(-pairs[:, 2], kind="stable")][: wandb.Table.MAX_ROWS]
    rows = [[names[actual], names[predicted], images] for actual, predicted, images in most.tolist()]
    return wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=rows)
