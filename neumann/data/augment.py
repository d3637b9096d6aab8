"""Augmentation as a function of (seed, epoch, example): batch size, workers, devices and resumes do not change it.

The randomness is a table of uniforms per epoch with one row per training example, drawn once and indexed by example;
boxes follow from it by arithmetic. `apply` crops and mirrors whole batches on the device. The one exception: a streamed
random resized crop is taken and mirrored in the worker, from the full file; in memory it is taken from the decoded and
fitted image.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from neumann.data.splits import uniforms

TRIES = 10  # of random_resized_crop, as in torchvision
SCALE = (0.08, 1.0)  # area of the crop over the image's, Inception's
RATIO = (3 / 4, 4 / 3)  # width over height
COLUMNS = {"none": 0, "crop": 3, "crop_flip": 3, "random_resized_crop": 3 + 2 * TRIES}
Boxes = NDArray[np.int64]


def draw(name: str, count: int, seed: int, epoch: int) -> NDArray[np.float32] | None:
    """Return uniforms float32 [count, COLUMNS[name]] in [0, 1) for one epoch, None where ``name`` draws none.

    ``count`` is the number of training examples. Column 0 decides about the mirror.
    """
    return uniforms((count, COLUMNS[name]), (seed, epoch)) if COLUMNS[name] else None


def boxes(name: str, table: NDArray[np.float32], size: tuple[int, int]) -> Boxes:
    """Return the boxes int64 [N, 5] of images of ``size`` (height, width): top, left, height, width, mirrored (0 or 1).

    ``table`` has rows [N, COLUMNS[name]] of `draw`. Lengths are in pixels; for crops, top and left count from the
    corner of the image padded by `padding` on every side.
    """
    if name == "random_resized_crop":
        return crop_boxes(table, *size)
    found = np.empty((len(table), 5), dtype=np.int64)
    for axis, side in enumerate(size):
        places = 2 * padding(side) + 1
        found[:, axis] = np.minimum(table[:, 1 + axis] * places, places - 1)
        found[:, 2 + axis] = side
    found[:, 4] = (table[:, 0] < 0.5) if name == "crop_flip" else 0
    return found


def padding(side: int) -> int:
    """Return the pixels of black added on either end of a side: an eighth, so 4 for 32."""
    return max(1, side // 8)


def crop_boxes(table: NDArray[np.float32], height: int, width: int) -> Boxes:
    """Return the boxes int64 [N, 5] of Inception's random resized crop (Szegedy et al. 2015) in images of one size.

    The law is torchvision's: `TRIES` draws of area and ratio, and a centred crop where none fits.
    """
    areas = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * table[:, 3 : 3 + TRIES].astype(np.float64))
    spread = math.log(RATIO[1]) - math.log(RATIO[0])
    ratios = np.exp(math.log(RATIO[0]) + spread * table[:, 3 + TRIES :].astype(np.float64))
    widths = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    heights = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first, rows = fits.argmax(axis=1), np.arange(len(table))
    # where no try fits: the largest centred crop whose ratio is allowed
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    spare = (min(height, round(width / ratio)), min(width, round(height * ratio)))
    some = fits.any(axis=1)
    h = np.where(some, heights[rows, first], spare[0])
    w = np.where(some, widths[rows, first], spare[1])
    top = np.where(some, np.minimum(table[:, 1] * (height - h + 1), height - h), (height - h) // 2)
    left = np.where(some, np.minimum(table[:, 2] * (width - w + 1), width - w), (width - w) // 2)
    return np.stack([top, left, h, w, table[:, 0] < 0.5], axis=1).astype(np.int64)


def apply(name: str, images: Tensor, found: Tensor, interpolation: str = "bilinear") -> Tensor:
    """Cut and mirror uint8 ``images`` [B, C, H, W] by ``found`` int64 [B, 5], both on one device.

    A random resized crop, by ``interpolation``, returns float32, everything else uint8; the shape stays.
    """
    if name == "random_resized_crop":
        return _bicubic_crop(images, found) if interpolation == "bicubic" else _resized_crop(images, found)
    height, width = images.shape[2:]
    pad_y, pad_x = padding(height), padding(width)
    padded = functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    rows = found[:, :1] + torch.arange(height, device=images.device)
    columns = found[:, 1:2] + _mirrored(found[:, 4:], width)
    # one gather over flat pixels: five times faster on a CPU than indexing by four axes
    places = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).flatten(1)
    return padded.flatten(2).gather(2, places[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


def _mirrored(flags: Tensor, width: int) -> Tensor:
    forward = torch.arange(width, device=flags.device)
    return torch.where(flags > 0, width - 1 - forward, forward)


def _resized_crop(images: Tensor, found: Tensor) -> Tensor:
    """Return bilinear crops of different sizes. A crop is never larger than the image, so none needs smoothing."""
    height, width = images.shape[2:]
    top, left, h, w, flags = found.unbind(1)
    y = _centres(top, h, torch.arange(height, device=images.device), height)
    x = _centres(left, w, _mirrored(flags[:, None], width), width)
    shape = (len(images), height, width)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    return functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)


def _bicubic_crop(images: Tensor, found: Tensor) -> Tensor:
    """Return bicubic crops of different sizes, as Pillow and torchvision make each: rows first, then columns."""
    height, width = images.shape[2:]
    top, left, h, w, flags = found.unbind(1)
    pixels = images.float()
    for axis, start, length, side in ((3, left, w, width), (2, top, h, height)):
        pixel = torch.arange(side, device=images.device)
        pixel = _mirrored(flags[:, None], side) if axis == 3 else pixel
        place = (pixel + 0.5) * (length[:, None] / side) - 0.5  # [B, side]
        first = place.floor()
        taken, total = torch.zeros_like(pixels), torch.zeros_like(place)
        for tap in range(-1, 3):
            at = (first + tap).long()
            weight = _cubic(place - at) * ((at >= 0) & (at < length[:, None]))  # none beyond the crop, as Pillow does
            total += weight
            rows = start[:, None] + at.clamp(min=0).minimum(length[:, None] - 1)
            shape = (len(images), 1, -1, 1) if axis == 2 else (len(images), 1, 1, -1)
            taken += pixels.gather(axis, rows.view(shape).expand_as(pixels)) * weight.view(shape)
        pixels = taken / total.view(shape)
    return pixels.clamp_(0, 255)


def _cubic(distance: Tensor) -> Tensor:
    """Return Keys' weights at ``distance`` in pixels, with Pillow's a = −0.5."""
    x = distance.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _centres(start: Tensor, length: Tensor, pixel: Tensor, side: int) -> Tensor:
    """Return where the output ``pixel``s of crops [B] fall, in grid_sample's -1 to 1, and never outside the crop."""
    place = (pixel + 0.5) * (length[:, None] / side) - 0.5
    inside = start[:, None] + torch.minimum(place.clamp(min=0), (length[:, None] - 1).to(place.dtype))
    return inside * (2 / max(side - 1, 1)) - 1
