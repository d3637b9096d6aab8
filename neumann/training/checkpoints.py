"""How does a run go on where it stopped? Everything that decides the next step, as plain data in one file.

The whole run is one stream of batches to Lightning, and step number s is batch s mod E of epoch s // E. So the place in
the data is one integer, and a checkpoint needs none of Lightning's own loop state, which has been off by one in the
middle of an epoch (Lightning#19367).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import struct
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from neumann.data.batches import Batches
from neumann.errors import UserError
from neumann.optim import WeightAverage, at, eval_point
from neumann.seeds import derive
from neumann.store import claim
from neumann.store.files import opened, replace_file, sync_folder
from neumann.training.census import Census, check_weights
from neumann.training.classifier import Batch
from neumann.training.distributed import RankGroup
from neumann.training.evaluation import Evaluation, TrainingProgress
from neumann.training.rate_schedules import RateSchedule

FORMAT = 3
DAMAGED = ".damaged"  # the suffix of a checkpoint that was found so
MARK = b"sha256:"  # of the comment that ends a checkpoint's zip file


class Stream:
    """A run's training batches from ``first_step`` to ``total_steps``, epoch after epoch."""

    def __init__(self, batches: Batches, first_step: int, total_steps: int) -> None:
        self._batches = batches
        self._first, self._total = first_step, total_steps

    def __len__(self) -> int:
        return max(1, self._total - self._first)  # Lightning passes by a run of no batches, whose result is still due

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
    """Write ``value`` with torch.save, atomically, and its digest as the comment of the zip file that this makes.

    torch does not check the checksums of its own zip files, so a flipped bit would go on as a weight.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    content = buffer.getvalue()
    assert content[-2:] == b"\0\0", "torch.save ends its zip file without a comment, whose length is 0"
    digest = MARK + hashlib.sha256(content).hexdigest().encode()
    replace_file(path, content[:-2] + struct.pack("<H", len(digest)) + digest)


def read_torch(path: Path) -> Any:
    """Return what `write_torch` wrote. Raises ValueError where it is damaged, OSError where it cannot be read."""
    with opened(path) as file:
        content = file.read()
    at = len(content) - len(MARK) - 64
    if at < 2 or content[at : at + len(MARK)] != MARK:
        raise ValueError("it is cut short")
    content, digest = content[: at - 2] + b"\0\0", content[at + len(MARK) :]
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("its content has changed since it was written")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that is not plain data raises whatever it hits first
        raise ValueError(f"it is no plain data ({type(error).__name__})") from error


def previous(path: Path) -> Path:
    """Return where the checkpoint before the last one stays until the next is written."""
    return path.with_name(f"previous{path.suffix}")


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` as the last checkpoint and keep the one before: at every moment one of the two is whole."""
    claim.require(path.parent)  # whoever has taken the run over goes on from these
    if path.exists():
        before = previous(path)
        before.unlink(missing_ok=True)
        try:
            os.link(path, before)  # a second name, not a move: the last one stays until the new one has its name
            sync_folder(path.parent)
        except OSError:  # a file system without links
            replace_file(before, path.read_bytes())
    write_torch(path, state)


def remove_checkpoints(path: Path, *, but_the_last: bool) -> None:
    """Remove what only an unfinished run needs."""
    if not but_the_last:
        path.unlink(missing_ok=True)
    for file in (previous(path), path.with_suffix(DAMAGED), previous(path).with_suffix(DAMAGED)):
        file.unlink(missing_ok=True)


def load_training_state(path: Path, signature: str) -> dict[str, Any] | None:
    """Return the last checkpoint, the one before where that is damaged (which is said), or None where there is none.

    Raises UserError for a file that is whole and another run's.
    """
    for file, then in ((path, "the run goes on from the one before"), (previous(path), "the run begins again")):
        if not file.exists():
            continue
        try:
            state = read_torch(file)
        except (OSError, ValueError) as error:
            if file == path and not previous(path).exists():
                then = "the run begins again"
            warnings.warn(f"{file} is damaged ({error}) and is left aside: {then}", stacklevel=2)
            with contextlib.suppress(OSError):  # else the next checkpoint would take it for the one to keep
                os.replace(file, file.with_suffix(DAMAGED))
            continue
        if not isinstance(state, dict) or state.get("format") != FORMAT or state.get("signature") != signature:
            raise UserError(f"{file} is not a checkpoint of this run: move it away to begin again")
        return state
    return None


