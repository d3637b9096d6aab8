"""Both ends of a spectrum by ARPACK, through SciPy: a Krylov space that is restarted, so that its memory is bounded."""

from __future__ import annotations

from typing import Any

import torch

from neumann.curvature.extremes import ExtremeEigenvalues
from neumann.curvature.lanczos import Counted, Progress, Shifted, SymmetricOperator, direction, krylov_bytes
from neumann.optim.argument_checks import number, whole

RESTARTS = 100  # of each end


def extreme_eigenvalues_by_arpack(
    operator: SymmetricOperator,
    *,
    tolerance: float = 1e-3,
    vectors: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> ExtremeEigenvalues:
    """Return λ_max and λ_min of ``operator`` by ``scipy.sparse.linalg.eigsh``, one end after the other.

    First λ_max (``which="LA"``), then λ_min (``which="SA"``) of the operator − λ_max I, as in the paper; without the
    shift ARPACK, whose tolerance is relative, would not end where λ_min is 0. The Krylov space is restarted when it is
    full, so this takes ``vectors`` vectors in the CPU's memory, and more products than :func:`extreme_eigenvalues`,
    which keeps them all.

    Args:
        operator: as for :func:`extreme_eigenvalues`, of 2 rows or more.
        tolerance: of each eigenvalue, relative to itself, of λ_min to λ_max − λ_min.
        vectors: Krylov vectors that are kept, 3 or more (fewer where the operator has fewer rows).
        seed: of the start vectors.
        progress: called after each product with how many are done; how many there are at most is the bound of ARPACK's
            restarts, which it hardly ever comes near.

    Returns:
        ``converged`` is true and the residuals are measured, each by a product.

    Raises:
        ValueError: an argument is out of bounds, or a product is not finite.
        RuntimeError: ARPACK has not converged within 100 restarts.
    """
    tolerance = number("tolerance", tolerance, above=0, below=1)
    vectors = min(whole("vectors", vectors, least=3), operator.size)
    generator = torch.Generator().manual_seed(whole("seed", seed, least=0))
    if operator.size < 2:
        raise ValueError("ARPACK needs an operator of 2 rows or more: extreme_eigenvalues takes one")
    counted = Counted(operator, progress, 2 * (RESTARTS + 1) * vectors + 2)
    upper, above = _end(counted, "LA", tolerance, vectors, generator)
    lower, below = _end(Shifted(counted, upper), "SA", tolerance, vectors, generator)
    return ExtremeEigenvalues(
        largest=upper,
        smallest=lower + upper,
        largest_residual=above,
        smallest_residual=below,
        products=counted.products,
        converged=True,
        krylov_bytes=krylov_bytes(operator, vectors),
    )


def _end(
    operator: SymmetricOperator, which: str, tolerance: float, vectors: int, generator: torch.Generator
) -> tuple[float, float]:
    """Return the eigenvalue at an end, and its residual."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    def product(vector: Any) -> Any:
        after = operator @ torch.from_numpy(vector.reshape(-1)).to(operator.device)
        if not after.isfinite().all():
            raise ValueError("a product with the operator is not finite: the loss or its derivatives overflow there")
        return after.cpu().numpy()

    start = direction(operator, generator).cpu().numpy()
    matrix = LinearOperator((operator.size, operator.size), matvec=product, dtype=start.dtype)
    try:
        values, found = eigsh(matrix, k=1, which=which, v0=start, ncv=vectors, maxiter=RESTARTS, tol=tolerance)
    except ArpackError as error:
        raise RuntimeError(f"ARPACK has not found the {which} end: {error}") from error
    vector = torch.from_numpy(found[:, 0]).to(operator.device)
    residual = torch.linalg.vector_norm(
        torch.sub(operator @ vector, vector, alpha=float(values[0])), dtype=torch.float64
    )
    return float(values[0]), float(residual) + torch.finfo(operator.dtype).eps * abs(float(values[0]))
