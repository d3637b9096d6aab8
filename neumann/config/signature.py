"""The signature of a run, which names its results.

It is 12 hex digits over the resolved configuration, the data's fingerprint and splits, the content of local files of
weights, and `RESULTS_VERSION`. It excludes the settings in `NOT_SIGNED`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from neumann.data import DataFacts

# Raise it when a change of the code changes what the same configuration yields, or how a configuration is written.
RESULTS_VERSION = 2

# The settings that two requests for the same result may differ in, each with the reason why it cannot change a result.
# Every other setting is signed, but for `CAME_LATER`.
NOT_SIGNED: dict[str, str] = {
    "output": "where results are written",
    "study": "the folder they are filed under",
    "name": "what the run is called",
    "logger": "a mirror is only written to",
    "checkpoint": "what is kept afterwards",
    "batch.max_per_device": "what a device takes at once follows from it and is signed: derived.accumulation",
    "batch.round": "the batch size that it has chosen is signed",
    "derived.asked_batch_size": "what was asked for before batch.round",
    "derived.micro_batch": "it is batch.size by devices and derived.accumulation",
    "derived.rate_factor": "it follows from batch.size and recipe.lr_scaling",
    "trainer.test": "whether the same run is tested too; a result without is none where it is asked for",
    "trainer.log_every_n_steps": "how often a step is logged",
    "trainer.track_grad_norm": "norms are only looked at",
    "trainer.track_update_norm": "norms are only looked at",
    "terms": "what the optimizer's terms do is only looked at, on copies, off the clock and without a random number",
    "launch": "where it trains, beside how many; threads change rounding at most, and provenance.json records them",
    "model.checkpoint": "where the weights lie; what they are is signed by their digest",
    "data.root": "where the images lie; what they are is signed by the fingerprint",
    "data.download": "how the images got there",
    "data.name": "how timm calls the images; what they are is signed by the fingerprint",
    "data.workers": "order and augmentation are keyed by sample, not by worker",
}

# Settings that came later to some kinds of data, at null; the others have always had them.
CAME_LATER_TO = {
    "image_size": ("cifar10", "cifar100", "mnist", "fashion_mnist"),
    "in_memory": ("cifar10", "cifar100", "mnist", "fashion_mnist"),
}

# Settings that came later, each with the value at which a run is what it was before: left out there, so that a run of
# an earlier version is found.
CAME_LATER: dict[str, Any] = {
    "batch.norm_size": None,
    "data.interpolation": None,
    "data.crop_pct": None,
    "derived.accumulation": 1,
    "model.auxiliary_weight": None,
    "model.channels_last": False,
    "model.compile": False,
    "recipe.lr_scaling": "none",
    "recipe.lr_base_size": None,
    "timing.average": None,
    "timing.momentum_unit": None,
}

# The settings that decide which images a run is judged on: the easiest images would be chosen, not the best setting
JUDGED_ON = ("data", "data.kind", "data.split_seed", "data.noise_seed", "data.val_fraction", "data.test_fraction")


def why_not_tuned(key: str) -> str | None:
    """Return why a setting or a group cannot be chosen by its validation error, None where it can.

    ``key`` may have the plus of an override before it.
    """
    name = key.lstrip("+")
    if name in ("batch.max_per_device", "batch.round"):
        return f"{name} is a matter of memory and not searched; batch norm's batch is batch.norm_size"
    if name == "model.checkpoint":
        return "model.checkpoint is what a run starts from and not searched: -m model.checkpoint=A,B trains from each"
    if any(name == setting or name.startswith(f"{setting}.") for setting in NOT_SIGNED):
        return f"{name} cannot change a result, so there is nothing to search in it"
    if name == "seed":
        return "seeds are not tuned: the best one would be luck"
    if name in JUDGED_ON:
        return f"{name} decides which images a run is judged on, so it cannot be chosen by its error on them"
    return None


def signed_part(config: Mapping[str, Any], data: DataFacts, weights: Mapping[str, str]) -> dict[str, Any]:
    """Return all that is signed: ``config`` without `NOT_SIGNED`, the data's identity and `RESULTS_VERSION`.

    ``weights`` are those of `neumann.config.weights.weights_of`; a run that has none has no such entry.
    """
    identity = {"fingerprint": data.fingerprint, "splits": data.split_digest}
    if normalised_as_pretrained(config):
        identity["normalisation"] = "of the pretrained weights"  # it was the data's once, which is another result
    initial = {"weights": dict(weights)} if weights else {}
    return {"config": signed_config(config), "data": identity, **initial, "results_version": RESULTS_VERSION}


def signed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` without `NOT_SIGNED`, and without what came later where it is what it was before."""
    part = copy.deepcopy(dict(config))
    for dotted in NOT_SIGNED:
        _parent(part, dotted).pop(dotted.rpartition(".")[2], None)
    for dotted, before in CAME_LATER.items():
        node, last = _parent(part, dotted), dotted.rpartition(".")[2]
        if last in node and node[last] == before:
            del node[last]
    section = part["data"]
    for name, kinds in CAME_LATER_TO.items():
        if section.get("kind") in kinds and section.get(name) is None:
            section.pop(name, None)
    return part


def _parent(config: dict[str, Any], dotted: str) -> dict[str, Any]:
    """Return the section that holds the setting ``dotted``; an empty one where there is none."""
    node: Any = config
    for key in dotted.split(".")[:-1]:
        node = node.get(key, {})
    section: dict[str, Any] = node
    return section


def normalised_as_pretrained(config: Mapping[str, Any]) -> bool:
    """Return whether images get the statistics of the pretrained weights: where there are such, and none are given."""
    kwargs, checkpoint = config["model"]["kwargs"], config["model"].get("checkpoint")
    pretrained = isinstance(kwargs, Mapping) and bool(kwargs.get("pretrained"))
    return (pretrained or checkpoint is not None) and config["data"].get("mean") is None


def sign(part: Mapping[str, Any]) -> str:
    """Return the signature: 12 hex digits of the SHA-256 of the canonical JSON of ``part``.

    Raises ValueError for nan and inf, which JSON does not have.
    """
    text = json.dumps(_canonical(part), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _canonical(value: Any) -> Any:
    """Write whole numbers one way, so that ``lr=1`` and ``lr=1.0`` are one run."""
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
