"""The kernels of the fused step: C++ on a CPU, Triton on CUDA. Both take the tables that `layout.py` defines."""

from __future__ import annotations

import torch

from neumann.optim.kernels.protocol import CHUNK, Kernel, state_type

__all__ = ["CHUNK", "Kernel", "kernel_for", "state_type", "why_none"]


def kernel_for(device: torch.device) -> Kernel | None:
    """Return the kernel for tensors on ``device``; None where there is none, and :func:`why_none` says why."""
    if device.type == "cpu":
        from neumann.optim.kernels import cpu

        return cpu.load()
    if device.type == "cuda":
        try:
            from neumann.optim.kernels import gpu
        except ImportError:
            return None
        return gpu.load()
    return None


def why_none(device: torch.device) -> str:
    """Return why there is no kernel for ``device``, in half a sentence."""
    if device.type == "cpu":
        from neumann.optim.kernels import cpu

        return cpu.problem()
    if device.type == "cuda":
        return "Triton cannot be imported"
    return f"there is none for the device type {device.type!r}"
