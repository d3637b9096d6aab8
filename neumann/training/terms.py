"""What an optimizer's terms do in one step of a run: the curvature, the noise and the moves that they rest on.

All is of the step's own batch, in float32 (float64 where the weights are), at the weights that the step begins with,
with dropout off and batch norm held at the batch's statistics (`neumann.training.batch_curvature`). ∇f̂ is without
weight decay and without regularizers. What an optimizer does not have is left out, and so is what is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from neumann.curvature import ExtremeEigenvalues, extreme_eigenvalues
from neumann.optim import at, points
from neumann.optim.regularizers import regularizer_norms
from neumann.training.batch_curvature import BatchCurvature, batch_curvature, flat
from neumann.training.classifier import Batch, ImageClassifier

if TYPE_CHECKING:
    from neumann.training.distributed import RankGroup

PARTS = 8  # of the global batch, at least, between which the gradient's noise is seen
EXACT = 2_000  # parameters of the largest network whose Hessian is made whole, by a product a parameter
DAMPING = 1e-3  # share of λ_max, beyond what makes the Hessian positive

Found = dict[str, float | int | str]


class StepTerms:
    """The terms of one step, looked at before it is taken and measured after it.

    Args:
        module: the run's, at the held weights, before the step.
        optimizer: its optimizer.
        batches: this rank's micro-batches of the step, of as many images on each rank.
        group: the ranks, all of which make this and call :meth:`measured`.

    Raises:
        ValueError: the network has no curvature to measure, as `neumann.curvature.hessian_operator` says.
    """

    def __init__(
        self, module: ImageClassifier, optimizer: Optimizer, batches: Sequence[Batch], group: RankGroup
    ) -> None:
        self._module, self._optimizer = module, optimizer
        with at(optimizer, "held"):  # asked for by name, so that no watcher warns of the mode
            self._operator = batch_curvature(module, batches, group)
        self._held = self._weights()
        self._found: Found = {}
        self._before_the_step()
        self._base: BatchCurvature | None = None  # at the base point, where that is another
        self._displacement = torch.zeros_like(self._held)  # from there to the held weights
        if "base" in points(optimizer):
            with at(optimizer, "base"):
                self._displacement = self._held - self._weights()
                if self._displacement.any():
                    self._base = batch_curvature(module, batches, group)

    def _weights(self) -> Tensor:
        return flat(self._module.model, lambda p: p.to(self._operator.dtype))

    def _before_the_step(self) -> None:
        norms = regularizer_norms(self._optimizer)
        if norms is not None:
            self._note(distance=norms.distance, attraction=norms.attraction, repulsion=norms.repulsion)
        elif "average" in points(self._optimizer):
            with at(self._optimizer, "average"):
                self._note(distance=_norm(self._held - self._weights()))

    def measured(self, iterations: int, *, newton: bool = False) -> Found:
        """Return what the terms did, now that the step has been taken, by the keys of a line of terms.jsonl.

        Args:
            iterations: of Lanczos, for both ends of the spectrum; at most as many as there are parameters.
            newton: whether directions are held against Newton's, by the whole Hessian.
        """
        operator, optimizer = self._operator, self._optimizer
        with at(optimizer, "held"):
            move = self._weights() - self._held
            momentum = self._momentum()
            gradient = operator.gradient()
            self._note(rate=float(optimizer.param_groups[0].get("lr", math.nan)), update_norm=_norm(move))
            self._note(gradient_norm=_norm(gradient), images=operator.examples)
            cost = 1
            if gradient.isfinite().all():
                ends = _ends(operator, iterations)
                if ends is not None:
                    self._note_ends(ends)
                    cost += ends.gradient_evaluations
                cost += self._noise(gradient) + self._transport(gradient, move)
                if newton and ends is not None:
                    cost += self._newton(gradient, move, momentum)
        return {**self._found, "gradient_evaluations": cost}

    def _momentum(self) -> Tensor | None:
        """Return m after the step, up to its factor: the way from the base point to the held one."""
        if "base" not in points(self._optimizer):
            return None
        held = self._weights()
        with at(self._optimizer, "base"):
            return held - self._weights()

    def _note_ends(self, ends: ExtremeEigenvalues) -> None:
        rate = self._found.get("rate")
        self._note(
            lambda_max=ends.largest,
            lambda_max_residual=ends.largest_residual,
            lambda_min=ends.smallest,
            lambda_min_residual=ends.smallest_residual,
            mu=ends.mu,
            eta=ends.eta,
            lambda_max_times_rate=ends.largest * rate if isinstance(rate, float) else None,
        )

    def _noise(self, gradient: Tensor) -> int:
        """Note the gradient's noise and return its cost; the simple noise scale is tr Σ/|g|²."""
        mean, count, size = self._operator.part_squares(PARTS)
        if count > 1:
            batch, whole = self._operator.examples, float(gradient.double().square().sum())
            trace, square = noise_of(mean, size, whole, batch)
            self._note(noise_trace=trace, noise_share=trace / batch / whole if whole > 0 else None)
            self._note(noise_scale=trace / square if square > 0 else None)
        return 1

    def _transport(self, gradient: Tensor, move: Tensor) -> int:
        """Note ‖∇f̂(w + d) − ∇f̂(w) − ∇²f̂ d‖ / ‖∇²f̂ d‖ and return its cost.

        d is the optimizer's own displacement from its base point w, at whose end it takes the gradient of this step;
        without one it is the step's move of the held weights.
        """
        displaced = self._base is not None
        operator, d = (self._base, self._displacement) if self._base is not None else (self._operator, move)
        if not d.any() or not d.isfinite().all():
            return 0
        there = operator.gradient() if displaced else gradient
        product = operator @ d
        error = operator.gradient(d) - there - product
        size = _norm(product)
        self._note(
            displacement_norm=_norm(d) if displaced else None,
            transport_along="displacement" if displaced else "move",
            transport_error=_norm(error) / size if size > 0 else None,
        )
        return 4 if displaced else 3

    def _newton(self, gradient: Tensor, move: Tensor, momentum: Tensor | None) -> int:
        """Note the cosines with −(∇²f̂ + δI)⁻¹∇f̂ and return their cost.

        δ is |λ_min| where that is negative, by which §3.1 of the paper makes the Hessian positive, and λ_max / 1,000.
        """
        operator = self._operator
        columns = [operator @ axis for axis in torch.eye(operator.size, dtype=operator.dtype, device=operator.device)]
        matrix = torch.stack(columns).double().cpu()
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        low, high = float(values[0]), float(values[-1])
        damping = max(0.0, -low) + DAMPING * high
        if high > 0 and math.isfinite(damping):
            g = gradient.double().cpu()
            newton = -(vectors @ ((vectors.T @ g) / (values + damping)))
            self._note(newton_damping=damping, newton_cosine_gradient=_cosine(-g, newton))
            self._note(newton_cosine_move=_cosine(move, newton))
            if momentum is not None:
                self._note(newton_cosine_momentum=_cosine(momentum, newton))
        return 2 * operator.size

    def _note(self, **values: float | int | str | None) -> None:
        """Keep what is known and finite."""
        self._found |= {
            key: value
            for key, value in values.items()
            if value is not None and (isinstance(value, str) or math.isfinite(value))
        }


def noise_of(part_square: float, part: int, batch_square: float, batch: int) -> tuple[float, float]:
    """Return tr Σ of one image's gradient and |g|² of the true gradient, without bias (McCandlish et al. 2018, A.1).

    Args:
        part_square: the mean squared norm of the gradients of parts of the batch.
        part: images in a part, fewer than in the batch.
        batch_square: the squared norm of the batch's gradient.
        batch: images in the batch.
    """
    trace = (part_square - batch_square) / (1 / part - 1 / batch)
    return trace, (batch * batch_square - part * part_square) / (batch - part)


def _ends(operator: BatchCurvature, iterations: int) -> ExtremeEigenvalues | None:
    """Return both ends of the spectrum, None where a product is not finite."""
    try:
        return extreme_eigenvalues(operator, iterations=iterations, tolerance=None)
    except ValueError:
        return None


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def _cosine(one: Tensor, other: Tensor) -> float | None:
    """Return the cosine between two vectors, in float64 on the CPU; None where one of them is zero."""
    one, other = one.double().cpu(), other.double().cpu()
    size = float(one.norm() * other.norm())
    return float(one @ other) / size if size > 0 else None
