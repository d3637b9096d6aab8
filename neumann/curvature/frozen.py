"""A network at fixed weights and fixed statistics, through which gradients are differentiated again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from neumann.optim.lightning import eval_mode
from neumann.optim.private_names import BatchNorm

Batch = tuple[Any, Tensor]  # inputs, and targets [B, …]


class FrozenNetwork:
    """A copy of a network's weights and buffers, and the network's function at them, in eval mode.

    Args:
        model: any module, deterministic in eval mode. It is called, never changed: each call puts it into eval mode and
            back, and hands it the copies.
        dtype: of the copies, float32 or float64; None: that of the parameters.

    Raises:
        ValueError: no parameter requires a gradient, or they are of several devices, of several types or of another
            type than float32 and float64 where ``dtype`` is None; or a batch norm keeps no running statistics.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError("no parameter of the model requires a gradient, so its loss has no curvature")
        devices = {p.device for p in trained.values()}
        if len(devices) > 1:
            raise ValueError(f"the parameters are on several devices ({_listed(devices)}): move the model to one")
        types = {p.dtype for p in trained.values()}
        if dtype is None and (len(types) > 1 or not types <= {torch.float32, torch.float64}):
            raise ValueError(f"the parameters are {_listed(types)}: choose dtype=torch.float32 or torch.float64")
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(
                f"dtype={dtype} is too coarse for second derivatives: choose torch.float32 or torch.float64"
            )
        for name, layer in model.named_modules():
            if isinstance(layer, BatchNorm) and layer.running_mean is None:
                raise ValueError(f"the batch norm {name} keeps no running statistics, so it cannot be frozen")
        self.model = model
        self.device = devices.pop()
        self.dtype = dtype or types.pop()
        copies = {
            name: self.cast(value.detach()).clone()
            for name, value in (*model.named_parameters(), *model.named_buffers())
        }
        self._tensors = {name: value for name, value in copies.items() if name not in trained}
        self.parameters = {name: copies[name].requires_grad_() for name in trained}

    def cast(self, value: Any) -> Any:
        """Return ``value`` on the device, its floating tensors in ``dtype``; lists, tuples and dicts likewise."""
        if isinstance(value, Tensor):
            return value.to(self.device, self.dtype if value.is_floating_point() else None)
        if isinstance(value, Mapping):
            return {key: self.cast(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.cast(one) for one in value)
        return value

    def __call__(self, inputs: Any, parameters: Mapping[str, Tensor] | None = None) -> Any:
        """Return the network's output at the copied weights; within :meth:`differentiable` alone.

        With ``parameters`` at these instead, by name, of the same shapes.
        """
        held = self.parameters if parameters is None else parameters
        return functional_call(self.model, {**self._tensors, **held}, (inputs,))

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Hold torch within the block in what second derivatives need, and what gives the same bits each time.

        That is: eval mode, gradients on, no autocast, no compiled graphs and attention written out, since fused ones
        have no second derivative, and on CUDA deterministic convolutions in full precision.
        """
        with ExitStack() as stack:
            stack.enter_context(eval_mode(self.model))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            cudnn = torch.backends.cudnn
            stack.enter_context(cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False))
            yield

    def take_statistics(self, batches: Sequence[Batch]) -> None:
        """Fill the copied running statistics of batch norm with those of all ``batches`` together, as of one batch.

        Mean and biased variance, by which a layer in training mode normalises. A layer's input depends on the layers
        before it, so L layers take L passes over several batches, and a single batch takes one.

        Raises ValueError where the network has no batch norm, and for a layer that is called twice in a pass.
        """
        layers = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, BatchNorm)}
        if not layers:
            raise ValueError('the model has no batch norm: leave batch_norm at "eval"')
        reached: list[str] = []
        with _hooked(layers, lambda name, _: reached.append(name)):
            self._pass(batches[0][0])
        for name in reached:
            if reached.count(name) > 1:
                raise ValueError(f"the batch norm {name} is called twice in a pass, so its batch has no one statistic")
        if len(batches) == 1:
            with _hooked(layers, lambda name, x: self._fill(name, [_sums(x)])):
                self._pass(batches[0][0])
            return
        for name in reached:
            sums: list[tuple[Tensor, Tensor, int]] = []

            def add(_: str, x: Tensor, sums: list[tuple[Tensor, Tensor, int]] = sums) -> None:
                sums.append(_sums(x))
                raise _Reached  # what comes behind the layer is not needed

            with _hooked({name: layers[name]}, add):
                for inputs, _ in batches:
                    self._pass(inputs)
            self._fill(name, sums)

    def _pass(self, inputs: Any) -> None:
        with self.differentiable(), torch.no_grad(), suppress(_Reached):
            self(inputs)

    def _fill(self, name: str, sums: Sequence[tuple[Tensor, Tensor, int]]) -> None:
        total, squares, count = (sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True))
        mean = total / count
        self._tensors[f"{name}.running_mean"].copy_(mean)
        self._tensors[f"{name}.running_var"].copy_(squares / count - mean.square())


class _Reached(Exception):  # noqa: N818 - it is no error
    """The layer that a pass was made for has its input."""


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], told: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``told`` with the name and the input of each layer before it runs."""
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: told(name, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _sums(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the sum and the sum of squares by channel, float64 [C], of ``x`` [B, C, …], and how many were summed."""
    x = x.double()
    axes = [axis for axis in range(x.dim()) if axis != 1]
    return x.sum(axes), x.square().sum(axes), x.numel() // x.shape[1]


def _listed(things: set[Any]) -> str:
    return ", ".join(sorted(map(str, things)))
