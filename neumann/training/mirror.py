"""The mirror of a run on Weights & Biases: its client is fed from the measurements, and nothing is read back.

The client takes seconds to start and to end, so it has a thread of its own, which starts after the first step: training
never waits for it, and the result is written before the upload is complete. ``logger.mode`` says where it writes: to
W&B's server (online), or to files in the run's folder (offline).

An agent of a W&B sweep has made the run already and names it in the environment; its metrics go to that run. Importing
this module does not import torch, so a run that is over answers an agent at once.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from neumann import compat
from neumann.config import RunSpec
from neumann.config.wandb_settings import TAG_LENGTH, hide_variables, under_agent
from neumann.errors import UserError, first_line
from neumann.network import why_unreachable
from neumann.store import RunFolder
from neumann.store.scores import OBJECTIVE, objective
from neumann.store.session import Measurement

# A program is started through a pipe that closes when it runs. A process forked meanwhile by another thread (a decoding
# worker) would hold that pipe open, and the start, which waits for it to close, would last as long as the worker lives.
_starting_program = threading.RLock()
os.register_at_fork(
    before=_starting_program.acquire,
    after_in_parent=_starting_program.release,
    after_in_child=_starting_program.release,
)


class Mirror:
    """One W&B run for each attempt at a run, its id signature-attempt.

    Resuming a W&B run offline would overwrite what was synced first (wandb#5865). An error after the constructor is a
    warning: the local files count, and a run does not fail for its mirror.

    Under an agent the id is the agent's, or its sweep would wait for a run that never reports. W&B's sweep
    parameters overwrite configuration keys of the same name (such as ``optimizer``), so the run's own configuration is
    also under ``resolved``.

    Args:
        spec: the run.
        folder: the run's, in which the client writes.
        record: the attempt's provenance.
        attempt: its number, from 1.

    Raises:
        UserError: ``logger.mode=online``, and W&B cannot log in; or the folder's wandb leads elsewhere.
    """

    def __init__(self, spec: RunSpec, folder: Path, record: Mapping[str, Any], attempt: int) -> None:
        import wandb  # noqa: F401 - in the main thread, before training

        if (folder / "wandb").is_symlink():
            raise UserError(
                f"{folder / 'wandb'} is a link: W&B would write outside the run's folder; remove it, or train with "
                "logger=none"
            )
        self._spec, self._folder, self._record, self._attempt = spec, folder.resolve(), dict(record), attempt
        self._work: SimpleQueue[Callable[[Any], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._mirror, name="neumann-mirror", daemon=True)
        hide_variables()  # here, in the main thread: no other may read the environment meanwhile
        if spec.config.logger.mode == "online":
            _log_in()

    def begin(self) -> None:
        """Start the client in its thread; one that has failed stays so."""
        if self._thread.ident is None:
            self._thread.start()

    def log(self, measurement: Measurement) -> None:
        """Log one measurement against the optimizer's step, and its scores against the examples seen as well."""
        flat: dict[str, Any] = {}
        for kind in ("validation", "validation_recalibrated"):
            for point, scores in measurement.get(kind, {}).items():
                for key in ("loss", "error"):
                    flat[f"{kind}/{point}/{key}"] = scores[key]
                    flat[f"by_examples/{kind}/{point}/{key}"] = scores[key]
        for key in ("loss", "loss_main", "loss_auxiliary"):
            flat[f"train/{key}"] = measurement.get(f"train_{key}")
        flat["train/lr"] = measurement["lr"]
        flat["epoch"] = measurement["epoch"]
        flat = {k: v for k, v in flat.items() if v is not None and math.isfinite(v)}
        row = {**flat, "step": measurement["optimizer_step"], "examples": measurement["examples"]}
        self._work.put(lambda run: run.log(row))

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Ask the client to write ``summary`` and to end the run; it starts here where it has not."""
        self.begin()
        self._work.put(lambda run: run.summary.update(dict(summary)))
        self._work.put(lambda run: run.finish(exit_code=exit_code))
        self._work.put(None)

    def close(self) -> None:
        """Wait until the upload is complete, where the client was started."""
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

        with _starting_program:
            wandb.setup()  # the service, a program of its own
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
            tags=[
                *logger.tags,
                *(f"{group}:{option}"[:TAG_LENGTH] for group, option in spec.choices.items() if group in groups),
            ],
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


def _log_in() -> None:
    """Log in to W&B's server. Raises UserError, within seconds where no server answers."""
    import wandb

    if (why := why_unreachable(wandb.setup().settings.base_url)) is None:
        try:
            wandb.login()
            return
        except wandb.Error as error:
            why = first_line(error)
    raise UserError(
        f"logger.mode=online: W&B cannot log in ({why}); logger.mode=offline trains without it, and `wandb sync` "
        "uploads the run afterwards; logger=none does without W&B"
    )


def replay(spec: RunSpec, folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Log a run that is over as the W&B run of the agent that asks for it, so that its sweep gets the objective."""
    attempts = folder.attempts()
    mirror = Mirror(spec, folder.path, attempts[-1] if attempts else {}, int(result["attempts"]))
    for measurement in folder.read_measurements():
        mirror.log(measurement)
    mirror.finish(summary_of(result), 0)
    mirror.close()


def summary_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of a result on W&B, its objective included."""
    summary = {
        key: result[key]
        for key in ("status", "step", "examples", "epoch", "train_loss", "train_seconds", "best_validation_error")
    }
    for split in ("validation", "test", "validation_recalibrated", "test_recalibrated"):
        for point, scores in (result.get(split) or {}).items():
            summary |= {f"final/{split}/{point}/{key}": scores[key] for key in ("loss", "error", "n")}
    return summary | {OBJECTIVE: objective(result)}
