"""A trained run's network scored on a set of images: for each the answer and the loss, and their summary by class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from neumann.data.batches import Batches, Finish, ShardPlan, StreamBatches
from neumann.data.checked_settings import parse
from neumann.data.loose_images import OtherImages
from neumann.data.module import build
from neumann.data.other_sets import ChosenImages, is_folder
from neumann.training.answers import Answerer
from neumann.training.trained import Trained


@dataclass(frozen=True, eq=False)
class Scored:
    """The answers to N images.

    Args:
        labels: the right classes, int64 [N].
        predicted: the answers, int64 [N].
        losses: cross-entropy, float64 [N], in nats.
        confusion: int64 [classes, classes], how many of the class of the row were taken for that of the column.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    losses: NDArray[np.float64]
    confusion: NDArray[np.int64]

    @property
    def wrong(self) -> int:
        """The number of images that were classified wrongly."""
        return int((self.labels != self.predicted).sum())


def score(answerer: Answerer, batches: Batches, classes: int, told: Callable[[int], None]) -> Scored:
    """Return the answers to the images of ``batches``, in the order of their split.

    Args:
        answerer: the network.
        batches: of one process, normalised.
        classes: their number.
        told: is called with the number of images of every batch that is done.
    """
    count = len(batches.plan.indices)
    labels, predicted = np.full((2, count), -1, dtype=np.int64)
    losses = np.full(count, np.nan)
    for images, right in batches:
        logits = answerer.logits(images)
        at = batches.taken
        labels[at] = right.cpu().numpy()
        predicted[at] = logits.argmax(dim=1).cpu().numpy()
        losses[at] = functional.cross_entropy(logits, right, reduction="none").cpu().double().numpy()
        told(len(at))
    assert (predicted >= 0).all(), "every image is answered"
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    return Scored(labels, predicted, losses, confusion.astype(np.int64))


def own_batches(
    run: Trained, data: Mapping[str, Any], chosen: ChosenImages, *, batch_size: int | None, device: torch.device
) -> Batches:
    """Return the batches of a split of the run's own data, decoded and cached as they were for it.

    ``batch_size`` None means that of the run's own evaluation.
    """
    batch = run.result.get("batch")
    micro = batch.get("micro_batch") if isinstance(batch, Mapping) else None
    size = min(micro if isinstance(micro, int) else 64, chosen.facts.train_count)
    module = build(data, chosen.facts, batch_size=size, eval_batch_size=batch_size, seed=0, device=device)
    module.mean, module.std = run.mean, run.std
    return module.evaluation_batches(chosen.indices)


def other_batches(
    run: Trained, data: Mapping[str, Any], chosen: ChosenImages, *, batch_size: int | None, device: torch.device
) -> Batches:
    """Return the batches of another set, its images prepared as those of the run."""
    wanted = parse(data)
    if not is_folder(wanted):
        return own_batches(run, data, chosen, batch_size=batch_size, device=device)
    examples = chosen.facts.examples
    files = OtherImages(examples.root, examples.paths, **run.preparation())
    finish = Finish(size=run.image_size, mean=run.mean, std=run.std, pixel_max=255)
    plan = ShardPlan(chosen.indices, batch_size or 64)
    return StreamBatches(plan, finish, files, examples.labels, workers=wanted.workers, device=device)
