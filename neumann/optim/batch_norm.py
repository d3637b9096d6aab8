"""Batch norm's running statistics, gathered again at the weights that are evaluated.

Training gathers them at the point that the optimizer trains at. Neumann and Nesterov momentum are evaluated at another
one, w − μm, and an average of the weights lies further away still. So each point of each optimizer, the held one too,
can be evaluated with statistics of its own, from the same training batches::

    with optimizer.evaluating(), recalibrated(model, islice(train_loader, 20)):
        validate(model)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neumann.optim.lightning import eval_mode
from neumann.optim.private_names import BatchNorm


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """Return the layers of ``model`` whose running statistics follow training, each once.

    Within a model in training mode, a layer that is in eval mode is frozen and is not among them.
    """
    layers = (part for part in model.modules() if isinstance(part, BatchNorm) and part.running_mean is not None)
    return [layer for layer in layers if layer.training or not model.training]


@contextmanager
def recalibrated(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], Any] | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """Hold ``model`` in eval mode within the block, with batch norm's statistics of ``batches`` at its present weights.

    The statistics are what training would have made of them with ``momentum=None``: the mean, over the batches, of the
    batches' means and unbiased variances. While they are gathered nothing but batch norm is in training mode (no
    dropout), and no gradient is recorded. After the block the buffers are what they were, bit for bit, also on
    exceptions, and every layer is in the mode it was in. Layers that are frozen (see `batch_norms`) or that no batch
    reaches keep their statistics.

    Args:
        model: any module, at its present weights and on its present device.
        batches: this process's batches; where a batch is a list or tuple, its first element is the input.
        forward: runs the model on a batch; None is ``model(inputs)``.
        total: sums a float64 tensor on the CPU over all processes, each of which must call this; batches then count
            alike, however many each process has. None is for one process.

    Raises:
        ValueError: there is no batch, in any process.
    """
    layers = batch_norms(model)
    saved = [[(buffer, buffer.clone()) for buffer in _buffers(layer)] for layer in layers]
    with eval_mode(model):
        try:
            if layers:
                _gather(model, layers, batches, forward or (lambda batch: model(_inputs(batch))))
                _combine(layers, saved, total or (lambda values: values))
            yield
        finally:
            with torch.no_grad():
                for values in saved:
                    for buffer, value in values:
                        buffer.copy_(value)


@torch.no_grad()
def _gather(model: nn.Module, layers: list[BatchNorm], batches: Iterable[Any], forward: Callable[[Any], Any]) -> None:
    """Run this process's batches, which leaves their statistics in the layers' buffers."""
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over all batches
            layer.training = True  # not train(), which would reach the layers inside timm's: dropout among them
        for batch in batches:
            forward(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.training = False


@torch.no_grad()
def _combine(
    layers: list[BatchNorm], saved: list[list[tuple[Tensor, Tensor]]], total: Callable[[Tensor], Tensor]
) -> None:
    """Fill the buffers with the statistics of all processes' batches; a layer that none has reached keeps its own."""
    parts = []
    for layer in layers:
        mean, variance, count = (buffer.detach().to("cpu", torch.float64) for buffer in _buffers(layer))
        parts += [mean * count, variance * count, count.reshape(1)]
    sums = iter(total(torch.cat(parts)).split([len(part) for part in parts]))
    counts = []
    for layer, values in zip(layers, saved, strict=True):
        buffers = _buffers(layer)
        means, variances, count = next(sums), next(sums), next(sums)
        counts.append(count)
        if count:
            for buffer, value in zip(buffers, (means / count, variances / count, count[0]), strict=True):
                buffer.copy_(value)
        else:
            for buffer, value in values:
                buffer.copy_(value)
    if not any(counts):
        raise ValueError("batch norm cannot be recalibrated: no batch has come through any of its layers")


def _buffers(layer: BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Return the layer's running mean and variance, [C], and the number of batches in them."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    return layer.running_mean, layer.running_var, layer.num_batches_tracked


def _inputs(batch: Any) -> Any:
    return batch[0] if isinstance(batch, list | tuple) else batch
