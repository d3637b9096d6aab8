"""Export of a trained run as a folder that timm and the Hugging Face Hub know: weights, config.json, model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import timm

from neumann.errors import UserError
from neumann.models.hub_config import hub_config, in_timm
from neumann.store.new_folder import new_folder
from neumann.training.model_card import model_card
from neumann.training.trained import Trained

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def export(run: Trained, to: Path, words: Sequence[str] | None) -> bool:
    """Write the folder ``to``, which must not exist yet or be empty; return whether timm alone loads it.

    ``words`` are the overrides that train the run again, for the card. Raises UserError where ``to`` is taken or cannot
    be written, and where a setting of the network cannot be written down.
    """
    model, arguments = run.network()
    alone = in_timm(run.name)
    config = hub_config(
        model,
        run.name,
        arguments,
        class_names=run.class_names,
        input_size=(run.channels, *run.image_size),
        mean=run.mean,
        std=run.std,
        crop_pct=run.crop_pct,
        interpolation=run.interpolation,
    )
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(f"model.kwargs of {run.folder} cannot be written as JSON: {error}") from error
    tensors = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    package = str(timm.model_entrypoint(run.name).__module__)
    card = model_card(run, arguments, timm_alone=alone, package=package, words=words)
    with new_folder(to) as folder:
        (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, {"format": "pt", "neumann": run.signature}))
        (folder / CONFIG).write_text(text, encoding="utf-8", errors="replace")
        (folder / CARD).write_text(card, encoding="utf-8", errors="replace")
    return alone
