"""How does a run appear on Weights & Biases? Through its client, fed from the measurements; nothing is read back.

The client takes seconds to start and to end, so it has a thread of its own, which begins after the first step: training
waits for it at no point, and a result is there before the mirror is whole.

An agent of a W&B sweep has made the run already and names it in the environment; then the figures go there. Importing
this module does not import torch, so a run that is over can answer an agent at once.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from neumann import compat
from neumann.config import RunSpec
from neumann.errors import UserError, first_line
from neumann.store import RunFolder
from neumann.store.files import read_json
from neumann.store.scores import OBJECTIVE, objective

if TYPE_CHECKING:
    from neumann.training.evaluation import Measurement


class Mirror:
    """One W&B run, its id signature-attempt: resuming offline would overwrite what was synced first (wandb#5865).

    Raises UserError where W&B would need an account and has none. Whatever goes wrong later is a warning: local files
    are the truth, and a run does not fail for its mirror.

    Under an agent the id is the agent's, or its sweep would wait for a run that never reports. The sweep's parameters
    take the places of equal names in the configuration there (``optimizer`` is then a word), so it stands whole under
    ``resolved`` as well.
    """

    def __init__(self, spec: RunSpec, folder: Path, record: Mapping[str, Any], attempt: int) -> None:
        import wandb

        self._spec, self._folder, self._record, self._attempt = spec, folder.resolve(), dict(record), attempt
        self._work: SimpleQueue[Callable[[Any], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._mirror, name="neumann-mirror", daemon=True)
        if spec.config.logger.mode == "online":
            try:
                wandb.login()
            except wandb.Error as error:
                raise UserError(
                    f"logger.mode=online: W&B cannot log in ({first_line(error)}); logger.mode=offline or logger=none "
                    "trains without it"
                ) from error

    def begin(self) -> None:
        """Start the client, beside training."""
        if not self._thread.is_alive():
            self._thread.start()

    def log(self, measurement: Measurement) -> None:
        """Log one measurement against the optimizer step, and the errors against the examples seen as well."""
        flat: dict[str, Any] = {}
        for kind in ("validation", "validation_recalibrated"):
            for point, scores in measurement.get(kind, {}).items():
                for key in ("loss", "error"):
                    flat[f"{kind}/{point}/{key}"] = scores[key]
                    flat[f"by_examples/{kind}/{point}/{key}"] = scores[key]
        flat["train/loss"] = measurement["train_loss"]
        flat["train/lr"] = measurement["lr"]
        flat["epoch"] = measurement["epoch"]
        flat = {k: v for k, v in flat.items() if v is not None and math.isfinite(v)}
        row = {**flat, "step": measurement["optimizer_step"], "examples": measurement["examples"]}
        self._work.put(lambda run: run.log(row))

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Have the explicit summary keys written and the run ended; asked for on every way out."""
        self.begin()
        self._work.put(lambda run: run.summary.update(dict(summary)))
        self._work.put(lambda run: run.finish(exit_code=exit_code))
        self._work.put(None)

    def close(self) -> None:
        """Wait until the mirror is whole, where it has begun."""
        if self._thread.ident is not None:
            self._thread.join()

    def _mirror(self) -> None:
        try:
            run = self._start()
            while (work := self._work.get()) is not None:
                work(run)
        except Exception as error:  # noqa: BLE001 - a mirror that fails must not take a run with it
            warnings.warn(f"W&B failed ({first_line(error)}): {self._folder} is not mirrored", stacklevel=1)

    def _start(self) -> Any:
        import wandb

        spec, logger = self._spec, self._spec.config.logger
        groups = ("data", "model", "optimizer")
        agent = under_agent()
        run = wandb.init(
            mode=logger.mode,  # type: ignore[arg-type]
            project=None if agent else logger.project,
            entity=None if agent else logger.entity,
            dir=str(self._folder),  # the client's service has a working directory of its own
            id=None if agent else f"{spec.signature}-{self._attempt}",
            name=spec.name,
            group=spec.config.study,
            job_type=logger.job_type,
            tags=[*logger.tags, *(f"{group}:{option}" for group, option in spec.choices.items() if group in groups)],
            config={
                **spec.as_dict(),
                **({"resolved": spec.as_dict()} if agent else {}),
                "signature": spec.signature,
                "attempt": self._attempt,
                "provenance": self._record,
            },
            # no git: a remote's URL may hold a token, and provenance has the commit
            settings=wandb.Settings(console="off", silent=True, disable_git=True, **compat.WANDB_SETTINGS),
            reinit="finish_previous",
        )
        run.define_metric("step", hidden=True)
        run.define_metric("examples", hidden=True)
        run.define_metric("*", step_metric="step")
        run.define_metric("by_examples/*", step_metric="examples")
        return run


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
    mirror.close()


def summary_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return W&B's summary keys, each named for what it is."""
    summary = {
        key: result[key]
        for key in ("status", "step", "examples", "epoch", "train_loss", "train_seconds", "best_validation_error")
    }
    for split in ("validation", "test", "validation_recalibrated", "test_recalibrated"):
        for point, scores in (result.get(split) or {}).items():
            summary |= {f"final/{split}/{point}/{key}": scores[key] for key in ("loss", "error", "n")}
    return summary | {OBJECTIVE: objective(result)}
