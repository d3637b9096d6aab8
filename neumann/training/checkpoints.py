"""How does a run go on where it stopped? Everything that decides the next step, as plain data in one file.

The whole run is one stream of batches to Lightning, and step number s is batch s mod E of epoch s // E. So the place in
the data is one integer, and a checkpoint needs none of Lightning's own loop state, which has been off by one in the
middle of an epoch (Lightning#19367).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from neumann.data.batches import Batches
from neumann.errors import UserError
from neumann.optim import WeightAverage, at, eval_point
from neumann.runs.files import replace_file
from neumann.training.classifier import Batch
from neumann.training.evaluation import Evaluation, Progress
from neumann.training.schedules import RateSchedule

FORMAT = 1


class Stream:
    """A run's training batches from ``first_step`` to ``total_steps``, epoch after epoch."""

    def __init__(self, batches: Batches, first_step: int, total_steps: int) -> None:
        self._batches = batches
        self._first, self._total = first_step, total_steps

    def __len__(self) -> int:
        return self._total - self._first

    def __iter__(self) -> Iterator[Batch]:
        step = self._first
        while step < self._total:
            epoch, position = divmod(step, len(self._batches))
            self._batches.load_state_dict({"epoch": epoch, "position": position})
            for batch in self._batches:
                yield batch
                step += 1
                if step == self._total:
                    return


def write_torch(path: Path, value: Any) -> None:
    """Write ``value`` with torch.save, atomically."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    replace_file(path, buffer.getvalue())


def training_state(trainer: pl.Trainer, progress: Progress, schedule: RateSchedule, signature: str) -> dict[str, Any]:
    """Return what decides the rest of the run, as plain data (loads with ``weights_only=True``).

    The keys that Lightning knows carry Lightning's names, so ``ImageClassifier.load_from_checkpoint`` reads the file
    too.
    """
    state: dict[str, Any] = {
        "format": FORMAT,
        "signature": signature,
        "pytorch-lightning_version": version("pytorch-lightning"),
        "global_step": progress.step,
        "epoch": 0,
        "state_dict": trainer.lightning_module.state_dict(),
        "optimizer_states": [trainer.optimizers[0].state_dict()],
        "schedule": schedule.state_dict(),
        "precision": trainer.precision_plugin.state_dict(),
        "progress": progress.state_dict(),
        "rng": {"cpu": torch.get_rng_state()},
    }
    average = WeightAverage.of(trainer.optimizers[0])
    if average is not None:
        state["weight_average"] = average.state_dict()
    if torch.cuda.is_available():
        state["rng"]["cuda"] = torch.cuda.get_rng_state_all()
    return state


def load_training_state(path: Path, signature: str) -> dict[str, Any] | None:
    """Return the checkpoint at ``path``, or None where there is none or it is damaged (which is said)."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged pickle or zip raises whatever it hits first
        warnings.warn(
            f"{path} is damaged ({type(error).__name__}) and is left aside: the run begins again", stacklevel=2
        )
        return None
    if not isinstance(state, dict) or state.get("format") != FORMAT or state.get("signature") != signature:
        raise UserError(f"{path} is not a checkpoint of this run: move it away to begin again")
    return state


class Resume(pl.Callback):
    """Puts a loaded state into the freshly built model, optimizer and streams, just before the first step."""

    def __init__(self, state: dict[str, Any], schedule: Callable[[], RateSchedule]) -> None:
        self._state = state
        self._schedule = schedule

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load everything."""
        state = self._state
        pl_module.load_state_dict(state["state_dict"])
        optimizer: Optimizer = trainer.optimizers[0]
        optimizer.load_state_dict(state["optimizer_states"][0])
        average = WeightAverage.of(optimizer)
        if average is not None:
            average.load_state_dict(state["weight_average"])
        self._schedule().load_state_dict(state["schedule"])
        trainer.precision_plugin.load_state_dict(state["precision"])
        torch.set_rng_state(state["rng"]["cpu"])
        if "cuda" in state["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])
        self._state = {}


class Checkpointing(pl.Callback):
    """Writes the state after every evaluation and when the run is asked to stop."""

    def __init__(
        self,
        path: Path,
        evaluation: Evaluation,
        schedule: Callable[[], RateSchedule],
        signature: str,
        stop_asked: Callable[[], bool],
    ) -> None:
        self._path = path
        self._evaluation = evaluation
        self._schedule = schedule
        self._signature = signature
        self._stop_asked = stop_asked
        self._written_at = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where the step was just evaluated or the run must stop."""
        progress = self._evaluation.progress
        evaluated = progress.loss_steps == 0
        if progress.diverged_at is None and (evaluated or self._stop_asked()):
            self._evaluation.flush()
            write_torch(self._path, training_state(trainer, progress, self._schedule(), self._signature))


def write_eval_weights(
    path: Path, module: pl.LightningModule, optimizer: Optimizer, description: dict[str, Any]
) -> str:
    """Write the weights at the optimizer's eval point and what rebuilds and feeds the network; return the point."""
    point = eval_point(optimizer)
    with at(optimizer, point):
        weights = {key.removeprefix("model."): value.cpu() for key, value in module.state_dict().items()}
        write_torch(path, {"format": FORMAT, "point": point, "state_dict": weights, **description})
    return point
