"""The curvature of a trained run's loss at its weights, on images of its training split."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neumann.curvature import (
    CurvatureOperator,
    ExtremeEigenvalues,
    SpectralDensity,
    extreme_eigenvalues,
    gauss_newton_operator,
    hessian_operator,
    spectral_density,
)
from neumann.curvature.operators import Statistics
from neumann.data.other_sets import ChosenImages
from neumann.data.splits import order
from neumann.errors import UserError
from neumann.optim.batch_norm import batch_norms
from neumann.store.records import read_config
from neumann.store.scores import is_number
from neumann.training.scored import own_batches
from neumann.training.trained import Trained

MATRICES = {"hessian": hessian_operator, "gauss-newton": gauss_newton_operator}


@dataclass(frozen=True)
class Asked:
    """What is measured of a run.

    Args:
        matrix: one of `MATRICES`.
        batch_norm: whose statistics are held, as in `neumann.curvature.hessian_operator`.
        iterations: of Lanczos, at most where there is a tolerance.
        tolerance: of both ends, relative to the larger; None: all iterations are made.
        shifted: whether λ_min is found as the paper found it.
        density: whether the spectral density is measured too.
        double: whether float64 is computed in, whatever the weights are.
        seed: of the choice of images, of the start vectors and of the probes.
        batch_size: images at once.
    """

    matrix: str
    batch_norm: Statistics
    iterations: int
    tolerance: float | None
    shifted: bool
    density: bool
    double: bool
    seed: int
    batch_size: int


@dataclass(frozen=True, eq=False)
class Measured:
    """The curvature of a run.

    Args:
        parameters: rows of the matrix.
        dtype: what was computed in, float32 or float64.
        batch_norm: whose statistics it was held at; None: the network has none.
        label_smoothing: of the loss, the run's own.
        ends: both ends of the spectrum.
        density: the spectral density, None where it was not asked for.
        rate: the run's learning rate that its schedule is applied to; None where it has none.
        seconds: that the products took.
    """

    parameters: int
    dtype: str
    batch_norm: str | None
    label_smoothing: float
    ends: ExtremeEigenvalues
    density: SpectralDensity | None
    rate: float | None
    seconds: float

    @property
    def scaled_curvature(self) -> float | None:
        """λ_max × the run's rate: plain gradient descent is stable on a quadratic below 2."""
        return None if self.rate is None else self.ends.largest * self.rate

    @property
    def gradient_evaluations(self) -> int:
        """What all products cost, each counted as two gradients of all the images."""
        return self.ends.gradient_evaluations + (self.density.gradient_evaluations if self.density else 0)

    def record(self) -> dict[str, Any]:
        """Return the measurement as JSON types."""
        ends, density = self.ends, self.density
        record: dict[str, Any] = {
            "parameters": self.parameters,
            "dtype": self.dtype,
            "batch_norm": self.batch_norm,
            "label_smoothing": self.label_smoothing,
            "lambda_max": ends.largest,
            "lambda_max_residual": ends.largest_residual,
            "lambda_min": ends.smallest,
            "lambda_min_residual": ends.smallest_residual,
            "converged": ends.converged,
            "mu": ends.mu,
            "eta": ends.eta,
            "rate": self.rate,
            "lambda_max_times_rate": self.scaled_curvature,
            "gradient_evaluations": self.gradient_evaluations,
            "krylov_bytes": max(ends.krylov_bytes, density.krylov_bytes if density else 0),
            "seconds": self.seconds,
        }
        if density is not None:
            record["density"] = {
                "width": density.width,
                "probes": density.probes,
                **{key: getattr(density, key).tolist() for key in ("grid", "density", "nodes", "weights")},
            }
        return record


def some_of(chosen: ChosenImages, count: int | None, seed: int, usual: int) -> ChosenImages:
    """Return ``count`` images of ``chosen``, by ``seed``; None: ``usual``, or all where there are fewer.

    Raises UserError where there are fewer than ``count``.
    """
    there = len(chosen.indices)
    count = min(usual, there) if count is None else count
    if count > there:
        raise UserError(f"--images {count}: the run's {chosen.split} split has {there:,} images")
    return replace(chosen, indices=chosen.indices[order(there, (seed,))[:count]])


def measure(
    run: Trained,
    data: Mapping[str, Any],
    chosen: ChosenImages,
    asked: Asked,
    device: torch.device,
    told: Callable[[str, int, int], None],
) -> Measured:
    """Return the curvature of the run's loss on the images ``chosen``.

    The loss is the mean cross-entropy of the main head with the run's label smoothing, without weight decay and
    without an optimizer's regularizers. Images are prepared as in the run's evaluation, without augmentation.

    Args:
        run: the run.
        data: its data section.
        chosen: images of its own data.
        asked: what is measured.
        device: where.
        told: is called after each product with what it is for, how many are done and how many there are at most.

    Raises:
        UserError: the network's curvature cannot be measured; the message says why.
    """
    smoothing = _label_smoothing(run)
    try:
        network, _ = run.network()
        operator = _operator(run, network, data, chosen, asked, device, smoothing)
        began = time.perf_counter()
        ends = extreme_eigenvalues(
            operator,
            iterations=asked.iterations,
            tolerance=asked.tolerance,
            shifted=asked.shifted,
            seed=asked.seed,
            progress=lambda done, most: told("eigenvalues", done, most),
        )
        density = None
        if asked.density:
            density = spectral_density(
                operator, seed=asked.seed, progress=lambda done, most: told("density", done, most)
            )
    except ValueError as error:
        raise UserError(f"{run.folder}: {error}") from error
    rate: Any = (run.result.get("lr") or {}).get("scaled")
    return Measured(
        parameters=operator.size,
        dtype=str(operator.dtype).removeprefix("torch."),
        batch_norm=asked.batch_norm if batch_norms(network) else None,
        label_smoothing=smoothing,
        ends=ends,
        density=density,
        rate=float(rate) if is_number(rate) else None,
        seconds=time.perf_counter() - began,
    )


class _MainHead(nn.Module):
    """The main head's logits of a network that may return those of an auxiliary head beside them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        out = self.network(images)
        logits: Tensor = out[0] if isinstance(out, tuple) else out
        return logits


def _operator(
    run: Trained,
    network: nn.Module,
    data: Mapping[str, Any],
    chosen: ChosenImages,
    asked: Asked,
    device: torch.device,
    smoothing: float,
) -> CurvatureOperator:
    model = _MainHead(network).to(device)
    batches = list(own_batches(run, data, chosen, batch_size=asked.batch_size, device=device))
    double = asked.double or next(model.parameters()).dtype == torch.float64
    return MATRICES[asked.matrix](
        model,
        lambda logits, labels: functional.cross_entropy(logits, labels, label_smoothing=smoothing),
        batches,
        dtype=torch.float64 if double else torch.float32,
        batch_norm=asked.batch_norm,
    )


def _label_smoothing(run: Trained) -> float:
    recipe = read_config(run.folder).get("recipe")
    found: Any = recipe.get("label_smoothing") if isinstance(recipe, Mapping) else None
    return float(found) if is_number(found) and 0 <= found < 1 else 0.0
