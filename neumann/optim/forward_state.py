"""What a forward pass in training mode reads and moves beside the weights: random streams and a model's buffers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states


class ForwardState:
    """A copy of torch's random streams and of a model's buffers, as they are when it is made.

    Between two forward passes that begin at the same one nothing differs but the weights: dropout draws the same mask,
    and batch norm's running statistics have moved as often. The streams are torch's on the CPU and on every device that
    holds one of the parameters; those of NumPy and of Python's ``random`` are the caller's.

    Args:
        params: the parameters, which tell the devices in use.
        model: the module whose buffers are kept, or None.
    """

    def __init__(self, params: Iterable[Tensor], model: nn.Module | None) -> None:
        devices = {p.device: p for p in params if p.device.type not in ("cpu", "meta")}
        self._cpu = torch.get_rng_state()
        self._kind = next((device.type for device in devices), None)
        self._devices, self._streams = get_device_states(*devices.values()) if devices else ([], [])
        self._model = model
        self._buffers = {} if model is None else {name: value.clone() for name, value in model.named_buffers()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put the streams and the buffers back, bit for bit."""
        torch.set_rng_state(self._cpu)
        if self._devices:
            set_device_states(self._devices, self._streams, device_type=self._kind)
        if self._model is not None:
            for name, value in self._model.named_buffers():
                value.copy_(self._buffers[name])
