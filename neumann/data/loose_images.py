"""Images that belong to no data set, prepared as a run's evaluation prepares its own; a damaged one stops no other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional

from neumann.data.decoding_workers import begin, decoded
from neumann.data.folder import SUFFIXES, images_below
from neumann.data.images import ImageFiles, Request, Unreadable, as_is, fit
from neumann.data.scan import UNREADABLE, explain
from neumann.data.sources import FolderSource
from neumann.errors import UserError, printable

AT_ONCE = 64  # images for which a worker process is worth its start


def found_images(paths: Sequence[str]) -> list[str]:
    """Return the image files that ``paths`` name, a folder's with those below it, in this order.

    Raises UserError for a path that is not there, and for a folder without images.
    """
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            below = images_below(Path(path))
            if not below:
                raise UserError(f"{printable(path)} holds no images: they end in {', '.join(SUFFIXES)}")
            found += [os.path.join(path, name) for name in below]
        elif os.path.exists(path):
            found.append(path)
        else:
            raise UserError(f"there is no image {printable(path)}")
    return found


class OtherImages(ImageFiles):
    """Images other than those that a run was trained on, brought to the size that it was trained at.

    Args:
        root: the folder that ``paths`` are relative to; empty for the working directory.
        paths: the files.
        size: (height, width) that images are brought to, in pixels.
        channels: 1 (grey) or 3 (RGB).
        whole: whether images of this size stay as they are.
        interpolation: of every change of size, bilinear or bicubic.
        crop_pct: the side of the centre cut over the scaled image's; 1 cuts as little as can be.
    """

    def __init__(
        self,
        root: str,
        paths: Sequence[str],
        *,
        size: tuple[int, int],
        channels: int,
        whole: bool,
        interpolation: str,
        crop_pct: float,
    ) -> None:
        super().__init__(
            FolderSource(root, tuple(paths)),
            len(paths),
            size=size,
            channels=channels,
            native=whole,
            interpolation=interpolation,
            crop_pct=crop_pct,
        )

    def _read(self, request: Request) -> Tensor:
        image = self._decoded(request.index)
        if not self.native or (image.height, image.width) != self.size:
            image = fit(image, self.size, self.crop_pct, self.interpolation)
        return functional.pil_to_tensor(image)


class LooseImages(OtherImages):
    """Images of which each is answered for itself: uint8 [C, H, W], or why it cannot be decoded."""

    def __getitems__(self, requests: Sequence[Request]) -> list[Tensor | Unreadable]:  # type: ignore[override]
        """Return the answers to ``requests`` in order."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Tensor | Unreadable:
        path = self.source.path(request.index)
        try:
            if not os.path.isfile(path):  # reading a pipe would wait for ever
                return Unreadable(path, "it is not a file")
            return self._read(request)
        except UNREADABLE as error:
            return Unreadable(path, explain(error))

    def batches(self, batch_size: int, workers: int) -> Iterator[tuple[list[int], Tensor | None, list[Unreadable]]]:
        """Yield, a batch of files at a time, the indices of those that were decoded, their pixels, and the others.

        The pixels are uint8 [B, C, H, W], None where no file of the batch was decoded.
        """
        requests = [Request(index) for index in range(len(self))]
        chunks = [requests[at : at + batch_size] for at in range(0, len(requests), batch_size)]
        loader: DataLoader[Any] = DataLoader(
            self,
            batch_sampler=chunks,
            num_workers=workers if len(self) >= AT_ONCE else 0,
            collate_fn=as_is,
            worker_init_fn=begin,
            generator=torch.Generator(),
        )
        for chunk, answers in zip(chunks, decoded(loader), strict=True):
            sound = [i for i, answer in enumerate(answers) if isinstance(answer, Tensor)]
            pixels = torch.stack([answers[i] for i in sound]) if sound else None
            yield [chunk[i].index for i in sound], pixels, [one for one in answers if isinstance(one, Unreadable)]
