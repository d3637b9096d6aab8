"""Checkpoints: everything that decides a run's next step, as plain data in one file.

A run is one stream of micro-batches: with E steps of A accumulated micro-batches an epoch, step s
begins with micro-batch (s mod E) · A of epoch s // E. A checkpoint is made between two steps, so the place in the data
is one integer, and it needs none of Lightning's own loop state, which has been off by one in the middle of an epoch
(Lightning#19367), nor half-accumulated gradients. Where the files lie and which of them counts is the store's
(`neumann.store.checkpoint_files`).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, BinaryIO

import numpy as np
import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from neumann.data.batches import Batches
from neumann.errors import UserError, first_line
from neumann.freed_memory import give_back_freed_memory
from neumann.optim import WeightAverage, at, eval_point
from neumann.optim.wrappers import load_states, states_inside
from neumann.seeds import derive
from neumann.store.session import Follower, Session
from neumann.training.census import Census, check_weights
from neumann.training.classifier import Batch
from neumann.training.distributed import RankGroup
from neumann.training.evaluation import Evaluation, TrainingProgress
from neumann.training.rate_schedules import RateSchedule

FORMAT = 4  # of a checkpoint and of eval-weights.pt
PARTS = {  # of a checkpoint of this format, beside its signature
    "global_step": int, "state_dict": Mapping, "optimizer_states": list, "schedule": Mapping, "precision": Mapping,
    "progress": Mapping, "census": Mapping, "rng": list, "measurements": list, "threads": int,
}  # fmt: skip
MARK = b"sha256:"  # of the comment that ends a checkpoint's zip file
WRITING_SHARE = 0.05  # of a run's time at most: small networks are evaluated more often than a disk takes their state


class Stream:
    """A run's micro-batches from optimizer step ``first_step`` to ``total_steps``, epoch after epoch."""

    def __init__(self, batches: Batches, first_step: int, total_steps: int) -> None:
        self._batches = batches
        self._first, self._total = first_step, total_steps

    def __iter__(self) -> Iterator[Batch]:
        accumulation = self._batches.plan.accumulation
        at, end = self._first * accumulation, self._total * accumulation  # in micro-batches
        while at < end:
            epoch, position = divmod(at, len(self._batches))
            self._batches.load_state_dict({"epoch": epoch, "position": position})
            for batch in self._batches:
                yield batch
                at += 1
                if at == end:
                    return


def encode(value: Any) -> bytes:
    """Return ``value`` as torch.save writes it, with its SHA-256 as the comment of the zip file that this makes.

    torch does not check the checksums of its own zip files, so a flipped bit would go on as a weight.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    content = buffer.getvalue()
    assert content[-2:] == b"\0\0", "torch.save ends its zip file without a comment, whose length is 0"
    digest = MARK + hashlib.sha256(content).hexdigest().encode()
    return content[:-2] + struct.pack("<H", len(digest)) + digest


def decode(file: BinaryIO) -> Any:
    """Return the value that `encode` was given, as a run's checkpoint or its eval-weights.pt holds it.

    Raises ValueError where ``file`` is damaged or not plain data, or a checkpoint of this version lacks a part. The end
    is looked at first: a file without a digest is not read, whatever its size.
    """
    at = file.seek(0, os.SEEK_END) - len(MARK) - 64
    file.seek(max(0, at))
    mark, digest = file.read(len(MARK)), file.read(64)
    if at < 2 or mark != MARK:
        raise ValueError("it is cut short")
    if at > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise ValueError(f"it has {at:,} bytes, more than the memory of this machine ({memory:,})")
    file.seek(0)
    content = file.read(at - 2) + b"\0\0"
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("its content has changed since it was written")
    try:
        value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that is not plain data raises any exception
        raise ValueError(f"it is not plain data ({type(error).__name__})") from error
    if isinstance(value, dict) and value.get("format") == FORMAT and "point" not in value:  # not eval-weights.pt
        lacking = [key for key, kind in PARTS.items() if not isinstance(value.get(key), kind)]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}, or has another kind of value there")
    return value


class Randomness:
    """The global random streams of this process, which dropout and the like draw from."""

    @staticmethod
    def seed(seed: int, rank: int) -> None:
        """Seed torch, random and NumPy for a run's ``seed``, each rank with streams of its own."""
        noise = derive(seed, "noise") + rank
        torch.manual_seed(noise)
        random.seed(noise)
        np.random.seed(noise % 2**32)

    @staticmethod
    def state() -> dict[str, Any]:
        """Return the state of every stream, as plain data."""
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
        """Put every stream back to what `state` returned."""
        torch.set_rng_state(state["torch"])
        kind, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        version_, numbers, gauss_next = state["python"]
        random.setstate((version_, tuple(numbers.tolist()), gauss_next))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


