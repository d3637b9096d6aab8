"""Images in memory: every file is decoded once into one tensor, which the cache keeps for later runs.

It is mapped from there, so that the processes of one machine share its pages.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from neumann.cache_folder import cache_folder
from neumann.data import arrays, cache, settings, shared_memory, torchvision_sets
from neumann.data.decoding_workers import begin, decoded
from neumann.data.facts import CENTRE, DataFacts
from neumann.data.images import ImageFiles, Request, as_is
from neumann.data.scan import report_unreadable
from neumann.data.splits import Indices
from neumann.data.unchanged import changed, check_unchanged
from neumann.errors import first_line

VERSION = 1  # of decoding and of the file: raise it when either changes
CHUNK = 64  # images a worker decodes at a time
DAMAGED = (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Pixels:
    """``images`` uint8 [N, C, H, W], with the sums of their pixels and squared pixels per channel, int64 [N, C]."""

    images: Tensor
    sums: Tensor
    squares: Tensor

    def mean_and_std(self, indices: Indices, pixel_max: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation per channel over the images at ``indices``, in units of ``pixel_max``.

        Both follow from whole-number sums, so they are the same on every machine. A constant channel gets standard
        deviation 1.
        """
        rows = torch.from_numpy(indices)
        pixels = len(indices) * self.images.shape[2] * self.images.shape[3]
        mean, std = [], []
        for total, square in zip(self.sums[rows].sum(0).tolist(), self.squares[rows].sum(0).tolist(), strict=True):
            variance = (square * pixels - total * total) / pixels**2
            mean.append(total / pixels / pixel_max)
            std.append(variance**0.5 / pixel_max if variance > 0 else 1.0)
        return tuple(mean), tuple(std)


def measure(images: Tensor) -> Pixels:
    """Return ``images`` uint8 [N, C, H, W] with their sums over pixels."""
    sums = images.new_empty(images.shape[:2], dtype=torch.int64)
    squares = torch.empty_like(sums)
    for start in range(0, len(images), 1024):  # a chunk at a time: squares need 4 bytes a pixel
        part = images[start : start + 1024].to(torch.int32)
        sums[start : start + 1024] = part.sum((2, 3))
        squares[start : start + 1024] = (part * part).sum((2, 3))
    return Pixels(images, sums, squares)


def load(facts: DataFacts, files: ImageFiles, wanted: settings.Fitted) -> Pixels:
    """Return all images of ``facts``, decoded by the processes that ``wanted`` asks for, or from the cache.

    Raises UserError naming the first file that cannot be decoded and how many there are, and where the files are no
    longer those of ``facts``: the cache keeps pixels under their fingerprint.
    """

    def made() -> Tensor:
        images = _decode(files, wanted.workers)
        check_unchanged(facts, wanted)
        return images

    return _kept(_key(facts), (facts.channels, *facts.image_size), len(facts.examples.labels), made)


def load_array(facts: DataFacts, wanted: settings.Settings) -> Pixels:
    """Return the array that ``wanted`` names, at its own size.

    torchvision's sets come from the cache, where the files are those that ``facts`` were made of, so that only one of
    several processes reads them. Raises UserError where they have changed.
    """

    def made() -> Tensor:
        found = arrays.read(wanted)
        if found.fingerprint() != facts.fingerprint:
            raise changed(f"files of data={facts.kind}")
        return torch.from_numpy(np.require(found.images, requirements=("C", "W")))

    if not isinstance(wanted, settings.TorchvisionSet):  # embedded: read faster than the cache
        return measure(made())
    assert facts.native_size is not None
    if torchvision_sets.stat_digest(wanted) != facts.stat_digest:
        made()
    key = hashlib.sha256(repr([facts.fingerprint, "array", VERSION]).encode()).hexdigest()[:32]
    return _kept(key, (facts.channels, *facts.native_size), len(facts.examples.labels), made)


def _kept(key: str, shape: tuple[int, ...], count: int, made: Callable[[], Tensor]) -> Pixels:
    """Return the images that the cache keeps under ``key``, or those that are ``made``."""
    kept = cache_folder() / "decoded" / f"{key}.pt"
    with cache.lock(kept):
        if (known := _recall(kept, (count, *shape))) is not None:
            return known
        pixels = measure(made())
        content = {**vars(pixels), "version": VERSION, "checksum": _checksum(pixels)}
        cache.write(kept, lambda path: torch.save(content, path))
        return _recall(kept, (count, *shape)) or pixels  # this process shares the pages, too


def _key(facts: DataFacts) -> str:
    told: list[Any] = [facts.fingerprint, facts.image_size, facts.channels, VERSION]
    if facts.image_size != facts.native_size and (facts.interpolation, facts.crop_pct) != ("bilinear", CENTRE):
        told += [facts.interpolation, facts.crop_pct]
    if not facts.fingerprint.startswith("content:"):
        told.append(facts.stat_digest)  # names and sizes alone would miss an edited pixel
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def _checksum(pixels: Pixels) -> int:
    checksum = 0
    for tensor in (pixels.images, pixels.sums, pixels.squares):
        checksum = zlib.crc32(tensor.numpy().reshape(-1).view("uint8").data, checksum)
    return checksum


def _recall(kept: Path, shape: tuple[int, ...]) -> Pixels | None:
    try:
        # mapped rather than read: runs on one machine then share the pages
        content = torch.load(kept, mmap=True, weights_only=True, map_location="cpu")
        pixels = Pixels(content["images"], content["sums"], content["squares"])
        if tuple(pixels.images.shape) != shape or _checksum(pixels) != content["checksum"]:
            raise ValueError("its content is not what was written")
        return pixels
    except cache.ABSENT:
        return None
    except DAMAGED as error:
        reason = first_line(error)
        cache.log.warning("the decoded images '%s' are damaged, so they are decoded again (%s)", kept, reason)
        return None


def _decode(files: ImageFiles, workers: int) -> Tensor:
    requests = [Request(index) for index in range(len(files))]
    chunks = [requests[start : start + CHUNK] for start in range(0, len(requests), CHUNK)]
    fitting = shared_memory.fitting(workers, CHUNK * files.channels * files.size[0] * files.size[1])
    if fitting < workers:
        room = f"{shared_memory.free() / 1e6:.0f} MB"
        cache.log.warning("%s has %s free, so %d processes decode, not %d", shared_memory.PLACE, room, fitting, workers)
    loader: DataLoader[Any] = DataLoader(
        files,
        batch_sampler=chunks,
        num_workers=fitting,
        collate_fn=as_is,
        worker_init_fn=begin,
        generator=torch.Generator(),
    )
    images = torch.empty((len(files), files.channels, *files.size), dtype=torch.uint8)
    problems: list[tuple[str, str]] = []
    for chunk, answer in zip(chunks, decoded(loader), strict=True):
        if isinstance(answer, list):
            problems.extend((one.path, one.reason) for one in answer)
        elif not problems:
            images[chunk[0].index : chunk[-1].index + 1] = answer
    report_unreadable(problems, len(files))
    return images
