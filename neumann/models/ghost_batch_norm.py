"""Ghost batch norm: statistics over stretches of a batch, as if each had been a batch of its own (Hoffer et al. 2017).

The ghost batch is then a choice of its own, which a study of batch sizes keeps: batch norm's noise does not change with
the batch, nor with the number of devices or accumulated micro-batches that it is cut among.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from neumann.errors import UserError
from neumann.optim.private_names import BatchNorm


class GhostBatchNorm:
    """What turns a class of batch norm into one of ghost batches; it stands before that class among the bases.

    In training, an input of k × ``ghost_size`` examples goes through the layer as k inputs of ``ghost_size`` would, one
    after the other, in order: each is normalised by its own statistics, and each moves the running statistics once, by
    the layer's momentum. In evaluation nothing changes. Parameters, buffers and their names are those of the layer.

    Raises:
        ValueError: in training, where the examples are not a multiple of ``ghost_size``.
    """

    ghost_size: int

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output [B, …] of ``x`` [B, …]."""
        layer: Any = super()
        size = self.ghost_size
        if not self.training or len(x) == size:  # type: ignore[attr-defined]
            whole: Tensor = layer.forward(x)
            return whole
        if len(x) % size:
            raise ValueError(f"a batch of {len(x)} examples cannot be cut into ghost batches of {size}")
        return torch.cat([layer.forward(part) for part in x.split(size)])


def use_ghost_batches(model: nn.Module, size: int, images: Tensor) -> None:
    """Turn every batch norm of ``model``, in place, into one over ghost batches of ``size`` examples.

    Parameters, buffers, hooks and the keys of ``state_dict`` stay what they are. ``images`` [B, C, H, W] are tried in
    eval mode, which leaves no trace.

    Raises UserError where ``model`` has no batch norm, and where one of its layers takes statistics that cannot be
    taken over some of the examples: over several devices, over parts of images, or in a way of its own.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BatchNorm)}
    if not layers:
        raise UserError(f"batch.norm_size={size}: the model has no batch norm, so leave it at null")
    why = "its statistics cannot be taken over ghost batches, so leave it at null or choose another model"
    for name, layer in model.named_modules():
        strange = "running_var" in dict(layer.named_buffers(recurse=False)) and not isinstance(layer, BatchNorm)
        if strange or isinstance(layer, nn.SyncBatchNorm):
            raise UserError(f"batch.norm_size={size}: the model's {name} is a {type(layer).__name__}: {why}")
    rows: dict[str, int] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: rows.update({name: len(inputs[0])}))
        for name, layer in layers.items()
    ]
    training = [part for part in model.modules() if part.training]
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
        for part in training:
            part.training = True
    for name, count in rows.items():
        if count != len(images):
            raise UserError(
                f"batch.norm_size={size}: the model's {name} takes {count} rows of {len(images)} images: {why}"
            )
    for layer in layers.values():
        kind: Any = type(layer)
        object.__setattr__(layer, "__class__", _ghost_class(kind))
        object.__setattr__(layer, "ghost_size", size)


@cache
def _ghost_class(kind: Any) -> Any:
    """Return the subclass of ``kind``, a class of batch norm, for ghost batches."""
    if issubclass(kind, GhostBatchNorm):
        return kind
    return type(f"Ghost{kind.__name__}", (GhostBatchNorm, kind), {"__doc__": GhostBatchNorm.__doc__})