class Randomness:
    """The global random streams of this process: dropout and its kin draw from them, and whatever a model brings."""

    @staticmethod
    def seed(seed: int, rank: int) -> None:
        """Start them for a run's ``seed``, each rank on streams of its own."""
        noise = derive(seed, "noise") + rank
        torch.manual_seed(noise)
        random.seed(noise)
        np.random.seed(noise % 2**32)

    @staticmethod
    def state() -> dict[str, Any]:
        """Return where they are, as plain data."""
        kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
        version_, numbers, gauss_next = random.getstate()
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
            "python": [version_, torch.tensor(numbers), gauss_next],
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    @staticmethod
    def load(state: dict[str, Any]) -> None:
        """Put them back."""
        torch.set_rng_state(state["torch"])
        kind, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        version_, numbers, gauss_next = state["python"]
        random.setstate((version_, tuple(numbers.tolist()), gauss_next))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


class TrainingState(pl.Callback):
    """Everything that decides the rest of the run: what a checkpoint holds, and where it goes when a run goes on."""

    def __init__(
        self,
        signature: str,
        group: RankGroup,
        progress: TrainingProgress,
        schedule: Callable[[], RateSchedule],
        census: Census,
    ) -> None:
        self._signature, self._group = signature, group
        self._progress, self._schedule, self._census = progress, schedule, census
        self._loaded: dict[str, Any] | None = None

    def gather(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Return the state as plain data (loads with ``weights_only=True``). Every rank must ask for it.

        The keys that Lightning knows carry Lightning's names, so ``ImageClassifier.load_from_checkpoint`` reads the
        file too.
        """
        state: dict[str, Any] = {
            "format": FORMAT,
            "signature": self._signature,
            "pytorch-lightning_version": version("pytorch-lightning"),
            "global_step": self._progress.step,
            "epoch": 0,
            "state_dict": trainer.lightning_module.state_dict(),
            "optimizer_states": [trainer.optimizers[0].state_dict()],
            "schedule": self._schedule().state_dict(),
            "precision": trainer.precision_plugin.state_dict(),
            "progress": self._progress.state_dict(),
            "census": self._census.state_dict(),
            "rng": self._group.gather(Randomness.state()),
            "threads": torch.get_num_threads(),
        }
        average = WeightAverage.of(trainer.optimizers[0])
        if average is not None:
            state["weight_average"] = average.state_dict()
        return state

    def take(self, state: dict[str, Any]) -> None:
        """Take what is needed before there is an optimizer from a loaded state; the rest follows at the first step."""
        self._progress.load_state_dict(state["progress"])
        self._census.load_state_dict(state["census"])
        self._loaded = state

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put a loaded state into the freshly built model, optimizer and streams, just before the first step."""
        state, self._loaded = self._loaded, None
        if state is None:
            return
        pl_module.load_state_dict(state["state_dict"])
        optimizer: Optimizer = trainer.optimizers[0]
        optimizer.load_state_dict(state["optimizer_states"][0])
        average = WeightAverage.of(optimizer)
        if average is not None:
            average.load_state_dict(state["weight_average"])
        self._schedule().load_state_dict(state["schedule"])
        trainer.precision_plugin.load_state_dict(state["precision"])
        Randomness.load(state["rng"][self._group.rank])


class Checkpointing(pl.Callback):
    """Writes the state after every evaluation and when the run is asked to stop; rank 0 does, for all."""

    def __init__(
        self,
        path: Path,
        evaluation: Evaluation,
        state: TrainingState,
        group: RankGroup,
        stop_agreed: Callable[[], bool],
    ) -> None:
        self._path, self._evaluation, self._state = path, evaluation, state
        self._group, self._stop_agreed = group, stop_agreed

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where the step was just evaluated or the run must stop."""
        progress = self._evaluation.progress
        evaluated = progress.loss_steps == 0
        if progress.diverged_at is None and (evaluated or self._stop_agreed()):
            if not evaluated:  # else they were compared before the evaluation
                check_weights(self._group, pl_module, trainer.optimizers[0], progress.step)
            self._evaluation.flush()
            state = self._state.gather(trainer)
            if self._group.is_main:
                write_checkpoint(self._path, state)


def write_eval_weights(
    path: Path, module: pl.LightningModule, optimizer: Optimizer, description: dict[str, Any]
) -> str:
    """Write the weights at the optimizer's eval point and what rebuilds and feeds the network; return the point."""
    point = eval_point(optimizer)
    with at(optimizer, point):
        weights = {key.removeprefix("model."): value.cpu() for key, value in module.state_dict().items()}
        write_torch(path, {"format": FORMAT, "point": point, "state_dict": weights, **description})
    return point
