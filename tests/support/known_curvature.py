"""Problems whose Hessians are known, and a matrix as an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel


class Matrix:
    """A symmetric matrix as an operator; ``products`` counts."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.products = matrix, 0
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device

    def __matmul__(self, vector: Tensor) -> Tensor:
        self.products += 1
        return self.matrix @ vector


def with_spectrum(values: Sequence[float] | Tensor, seed: int = 0) -> Tensor:
    """Return a symmetric matrix of these eigenvalues, in a random basis, float64."""
    spectrum = torch.as_tensor(values, dtype=torch.float64)
    square = torch.randn(
        len(spectrum), len(spectrum), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    basis, _ = torch.linalg.qr(square)
    matrix = basis @ torch.diag(spectrum) @ basis.T
    return (matrix + matrix.T) / 2


def dense(operator: Any) -> Tensor:
    """Return the operator's matrix, by its products with the axes."""
    return torch.stack([operator @ axis for axis in torch.eye(operator.size, dtype=operator.dtype)], dim=1)


def probed(operator: Any) -> Tensor:
    """Return the products [size, 3] with three random vectors, which no two matrices share; a Tensor is a matrix too."""
    size = len(operator) if isinstance(operator, Tensor) else operator.size
    vectors = torch.randn(3, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([(operator @ vector.to(operator.dtype)).double() for vector in vectors], dim=1)


def function_of(model: nn.Module, inputs: Any) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the outputs in eval mode as a function of the flat trained parameters, and these."""
    model = model.eval()
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def outputs(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in trained.values()])
        named = {name: part.reshape(p.shape) for (name, p), part in zip(trained.items(), parts, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            out: Tensor = functional_call(model, named, (inputs,))
        return out

    return outputs, torch.cat([p.reshape(-1) for p in trained.values()])


def exact_hessian(model: nn.Module, loss: Any, inputs: Any, targets: Tensor) -> Tensor:
    """Return the Hessian of the loss of one batch, whole, by torch.func."""
    outputs, flat = function_of(model, inputs)
    matrix: Tensor = jacrev(jacrev(lambda w: loss(outputs(w), targets)))(flat)
    return matrix


def exact_gauss_newton(model: nn.Module, loss: Any, inputs: Any, targets: Tensor) -> Tensor:
    """Return Jᵀ H J of the loss of one batch, from its whole Jacobian."""
    outputs, flat = function_of(model, inputs)
    at = outputs(flat)
    jacobian = jacrev(outputs)(flat).reshape(at.numel(), -1)
    inner = jacrev(jacrev(lambda out: loss(out, targets)))(at).reshape(at.numel(), at.numel())
    matrix: Tensor = jacobian.T @ inner @ jacobian
    return matrix
