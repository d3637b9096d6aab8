"""How much of a result is batch norm's? Its statistics gathered again, at the weights that are being evaluated.

Running statistics are gathered in training, at the point that the optimizer trains at. Neumann and Nesterov momentum
are evaluated at another one, w − μm, and an average of the weights lies further away still. So each point of each
optimizer, the held one too, can be evaluated with statistics of its own, from the same training batches::

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
    """Hold ``model`` in eval mode, with batch norm's statistics those of ``batches`` at its present weights.

    The statistics are what training would have made of them with ``momentum=None``: the mean, over the batches, of the
    batches' means and unbiased variances. Nothing but batch norm is in training mode meanwhile (no dropout), and no
    gradient is recorded. After the block the buffers are what they were, bit for bit, also on exceptions, and every
    layer is in the mode it was in. Layers that are frozen (see `batch_norms`) or that no batch reaches keep theirs.

    Args:
        model: any module; the present weights and device are taken.
        batches: this process's batches; where each is a sequence, its first element is the input.
        forward: runs the model on a batch, instead of ``model(inputs)``.
        total: sums a float64 tensor on the CPU over the processes, each of which must come here; each batch then counts
            once, however many every process has. Left out, nothing is sent.

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
    """Run this process's batches and leave their statistics in the layers' buffers."""
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches, each alike
            layer.training = True  # this one alone: timm's layers hold others, dropout among them
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
    """Make the buffers those of the batches of all processes; a layer that none reached keeps what it had."""
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
