"""A noisy convex problem whose gradients depend on the weights, the step and the parameter, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

SHAPES = ((3, 4), (5,), ())


def new_params(dtype: torch.dtype = torch.float64, *, start: int = 0, shapes=SHAPES) -> list[Tensor]:
    """Parameters that start alike in every call; their number begins at ``start``."""
    params = []
    for index, shape in enumerate(shapes, start):
        generator = torch.Generator().manual_seed(index)
        params.append(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_())
    return params


def gradient(p: Tensor, index: int, step: int) -> Tensor:
    """(index + 1)/2 · p + sin p, with noise of deviation 0.3."""
    w = p.detach()
    return 0.5 * (index + 1) * w + torch.sin(w) + noise(p.shape, index, step).to(p.dtype)


@cache
def noise(shape: torch.Size, index: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + index)
    return 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)


def set_gradients(
    params: list[Tensor], step: int, *, has: Callable[[int, int], bool] = lambda index, step: True
) -> None:
    for index, p in enumerate(params):
        p.grad = gradient(p, index, step) if has(index, step) else None


def train(optimizer, params: list[Tensor], steps, **kwargs) -> None:
    for step in steps:
        set_gradients(params, step, **kwargs)
        optimizer.step()


def relative(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all tensors together."""
    flat_ours = torch.cat([p.detach().flatten().double() for p in ours])
    flat_theirs = torch.cat([p.detach().flatten().double() for p in theirs])
    return float((flat_ours - flat_theirs).norm() / flat_theirs.norm())


def same_bits(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def copies(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in params]
