"""One LightningDataModule for every kind of data, in memory or streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from neumann.data import noise, resident, settings, shared_memory
from neumann.data.batches import Batches, DealtPlan, Finish, ShardPlan, StreamBatches, TensorBatches
from neumann.data.checked_settings import parse
from neumann.data.facts import DataFacts
from neumann.data.images import ArrayImages, ImageFiles, NoiseImages
from neumann.data.scaled_copies import check_scaled
from neumann.data.splits import Indices
from neumann.data.unchanged import Watch
from neumann.errors import UserError
from neumann.seeds import derive

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CALIBRATION_IMAGES = 512  # at most, in a batch of `calibration_batches`
EVAL_PIXELS = 512 * 32 * 32  # at most, in a default evaluation batch of images in memory


def build(
    data: Mapping[str, Any],
    facts: DataFacts,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    eval_batch_size: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    norm_size: int | None = None,
) -> ImageData:
    """Return the data module of ``data``; an in-memory folder is decoded here, or read from the cache.

    Args:
        data: the ``data`` group of a configuration.
        facts: `neumann.data.facts` of it.
        batch_size: examples in a training batch of one process.
        seed: the run's, from which order and augmentation are derived.
        device: where batches are put, until the module is attached to a trainer, whose device then counts.
        eval_batch_size: examples in an evaluation batch of one process; None: ``batch_size``, or up to 512 for small
            images in memory, where a larger batch costs nothing and changes no prediction.
        rank: this process, from 0, until a trainer says.
        world_size: the number of processes that share each split, until a trainer says.
        accumulation: training batches of one process in an optimizer step, see `ShardPlan`.
        norm_size: batch norm's ghost batch, of which `calibration_batches` are whole multiples; None: there is none.

    Raises UserError for a batch larger than the training split, files that cannot be decoded, files that are no longer
    those of ``facts``, and images that are equal to some of another class at the size that they are brought to.
    """
    wanted = parse(data)
    # refuses a batch that is too large before anything is decoded
    ShardPlan(facts.examples.train, batch_size, seed=0, world_size=world_size, accumulation=accumulation)
    watch = Watch(facts, wanted)
    files: ImageFiles | None = None
    pixels = measured = None
    if isinstance(wanted, settings.Fake):
        total = len(facts.examples.labels)
        files = NoiseImages(total, seed=wanted.noise_seed, size=wanted.image_size, channels=wanted.channels)
        if facts.in_memory:
            pixels = resident.measure(files.everything())
    elif isinstance(wanted, settings.ImageFolder):
        assert facts.source is not None
        if not facts.in_memory:
            watch.check_files()
        files = ImageFiles(
            facts.source,
            len(facts.examples.labels),
            channels=facts.channels,
            native=facts.native_size == facts.image_size,
            stamps=None if facts.in_memory else watch.stamps,
            **_scaling(facts),
        )
        if facts.in_memory:
            pixels = resident.load(facts, files, wanted)
    else:
        pixels = measured = resident.load_array(facts, wanted)
        if isinstance(wanted, settings.TorchvisionSet):
            files = ArrayImages(pixels.images, **_scaling(facts))
            if not facts.in_memory:
                pixels = None
            elif facts.image_size != facts.native_size:
                pixels = resident.load(facts, files, wanted)
    if pixels is not None and facts.image_size != facts.native_size:
        check_scaled(facts, pixels, tell=rank == 0)
    return ImageData(
        facts,
        wanted,
        pixels=pixels,
        measured=measured or pixels,
        files=files,
        watch=watch,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size or _eval_batch_size(facts, batch_size),
        seed=seed,
        device=torch.device(device),
        place=(rank, world_size),
        accumulation=accumulation,
        norm_size=norm_size,
    )


class ImageData(pl.LightningDataModule):
    """Batches of (images float32 [B, C, H, W] normalised, labels int64 [B]) of the three splits; made by `build`.

    ``mean`` and ``std`` are per channel, in units of the full pixel range (``facts.pixel_max``). For pretrained
    weights, training sets theirs.

    Args:
        facts: the data set's.
        wanted: its settings.
        pixels: the decoded images, uint8 [N, C, H, W] with channel sums; None: they are streamed from ``files``.
        measured: those whose statistics normalise, of an array at its own size; None: there are none.
        files: the image files; None for embedded data.
        watch: looks whether they are still those of ``facts``.
        batch_size: examples in a training batch of one process.
        eval_batch_size: examples in an evaluation batch of one process.
        seed: the run's.
        device: where batches are put, until a trainer says.
        place: (rank, number of processes), until a trainer says.
        accumulation: training batches of one process in an optimizer step.
        norm_size: batch norm's ghost batch, or None.
    """

    def __init__(
        self,
        facts: DataFacts,
        wanted: settings.Settings,
        *,
        pixels: resident.Pixels | None,
        measured: resident.Pixels | None,
        files: ImageFiles | None,
        watch: Watch,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        device: torch.device,
        place: tuple[int, int] = (0, 1),
        accumulation: int = 1,
        norm_size: int | None = None,
    ) -> None:
        super().__init__()
        self.facts = facts
        self.num_classes, self.in_chans, self.image_size = facts.num_classes, facts.channels, facts.image_size
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.accumulation, self.norm_size = accumulation, norm_size
        self.augmentation = wanted.augmentation
        self.mean, self.std = _normalisation(facts, wanted, measured)
        self._workers: int = getattr(wanted, "workers", 0)
        self._watch = watch
        self._pixels, self._files, self._device, self._place = pixels, files, device, place
        self._resident: tuple[torch.device, Tensor, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """The device of the batches: the trainer's, once there is a trainer."""
        return self._device if self.trainer is None else self.trainer.strategy.root_device

    def train_dataloader(self) -> Batches:
        """Return the training batches, shuffled and augmented, at the start of epoch 0."""
        return self._batches(self.facts.examples.train, training=True)

    def val_dataloader(self) -> Batches:
        """Return the validation batches."""
        return self._batches(self.facts.examples.validation)

    def test_dataloader(self) -> Batches:
        """Return the test batches."""
        return self._batches(self.facts.examples.test)

    def evaluation_batches(self, indices: Indices) -> Batches:
        """Return batches of the images at ``indices`` of the whole set, prepared as for an evaluation."""
        return self._batches(indices)

    def predict_dataloader(self) -> Batches:
        """Return the test batches, labels included."""
        return self.test_dataloader()

    def calibration_batches(self, count: int) -> Batches:
        """Return ``count`` training batches, the same in every iteration, apart from the stream that trains.

        Each batch has the images of a step over all processes, up to `CALIBRATION_IMAGES`, augmented as in training,
        and is dealt whole to one process, so that the batches do not depend on the number of processes. A process may
        get none. Where steps are accumulated, a batch has no more images than a process takes at once.
        """
        indices, (rank, world_size) = self.facts.examples.train, self._whose()
        most = self.batch_size * world_size if self.accumulation == 1 else self.batch_size
        ghost = self.norm_size or 1
        size = max(ghost, min(most, CALIBRATION_IMAGES) // ghost * ghost)
        seed = derive(self.seed, "evaluation")
        plan = DealtPlan(indices, size, rank=rank, world_size=world_size, count=count, order_seed=seed)
        return self._load(plan, augmentation=self.augmentation, seed=seed)

    def check_stream(self) -> None:
        """Raise UserError where an image was added to the streamed ones or removed; a changed one is met when read."""
        if self._pixels is None:
            self._watch.check_places()

    def check_shared_memory(self, processes: int) -> None:
        """Raise UserError where the batches of ``processes``, which train on this machine, have no room in /dev/shm.

        The training stream stays full while another one evaluates.
        """
        if self._pixels is not None or not self._workers:
            return
        image = self.in_chans * self.image_size[0] * self.image_size[1]
        sizes = (self.batch_size, self.eval_batch_size)
        needed = processes * sum(shared_memory.needed(self._workers, size * image) for size in sizes)
        if needed > (free := shared_memory.free()):
            raise UserError(
                f"data.workers={self._workers}: the processes that decode hand over batches through "
                f"{shared_memory.PLACE}, which has {free / 1e6:.0f} MB free where {needed / 1e6:.0f} are needed: make "
                "it larger (docker run --shm-size=8g), set data.workers=0, or a smaller batch.size or data.image_size"
            )

    def _whose(self) -> tuple[int, int]:
        """Return (this process's rank, the number of processes)."""
        return self._place if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _batches(self, indices: Indices, *, training: bool = False) -> Batches:
        rank, world_size = self._whose()
        plan = ShardPlan(
            indices,
            self.batch_size if training else self.eval_batch_size,
            seed=derive(self.seed, "order") if training else None,
            rank=rank,
            world_size=world_size,
            accumulation=self.accumulation if training else 1,
        )
        augmentation = self.augmentation if training else "none"
        return self._load(plan, augmentation=augmentation, seed=derive(self.seed, "augmentation"))

    def _load(self, plan: ShardPlan, *, augmentation: str, seed: int) -> Batches:
        finish = Finish(
            size=self.image_size,
            mean=self.mean,
            std=self.std,
            pixel_max=self.facts.pixel_max,
            augmentation=augmentation,
            seed=seed,
            interpolation=self.facts.interpolation or "bilinear",
        )
        if self._pixels is not None:
            return TensorBatches(plan, finish, *self._on_device(self._pixels.images))
        assert self._files is not None
        labels = self.facts.examples.labels
        return StreamBatches(
            plan, finish, self._files, labels, workers=self._workers, device=self.device, watch=self._watch
        )

    def _on_device(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels of the whole set on the device, moved there once for all three splits."""
        device = self.device
        if self._resident is None or self._resident[0] != device:
            labels = torch.from_numpy(self.facts.examples.labels)
            self._resident = device, images.to(device), labels.to(device)
        return self._resident[1:]


def _scaling(facts: DataFacts) -> dict[str, Any]:
    return {"size": facts.image_size, "interpolation": facts.interpolation, "crop_pct": facts.crop_pct}


def _eval_batch_size(facts: DataFacts, batch_size: int) -> int:
    height, width = facts.image_size
    return max(batch_size, min(512, EVAL_PIXELS // (height * width))) if facts.in_memory else batch_size


def _normalisation(
    facts: DataFacts, wanted: settings.Settings, measured: resident.Pixels | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = getattr(wanted, "mean", None), getattr(wanted, "std", None)
    if mean is not None and std is not None:
        return mean, std
    if isinstance(wanted, settings.Fake):  # the same, whether the images are held or not
        return (noise.MEAN,) * wanted.channels, (noise.STD,) * wanted.channels
    if measured is not None:
        return measured.mean_and_std(facts.examples.train, facts.pixel_max)
    if facts.channels == 3:
        return IMAGENET
    mean, std = IMAGENET
    return (sum(mean) / 3,), (sum(std) / 3,)
