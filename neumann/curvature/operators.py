"""Products with the Hessian and with the generalized Gauss-Newton matrix of a mini-batch's mean loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import grad

from neumann.curvature.frozen import Batch, FrozenNetwork

Loss = Callable[[Any, Tensor], Tensor]
Statistics = Literal["eval", "batch"]
Product = Callable[[list[Tensor]], tuple[Tensor, ...]]


class CurvatureOperator(ABC):
    """The symmetric [n, n] matrix of second derivatives of a mean loss in n weights, known by its products.

    ``operator @ vector`` returns [n] of ``vector`` [n]. The weights are those of the parameters that require a
    gradient, in the order of ``model.named_parameters()``, each flattened. A product is the sum over the batches of the
    products of each, weighted by its share of the examples, which is that of all examples as one batch.

    A product takes the memory of one batch's gradient and of the graph that differentiates it. Of a single batch the
    graph is kept from product to product, so that each takes the time of about two gradients; of several it is made
    anew for each, which takes that of about three.

    :meth:`gradient` is the gradient of the same loss, there or at other weights, so that differences of gradients can
    be set against products.

    Make one by :func:`hessian_operator` or :func:`gauss_newton_operator`.
    """

    def __init__(self, network: FrozenNetwork, loss: Loss, batches: tuple[Batch, ...]) -> None:
        self._network, self._loss = network, loss
        counts = [len(targets) for _, targets in batches]
        self.examples = sum(counts)
        self._batches, self._shares = batches, [count / self.examples for count in counts]
        self._kept: Product | None = None
        self._parameters = list(network.parameters.values())
        self.size = sum(p.numel() for p in self._parameters)

    @property
    def dtype(self) -> torch.dtype:
        """The type that products are computed in."""
        return self._network.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights, of vectors and of products."""
        return self._network.device

    def gradient(self, displacement: Tensor | None = None, *, of: Batch | None = None) -> Tensor:
        """Return the gradient [n] of the mean loss at the weights, or at the weights + ``displacement`` [n].

        ``of`` is a batch, or a part of one, whose mean loss it is instead; None: that of all the operator's batches.
        The statistics of batch norm are those that the operator holds. Raises ValueError for another shape.
        """
        pairs = list(zip(self._batches, self._shares, strict=True))
        if of is not None:
            pairs = [((self._network.cast(of[0]), self._network.cast(of[1])), 1.0)]
        moved = [p.detach() for p in self._parameters]
        if displacement is not None:
            moved = [p + part for p, part in zip(moved, self._parts_of(displacement), strict=True)]
        held = {name: p.requires_grad_() for name, p in zip(self._network.parameters, moved, strict=True)}
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        with self._network.differentiable():
            for (inputs, targets), share in pairs:
                loss = self._mean_loss(self._network(inputs, held), targets)
                parts = grad(loss, list(held.values()), materialize_grads=True)
                total.add_(torch.cat([part.reshape(-1) for part in parts]), alpha=share)
        return total

    def _parts_of(self, vector: Tensor) -> list[Tensor]:
        """Return ``vector`` [n] as a tensor of each parameter's shape. Raises ValueError for another shape."""
        if vector.shape != (self.size,):
            raise ValueError(f"the vector has shape {list(vector.shape)}, and the operator takes [{self.size}]")
        parts = vector.to(self.device, self.dtype).split([p.numel() for p in self._parameters])
        return [part.reshape(p.shape) for part, p in zip(parts, self._parameters, strict=True)]

    def __matmul__(self, vector: Tensor) -> Tensor:
        direction = self._parts_of(vector)
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        with self._network.differentiable():
            for (inputs, targets), share in zip(self._batches, self._shares, strict=True):
                product = self._kept or self._product_of(self._network(inputs), targets)
                if len(self._batches) == 1:
                    self._kept = product
                products = product(direction)
                total.add_(torch.cat([one.detach().reshape(-1) for one in products]), alpha=share)
        return total

    @abstractmethod
    def _product_of(self, outputs: Any, targets: Tensor) -> Product:
        """Return what gives a batch's products with a direction, a tensor a parameter each, any number of times."""

    def _mean_loss(self, outputs: Any, targets: Tensor) -> Tensor:
        loss = self._loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the loss of a batch is {shape}, and a scalar is needed: its mean over the examples")
        if not loss.requires_grad:
            raise ValueError("the loss does not depend on any parameter that requires a gradient")
        return loss


class _Hessian(CurvatureOperator):
    def _product_of(self, outputs: Any, targets: Tensor) -> Product:
        loss = self._mean_loss(outputs, targets)
        gradient = grad(loss, self._parameters, create_graph=True, materialize_grads=True)
        return lambda direction: _vjp(gradient, self._parameters, direction)


