"""Lanczos iteration with full reorthogonalization: a symmetric operator seen through a Krylov space.

Golub and Van Loan, Matrix Computations, §10.1 and §10.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

EVALUATIONS = 2  # gradient evaluations in a product: it differentiates a gradient once more
CHUNK = 16  # Krylov vectors that memory is taken for at once

Progress = Callable[[int, int], None]  # products done, and how many there are at most


class SymmetricOperator(Protocol):
    """A symmetric [size, size] matrix that is known by its products."""

    @property
    def size(self) -> int:
        """Rows of the matrix."""

    @property
    def dtype(self) -> torch.dtype:
        """Of vectors and products, float32 or float64."""

    @property
    def device(self) -> torch.device:
        """Of vectors and products."""

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return the product [size] with ``vector`` [size]."""


class Counted:
    """``operator``, whose products are counted and told to ``progress``, of ``most`` at most."""

    def __init__(self, operator: SymmetricOperator, progress: Progress | None, most: int) -> None:
        self._operator, self._progress, self._most = operator, progress, most
        self.products = 0
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device

    def __matmul__(self, vector: Tensor) -> Tensor:
        after = self._operator @ vector
        self.products += 1
        if self._progress is not None:
            self._progress(self.products, self._most)
        return after


class Shifted:
    """``operator`` − ``shift`` × I."""

    def __init__(self, operator: SymmetricOperator, shift: float) -> None:
        self._operator, self._shift = operator, shift
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device

    def __matmul__(self, vector: Tensor) -> Tensor:
        return torch.sub(self._operator @ vector, vector, alpha=self._shift)


@dataclass(frozen=True)
class Tridiagonal:
    """The operator in an orthonormal basis of k Krylov vectors: T [k, k].

    Args:
        diagonal: k numbers.
        beside: k numbers: the k − 1 beside the diagonal, then the norm of what the operator leads to beyond the space.
        rounding: the relative rounding error of the operator's type.
    """

    diagonal: tuple[float, ...]
    beside: tuple[float, ...]
    rounding: float

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return T's eigenvalues, ascending, their residuals, and their weights in the start vector, float64 [k] each.

        An eigenvalue of the operator lies within the residual of each Ritz value, which itself never lies outside the
        operator's spectrum. Weights are the squares of the eigenvectors' first components, and sum to 1.
        """
        matrix = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64))
        if len(self.diagonal) > 1:
            off = torch.tensor(self.beside[:-1], dtype=torch.float64)
            matrix += torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(matrix)
        floor = self.rounding * float(values.abs().max())  # what rounding leaves of a residual of zero
        return values, self.beside[-1] * vectors[-1].abs() + floor, vectors[0].square()


def krylov_bytes(operator: SymmetricOperator, vectors: int) -> int:
    """Return the memory of ``vectors`` Krylov vectors, in bytes."""
    return min(vectors, operator.size) * operator.size * operator.dtype.itemsize


def direction(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Return a direction [size], uniform over the unit sphere, drawn on the CPU so that every device has the same."""
    drawn = torch.randn(operator.size, generator=generator, dtype=torch.float64)
    return (drawn / torch.linalg.vector_norm(drawn)).to(operator.device, operator.dtype)


def lanczos(operator: SymmetricOperator, start: Tensor, iterations: int) -> Iterator[Tridiagonal]:
    """Yield T after each of ``iterations`` products, fewer where the Krylov space is exhausted.

    Every vector is orthogonalized against all before it, twice, so that no eigenvalue is found again by rounding.

    Args:
        operator: the operator.
        start: a vector of norm 1, [size].
        iterations: 1 or more.

    Raises:
        ValueError: a product is not finite.
    """
    eps = torch.finfo(operator.dtype).eps
    diagonal: list[float] = []
    beside: list[float] = []
    basis: list[Tensor] = []  # chunks of vectors, [CHUNK, size]
    vector = start
    for k in range(min(iterations, operator.size)):
        if k % CHUNK == 0:
            rows = min(CHUNK, operator.size - k, iterations - k)
            basis.append(torch.zeros(rows, operator.size, dtype=operator.dtype, device=operator.device))
        basis[-1][k % CHUNK] = vector
        after = operator @ vector
        alpha = float((after * vector).sum(dtype=torch.float64))
        if not math.isfinite(alpha):
            raise ValueError("a product with the operator is not finite: the loss or its derivatives overflow there")
        for _ in range(2):
            for part in basis:
                after = torch.addmv(after, part.T, part @ after, alpha=-1)
        beta = float(torch.linalg.vector_norm(after, dtype=torch.float64))
        diagonal.append(alpha)
        scale = max(map(abs, (*diagonal, *beside)))
        exhausted = k + 1 == operator.size or beta <= 100 * eps * scale
        beside.append(0.0 if k + 1 == operator.size else beta)
        yield Tridiagonal(tuple(diagonal), tuple(beside), eps)
        if exhausted:
            return
        vector = after / beta
