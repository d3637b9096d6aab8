"""The protocol of a kernel: a fused step on tensors that are given by their addresses."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

CHUNK = 16384  # elements that one program or thread works on, and whose squares make one number


class Kernel(Protocol):
    """A fused step on tensors that are given by their addresses. All tables are on the tensors' device.

    ``weights`` is the type of w and g; m and r have :func:`state_type` of it.

    ============ =================== ======= =====================================================================
    table        shape               type    content
    ============ =================== ======= =====================================================================
    ``tensors``  tensors × columns   int64   :class:`~neumann.optim.kernels.layout.TensorRow` of each parameter
    ``grads``    tensors             int64   address of g; 0 where there is none, then nothing of the tensor moves
    ``chunks``   chunks × columns    int64   :class:`~neumann.optim.kernels.layout.ChunkRow` of each chunk
    ``scalars``  groups × columns    float64 :class:`~neumann.optim.kernels.layout.ScalarRow` of each group
    ``squares``  any number          float64 partial sums whose total is ‖r‖² over all parameters, on all devices
    ``before``   chunks              float64 ‖r‖² of each chunk
    ``after``    chunks              float64 the same after the step, written
    ============ =================== ======= =====================================================================
    """

    types: tuple[torch.dtype, ...]

    def step(
        self,
        weights: torch.dtype,
        tensors: Tensor,
        grads: Tensor,
        chunks: Tensor,
        scalars: Tensor,
        squares: Tensor,
        before: Tensor,
        after: Tensor,
        *,
        aligned: bool,
    ) -> None:
        """Take a step; ``aligned`` says that every address is a multiple of 16."""

    def squares(self, weights: torch.dtype, tensors: Tensor, chunks: Tensor, out: Tensor) -> None:
        """Write ‖r‖² of each chunk to ``out``."""


def state_type(weights: torch.dtype) -> torch.dtype:
    """Return the type of m and r: that of the weights, but float32 for float16 and bfloat16."""
    return torch.promote_types(weights, torch.float32)
