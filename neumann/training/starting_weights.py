"""Weights that a run starts from: another run's answer, an exported one, or a file of a network's state_dict.

The network must be the same one; its head is new where the classes are others. Batch norm's statistics come along.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from neumann.data import DataFacts
from neumann.errors import UserError, first_line
from neumann.training.checkpoints import decode


@dataclass(frozen=True)
class StartingWeights:
    """The content of a file of weights, with what it says of them; None where it does not say it.

    Args:
        path: the file.
        state: the network's state_dict.
        name: the network's name in timm's registry.
        kwargs: its further arguments.
        class_names: by class index.
        mean: subtracted from the pixels, per channel in [0, 1].
        std: divisor of the pixels after that.
        run: the signature of the run that wrote them.
        point: the evaluation point that they are at.
    """

    path: Path
    state: Mapping[str, Tensor]
    name: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    run: str | None = None
    point: str | None = None

    def into(self, model: nn.Module, name: str, facts: DataFacts, build: Callable[[int], nn.Module]) -> list[str]:
        """Load the weights into ``model``, and return the keys of its head where that stays new.

        Args:
            model: the run's network; on the meta device it is only compared.
            name: its name in timm's registry.
            facts: of the data that it was fitted to.
            build: makes the same network for a number of classes, to see which of its tensors are the head.

        Raises UserError where the weights are another network's.
        """
        setting, own = f"model.checkpoint={self.path}", model.state_dict()
        if self.name is not None and _plain(self.name) != _plain(name):
            raise UserError(
                f"{setting} holds the weights of {self.name}, and model.name={name} is another network: set "
                f"model.name={self.name}, or choose other weights"
            )
        fitting = {key: value for key, value in self.state.items() if key in own and value.shape == own[key].shape}
        same_classes = self.class_names in (None, facts.class_names)
        new: list[str] = []
        if not same_classes or len(fitting) < len(own):
            with torch.device("meta"):
                other = build(facts.num_classes + 1).state_dict()
            head = [key for key, value in own.items() if other[key].shape != value.shape]
            if not same_classes or any(key not in fitting for key in head):
                new = head
        for key, value in own.items():
            if key not in fitting and key not in new:
                there = _shape(self.state[key]) if key in self.state else "none"
                made = f", as model.kwargs={json.dumps(dict(self.kwargs), default=str)} makes it" if self.kwargs else ""
                raise UserError(
                    f"{setting} does not fit model.name={name}: the network's {key} is {_shape(value)}, and the file "
                    f"has {there}{made}"
                )
        strange = sorted(self.state.keys() - own.keys())
        if strange:
            raise UserError(f"{setting} does not fit model.name={name}: the network has no {strange[0]}")
        if not any(value.is_meta for value in own.values()):
            model.load_state_dict({**own, **{k: v for k, v in fitting.items() if k not in new}})
        return new


@dataclass(frozen=True)
class Start:
    """The weights that a run starts from, and the keys of its head where that is new."""

    weights: StartingWeights
    new_head: list[str]

    def sentence(self, facts: DataFacts) -> str:
        """Return what is told of a new head."""
        return (
            f"the head ({', '.join(self.new_head)}) begins anew: the weights of {self.weights.path} are for "
            f"{_classes(self.weights.class_names)}, the data has {_classes(facts.class_names)}"
        )

    def record(self, sha256: str) -> dict[str, Any]:
        """Return what result.json says of it."""
        return {
            "path": str(self.weights.path),
            "sha256": sha256,
            "run": self.weights.run,
            "point": self.weights.point,
            "new_head": self.new_head,
        }


def _classes(names: Sequence[str] | None) -> str:
    if names is None:
        return "other classes"
    return f"{len(names)} classes ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def read_weights(path: Path) -> StartingWeights:
    """Return what the file ``path`` holds. Raises UserError where it is damaged or not plain data."""
    try:
        if path.suffix == ".safetensors":
            return _exported(path)
        with path.open("rb") as file:
            try:
                content = decode(file)
            except ValueError:
                if path.name == "eval-weights.pt":
                    raise
                file.seek(0)
                content = _any_file(file)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"model.checkpoint={path} cannot be used: {reason}") from error
    return _described(path, content)


def _any_file(file: Any) -> Any:
    """Return the content of a file that torch.save wrote without us; it has no digest."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as other:  # a pickle that is not plain data raises any exception
        raise ValueError(f"it is not a file of weights ({first_line(other)})") from other


def _described(path: Path, content: Any) -> StartingWeights:
    match content:
        case {
            "point": str() as point,
            "signature": str() as run,
            "state_dict": dict() as state,
            "model": {"name": str() as name, "kwargs": dict() as kwargs},
            "data": {"class_names": list() as names, "mean": list() as mean, "std": list() as std},
        }:
            described = StartingWeights(path, state, name, kwargs, tuple(names), tuple(mean), tuple(std), run, point)
        case {"state_dict": dict() as state} | (dict() as state):
            described = StartingWeights(path, state)
        case _:
            raise UserError(f"model.checkpoint={path} is not a network's state_dict")
    if not described.state or not all(isinstance(value, Tensor) for value in described.state.values()):
        raise UserError(f"model.checkpoint={path} is not a network's state_dict: give a run, or its eval-weights.pt")
    return described


def _exported(path: Path) -> StartingWeights:
    """Return a file of safetensors, described by the config.json beside it where there is one, as timm writes it."""
    try:
        state = safetensors.torch.load_file(path)
    except Exception as error:  # safetensors raises an exception of its own
        raise ValueError(first_line(error)) from error
    beside = path.with_name("config.json")
    if not beside.exists():
        return StartingWeights(path, state)
    match json.loads(beside.read_text(encoding="utf-8")):
        case {"architecture": str() as name, "pretrained_cfg": {"mean": list() as mean, "std": list() as std}, **rest}:
            names: Any = rest.get("label_names")
            kwargs: Any = rest.get("model_args") or {}
            return StartingWeights(path, state, name, kwargs, tuple(names) if names else None, tuple(mean), tuple(std))
    return StartingWeights(path, state)


def _plain(name: str) -> str:
    """Return a model's name without the tag of its pretrained weights."""
    return name.partition(".")[0]


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
