"""The spectral density of a symmetric operator by stochastic Lanczos quadrature.

Lin, Saad and Yang, Approximating spectral densities of large matrices (2016); Ghorbani, Krishnan and Xiao (ICML 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neumann.curvature.lanczos import (
    EVALUATIONS,
    Counted,
    Progress,
    SymmetricOperator,
    direction,
    krylov_bytes,
    lanczos,
)
from neumann.optim.argument_checks import number, whole

MARGIN = 5  # widths of a Gaussian by which the grid goes beyond the outermost nodes


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """How the eigenvalues of an operator are spread.

    Args:
        grid: eigenvalues, ascending, at equal distances, float64 [points].
        density: the share of the eigenvalues by unit of eigenvalue, at the grid, float64 [points]; its integral is 1.
        nodes: the eigenvalues of the quadrature, float64 [N], over all probes.
        weights: the share of the spectrum that each node stands for, float64 [N]; they sum to 1.
        width: standard deviation of the Gaussian that each node was widened to, in units of an eigenvalue.
        probes: random directions that were averaged over.
        products: how many products with the operator were taken.
        krylov_bytes: memory of the Krylov vectors, in bytes.
    """

    grid: Tensor
    density: Tensor
    nodes: Tensor
    weights: Tensor
    width: float
    probes: int
    products: int
    krylov_bytes: int

    @property
    def gradient_evaluations(self) -> int:
        """What the products cost, each counted as two gradients of all the operator's batches."""
        return EVALUATIONS * self.products

    def moment(self, power: int) -> float:
        """Return the mean of the eigenvalues to the ``power``, from the nodes, without the width.

        It is the mean over the probes z of zᵀ Aᵖ z, exactly up to power 2 × iterations − 1.
        """
        return float((self.weights * self.nodes**power).sum())


def spectral_density(
    operator: SymmetricOperator,
    *,
    iterations: int = 40,
    probes: int = 8,
    width: float | None = None,
    points: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
) -> SpectralDensity:
    """Return the spectral density of ``operator`` by stochastic Lanczos quadrature.

    Each probe is a direction, uniform over the sphere. From it Lanczos makes the Gauss quadrature of the spectrum as
    the probe sees it, whose mean over all probes is that of the spectrum. It costs ``probes`` × ``iterations`` products
    and the memory of ``iterations`` vectors of the operator's size.

    Args:
        operator: of :func:`hessian_operator`, or any symmetric one.
        iterations: of Lanczos for each probe.
        probes: directions; the error of the mean falls with their root.
        width: standard deviation of the Gaussian that each node is widened to, in units of an eigenvalue; None: 1 % of
            the distance between the outermost nodes, or of their size where they are one.
        points: of the grid, which goes 5 widths beyond the outermost nodes.
        seed: of the probes.
        progress: called after each product with how many are done, and how many there are at most.

    Raises:
        ValueError: an argument is out of bounds, or a product is not finite.
    """
    iterations, probes = whole("iterations", iterations, least=1), whole("probes", probes, least=1)
    points = whole("points", points, least=2)
    if width is not None:
        width = number("width", width, above=0)
    generator = torch.Generator().manual_seed(whole("seed", seed, least=0))
    counted = Counted(operator, progress, probes * min(iterations, operator.size))
    nodes, weights = [], []
    for _ in range(probes):
        *_, last = lanczos(counted, direction(operator, generator), iterations)
        values, _, shares = last.ritz()
        nodes.append(values)
        weights.append(shares / probes)
    found, shares = torch.cat(nodes), torch.cat(weights)
    low, high = float(found.min()), float(found.max())
    if width is None:
        size = max(abs(low), abs(high)) or 1.0
        width = 0.01 * (high - low if high - low > 1e-6 * size else size)
    grid = torch.linspace(low - MARGIN * width, high + MARGIN * width, points, dtype=torch.float64)
    bells = torch.exp(-0.5 * ((grid[:, None] - found) / width).square()) / (width * math.sqrt(2 * math.pi))
    return SpectralDensity(
        grid=grid,
        density=bells @ shares,
        nodes=found,
        weights=shares,
        width=width,
        probes=probes,
        products=counted.products,
        krylov_bytes=krylov_bytes(operator, iterations),
    )
