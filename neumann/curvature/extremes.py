"""The largest and the smallest eigenvalue of a symmetric operator, and the μ and η that the paper makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neumann.curvature.lanczos import (
    EVALUATIONS,
    Counted,
    Progress,
    Shifted,
    SymmetricOperator,
    Tridiagonal,
    direction,
    krylov_bytes,
    lanczos,
)
from neumann.optim.argument_checks import number, whole

OFTEN = 50  # iterations after which residuals are looked at every so many, since k of them cost k³


@dataclass(frozen=True)
class ExtremeEigenvalues:
    """Both ends of a spectrum.

    Args:
        largest: λ_max; never above the true one but by rounding, since Ritz values lie inside the spectrum.
        smallest: λ_min; never below the true one but by rounding.
        largest_residual: ‖Ay − λ_max y‖ for the unit vector y that belongs to it. An eigenvalue lies within it.
        smallest_residual: the same of λ_min.
        products: how many products with the operator were taken.
        converged: whether both residuals are within the tolerance; None where none was asked for.
        krylov_bytes: memory of the Krylov vectors that were held at once, in bytes.
    """

    largest: float
    smallest: float
    largest_residual: float
    smallest_residual: float
    products: int
    converged: bool | None
    krylov_bytes: int

    @property
    def gradient_evaluations(self) -> int:
        """What the products cost, each counted as two gradients of all the operator's batches."""
        return EVALUATIONS * self.products

    @property
    def mu(self) -> float | None:
        """μ = λ_max / (|λ_min| + λ_max), with which (1 − μ)I + μη∇²f̂ has no negative eigenvalue (§3.1 of the paper).

        None where λ_max is not above 0.
        """
        return self.largest / (abs(self.smallest) + self.largest) if self.largest > 0 else None

    @property
    def eta(self) -> float | None:
        """η = 1/λ_max, the learning rate of the paper's §3.1; None where λ_max is not above 0."""
        return 1 / self.largest if self.largest > 0 else None


def extreme_eigenvalues(
    operator: SymmetricOperator,
    *,
    iterations: int = 100,
    tolerance: float | None = 1e-3,
    shifted: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> ExtremeEigenvalues:
    """Return λ_max and λ_min of ``operator`` by Lanczos with full reorthogonalization.

    One Krylov space gives both ends. Its memory is a vector of the operator's size for each iteration; an iteration is
    one product. The paper takes 10 iterations for λ_max and finds λ_min by shifting the Hessian by −λ_max I, 10 more:
    ``iterations=10, tolerance=None, shifted=True``. In exact arithmetic the shift changes no Krylov space, so from one
    start vector it gives the same λ_min at twice the cost; it is here to repeat what the paper did.

    Args:
        operator: of :func:`hessian_operator`, or any symmetric one.
        iterations: as many are made, of each of the two with ``shifted``; with a tolerance at most, and never more than
            the operator has rows.
        tolerance: iterations end once both residuals are at most this share of the larger of |λ_max| and |λ_min|; None:
            all of them are made.
        shifted: whether λ_min is found by a second Lanczos, of the operator − λ_max I from another start vector.
        seed: of the start vectors, uniform over the sphere.
        progress: called after each product with how many are done, and how many there are at most.

    Raises:
        ValueError: an argument is out of bounds, or a product is not finite.
    """
    iterations = whole("iterations", iterations, least=1)
    near = 0.0 if tolerance is None else number("tolerance", tolerance, above=0, below=1)
    generator = torch.Generator().manual_seed(whole("seed", seed, least=0))
    most = min(iterations, operator.size)
    counted = Counted(operator, progress, 2 * most if shifted else most)
    upper, lower, converged = _ends(
        counted, direction(operator, generator), iterations, near, upper=True, lower=not shifted
    )
    vectors = counted.products
    if shifted:
        moved = Shifted(counted, upper[0])
        start = direction(operator, generator)
        _, lower, second = _ends(moved, start, iterations, near, upper=False, lower=True)
        lower, converged = (lower[0] + upper[0], lower[1]), converged and second
        vectors = max(vectors, counted.products - vectors)
    return ExtremeEigenvalues(
        largest=upper[0],
        smallest=lower[0],
        largest_residual=upper[1],
        smallest_residual=lower[1],
        products=counted.products,
        converged=None if tolerance is None else converged,
        krylov_bytes=krylov_bytes(operator, vectors),
    )


Pair = tuple[float, float]  # a Ritz value and its residual


def _ends(
    operator: SymmetricOperator, start: Tensor, iterations: int, near: float, *, upper: bool, lower: bool
) -> tuple[Pair, Pair, bool]:
    """Return the upper and the lower end, and whether those of them that are asked for are within ``near``."""
    for k, projected in enumerate(lanczos(operator, start, iterations), start=1):
        looked_at = near and (k <= OFTEN or k % OFTEN == 0)
        if looked_at and _within(projected, near, upper=upper, lower=lower):
            break
    values, residuals, _ = projected.ritz()
    top, bottom = ((float(values[at]), float(residuals[at])) for at in (-1, 0))
    return top, bottom, _within(projected, near, upper=upper, lower=lower)


def _within(projected: Tridiagonal, near: float, *, upper: bool, lower: bool) -> bool:
    values, residuals, _ = projected.ritz()
    bound = near * float(values.abs().max())
    return not (upper and residuals[-1] > bound) and not (lower and residuals[0] > bound)
