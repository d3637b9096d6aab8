"""How does a run appear on Weights & Biases? Through its client, fed from the measurements; nothing is read back.

An agent of a W&B sweep has made the run already and names it in the environment; then the figures go there. Importing
this module does not import torch, so a run that is over can answer an agent at once.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neumann.config import RunSpec
from neumann.errors import UserError, first_line
from neumann.runs import RunFolder
from neumann.runs.files import read_json
from neumann.runs.objective import OBJECTIVE, objective

if TYPE_CHECKING:
    from neumann.training.evaluation import Measurement


class Mirror:
    """One W&B run, its id signature-attempt: resuming offline would overwrite what was synced first (wandb#5865).

    Under an agent the id is the agent's, or its sweep would wait for a run that never reports. The sweep's parameters
    take the places of equal names in the configuration there (``optimizer`` is then a word), so it stands whole under
    ``resolved`` as well.
    """

    def __init__(self, spec: RunSpec, folder: Path, record: Mapping[str, Any], attempt: int) -> None:
        import wandb

        logger = spec.config.logger
        agent = under_agent()
        try:
            self._run = wandb.init(
                mode=logger.mode,  # type: ignore[arg-type]
                project=None if agent else logger.project,
                entity=None if agent else logger.entity,
                dir=str(folder.resolve()),  # the client's service has a working directory of its own
                id=None if agent else f"{spec.signature}-{attempt}",
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
                config={
                    **spec.as_dict(),
                    **({"resolved": spec.as_dict()} if agent else {}),
                    "signature": spec.signature,
                    "attempt": attempt,
                    "provenance": dict(record),
                },
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
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


def under_agent() -> bool:
    """Return whether an agent of a W&B sweep has started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def replay(spec: RunSpec, folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Log a run that is over as the run of the agent that has asked for it, so that its sweep gets the objective."""
    recorded = read_json(folder.provenance)
    attempts = recorded.get("attempts", []) if isinstance(recorded, dict) else []
    mirror = Mirror(spec, folder.path, attempts[-1] if attempts else {}, int(result["attempts"]))
    for measurement in folder.read_measurements():
        mirror.log(measurement)
    mirror.finish(summary_of(result), 0)


def summary_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return W&B's summary keys, each named for what it is."""
    summary = {
        key: result[key]
        for key in ("status", "step", "examples", "epoch", "train_loss", "train_seconds", "best_validation_error")
    }
    for split in ("validation", "test"):
        for point, scores in (result[split] or {}).items():
            summary |= {f"final/{split}/{point}/{key}": scores[key] for key in ("loss", "error", "n")}
    return summary | {OBJECTIVE: objective(result)}
