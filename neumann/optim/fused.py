"""Fused step: one pass over memory, in which a kernel also sums ‖r‖² for the next step.

An ordinary step needs ‖r‖ over all parameters before the first of them may move, which would cost a second pass over r.
But the step before has written every r. So the kernels sum its squares, chunk by chunk, as they store it.
"""

from __future__ import annotations

import functools
import itertools
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neumann.optim.kernels import CHUNK, Kernel, kernel_for, state_type, why_none
from neumann.optim.kernels.device_table import DeviceTable
from neumann.optim.kernels.layout import ChunkRow, ScalarRow, TensorRow
from neumann.optim.private_names import write_count
from neumann.optim.tensors import local, local_gradient

_address, _type = Tensor.data_ptr, operator.attrgetter("dtype")
ALIGNMENT = 16  # bytes that a GPU reads at once
# The key in a saved state of ‖r‖² of each chunk: plain floats, since loading casts tensors to the parameter's type, in
# a dict by the chunk's number, since torch.distributed.checkpoint takes no lists
SQUARES = "squares"


class Entry(NamedTuple):
    """A parameter of the fused path, its state, and the index of its group."""

    p: Tensor
    state: dict[str, Any]
    group: int


class FusedPass:
    """The kernel's tables for parameters of one device and type, and the squares that it carries from step to step.

    It is reused while :meth:`fits` returns True. A new one sums the squares of r once and lays the states out as the
    kernel needs them.

    Raises:
        RuntimeError: a state has another shape than its parameter.
    """

    def __init__(self, entries: Sequence[Entry], kernel: Kernel) -> None:
        self._kernel, self._entries = kernel, list(entries)
        self._params, self._states = [entry.p for entry in entries], [entry.state for entry in entries]
        ws = [local(p) for p in self._params]
        self._sharded = any(w is not p for w, p in zip(ws, self._params, strict=True))
        self.device, self._dtype = ws[0].device, ws[0].dtype
        self._numels = [w.numel() for w in ws]
        self._formats = [memory_format(w) or torch.contiguous_format for w in ws]  # dense: see why_not_fused
        self._make_tables(ws)
        self._ms, self._rs = ([state[name] for state in self._states] for name in ("m", "r"))
        self._local_state = [local(tensor) for tensor in (*self._ms, *self._rs)]  # its `.data` may be set
        self._counted = [r for r in self._rs if not r.is_inference()]
        self._seen = self._look_at(ws)
        self._take_saved()

    def _make_tables(self, ws: list[Tensor]) -> None:
        """Lay the states out as the kernel needs them, write their addresses down and sum the squares of r."""
        rows: list[TensorRow] = []
        chunks: list[ChunkRow] = []
        for index, (entry, w, format) in enumerate(zip(self._entries, ws, self._formats, strict=True)):
            for name in ("m", "r"):  # a loaded state may be on another device and in another format
                entry.state[name] = _laid_out(entry.state[name].to(w.device, state_type(w.dtype)), format)
            m, r = local(entry.state["m"]), local(entry.state["r"])
            if m.shape != w.shape or r.shape != w.shape:
                raise RuntimeError(_unlike("a state", m if m.shape != w.shape else r, w))
            rows.append(TensorRow(w=w.data_ptr(), m=m.data_ptr(), r=r.data_ptr(), numel=w.numel(), group=entry.group))
            chunks += [ChunkRow(tensor=index, start=start) for start in range(0, w.numel(), CHUNK)]
        self._aligned = all(address % ALIGNMENT == 0 for row in rows for address in (row.w, row.m, row.r))
        self._tensors = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self._chunks = torch.tensor(chunks, dtype=torch.int64, device=self.device).reshape(-1, len(ChunkRow._fields))
        self._grads = DeviceTable((len(rows),), torch.int64, self.device)
        self._scalars: DeviceTable | None = None
        self.squares = torch.zeros(len(chunks), dtype=torch.float64, device=self.device)
        self._after = torch.zeros_like(self.squares)
        if chunks:
            self._kernel.squares(self._dtype, self._tensors, self._chunks, self.squares)

    @property
    def first(self) -> Tensor:
        """One of the parameters."""
        return self._entries[0].p

    def fits(self, states: Mapping[Tensor, dict[str, Any]]) -> bool:
        """Return whether weights and states are the same objects at the same addresses, and no other code wrote to r.

        This runs in every step, so there is no loop in Python over parameters that are not shards.

        Args:
            states: the optimizer's state of each parameter.
        """
        if not all(map(operator.is_, map(states.get, self._params), self._states)):
            return False
        for name, tensors in (("m", self._ms), ("r", self._rs)):
            if not all(map(operator.is_, map(operator.itemgetter(name), self._states), tensors)):
                return False
        return self._seen == self._look_at([local(p) for p in self._params] if self._sharded else self._params)

    def _look_at(self, ws: Sequence[Tensor]) -> tuple[Any, ...]:
        """Return all of weights and states that the tables depend on, and how often torch has written to r."""
        return (
            [*map(_address, ws)],
            [*map(Tensor.numel, ws)],
            {*map(_type, ws)},
            [*map(_address, self._local_state)],
            [*map(write_count, self._counted)],
        )

    def step(self, scalars: list[ScalarRow], squares: Tensor | None, *, in_place: bool) -> None:
        """Take a step with the parameters' gradients; w, m and r of a parameter without one stay as they are.

        Args:
            scalars: a row for each group of the optimizer.
            squares: ‖r‖² of all parameters, [1] in float64; None where this pass has all parameters.
            in_place: keep the carried squares in the same memory, as the replay of a CUDA graph needs it.

        Raises:
            RuntimeError: a gradient has another number of elements than its parameter.
        """
        grads = [p.grad for p in self._params]
        moved = [p for p, g in zip(self._params, grads, strict=True) if g is not None]
        if self._sharded or len(moved) < len(grads) or not self._can_be_read(grads):
            ready = map(self._ready, self._params, grads, self._numels, self._formats)
            grads = list(ready)  # kept until the kernel has been launched: copies may have been made for it
        addresses = [0 if g is None else g.data_ptr() for g in grads]
        self._grads.fill(addresses)
        if self._scalars is None or len(self._scalars.tensor) != len(scalars):
            with torch.inference_mode(False):
                self._scalars = DeviceTable((len(scalars), len(ScalarRow._fields)), torch.float64, self.device)
        self._scalars.fill_scalars(list(itertools.chain.from_iterable(scalars)))
        if len(self._chunks):
            self._kernel.step(
                self._dtype,
                self._tensors,
                self._grads.tensor,
                self._chunks,
                self._scalars.tensor,
                self.squares if squares is None else squares,
                self.squares,
                self._after,
                aligned=self._aligned and all(address % ALIGNMENT == 0 for address in addresses),
            )
        if in_place:
            self.squares.copy_(self._after)
        else:
            self.squares, self._after = self._after, self.squares
        # so that autograd refuses a graph that still needs the old weights
        torch.autograd.graph.increment_version([local(p) for p in moved] if self._sharded else moved)

    def _can_be_read(self, grads: list[Any]) -> bool:
        """Return whether the kernel can read all gradients of unsharded parameters as they are, which is the rule."""
        return (
            [*map(Tensor.numel, grads)] == self._numels
            and {*map(_type, grads)} <= {self._dtype}
            and all(
                g.is_contiguous() if format is torch.contiguous_format else g.is_contiguous(memory_format=format)
                for g, format in zip(grads, self._formats, strict=True)
            )
        )

    def _ready(self, p: Tensor, g: Tensor | None, numel: int, format: torch.memory_format) -> Tensor | None:
        """Return this process's part of ``g`` in the type and the memory format of ``p``."""
        if g is None:
            return None
        g = local_gradient(g, p)
        if g.numel() != numel:
            raise RuntimeError(_unlike("a gradient", g, local(p)))
        return _laid_out(g.to(self._dtype), format)

    def saved(self) -> dict[Tensor, dict[int, float]]:
        """Return the carried squares of each parameter's chunks, by the chunk's number; this waits for the device."""
        values = iter(self.squares.tolist())
        counts = [-(-local(entry.p).numel() // CHUNK) for entry in self._entries]
        return {
            entry.p: dict(enumerate(itertools.islice(values, count)))
            for entry, count in zip(self._entries, counts, strict=True)
        }

    def _take_saved(self) -> None:
        """Go on with the squares of a loaded state where they are those of r, so that a resumed run is the same bits.

        Those of the first look may differ by rounding: a compiler may order its sums otherwise than those of a step.
        """
        rounding = 1e-12 if self._dtype == torch.float64 else 1e-6  # of sums in another order
        fresh: list[float] = self.squares.tolist()
        taken: list[float] = []
        for entry in self._entries:
            count = -(-local(entry.p).numel() // CHUNK)
            own = fresh[len(taken) : len(taken) + count]
            named: dict[Any, float] = entry.state.pop(SQUARES, None) or dict(enumerate(own))
            saved = [named[name] for name in sorted(named, key=int)]  # flattened states have strings as names
            close = len(saved) == count and all(abs(a - b) <= rounding * b for a, b in zip(saved, own, strict=True))
            taken += saved if close else own
        self.squares.copy_(torch.tensor(taken, dtype=torch.float64, device="cpu"))


def fused_pass(entries: list[Entry]) -> FusedPass:
    """Return the pass over ``entries``, which are of one device and type and for which there is a kernel."""
    kernel = kernel_for(entries[0].p.device)
    assert kernel is not None  # why_not_fused has looked
    with torch.inference_mode(False), torch.no_grad():
        return FusedPass(entries, kernel)


def why_not_fused(p: Tensor) -> str | None:
    """Return why no kernel can take ``p``, in half a sentence; None where one can."""
    kernel = kernel_for(p.device)
    if kernel is None:
        return why_none(p.device)
    if p.dtype not in kernel.types:
        return f"there is none for {p.dtype} on {p.device.type}"
    return None if memory_format(local(p)) else f"a parameter of strides {tuple(p.stride())} is not dense"


def require_fusable(params: list[Tensor]) -> None:
    """Refuse ``fused=True`` for parameters that no kernel can take; where only the compiler is missing, warn instead.

    Raises:
        ValueError: no kernel can take one of ``params``; the message says why.
    """
    for p in params:
        reason = why_not_fused(p)
        if reason is None:
            continue
        if p.device.type not in ("cpu", "cuda") or kernel_for(p.device) is not None:
            raise ValueError(f"fused=True needs a kernel, and {reason}: leave fused at None")
        _warn_once(f"fused=True: the slower path is taken, because {reason}")


def warn_of_slower_path(p: Tensor) -> None:
    """Warn, once, where ``p`` takes the slower path for want of a compiler and the user has not asked for that path."""
    if p.device.type in ("cpu", "cuda") and kernel_for(p.device) is None:
        _warn_once(
            f"a step takes several times as long as in one pass over memory, because {why_none(p.device)}; "
            "fused=False says that this is meant"
        )


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def memory_format(tensor: Tensor) -> torch.memory_format | None:
    """Return the memory format of ``tensor``; None where its elements have gaps or lie in another order."""
    if tensor.is_contiguous():
        return torch.contiguous_format
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return None


def _laid_out(g: Tensor, format: torch.memory_format) -> Tensor:
    return g if g.is_contiguous(memory_format=format) else g.contiguous(memory_format=format)


def _unlike(what: str, tensor: Tensor, w: Tensor) -> str:
    return f"{what} of shape {tuple(tensor.shape)} does not fit its parameter of shape {tuple(w.shape)}"
