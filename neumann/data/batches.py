"""Batches: which images are in batch k of epoch e on which process, and their way to the device.

`ShardPlan` and `DealtPlan` say which; `TensorBatches` index a small set that lies on the device as uint8,
`StreamBatches` decode files in workers. The order is a pure function of (order seed, epoch), the augmentation of
(augmentation seed, epoch, example).

Training drops the last incomplete batch; evaluation counts every example exactly once, in a fixed order. With several
processes, batch k is cut from one shared order, so the union over processes does not depend on their number, and every
process makes the same number of batches, since a process with one fewer would leave the others waiting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from neumann.data import augment
from neumann.data.decoding_workers import begin, decoded
from neumann.data.images import ImageFiles, Request, Rewritten, as_is
from neumann.data.scan import report_unreadable
from neumann.data.splits import Indices, order
from neumann.data.unchanged import Watch
from neumann.errors import UserError

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class ShardPlan:
    """The examples of every batch of one process, for a split.

    Args:
        indices: the split's examples, int64 [N] into the whole set.
        batch_size: examples in a batch of one process.
        seed: of the training order, shuffled anew each epoch; None: evaluation, in the order of ``indices``.
        rank: this process, from 0.
        world_size: the number of processes that share the split.
        accumulation: training batches of a process in one optimizer step. The step's examples are one stretch of the
            order, however many batches and processes it is cut among, and an epoch has whole steps only.

    Raises UserError for a training batch larger than the split, and for a split with fewer examples than processes.
    """

    indices: Indices
    batch_size: int
    seed: int | None = None
    rank: int = 0
    world_size: int = 1
    accumulation: int = 1

    def __post_init__(self) -> None:
        count, processes = len(self.indices), self.world_size
        share = self.batch_size * self.accumulation
        if self.seed is not None and share * processes > count:
            each = f" in each of {processes} processes" if processes > 1 else ""
            raise UserError(
                f"batch.size is {share}{each} but the training split has {count} images: "
                f"batch.size can be at most {count // processes}"
            )
        if count < processes:
            raise UserError(f"a split of {count} images cannot be shared by {processes} processes")

    @property
    def span(self) -> int:
        """The number of images in a batch over all processes."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        count = len(self.indices)
        if self.seed is not None:
            return count // (self.span * self.accumulation) * self.accumulation
        return max(1, min(-(-count // self.span), count // self.world_size))

    def batches(self, epoch: int) -> list[Indices]:
        """Return this process's batches of ``epoch``, as positions in ``indices``."""
        count = len(self.indices)
        if self.seed is not None:
            shuffled = order(count, (self.seed, epoch))[: len(self) * self.span]
            return list(shuffled.reshape(len(self), self.world_size, self.batch_size)[:, self.rank])
        positions = np.arange(count)
        if self.world_size == 1:
            return np.split(positions, range(self.batch_size, count, self.batch_size))
        return [step[self.rank :: self.world_size] for step in np.array_split(positions, len(self))]


@dataclass(frozen=True, eq=False)
class DealtPlan(ShardPlan):
    """The first ``count`` whole batches of a training order, dealt to the processes one by one.

    The batches do not depend on the number of processes: each is as large as on one process and stays whole.

    Args:
        indices: the training split's examples, int64 [N] into the whole set.
        batch_size: examples in each whole batch.
        seed: None, so that every iteration begins at the first batch.
        rank: this process, from 0.
        world_size: the number of processes that the batches are dealt to.
        count: the number of batches over all processes.
        order_seed: of the order that the batches are cut from.
    """

    count: int = 1
    order_seed: int = 0

    def __len__(self) -> int:
        return len(range(self.rank, self.count, self.world_size))

    def batches(self, epoch: int) -> list[Indices]:
        """Return this process's batches, the same in every epoch; a new order begins where the examples are used up."""
        examples, size = len(self.indices), self.batch_size
        places = [divmod(number, examples // size) for number in range(self.rank, self.count, self.world_size)]
        orders = {e: order(examples, (self.order_seed, e)) for e, _ in places}
        return [orders[e][at * size : (at + 1) * size] for e, at in places]


@dataclass(frozen=True)
class Finish:
    """The processing of pixels on the device: augmentation, then (x / pixel_max - mean) / std.

    Args:
        size: (height, width) of the images in pixels.
        mean: per channel, in units of ``pixel_max``.
        std: per channel, in units of ``pixel_max``.
        pixel_max: the value of a full pixel, 255 for bytes.
        augmentation: one of `neumann.data.settings.AUGMENTATIONS`.
        seed: of the augmentation.
        interpolation: of a random resized crop, bilinear or bicubic.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_max: int
    augmentation: str = "none"
    seed: int = 0
    interpolation: str = "bilinear"

    def constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and std in pixel values, float32 [C, 1, 1]."""
        shape = (-1, 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device).reshape(shape) * self.pixel_max
        return mean, torch.tensor(self.std, dtype=torch.float32, device=device).reshape(shape) * self.pixel_max


class Batches(ABC):
    """Batches of (images float32 [B, C, H, W] normalised, labels int64 [B]) on ``device``.

    Training batches are stateful: ``state_dict()`` counts a batch as soon as it is handed out, an iterator goes on at
    the position (also of a loaded state), and a finished epoch is followed by the next one. ``set_epoch`` starts
    another epoch, or a finished one again, and leaves an epoch under way alone. Evaluation always starts at the
    beginning.
    """

    batch_sampler = None  # Lightning reads it from every loader with a ``sampler``

    def __init__(self, plan: ShardPlan, finish: Finish, device: torch.device) -> None:
        self.plan, self.finish, self.device = plan, finish, device
        self.epoch = self.position = 0
        self.taken: Indices = np.arange(0)  # the last batch handed out, as positions in plan.indices
        self._mean, self._std = finish.constants(device)

    @property
    def sampler(self) -> Batches:
        """This object: Lightning calls ``loader.sampler.set_epoch`` at the start of every epoch."""
        return self

    def __len__(self) -> int:
        return len(self.plan)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``, unless it is under way."""
        if epoch != self.epoch or self.position >= len(self):
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, how many of its batches were handed out, and the images in a step over all processes."""
        return {"epoch": self.epoch, "position": self.position, "span": self.plan.span}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken. Raises UserError in the middle of an epoch with steps of another size."""
        if state["position"] and state.get("span", self.plan.span) != self.plan.span:
            raise UserError(
                f"the checkpoint is {state['position']} steps of {state['span']} images into an epoch and cannot go on "
                f"with steps of {self.plan.span} images"
            )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so nothing is read before the first batch is asked for: Lightning makes iterators that it never
        # uses, and loads the state and sets the epoch after it has made the one that it does use.
        training = self.plan.seed is not None
        if training and self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        first = self.position if training else 0
        rows = self.plan.batches(self.epoch)[first:]
        if not rows:  # a process to which no batch was dealt
            return
        for step, (taken, batch) in enumerate(zip(rows, self._load(rows), strict=True), start=first + 1):
            self.position = step if training else 0  # before the yield: it is not resumed after the last batch
            self.taken = taken
            yield batch

    def _normalise(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).sub_(self._mean).div_(self._std)

    def _draw(self) -> np.ndarray | None:
        return augment.draw(self.finish.augmentation, len(self.plan.indices), self.finish.seed, self.epoch)

    @abstractmethod
    def _load(self, batches: list[Indices]) -> Iterator[Batch]:
        """Yield ``batches`` of the current epoch, which are given as positions in ``plan.indices``."""


class TensorBatches(Batches):
    """Batches indexed out of tensors on one device.

    Args:
        plan: the examples of every batch.
        finish: the processing of pixels on the device.
        pixels: the whole set's images, uint8 [N, C, H, W].
        labels: the whole set's labels, int64 [N], on the same device.
    """

    def __init__(self, plan: ShardPlan, finish: Finish, pixels: Tensor, labels: Tensor) -> None:
        super().__init__(plan, finish, pixels.device)
        self._pixels, self._labels = pixels, labels

    def _load(self, batches: list[Indices]) -> Iterator[Batch]:
        sizes = [len(batch) for batch in batches]
        flat = np.concatenate(batches)  # one transfer per epoch, not one per batch
        rows = torch.from_numpy(self.plan.indices[flat]).to(self.device).split(sizes)
        table = self._draw()
        if table is None:
            for row in rows:
                yield self._normalise(self._pixels[row]), self._labels[row]
            return
        name = self.finish.augmentation
        boxes = torch.from_numpy(augment.boxes(name, table[flat], self.finish.size)).to(self.device).split(sizes)
        for row, box in zip(rows, boxes, strict=True):
            images = augment.apply(name, self._pixels[row], box, self.finish.interpolation)
            yield self._normalise(images), self._labels[row]


class StreamBatches(Batches):
    """Batches decoded from files by worker processes.

    Args:
        plan: the examples of every batch.
        finish: the processing of pixels on the device.
        files: the whole set's image files, N of them.
        labels: the whole set's labels, int64 [N].
        workers: processes that decode; 0 decodes in this one.
        device: where batches are put.
        watch: is told of files that were written since the set was listed; None: nobody is.

    Raises UserError while iterating, naming the first file that cannot be decoded, and as ``watch`` does.
    """

    def __init__(
        self,
        plan: ShardPlan,
        finish: Finish,
        files: ImageFiles,
        labels: Indices,
        *,
        workers: int,
        device: torch.device,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(plan, finish, device)
        self._files, self._labels, self._requests, self._watch = files, labels, _Requests(), watch
        self._loader: DataLoader[Any] = DataLoader(
            files,
            batch_sampler=self._requests,
            num_workers=workers,
            collate_fn=as_is,
            worker_init_fn=begin,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # without it every epoch would draw from torch's global stream
        )

    def _load(self, batches: list[Indices]) -> Iterator[Batch]:
        name, table = self.finish.augmentation, self._draw()
        in_worker = table is not None and name == "random_resized_crop"
        self._requests.wanted = (
            [
                Request(int(self.plan.indices[at]), table[at] if table is not None and in_worker else None)
                for at in batch
            ]
            for batch in batches
        )
        for batch, images in zip(batches, decoded(self._loader), strict=True):
            if isinstance(images, list):
                problems = [(one.path, one.reason) for one in images]
                report_unreadable(problems, len(self._files))
            if isinstance(images, Rewritten):
                if self._watch is not None:
                    self._watch.check_read(images.stamps)
                images = images.images
            images = images.to(self.device, non_blocking=True)
            if table is not None and not in_worker:
                box = torch.from_numpy(augment.boxes(name, table[batch], self.finish.size)).to(self.device)
                images = augment.apply(name, images, box)
            labels = torch.from_numpy(self._labels[self.plan.indices[batch]]).to(self.device, non_blocking=True)
            yield self._normalise(images), labels


class _Requests(Sampler[list[Request]]):
    """The batches that the workers are asked for in the epoch under way; the workers know no epochs."""

    def __init__(self) -> None:
        self.wanted: Iterable[list[Request]] = ()

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(self.wanted)