class _GaussNewton(CurvatureOperator):
    def _product_of(self, outputs: Any, targets: Tensor) -> Product:
        if not isinstance(outputs, Tensor):
            raise TypeError(f"the model returns {type(outputs).__name__}, and Gauss-Newton products need one tensor")
        if not outputs.requires_grad:
            raise ValueError("the output does not depend on any parameter that requires a gradient")
        # J v as the derivative of Jᵀ u in u, which takes derivatives in reverse alone and so works for any module
        u = torch.zeros_like(outputs, requires_grad=True)
        pulled = grad(outputs, self._parameters, u, create_graph=True, materialize_grads=True)
        at = outputs.detach().requires_grad_()
        slope = grad(self._mean_loss(at, targets), [at], create_graph=True)

        def product(direction: list[Tensor]) -> tuple[Tensor, ...]:
            pushed = _vjp(pulled, [u], direction)
            curved = _vjp(slope, [at], list(pushed))
            return _vjp((outputs,), self._parameters, list(curved))

        return product


def _vjp(values: tuple[Tensor, ...], variables: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the derivative in ``variables`` of the sum of ``values`` × ``weights``, zeros where there is none."""
    curved = [(value, weight) for value, weight in zip(values, weights, strict=True) if value.requires_grad]
    if not curved:  # as of a loss that is linear in the weights
        return tuple(torch.zeros_like(variable) for variable in variables)
    return grad([v for v, _ in curved], variables, [w for _, w in curved], retain_graph=True, materialize_grads=True)


def hessian_operator(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Batch],
    *,
    dtype: torch.dtype | None = None,
    batch_norm: Statistics = "eval",
) -> CurvatureOperator:
    """Return the Hessian ∇²f̂ [n, n] of the mean loss of ``batches`` at the model's present weights::

        operator = hessian_operator(model, torch.nn.functional.cross_entropy, [(images, labels)])
        print(extreme_eigenvalues(operator))

    The network is in eval mode, so dropout is off, and batch norm's statistics are constants that are not
    differentiated. Weight decay and an optimizer's regularizers are not in it, unless ``loss`` has them. The weights
    and buffers are copied, so that training may go on: the operator stays at the weights it was made at. Products with
    one vector are the same bits each time.

    Args:
        model: any module, called as ``model(inputs)`` and deterministic in eval mode.
        loss: ``loss(model(inputs), targets)`` is the mean loss over a batch's examples, a scalar.
        batches: pairs of inputs (a tensor, or lists and dicts of tensors) and targets [B, …]. They are kept on the
            model's device, not copied. How the examples are cut into batches changes memory and time, not the product.
        dtype: float32 or float64, in which weights and floating inputs are cast and everything is computed; None: that
            of the parameters.
        batch_norm: whose statistics are held. ``"eval"``: the running ones, as the network is evaluated. ``"batch"``:
            mean and biased variance of all ``batches`` as one batch, as in training with that batch, which takes a
            forward pass, or one a layer where there are several batches.

    Raises:
        ValueError: there is nothing to differentiate, a choice is none of those above, or the loss is no scalar; the
            message says which.
    """
    return _Hessian(*_made(model, loss, batches, dtype, batch_norm))


def gauss_newton_operator(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Batch],
    *,
    dtype: torch.dtype | None = None,
    batch_norm: Statistics = "eval",
) -> CurvatureOperator:
    """Return the generalized Gauss-Newton matrix Jᵀ H J [n, n] of the mean loss at the model's present weights.

    J is the derivative of the outputs in the weights, H the Hessian of ``loss`` in the outputs (Schraudolph 2002). It
    is positive semidefinite where the loss is convex in the outputs, as cross-entropy and squared errors are, and for
    cross-entropy it is the Fisher matrix. The model returns one tensor; all else is as in :func:`hessian_operator`.

    Raises:
        TypeError: the model returns something else than a tensor.
        ValueError: as :func:`hessian_operator`.
    """
    return _GaussNewton(*_made(model, loss, batches, dtype, batch_norm))


def _made(
    model: nn.Module, loss: Loss, batches: Iterable[Batch], dtype: torch.dtype | None, batch_norm: str
) -> tuple[FrozenNetwork, Loss, tuple[Batch, ...]]:
    if batch_norm not in ("eval", "batch"):
        raise ValueError(f'batch_norm={batch_norm!r} is not a choice: "eval" or "batch"')
    network = FrozenNetwork(model, dtype)
    kept = []
    for batch in batches:
        if (
            not isinstance(batch, list | tuple)
            or len(batch) != 2
            or not isinstance(batch[1], Tensor)
            or not batch[1].dim()
        ):
            raise ValueError("a batch is not a pair of inputs and a tensor of targets [B, …]")
        if len(batch[1]):
            kept.append((network.cast(batch[0]), network.cast(batch[1])))
    if not kept:
        raise ValueError("there is no example in the batches, so there is no loss")
    if batch_norm == "batch":
        network.take_statistics(kept)
    return network, loss, tuple(kept)
