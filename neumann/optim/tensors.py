"""What do the optimizers do with lists of tensors? Pick those with a gradient, sort by device and type, take a norm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

TensorList = list[Tensor] | tuple[Tensor, ...]  # what torch._foreach_* take and return


def with_gradient(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters of ``group`` that have a gradient, which are those a step moves, and the gradients.

    Raises:
        RuntimeError: a gradient is sparse.
    """
    params = [p for p in group["params"] if p.grad is not None]
    grads = [cast(Tensor, p.grad) for p in params]
    if any(grad.is_sparse for grad in grads):
        raise RuntimeError("sparse gradients are not supported: build the embedding with sparse=False")
    return params, grads


def use_foreach(foreach: bool | None, params: list[Tensor]) -> bool:
    """Return whether to run on lists of tensors at once: as asked, else where all ``params`` are on a CUDA device.

    There a step costs a handful of kernel launches instead of several for each parameter. On a CPU nothing is launched:
    the lists run as loops all the same, and model-sized temporaries leave the cache that one tensor's would stay in.
    """
    return all(p.is_cuda for p in params) if foreach is None else foreach


def by_device_and_dtype(*lists: list[Tensor]) -> Iterator[list[list[Tensor]]]:
    """Yield the parallel ``lists`` cut into parts whose tensors share one device and one type."""
    if not lists[0]:
        return
    grouped = Optimizer._group_tensors_by_device_and_dtype([list(each) for each in lists])
    for part, _ in grouped.values():
        yield cast(list[list[Tensor]], part)


def global_norm(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all ``tensors`` together, 0-dim, on the first one's device; of none it is 0.

    Halves are summed as floats; the sum over tensors is in float64 where the device has it. The order is fixed, so
    replicas that hold the same values get the same bits. Nothing here waits for the device.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    norms: list[Tensor] = []
    for (part,) in by_device_and_dtype(tensors):
        wide = torch.promote_types(part[0].dtype, torch.float32)
        if part[0].is_cuda:
            norms += torch._foreach_norm(part, 2, wide)
        else:
            norms += [torch.linalg.vector_norm(tensor, dtype=wide) for tensor in part]
    device = tensors[0].device
    exact = torch.float32 if device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(torch.stack([norm.to(device, exact) for norm in norms]))


def fitted(value: float | Tensor, like: Tensor) -> float | Tensor:
    """Return ``value`` as it is where it is a number; a 0-dim tensor on the device and in the type of ``like``.

    It is cut at that type's largest number: infinity times a zero would be nan.
    """
    if not isinstance(value, Tensor):
        return value
    largest = min(torch.finfo(like.dtype).max, torch.finfo(value.dtype).max)
    return value.clamp(-largest, largest).to(like.device, like.dtype, non_blocking=True)


def subtract_scaled_(y: Tensor, scale: float | Tensor, x: Tensor) -> Tensor:
    """y ← y − scale·x; the product is written out only where ``scale`` is a tensor."""
    return y.sub_(scale * x) if isinstance(scale, Tensor) else y.sub_(x, alpha=scale)


def foreach_subtract_scaled_(ys: TensorList, scale: float | Tensor, xs: TensorList) -> None:
    """As :func:`subtract_scaled_`, for lists of tensors at once."""
    if isinstance(scale, Tensor):
        torch._foreach_sub_(ys, torch._foreach_mul(xs, scale))
    else:
        torch._foreach_sub_(ys, xs, alpha=scale)
