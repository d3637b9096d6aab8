"""Copies of weights: found by the memory that a tensor shares with a parameter, put back, and told apart by bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes


class Weights:
    """Copies of parameters as they are when this is made, and a way to find the tensors that share their memory."""

    def __init__(self, params: list[Tensor]) -> None:
        self._copies = {_memory(p): p.detach().clone() for p in params}

    def copy_of(self, value: Any) -> Tensor | None:
        """Return the copy of the parameter whose memory is that of ``value``, None where there is none."""
        return self._copies.get(_memory(value)) if isinstance(value, Tensor) else None

    def are_in(self, weights: dict[str, Any]) -> bool:
        """Return whether one of the parameters is among the values of ``weights``."""
        return any(self.copy_of(value) is not None for value in weights.values())

    def copied_into(self, value: Any) -> Any:
        """Return ``value``, or where a parameter is in it, a copy of it with the copies in the parameters' places."""
        if isinstance(value, dict):
            made = {key: self.copied_into(each) for key, each in value.items()}
            return made if any(made[key] is not value[key] for key in made) else value
        if type(value) in (list, tuple):
            members = [self.copied_into(each) for each in value]
            return type(value)(members) if any(a is not b for a, b in zip(members, value, strict=True)) else value
        copy = self.copy_of(value)
        return value if copy is None else copy

    def by_name(self, weights: dict[str, Any], module: nn.Module) -> dict[str, Tensor]:
        """Return the copies by the names that ``weights`` has for them; values of another memory go by ``module``'s."""
        named = {name: self.copy_of(p) for name, p in module.state_dict(keep_vars=True).items()}
        found = {name: self.copy_of(value) for name, value in weights.items()}
        found = {name: named.get(name) if copy is None else copy for name, copy in found.items()}
        return {name: copy for name, copy in found.items() if copy is not None}


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage().data_ptr()
    return tensor.device, storage, tensor.storage_offset(), tensor.shape, tensor.stride()


def copies(params: list[Tensor]) -> list[Tensor]:
    """Return copies of ``params``."""
    return [p.detach().clone() for p in params]


@torch.no_grad()
def put(params: list[Tensor], values: list[Tensor]) -> None:
    """Copy ``values`` into ``params``."""
    for p, value in zip(params, values, strict=True):
        p.copy_(value)


def bit_sums(module: nn.Module) -> Tensor:
    """Return a sum of each parameter's bits, int64 [parameters]: equal where the weights are, but for an accident."""
    params = [torch.view_as_real(p) if p.is_complex() else p for p in map(Tensor.detach, module.parameters())]
    sums = [p.view(INTEGERS[p.element_size()]).sum(dtype=torch.int64) for p in params]
    return torch.stack([each.to(sums[0].device) for each in sums])
