"""Curvature and gradients of the training loss of a step's batch, within a run, at the weights that it holds.

The loss is the mean cross-entropy of the main head on the images as they were trained on, augmented and with the run's
label smoothing, without weight decay and without an optimizer's regularizers. Of the network, dropout is off and batch
norm is held at the statistics of the step's images on each rank, as in training; gradients do not pass through them.
Weights and buffers are copied and no random number is drawn, so that training goes on to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from neumann.curvature import CurvatureOperator, hessian_operator
from neumann.optim.batch_norm import batch_norms
from neumann.training.classifier import Batch, ImageClassifier

if TYPE_CHECKING:
    from neumann.training.distributed import RankGroup


class BatchCurvature:
    """The Hessian ∇²f̂ [n, n] of a step's training loss over all ranks, known by its products; its gradients too.

    The weights are those of `neumann.curvature.CurvatureOperator`: parameters that require a gradient, in the order of
    ``model.named_parameters()``, each flattened. A product is that of the global batch: each rank multiplies on its own
    images, and the mean is the same on every rank, which therefore all ask for the same products. Of a run in mixed
    precision the products are in float32.

    Args:
        own: the operator of this rank's images, of which each rank has as many.
        batches: this rank's micro-batches, of as many images each.
        group: the ranks.
    """

    def __init__(self, own: CurvatureOperator, batches: Sequence[Batch], group: RankGroup) -> None:
        self._own, self._batches, self._group = own, batches, group
        self.size, self.dtype, self.device = own.size, own.dtype, own.device
        self.examples = own.examples * group.world_size

    def __matmul__(self, vector: Tensor) -> Tensor:
        return self._mean(self._own @ vector)

    def gradient(self, displacement: Tensor | None = None) -> Tensor:
        """Return the gradient [n] of the global batch at the weights, or at the weights + ``displacement`` [n]."""
        return self._mean(self._own.gradient(displacement))

    def part_squares(self, least: int) -> tuple[float, int, int]:
        """Return the mean squared norm of the gradients of equal parts of the global batch, their number and size.

        Each micro-batch is cut into as few parts as give ``least`` in all over the ranks, or into single images. All
        parts together cost one gradient of the global batch, and have the statistics of batch norm of all images.
        """
        images = len(self._batches[0][1])
        whole = len(self._batches) * self._group.world_size
        pieces = next(n for n in range(1, images + 1) if images % n == 0 and (n * whole >= least or n == images))
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        for inputs, labels in self._batches:
            for part in zip(inputs.chunk(pieces), labels.chunk(pieces), strict=True):
                squares += self._own.gradient(of=part).double().square().sum()
        count = pieces * whole
        return float(self._group.total(squares)) / count, count, images // pieces

    def _mean(self, vector: Tensor) -> Tensor:
        if self._group.world_size == 1:
            return vector
        return (self._group.total(vector) / self._group.world_size).to(self.device, self.dtype)


def batch_curvature(
    module: ImageClassifier, batches: Sequence[Batch], group: RankGroup, *, dtype: torch.dtype | None = None
) -> BatchCurvature:
    """Return the curvature of the training loss of ``batches`` at the weights that ``module`` holds.

    Args:
        module: the run's; its weights are whole on every rank.
        batches: this rank's micro-batches of a step, [B, C, H, W] and [B], as many examples on each rank.
        group: the ranks, all of which call this.
        dtype: float32 or float64, computed in; None: that of the weights, or float32 where they are of 16 bits.

    Raises:
        ValueError: the network cannot be frozen, as `neumann.curvature.hessian_operator` says.
    """
    smoothing, model = module.label_smoothing, module.model
    if dtype is None:
        dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    return BatchCurvature(
        hessian_operator(
            model,
            lambda out, labels: functional.cross_entropy(_main(out), labels, label_smoothing=smoothing),
            batches,
            dtype=dtype,
            batch_norm="batch" if batch_norms(model) else "eval",
        ),
        batches,
        group,
    )


def flat(model: nn.Module, value: Callable[[nn.Parameter], Tensor | None]) -> Tensor:
    """Return ``value`` of each parameter that requires a gradient as one vector [n]; None counts as zeros.

    The order is that of :class:`BatchCurvature`; so ``flat(model, lambda p: optimizer.state[p].get("m"))`` is a
    direction that it multiplies.
    """
    parts = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            found = value(parameter)
            parts.append((torch.zeros_like(parameter) if found is None else found).detach().reshape(-1))
    return torch.cat(parts)


def _main(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the main head's logits; an auxiliary one may stand beside them."""
    return out[0] if isinstance(out, tuple) else out
