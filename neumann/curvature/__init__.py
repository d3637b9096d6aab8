"""Curvature of a loss at a network's weights: products with it, its extreme eigenvalues, its spectral density.

- :func:`hessian_operator`, :func:`gauss_newton_operator`: the Hessian and the generalized Gauss-Newton matrix of the
  mean loss over a few batches, as operators, ``operator @ vector``.
- :func:`extreme_eigenvalues`: λ_max and λ_min by Lanczos, and the paper's μ and η of them;
  :func:`extreme_eigenvalues_by_arpack`: the same by SciPy, in less memory.
- :func:`spectral_density`: how the eigenvalues are spread, by stochastic Lanczos quadrature.

Importing this package imports torch and `neumann.optim` alone; SciPy is imported when ARPACK is asked for.
"""

from neumann.curvature.arpack import extreme_eigenvalues_by_arpack
from neumann.curvature.density import SpectralDensity, spectral_density
from neumann.curvature.extremes import ExtremeEigenvalues, extreme_eigenvalues
from neumann.curvature.lanczos import SymmetricOperator
from neumann.curvature.operators import CurvatureOperator, gauss_newton_operator, hessian_operator

__all__ = [
    "CurvatureOperator",
    "ExtremeEigenvalues",
    "SpectralDensity",
    "SymmetricOperator",
    "extreme_eigenvalues",
    "extreme_eigenvalues_by_arpack",
    "gauss_newton_operator",
    "hessian_operator",
    "spectral_density",
]
