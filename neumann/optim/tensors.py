"""Helpers on lists of tensors: those with a gradient, parts by device and type, norms, local shards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from neumann.optim.private_names import parts_of_one_device_and_dtype

Scalar = float | Tensor  # a tensor is 0-dim, on the parameters' device
TensorList = list[Tensor] | tuple[Tensor, ...]  # what torch._foreach_* take and return


def with_gradient(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters of ``group`` that have a gradient, which are those a step moves, and the gradients.

    Raises:
        RuntimeError: a gradient is sparse; the message names the parameter.
    """
    params: list[Tensor] = []
    grads: list[Tensor] = []
    for place, p in enumerate(group["params"]):
        grad = p.grad
        if grad is None:
            continue
        if grad.layout is not torch.strided:
            raise RuntimeError(
                f"this optimizer does not support sparse gradients, and {name_of(group, place)} has one: build the "
                "embedding with sparse=False"
            )
        params.append(p)
        grads.append(grad)
    return params, grads


def name_of(group: dict[str, Any], place: int, index: int | None = None) -> str:
    """Return the name of a parameter for error messages.

    Args:
        group: its parameter group, with names where the optimizer was made of ``named_parameters()``.
        place: its place in the group.
        index: its number in the optimizer, where that is known.
    """
    if "param_names" in group:
        return f"parameter {group['param_names'][place]!r}"
    shape = tuple(group["params"][place].shape)
    return f"a parameter of shape {shape}" if index is None else f"parameter {index}"


def use_foreach(foreach: bool | None, params: list[Tensor]) -> bool:
    """Return whether to run on lists of tensors; a ``foreach`` of None leaves the choice, which is CUDA only.

    Lists cost a few launches instead of several for each parameter. On a CPU nothing is launched: the lists run as
    loops all the same, and temporaries of the model's size leave the cache, in which those of one tensor would stay.
    """
    return all(p.is_cuda for p in params) if foreach is None else foreach


def by_device_and_dtype(first: list[Tensor], *others: list[Any]) -> Iterator[list[list[Any]]]:
    """Yield the parallel lists cut into parts in which the tensors of the ``first`` share one device and one type."""
    if not first:
        return
    for part, indices in parts_of_one_device_and_dtype(first):
        yield [part, *([each[index] for index in indices] for each in others)]


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a ``DTensor``, which shares its memory; any other tensor as it is."""
    if type(tensor) in (Tensor, Parameter):
        return tensor
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def local_gradient(grad: Tensor, p: Tensor) -> Tensor:
    """Return this process's part of ``grad``, sharded as ``p`` is."""
    if type(p) is not Parameter and hasattr(p, "placements") and grad.placements != p.placements:  # type: ignore[attr-defined]
        grad = grad.redistribute(placements=p.placements)  # type: ignore[attr-defined]
    return local(grad)


def total_square(tensors: list[Tensor]) -> Tensor:
    """Return the sum of all squares in ``tensors``, 0-dim in float64 (float32 on MPS), on the first one's device.

    float16 and bfloat16 are summed in float32; the sum over tensors is in float64 where the device has it. The order is
    fixed, so replicas that hold the same values get the same bits. Nothing here waits for the device. Without tensors
    it is 0.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device="cpu")
    norms: list[Tensor] = []
    for (part,) in by_device_and_dtype(tensors):
        wide = torch.promote_types(part[0].dtype, torch.float32)
        if part[0].is_cuda:
            norms += torch._foreach_norm(part, 2, wide)
        else:
            norms += [torch.linalg.vector_norm(tensor, dtype=wide) for tensor in part]
    device = tensors[0].device
    exact = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack([norm.to(device, exact) for norm in norms]).square().sum()


def fitted(value: Scalar, like: Tensor) -> Scalar:
    """Return a number as it is, and a tensor of one number as a 0-dim one with the device and type of ``like``.

    A tensor is cut at that type's largest number: infinity times a zero would be nan.
    """
    if not isinstance(value, Tensor):
        return value
    largest = min(torch.finfo(like.dtype).max, torch.finfo(value.dtype).max)
    return value.clamp(-largest, largest).to(like.device, like.dtype, non_blocking=True).reshape(())


def subtract_scaled_(y: Tensor, scale: Scalar, x: Tensor) -> Tensor:
    """y ← y − scale·x; the product is written out only where ``scale`` is a tensor."""
    return y.sub_(scale * x) if isinstance(scale, Tensor) else y.sub_(x, alpha=scale)


def foreach_subtract_scaled_(ys: TensorList, scale: Scalar, xs: TensorList) -> None:
    """As :func:`subtract_scaled_`, for lists of tensors at once."""
    if isinstance(scale, Tensor):
        torch._foreach_sub_(ys, torch._foreach_mul(xs, scale))
    else:
        torch._foreach_sub_(ys, xs, alpha=scale)
