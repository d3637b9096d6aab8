"""The rows of the tables that Python fills and the C++ and Triton kernels read: the only definition of their columns.

The order of a class's fields is the order of its columns. `cpu.py` passes the names to the C++ compiler, which makes
its structs of them; `gpu.py` looks up the number of each column by its name.
"""

from __future__ import annotations

from typing import NamedTuple

from neumann.optim.tensors import Scalar


class TensorRow(NamedTuple):
    """One parameter (int64)."""

    w: int  # address of its first weight
    m: int  # address of m
    r: int  # address of r = w − v
    numel: int  # number of its elements on this process
    group: int  # row of its group in the table of scalars


class ChunkRow(NamedTuple):
    """A part of a parameter, of ``CHUNK`` elements at most (int64)."""

    tensor: int  # row of the parameter in the table of tensors
    start: int  # its first element, a multiple of CHUNK


class ScalarRow(NamedTuple):
    """The scalars of one parameter group's step (float64); :class:`neumann.optim.phases.Phase` describes the others."""

    carry: Scalar
    alpha: Scalar
    beta: Scalar
    min_distance: Scalar
    eta_m: Scalar
    mu_u: Scalar
    eta_u: Scalar
    gamma: Scalar
    weight_decay: Scalar  # λ, coefficient of the L2 term inside the gradient
    sign: Scalar  # of the gradient: −1 to maximize, divided by the scale of the gradients
    active: Scalar  # 0 skips the step
