"""Short real runs on the digits: 36 steps of a network with 4 k parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neumann.config import RunSpec, make_spec
from neumann.store import RunFolder

QUICK = ("trainer.max_epochs=2", "batch.size=64", "+model.kwargs.width=8", "logger=none")

Train = Callable[..., tuple[dict[str, Any], RunFolder]]


def quick(*overrides: str, dirs: tuple[str, ...] = ()) -> RunSpec:
    """Return the specification of a quick run."""
    return make_spec([*QUICK, *overrides], dirs)
