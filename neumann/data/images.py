"""The decoding of image files: read by Pillow, converted, and fitted to the size that the model is trained at.

Images that all have the wanted size stay as they are. Others are brought to it the usual way: scaled until
size/crop_pct fits inside, then cut in the centre.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode, functional

from neumann.data import noise
from neumann.data.augment import crop_boxes
from neumann.data.eight_bits import as_eight_bits
from neumann.data.facts import CENTRE
from neumann.data.scan import UNREADABLE, explain
from neumann.data.sources import FolderSource, Source, Stamp


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be decoded, returned as a value: raised in a worker, it would arrive as a traceback."""

    path: str
    reason: str


@dataclass(frozen=True)
class Rewritten:
    """Images uint8 [B, C, H, W] of which some came from files with other stamps than those of the set's facts.

    Args:
        images: all of them.
        stamps: those files' stamps when they were read, by the images' indices in the set.
    """

    images: Tensor
    stamps: dict[int, Stamp]


@dataclass(frozen=True)
class Request:
    """One image to decode: its index, and the row of uniforms of a random resized crop, None for no crop."""

    index: int
    uniforms: NDArray[np.float32] | None = None


class ImageFiles(Dataset[Any]):
    """A data set of image files, which answers a list of B `Request` with uint8 [B, C, H, W].

    A list with files that cannot be decoded is answered with a list of `Unreadable`, and one with files whose stamps
    differ from ``stamps`` with `Rewritten`.

    Args:
        source: reads the images' bytes.
        count: the number of images, N.
        size: (height, width) that images are brought to, in pixels.
        channels: 1 (grey) or 3 (RGB).
        native: whether every file already has ``size``.
        interpolation: of every change of size, bilinear or bicubic.
        crop_pct: the side of the centre cut over the scaled image's.
        stamps: of the files, int64 [N, 3] as `neumann.data.sources.Stamp`; None: they are not compared.
    """

    def __init__(
        self,
        source: Source,
        count: int,
        *,
        size: tuple[int, int],
        channels: int,
        native: bool,
        interpolation: str = "bilinear",
        crop_pct: float = CENTRE,
        stamps: NDArray[np.int64] | None = None,
    ) -> None:
        self.source, self.count, self.stamps = source, count, stamps
        self.size, self.channels, self.native = size, channels, native
        self.interpolation, self.crop_pct = InterpolationMode(interpolation), crop_pct
        self._rewritten: dict[int, Stamp] = {}  # of the list that is being answered

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, requests: Sequence[Request]) -> Tensor | list[Unreadable] | Rewritten:
        """Return the images of ``requests`` in order, or the ones that cannot be decoded."""
        images, unreadable = [], []
        self._rewritten = {}
        for request in requests:
            try:
                images.append(self._read(request))
            except UNREADABLE as error:
                unreadable.append(Unreadable(self.source.path(request.index), explain(error)))
        if unreadable:
            return unreadable
        return Rewritten(torch.stack(images), self._rewritten) if self._rewritten else torch.stack(images)

    def _read(self, request: Request) -> Tensor:
        image = self._decoded(request.index)
        if request.uniforms is not None:
            *box, mirrored = crop_boxes(request.uniforms[None], image.height, image.width)[0].tolist()
            image = functional.resized_crop(
                image, *box, size=list(self.size), interpolation=self.interpolation, antialias=True
            )
            if mirrored:
                image = functional.hflip(image)
        elif not self.native:
            image = fit(image, self.size, self.crop_pct, self.interpolation)
        elif (image.height, image.width) != self.size:
            raise ValueError(f"it is {image.height}×{image.width} pixels now and was {self.size[0]}×{self.size[1]}")
        return functional.pil_to_tensor(image)

    def _decoded(self, index: int) -> Image.Image:
        content, stamp = self.source.read(index)
        if self.stamps is not None and stamp is not None and stamp != tuple(self.stamps[index].tolist()):
            self._rewritten[index] = stamp
        with Image.open(io.BytesIO(content)) as file:
            return as_eight_bits(file, self.channels)


class ArrayImages(ImageFiles):
    """The images of one array, which answer as `ImageFiles` do.

    Args:
        images: uint8 [N, C, H, W], C being 1 or 3.
        size: (height, width) that images are brought to, in pixels.
        interpolation: see `ImageFiles`.
        crop_pct: see `ImageFiles`.
    """

    def __init__(self, images: Tensor, *, size: tuple[int, int], interpolation: str, crop_pct: float) -> None:
        super().__init__(
            FolderSource("", ()),
            len(images),
            size=size,
            channels=images.shape[1],
            native=tuple(images.shape[2:]) == size,
            interpolation=interpolation,
            crop_pct=crop_pct,
        )
        self.images = images

    def _decoded(self, index: int) -> Image.Image:
        return functional.to_pil_image(self.images[index])


class NoiseImages(ImageFiles):
    """Noise that answers as `ImageFiles` does; see `neumann.data.noise`.

    Args:
        count: the number of images.
        seed: of the noise.
        size: (height, width) in pixels.
        channels: any number of them.
    """

    def __init__(self, count: int, *, seed: int, size: tuple[int, int], channels: int) -> None:
        super().__init__(FolderSource("", ()), count, size=size, channels=channels, native=True)
        self.seed = seed

    def everything(self) -> Tensor:
        """Return all images, uint8 [N, C, H, W]."""
        images = torch.empty((self.count, self.channels, *self.size), dtype=torch.uint8)
        for index in range(self.count):
            images[index] = self._made(index)
        return images

    def _made(self, index: int) -> Tensor:
        return torch.from_numpy(noise.image(index, seed=self.seed, shape=(self.channels, *self.size)))

    def _read(self, request: Request) -> Tensor:
        image = self._made(request.index)
        if request.uniforms is None:
            return image
        *box, mirrored = crop_boxes(request.uniforms[None], *self.size)[0].tolist()
        resized: Tensor = functional.resized_crop(image, *box, size=list(self.size), antialias=True)
        return functional.hflip(resized) if mirrored else resized


def fit(
    image: Image.Image,
    size: tuple[int, int],
    crop_pct: float = CENTRE,
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
) -> Image.Image:
    """Scale ``image`` until ``size``/``crop_pct`` just fits, and cut ``size`` (height, width) from its centre."""
    height, width = size
    scale = max(height / crop_pct / image.height, width / crop_pct / image.width)
    scaled = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
    resized = functional.resize(image, scaled, interpolation=interpolation, antialias=True)
    return functional.center_crop(resized, [height, width])


def as_is(batch: Any) -> Any:
    """Return ``batch``: `ImageFiles` answers whole batches, so there is nothing to collate."""
    return batch
