"""A trained run read back from its folder: the network at its answer, and how images are prepared for it.

The folder may be another user's. Weights are plain data with a digest (`neumann.training.checkpoints.decode`), the
network is one of timm's registry, and settings that would load other files are left out, so nothing of it is executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from neumann.data.facts import CENTRE
from neumann.errors import UserError, did_you_mean, first_line
from neumann.models import classifiers  # noqa: F401 - registers our own networks with timm
from neumann.models.timm_arguments import without_weights
from neumann.store import RunFolder
from neumann.store.files import opened
from neumann.store.records import RUN, read_config
from neumann.store.scores import is_number
from neumann.store.vouching import is_edited
from neumann.training.checkpoints import decode


@dataclass(frozen=True)
class Trained:
    """A finished run with its weights.

    Args:
        folder: the run's.
        result: the content of result.json.
        attempt: the last record of provenance.json.
        point: the evaluation point that the weights are at.
        weights: the network's state_dict.
        name: the network, as timm's registry has it.
        kwargs: its further arguments.
        class_names: by class index.
        image_size: (height, width) in pixels.
        channels: of an image.
        mean: per channel, images in [0, 1].
        std: as ``mean``.
        precision: in which it was trained and evaluated, as trainer.precision has it.
    """

    folder: Path
    result: Mapping[str, Any]
    attempt: Mapping[str, Any]
    point: str
    weights: Mapping[str, Tensor]
    name: str
    kwargs: Mapping[str, Any]
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str

    @property
    def signature(self) -> str:
        """The run's signature, by its folder's name."""
        return self.folder.resolve().name.rpartition("-")[2]

    @property
    def data(self) -> Mapping[str, Any]:
        """The recorded facts of its data."""
        data: Mapping[str, Any] = self.attempt["data"]
        return data

    @property
    def whole(self) -> bool:
        """Whether its images all had the size that it was trained at, so that none was scaled and cut."""
        return list(self.data.get("native_size") or ()) == list(self.image_size)

    @property
    def crop_pct(self) -> float:
        """The side of evaluation's centre cut over the scaled image's, as timm calls it; 1 where images are whole."""
        found: Any = self.data.get("crop_pct")
        return 1.0 if self.whole else float(found) if is_number(found) and 0 < found <= 1 else CENTRE

    @property
    def interpolation(self) -> str:
        """The interpolation of every change of size: bilinear unless the run recorded bicubic."""
        return "bicubic" if self.data.get("interpolation") == "bicubic" else "bilinear"

    def preparation(self) -> dict[str, Any]:
        """Return how images are prepared, as keywords of `neumann.data.loose_images.OtherImages`."""
        return {
            "size": self.image_size,
            "channels": self.channels,
            "whole": self.whole,
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
        }

    def scores(self) -> Mapping[str, Any]:
        """Return the recorded test scores of the weights; empty where there are none."""
        scores = (self.result.get("test") or {}).get(self.point)
        return scores if isinstance(scores, Mapping) else {}

    def network(self) -> tuple[nn.Module, dict[str, Any]]:
        """Return the network with its weights, in eval mode on the CPU, and the arguments that timm makes it of.

        Raises UserError where timm here makes another network of them.
        """
        if not timm.is_model(self.name):
            near = did_you_mean(self.name, timm.list_models())
            raise UserError(f"the run's model.name={self.name} is not in timm's registry here: {near}")
        kept = without_weights(self.kwargs)
        settings = {**kept, "in_chans": self.channels}
        attempts = [settings]
        if "img_size" not in kept:  # as `build_model` does for transformers
            height, width = self.image_size
            attempts.append({**settings, "img_size": height if height == width else (height, width)})
        kind = next((value.dtype for value in self.weights.values() if value.is_floating_point()), torch.float32)
        first: Exception | None = None
        for attempt in attempts:
            try:
                model: nn.Module = timm.create_model(self.name, num_classes=len(self.class_names), **attempt)
                model.to(kind).load_state_dict(dict(self.weights))
                model.eval()
                with torch.no_grad():
                    model(torch.zeros(1, self.channels, *self.image_size, dtype=kind))
                return model, attempt
            except Exception as error:  # noqa: BLE001 - each of timm's models refuses by an exception of its own
                first = first or error
        assert first is not None
        raise UserError(
            f"the weights of {self.folder} do not fit timm's {self.name} here ({first_line(first)}): provenance.json "
            "names the version of timm that trained it"
        ) from first


def read(folder: Path) -> Trained:
    """Return the finished run of ``folder``. Raises UserError where it has no weights, and says what to do."""
    run = RunFolder(folder)
    result = run.result()
    match = RUN.fullmatch(folder.resolve().name)
    if match is None:
        raise UserError(f"{folder} is not a run's folder: its name does not end with a signature")
    if result is None:
        status = run.status()["status"]
        then = "neumann runs resume goes on with it" if status == "interrupted" else "it has no result yet"
        raise UserError(f"the run {folder} is {status}, so it has no weights to use: {then}")
    if result["status"] == "diverged":
        raise UserError(f"the run {folder} diverged, so it has no weights to use: a lower optimizer.lr may help")
    if is_edited(result):
        raise UserError(f"{folder / 'result.json'} is not what the run wrote: put back what it wrote")
    if result.get("eval_weights") is None and not run.eval_weights.exists():
        raise UserError(
            f"the run {folder} kept no weights (checkpoint=none): train it again with checkpoint=eval_weights and "
            "study=NEW"
        )
    try:
        with opened(run.eval_weights) as file:
            saved = decode(file)
    except FileNotFoundError:
        raise UserError(f"{run.eval_weights} is missing: put it back, or train the run again with study=NEW") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(
            f"{run.eval_weights} cannot be used ({reason}): put it back, or train the run again with study=NEW"
        ) from None
    attempts = run.attempts()
    if not isinstance((attempts[-1].get("data") if attempts else None), Mapping):
        raise UserError(f"{run.provenance} is missing or damaged, and it says how images are prepared: put it back")
    made = _trained(folder, result, attempts[-1], saved)
    if made is None:
        raise UserError(f"{run.eval_weights} is not a run's file of weights: put it back")
    if saved["signature"] != match[2]:
        raise UserError(f"{run.eval_weights} is of run {saved['signature']}, not of {match[2]}: put back its own")
    return made


def _trained(folder: Path, result: Mapping[str, Any], attempt: Mapping[str, Any], saved: object) -> Trained | None:
    """Return the run that ``saved`` describes, None where a value is not what a run writes."""
    match saved:
        case {
            "point": str() as point,
            "signature": str(),
            "state_dict": dict() as weights,
            "model": {"name": str() as name, "kwargs": dict() as kwargs, "in_chans": int() as channels},
            "data": {
                "class_names": list() as names,
                "image_size": [int() as height, int() as width],
                "mean": list() as mean,
                "std": list() as std,
            },
        }:
            pass
        case _:
            return None
    numbers = [*mean, *std]
    sound = (
        all(isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items())
        and all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
        and all(isinstance(value, str) for value in names)
        and len(mean) == len(std) == channels
        and 0 < height < 1 << 14
        and 0 < width < 1 << 14
        and len(names) > 1
    )
    if not sound:
        return None
    return Trained(
        folder=folder,
        result=result,
        attempt=attempt,
        point=point,
        weights=weights,
        name=name,
        kwargs=kwargs,
        class_names=tuple(names),
        image_size=(height, width),
        channels=channels,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        precision=_precision(folder),
    )


def _precision(folder: Path) -> str:
    """Return the run's trainer.precision, full precision where its configuration does not say."""
    try:
        trainer = read_config(folder).get("trainer")
    except UserError:
        trainer = None
    found = trainer.get("precision") if isinstance(trainer, Mapping) else None
    return found if isinstance(found, str) else "32-true"
