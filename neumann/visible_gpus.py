"""The GPUs that this process may use: listed without torch, and whether torch can use them."""

from __future__ import annotations

import os
from pathlib import Path


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, under the names that CUDA_VISIBLE_DEVICES has for them."""
    here = sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None or not here:
        return here
    names = [name.strip() for name in given.split(",")]
    return names[: names.index("-1")] if "-1" in names else [name for name in names if name]


def torch_has_gpu() -> bool:
    """Return whether torch trains on a GPU here; torch is imported only where there is one to ask about."""
    if not visible_gpus():
        return False
    import torch

    return torch.cuda.is_available()
