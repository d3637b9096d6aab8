"""How does a run appear on Weights & Biases? Through its client, fed from the measurements; nothing is read back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neumann.config import RunSpec
from neumann.errors import UserError, first_line
from neumann.training.evaluation import Measurement


class Mirror:
    """One W&B run, its id signature-attempt: resuming offline would overwrite what was synced first (wandb#5865)."""

    def __init__(self, spec: RunSpec, folder: Path, record: Mapping[str, Any], attempt: int) -> None:
        import wandb

        logger = spec.config.logger
        try:
            self._run = wandb.init(
                mode=logger.mode,  # type: ignore[arg-type]
                project=logger.project,
                entity=logger.entity,
                dir=str(folder.resolve()),  # the client's service has a working directory of its own
                id=f"{spec.signature}-{attempt}",
                name=spec.name,
                group=spec.config.study,
                job_type=logger.job_type,
                tags=[
                    *logger.tags,
                    *(
                        f"{group}:{option}"
                        for group, option in spec.choices.items()
                        if group in ("data", "model", "optimizer")
                    ),
                ],
                config={**spec.as_dict(), "signature": spec.signature, "attempt": attempt, "provenance": dict(record)},
                # no git: a remote's URL may hold a token, and provenance has the commit
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True),
                reinit="finish_previous",
            )
        except wandb.Error as error:
            raise UserError(
                f"logger.mode={logger.mode}: W&B cannot start ({first_line(error)}); "
                "logger.mode=offline or logger=none trains without it"
            ) from error
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("examples", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("by_examples/*", step_metric="examples")

    @property
    def folder(self) -> str:
        """Return the folder of the offline run, for ``wandb sync``."""
        return str(Path(self._run.dir).parent)

    def log(self, measurement: Measurement) -> None:
        """Log one measurement against the optimizer step, and the errors against the examples seen as well."""
        flat: dict[str, Any] = {}
        for point, scores in measurement["validation"].items():
            for key in ("loss", "error"):
                flat[f"validation/{point}/{key}"] = scores[key]
                flat[f"by_examples/validation/{point}/{key}"] = scores[key]
        flat["train/loss"] = measurement["train_loss"]
        flat["train/lr"] = measurement["lr"]
        flat["epoch"] = measurement["epoch"]
        flat = {k: v for k, v in flat.items() if v is not None and math.isfinite(v)}
        self._run.log({**flat, "step": measurement["optimizer_step"], "examples": measurement["examples"]})

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Write the explicit summary keys and end the run; called on every way out."""
        with contextlib.suppress(Exception):  # a mirror that fails must not take a finished run with it
            for key, value in summary.items():
                self._run.summary[key] = value
        self._run.finish(exit_code=exit_code)
