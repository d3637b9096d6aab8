"""A table of numbers on a device that the host fills; it is copied only where its content has changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neumann.optim.tensors import Scalar


class DeviceTable:
    """A tensor of ``shape`` and ``dtype`` on ``device``, zeros at first; also right within a captured CUDA graph."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        self._content: list[Any] = [0] * self.tensor.numel()
        # A graph replays the copy from this very memory, so it is written during the capture and never again
        on_cuda = device.type == "cuda"
        self._pinned = torch.zeros(shape, dtype=dtype, device="cpu", pin_memory=True) if on_cuda else None

    def fill(self, content: list[Any]) -> None:
        """Write the numbers of ``content``, row by row."""
        if content == self._content:
            return
        self._content = content
        if self._pinned is None:
            self.tensor.view(-1).copy_(self._on_host(content))
        elif torch.cuda.is_current_stream_capturing():
            self._pinned.view(-1).copy_(self._on_host(content))
            self.tensor.copy_(self._pinned, non_blocking=True)
        else:  # from memory of its own, for the copy before may still be under way
            self.tensor.view(-1).copy_(self._on_host(content, pin_memory=True), non_blocking=True)

    def fill_scalars(self, content: list[Scalar]) -> None:
        """Write ``content``, numbers or 0-dim tensors, row by row; this does not wait for tensors on the device."""
        if not any(isinstance(value, Tensor) for value in content):
            self.fill(content)
            return
        on_device = [
            value.to(self.tensor.device, self.tensor.dtype)
            if isinstance(value, Tensor)
            else torch.full((), value, dtype=self.tensor.dtype, device=self.tensor.device)
            for value in content
        ]
        torch.stack(on_device, out=self.tensor.view(-1))
        self._content = []

    def _on_host(self, content: list[Any], *, pin_memory: bool = False) -> Tensor:
        """Return ``content`` on the host, whatever the default device is."""
        return torch.tensor(content, dtype=self.tensor.dtype, device="cpu", pin_memory=pin_memory)
