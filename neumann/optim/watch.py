"""Was a model evaluated at the point it trains at, by mistake? The forward hook that notices, and says so once."""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from neumann.optim.displaced import DisplacedOptimizer


class Watcher:
    """A forward pre-hook that warns once when its module is in eval mode and ``optimizer`` is displaced."""

    def __init__(self, optimizer: DisplacedOptimizer) -> None:
        self._optimizer: weakref.ref[DisplacedOptimizer] | None = weakref.ref(optimizer)

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Look; inside a compiled graph there is nobody to look, and a look would be a guard on every step."""
        if module.training or torch.compiler.is_compiling() or self._optimizer is None:
            return
        optimizer = self._optimizer()
        if optimizer is None or not optimizer._is_displaced():
            return
        self._optimizer = None
        name = type(optimizer).__name__
        warnings.warn(
            f"the model runs in eval mode while {name} holds its parameters at the displaced point it trains at, not "
            "at its answer w − μm: evaluate within `with optimizer.evaluating():`, or between optimizer.eval() and "
            "optimizer.train() (said once)",
            stacklevel=_CALLER,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the model is not the optimizer's, and whoever loads a pickle may not have this package. A hook has
        # to be something that can be called: {}.get(module, args) is args, which leaves the input as it is.
        return getattr, ({}, "get")


_CALLER = 5  # frames from warn() to whoever called the module: this hook and three frames of torch.nn.Module
