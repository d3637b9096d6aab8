"""The mirror of a run on Weights & Biases: its client is fed from the measurements, and nothing is read back.

The client takes seconds to start and to end, so it has a thread of its own, which starts after the first step: training
never waits for it, and the result is written before the upload is complete. ``logger.mode`` says where it writes: to
W&B's server (online), or to files in the run's folder (offline).

An agent of a W&B sweep has made the run already and names it in the environment; its metrics go to that run. Importing
this module does not import torch, so a run that is over answers an agent at once.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from neumann.config import RunSpec
from neumann.config.wandb_settings import hide_variables
from neumann.errors import UserError, first_line
from neumann.store import RunFolder
from neumann.store.session import Measurement
from neumann.store.steps import read_lines
from neumann.training import wandb_run
from neumann.training.mirror_rows import (
    Confused,
    Described,
    Row,
    row_of_line,
    row_of_measurement,
    row_of_terms,
    rows_of,
    summary_of,
)

# A program is started through a pipe that closes when it runs. A process forked meanwhile by another thread (a decoding
# worker) would hold that pipe open, and the start, which waits for it to close, would last as long as the worker lives.
_starting_program = threading.RLock()
os.register_at_fork(
    before=_starting_program.acquire,
    after_in_parent=_starting_program.release,
    after_in_child=_starting_program.release,
)


class Mirror:
    """One W&B run for each attempt at a run (`neumann.training.wandb_run`), fed from a thread of its own.

    An error after the constructor is a warning: the local files count, and a run does not fail for its mirror.

    Args:
        spec: the run.
        folder: the run's, in which the client writes.
        record: the attempt's provenance.
        attempt: its number, from 1.
        trains: whether this machine trains it meanwhile, so that its load is the run's.

    Raises:
        UserError: ``logger.mode=online``, and W&B cannot log in; or the folder's wandb leads elsewhere.
    """

    def __init__(
        self, spec: RunSpec, folder: Path, record: Mapping[str, Any], attempt: int, *, trains: bool = True
    ) -> None:
        import wandb  # noqa: F401 - in the main thread, before training

        if (folder / "wandb").is_symlink():
            raise UserError(
                f"{folder / 'wandb'} is a link: W&B would write outside the run's folder; remove it, or train with "
                "logger=none"
            )
        self._described, self._folder, self._trains = Described.of_spec(spec, attempt, record), folder.resolve(), trains
        self._work: SimpleQueue[Callable[[Any], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._mirror, name="neumann-mirror", daemon=True)
        hide_variables()  # here, in the main thread: no other may read the environment meanwhile
        if spec.config.logger.mode == "online":
            wandb_run.log_in(
                "logger.mode=online",
                "logger.mode=offline trains without it, and `wandb sync` uploads the run afterwards; logger=none does "
                "without W&B",
            )

    def begin(self) -> None:
        """Start the client in its thread; one that has failed stays so."""
        if self._thread.ident is None:
            self._thread.start()

    def log(self, measurement: Measurement) -> None:
        """Log one measurement against the optimizer's step, and its scores against the examples seen as well."""
        self.log_row(row_of_measurement(measurement, by_step=self._described.is_logged_by_step))

    def log_step(self, line: Mapping[str, Any]) -> None:
        """Log one step line."""
        self.log_row(row_of_line(line, by_step=self._described.is_logged_by_step))

    def log_terms(self, line: Mapping[str, Any]) -> None:
        """Log one line of what the optimizer's terms did."""
        self.log_row(row_of_terms(line))

    def log_past(self, lines: str, measurements: Sequence[Measurement], terms: str) -> None:
        """Log all that earlier attempts have recorded; step lines and those of the terms as a checkpoint holds them."""
        past = [(line["step"], 0, line) for line in map(json.loads, lines.splitlines())]
        past += [(measurement["step"], 1, measurement) for measurement in measurements]
        past += [(line["step"], 2, line) for line in map(json.loads, terms.splitlines())]
        for _, kind, record in sorted(past, key=lambda one: one[:2]):
            (self.log_step, self.log, self.log_terms)[kind](record)

    def log_row(self, row: Row) -> None:
        """Log one row of `neumann.training.mirror_rows`."""
        self._work.put(lambda run: run.log(row))

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Ask the client to write ``summary`` and to end the run; it starts here where it has not."""
        self.begin()
        self._work.put(lambda run: self._end(run, summary, exit_code))
        self._work.put(None)

    def close(self) -> None:
        """Wait until the upload is complete, where the client was started."""
        if self._thread.ident is not None:
            self._thread.join()

    def _end(self, run: Any, summary: Mapping[str, Any], exit_code: int) -> None:
        folder = RunFolder(self._folder)
        result, last = folder.result(), folder.last_measurement()
        confused = None
        if exit_code == 0 and result is not None and last is not None:
            try:
                confused = Confused.read(self._folder, result, self._described, row_of_measurement(last, by_step=True))
            except UserError as error:  # the rest is mirrored all the same
                warnings.warn(f"W&B gets no confusion matrix: {error}", stacklevel=1)
        wandb_run.finish(run, self._described, summary, exit_code, confused)

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
        logger = self._described.config["logger"]
        return wandb_run.start(self._described, self._folder, logger, system_metrics=self._trains)


def replay(spec: RunSpec, folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Log a run that is over as the W&B run of the agent that asks for it, so that its sweep gets the objective.

    Raises UserError where its step lines or measurements are not what it wrote.
    """
    attempts, number = folder.attempts(), int(result["attempts"])
    record = attempts[-1] if attempts else {}
    mirror = Mirror(spec, folder.path, record, number, trains=False)
    lines = read_lines(folder.path, result)
    by_step = bool(lines) and Described.of_spec(spec, number, record).is_logged_by_step
    for row in rows_of(lines, folder.curve(result), folder.terms(result), by_step=by_step):
        mirror.log_row(row)
    mirror.finish(summary_of(result), 0)
    mirror.close()