class TrainingState(pl.Callback):
    """Everything that decides the rest of the run: gathered for a checkpoint, and put back when a run goes on.

    Args:
        signature: the run's, which a checkpoint carries.
        group: the ranks that train the run; each one's random streams are saved.
        progress: the steps and sums so far.
        schedule: the learning rate's.
        census: the examples counted so far.
    """

    def __init__(
        self,
        signature: str,
        group: RankGroup,
        progress: TrainingProgress,
        schedule: RateSchedule,
        census: Census,
    ) -> None:
        self._signature, self._group = signature, group
        self._progress, self._schedule, self._census = progress, schedule, census
        self._loaded: dict[str, Any] | None = None

    def gather(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Return the state as plain data (loads with ``weights_only=True``). Every rank must call this.

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
            "schedule": self._schedule.state_dict(),
            "precision": trainer.precision_plugin.state_dict(),
            "progress": self._progress.state_dict(),
            "census": self._census.state_dict(),
            "rng": self._group.gather(Randomness.state()),
            "threads": torch.get_num_threads(),
        }
        inside = states_inside(trainer.optimizers[0])
        if inside:  # a wrapper's own state may leave it out; tensors that both have are written once
            state["wrapped_optimizer_states"] = inside
        average = WeightAverage.of(trainer.optimizers[0])
        if average is not None:
            state["weight_average"] = average.state_dict()
        return state

    def take(self, state: dict[str, Any]) -> None:
        """Go on from a loaded state: the counts at once, weights and optimizer when Lightning starts to train."""
        with _fitting():
            self._progress.load_state_dict(state["progress"])
            self._census.load_state_dict(state["census"])
        self._loaded = state

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put a loaded state into the model, the optimizer and the random streams, just before the first step."""
        state, self._loaded = self._loaded, None
        if state is None:
            return
        with _fitting():
            pl_module.load_state_dict(state["state_dict"])
            optimizer: Optimizer = trainer.optimizers[0]
            load_states(optimizer, state["optimizer_states"][0], state.get("wrapped_optimizer_states", []))
            average = WeightAverage.of(optimizer)
            if average is not None:
                average.load_state_dict(state["weight_average"])
            self._schedule.load_state_dict(state["schedule"])
            trainer.precision_plugin.load_state_dict(state["precision"])
            Randomness.load(state["rng"][self._group.rank])


@contextmanager
def _fitting() -> Iterator[None]:
    """Say in one sentence that a checkpoint whose digest is right does not fit the run."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(
            f"the checkpoint, although undamaged, does not fit this run ({reason}): move last.ckpt away to begin again"
        ) from error


class Checkpointing(pl.Callback):
    """Writes the state after evaluations, the last step's among them, and when the run is asked to stop; rank 0 does.

    An evaluation is passed over where writing after it would take more than `WRITING_SHARE` of the time: a run that is
    killed loses at most what it trained in twenty times the seconds that a write takes, and an evaluation's interval.

    Args:
        session: takes the content of each checkpoint on rank 0.
        evaluation: says whether the step was evaluated, and how far the run is.
        state: gathers what is saved.
        group: the ranks that train the run.
        stop_agreed: returns whether all ranks stop after this step.
        total_steps: the run's.
    """

    def __init__(
        self,
        session: Session | Follower,
        evaluation: Evaluation,
        state: TrainingState,
        group: RankGroup,
        stop_agreed: Callable[[], bool],
        *,
        total_steps: int,
    ) -> None:
        self._session, self._evaluation, self._state = session, evaluation, state
        self._group, self._stop_agreed = group, stop_agreed
        self._total = total_steps
        self._due_at = -math.inf  # by time.monotonic
        self.saved: int | None = None  # the step of the last checkpoint that it has written

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where the run must stop, and where the step was evaluated just now and a checkpoint is due."""
        progress = self._evaluation.progress
        evaluated = progress.loss_steps == 0
        if progress.diverged_at is None and (self._stop_agreed() or (evaluated and self._is_due(progress.step))):
            begun = time.monotonic()
            if not evaluated:  # else they were compared before the evaluation
                check_weights(self._group, pl_module, trainer.optimizers[0], progress.step)
            self._evaluation.flush()
            state = self._state.gather(trainer)
            if self._group.is_main:
                # the files beside it may be edited; this one cannot be unseen, so a resumed run believes this one
                past = {
                    "measurements": self._session.measurements,
                    "attempts": self._session.attempts,
                    "steps": self._session.steps,
                    "terms": self._session.terms,
                }
                self._session.checkpoint(encode({**state, **past}))
                self.saved = progress.step
                give_back_freed_memory()  # several times what is written; a step needs less
                ended = time.monotonic()
                self._due_at = ended + (ended - begun) / WRITING_SHARE

    def _is_due(self, step: int) -> bool:
        """Return, on every rank alike, whether the evaluation of ``step`` is followed by a checkpoint."""
        return step == self._total or self._group.broadcast(time.monotonic() >= self._due_at)


def eval_weights(module: pl.LightningModule, optimizer: Optimizer, description: dict[str, Any]) -> bytes:
    """Return the content of eval-weights.pt: the weights at the optimizer's eval point.

    ``description`` is plain data beside them, from which the network can be built again and fed.
    """
    point = eval_point(optimizer)
    with at(optimizer, point):
        weights = {key.removeprefix("model."): value.cpu() for key, value in module.state_dict().items()}
        return encode({"format": FORMAT, "point": point, "state_dict": weights, **description})
