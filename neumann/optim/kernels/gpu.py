"""The fused step on CUDA, in Triton: as fused_step.cpp, with one launch for all tensors.

Every program works on one chunk. It adds up ‖r‖² of the step before by itself, always in the same order, so that
nothing waits for the host and no second launch is needed; its own chunk's share for the next step goes to another
table, which no program of this launch reads. Without atomics, replicas that hold the same values get the same bits.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neumann.optim.kernels.layout import ChunkRow, ScalarRow, TensorRow
from neumann.optim.kernels.protocol import CHUNK, state_type

if TYPE_CHECKING:
    triton: Any
    tl: Any
else:
    import triton
    import triton.language as tl

BLOCK = 1024  # elements at a time; 4 for each thread, 16 bytes of float32
WARPS = 8
MANY = 8192  # squares that every program can add up by itself; more are added up in a launch of their own

_TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def _columns(row: Any, *names: str) -> list[Any]:
    """Return the numbers of the columns that are named, as constants of a kernel."""
    return [tl.constexpr(row._fields.index(name)) for name in names]


_TENSOR_WIDTH, _CHUNK_WIDTH, _SCALAR_WIDTH = (
    tl.constexpr(len(row._fields)) for row in (TensorRow, ChunkRow, ScalarRow)
)
_W, _M, _R, _NUMEL, _GROUP = _columns(TensorRow, "w", "m", "r", "numel", "group")
_TENSOR, _START = _columns(ChunkRow, "tensor", "start")
_CARRY, _ALPHA, _BETA, _MIN_DISTANCE = _columns(ScalarRow, "carry", "alpha", "beta", "min_distance")
_ETA_M, _MU_U, _ETA_U, _GAMMA = _columns(ScalarRow, "eta_m", "mu_u", "eta_u", "gamma")
_WEIGHT_DECAY, _SIGN, _ACTIVE = _columns(ScalarRow, "weight_decay", "sign", "active")


@triton.jit
def _sum(squares, count, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(squares + at, mask=at < count, other=0.0)
    return tl.sum(total)


@triton.jit
def _push(distance, alpha, beta, min_distance, largest):
    # c = α‖r‖ − β/max(‖r‖, δ)³, and 0 where r = 0; cut at the largest number of the type: infinity times zero is nan
    guarded = tl.maximum(distance, min_distance)
    none = (distance == 0.0) | ((alpha == 0.0) & (beta == 0.0))
    cube = tl.where(none, 1.0, guarded * guarded * guarded)
    push = tl.where(none, 0.0, alpha * distance - beta / cube)
    return tl.where(push != push, push, tl.minimum(tl.maximum(push, -largest), largest))  # nan stays nan


@triton.jit
def _tile(w, g, m, r, n, scalars, W: tl.constexpr, S: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    """Move a tile of up to BLOCK elements and return the squares of r; a WHOLE one needs no mask, so it goes faster."""
    carry, push, eta_m, mu_u, eta_u, gamma, weight_decay, sign = scalars
    at = tl.arange(0, BLOCK)
    if WHOLE:
        w_before, g_now, m_now, r_now = tl.load(w + at).to(S), tl.load(g + at).to(S), tl.load(m + at), tl.load(r + at)
    else:
        mask = at < n
        w_before = tl.load(w + at, mask=mask, other=0.0).to(S)
        g_now = tl.load(g + at, mask=mask, other=0.0).to(S)
        m_now = tl.load(m + at, mask=mask, other=0.0)
        r_now = tl.load(r + at, mask=mask, other=0.0)
    d = sign * g_now + weight_decay * w_before + push * r_now
    m_now = carry * m_now - eta_m * d
    u = mu_u * m_now - eta_u * d
    w_now = (w_before + u).to(W)
    if W != S:
        u = w_now.to(S) - w_before  # what float16 or bfloat16 rounds away has not moved the weight
    r_now = gamma * (r_now + u)
    if WHOLE:
        tl.store(w + at, w_now)
        tl.store(m + at, m_now)
        tl.store(r + at, r_now)
    else:
        tl.store(w + at, w_now, mask=mask)
        tl.store(m + at, m_now, mask=mask)
        tl.store(r + at, r_now, mask=mask)
    return r_now * r_now


@triton.jit
def _pointer(address, start, T: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the pointer to element ``start`` of the tensor whose address, ALIGNED to 16, lies at ``address``."""
    pointer = tl.load(address).to(tl.pointer_type(T))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def _step_kernel(
    tensors,
    grads,
    chunks,
    scalars,
    squares,
    n_squares,
    before,
    after,
    LARGEST: tl.constexpr,
    W: tl.constexpr,
    S: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk = tl.program_id(0)
    this = chunks + chunk * _CHUNK_WIDTH
    index = tl.load(this + _TENSOR)
    start = tl.multiple_of(tl.load(this + _START), 16)  # and ALIGNED: loads and stores of 16 bytes
    tensor = tensors + index * _TENSOR_WIDTH
    group = scalars + tl.load(tensor + _GROUP) * _SCALAR_WIDTH
    if (tl.load(grads + index) != 0) & (tl.load(group + _ACTIVE) != 0.0):
        w = _pointer(tensor + _W, start, W, ALIGNED)
        m = _pointer(tensor + _M, start, S, ALIGNED)
        r = _pointer(tensor + _R, start, S, ALIGNED)
        g = _pointer(grads + index, start, W, ALIGNED)
        n = tl.minimum(tl.load(tensor + _NUMEL) - start, CHUNK)
        distance = tl.sqrt(_sum(squares, n_squares, BLOCK))
        alpha, beta, min_distance = tl.load(group + _ALPHA), tl.load(group + _BETA), tl.load(group + _MIN_DISTANCE)
        push = _push(distance, alpha, beta, min_distance, LARGEST).to(S)
        carry, eta_m, mu_u = tl.load(group + _CARRY).to(S), tl.load(group + _ETA_M).to(S), tl.load(group + _MU_U).to(S)
        eta_u, gamma = tl.load(group + _ETA_U).to(S), tl.load(group + _GAMMA).to(S)
        weight_decay, sign = tl.load(group + _WEIGHT_DECAY).to(S), tl.load(group + _SIGN).to(S)
        values = (carry, push, eta_m, mu_u, eta_u, gamma, weight_decay, sign)
        sums = tl.zeros([BLOCK], S)
        whole = n // BLOCK * BLOCK
        for at in range(0, whole, BLOCK):
            sums += _tile(w + at, g + at, m + at, r + at, n, values, W, S, True, BLOCK)
        if whole < n:
            end = whole
            sums += _tile(w + end, g + end, m + end, r + end, n - end, values, W, S, False, BLOCK)
        tl.store(after + chunk, tl.sum(sums.to(tl.float64)))
    else:  # nothing of the tensor moves, and the chunk's share of ‖r‖² stays
        tl.store(after + chunk, tl.load(before + chunk))


@triton.jit
def _squares_kernel(tensors, chunks, out, S: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    chunk = tl.program_id(0)
    this = chunks + chunk * _CHUNK_WIDTH
    index = tl.load(this + _TENSOR)
    start = tl.load(this + _START)
    tensor = tensors + index * _TENSOR_WIDTH
    r = _pointer(tensor + _R, start, S, False)
    n = tl.minimum(tl.load(tensor + _NUMEL) - start, CHUNK)
    sums = tl.zeros([BLOCK], S)
    for first in range(0, n, BLOCK):
        at = first + tl.arange(0, BLOCK)
        r_now = tl.load(r + at, mask=at < n, other=0.0)
        sums += r_now * r_now
    tl.store(out + chunk, tl.sum(sums.to(tl.float64)))


class GpuKernel:
    """The Triton kernels; see :class:`neumann.optim.kernels.protocol.Kernel`."""

    types = tuple(_TYPES)

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
        """See :class:`neumann.optim.kernels.protocol.Kernel`."""
        state = state_type(weights)
        if squares.numel() > MANY:
            squares = squares.sum().reshape(1)
        with torch.cuda.device_of(tensors):
            _step_kernel[(len(chunks),)](
                tensors,
                grads,
                chunks,
                scalars,
                squares,
                squares.numel(),
                before,
                after,
                LARGEST=torch.finfo(state).max,
                W=_TYPES[weights],
                S=_TYPES[state],
                ALIGNED=aligned,
                CHUNK=CHUNK,
                BLOCK=BLOCK,
                num_warps=WARPS,
                enable_fp_fusion=False,  # as in C++
            )

    def squares(self, weights: torch.dtype, tensors: Tensor, chunks: Tensor, out: Tensor) -> None:
        """See :class:`neumann.optim.kernels.protocol.Kernel`."""
        state = _TYPES[state_type(weights)]
        with torch.cuda.device_of(tensors):
            _squares_kernel[(len(chunks),)](tensors, chunks, out, S=state, CHUNK=CHUNK, BLOCK=BLOCK, num_warps=WARPS)


@functools.cache
def load() -> GpuKernel:
    """Return the kernels; Triton compiles them at their first use and keeps them in a cache of its own."""
    return GpuKernel()
