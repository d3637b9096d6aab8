"""How does a step pass over memory once? By what it carries over: ‖r‖² of the next step, summed while r is written.

An ordinary step needs ‖r‖ over all parameters before the first of them may move, which costs a second pass over r. The
step before has had every r in its hands, though. So the kernels sum its squares, chunk by chunk, as they store it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neumann.optim.kernels import CHUNK, Kernel, state_type
from neumann.optim.phases import Scalar
from neumann.optim.tensors import local

ALIGNMENT = 16  # bytes that a GPU reads at once
SQUARES = "squares"  # in a saved state: ‖r‖² of each chunk, as plain floats, for tensors are cast in loading


class Entry(NamedTuple):
    """A parameter that the kernel moves, its state, and the index of its group."""

    p: Tensor
    state: dict[str, Any]
    group: int


class OnePass:
    """The kernel's tables for parameters of one device and type, and the squares that it carries from step to step.

    Good for as long as :meth:`fits` says so; then it is made anew, which costs a look at r.
    """

    def __init__(self, entries: Sequence[Entry], kernel: Kernel) -> None:
        self._kernel, self._entries = kernel, list(entries)
        ws = [local(entry.p) for entry in entries]
        self.device, self._weights = ws[0].device, ws[0].dtype
        self._formats = [memory_format(w) for w in ws]
        for entry, format in zip(entries, self._formats, strict=True):  # a loaded state may lie otherwise
            for name in ("m", "r"):
                entry.state[name] = _laid_out(entry.state[name].to(state_type(self._weights)), format)
        self._key = [_key(entry) for entry in entries]
        rows, chunks = [], []
        for index, (entry, w) in enumerate(zip(entries, ws, strict=True)):
            m, r = local(entry.state["m"]), local(entry.state["r"])
            rows.append([w.data_ptr(), m.data_ptr(), r.data_ptr(), w.numel(), entry.group])
            chunks += [[index, start] for start in range(0, w.numel(), CHUNK)]
        self._aligned = all(address % ALIGNMENT == 0 for row in rows for address in row[:3])
        self._tensors = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self._chunks = torch.tensor(chunks, dtype=torch.int64, device=self.device).reshape(-1, 2)
        self._grads = _Table((len(rows),), torch.int64, self.device)
        self._scalars: _Table | None = None
        self.squares = torch.zeros(len(chunks), dtype=torch.float64, device=self.device)
        self._after = torch.zeros_like(self.squares)
        self._kernel.squares(self._weights, self._tensors, self._chunks, self.squares)
        self._take_saved()

    @property
    def params(self) -> list[Tensor]:
        """The parameters, in the order in which :meth:`step` wants their gradients."""
        return [entry.p for entry in self._entries]

    def fits(self, entries: Sequence[Entry]) -> bool:
        """Return whether these are the same tensors at the same places, and nobody else has written to r since."""
        return len(entries) == len(self._key) and all(map(_same, entries, self._key))

    def step(
        self, grads: Sequence[Tensor | None], scalars: list[list[Scalar]], squares: Tensor | None, *, in_place: bool
    ) -> None:
        """Take a step.

        Args:
            grads: in the order of the entries; None leaves the parameter, m and r as they are.
            scalars: a row for each group, see :meth:`neumann.optim.phases.Phase.row`.
            squares: what adds up to ‖r‖² of all parameters; None where all of them are here.
            in_place: keep the carried squares where they are, as the replay of a CUDA graph needs it.
        """
        fitted = [
            None if g is None else _laid_out(local(g), format) for g, format in zip(grads, self._formats, strict=True)
        ]
        addresses = [0 if g is None else g.data_ptr() for g in fitted]
        self._grads.set(addresses)
        if self._scalars is None or self._scalars.tensor.shape != (len(scalars), len(scalars[0])):
            self._scalars = _Table((len(scalars), len(scalars[0])), torch.float64, self.device)
        self._scalars.set([value for row in scalars for value in row])
        self._kernel.step(
            self._weights,
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
        moved = [local(entry.p) for entry, g in zip(self._entries, fitted, strict=True) if g is not None]
        torch.autograd.graph.increment_version(moved)  # a graph that still needs the old weights shall notice

    def saved(self) -> dict[Tensor, list[float]]:
        """Return the carried squares of each parameter's chunks; waits for the device."""
        values = iter(self.squares.tolist())
        return {entry.p: list(itertools.islice(values, -(-local(entry.p).numel() // CHUNK))) for entry in self._entries}

    def _take_saved(self) -> None:
        """Go on with squares that came with a loaded state, where they are those of r: a resumed run is the same bits.

        The kernels sum in the same order whenever they are asked, but a compiler may choose another for each.
        """
        fresh: list[float] = self.squares.tolist()
        taken: list[float] = []
        for entry in self._entries:
            count = -(-local(entry.p).numel() // CHUNK)
            own = fresh[len(taken) : len(taken) + count]
            saved = entry.state.pop(SQUARES, None) or own
            close = len(saved) == count and all(abs(a - b) <= 1e-6 * b for a, b in zip(saved, own, strict=True))
            taken += saved if close else own
        self.squares.copy_(torch.tensor(taken, dtype=torch.float64))


class _Table:
    """A table on the device that is written from the host, where its content has changed."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        self._content: list[Any] = [0] * self.tensor.numel()
        # What a graph replays is the copy from this very memory, so it is written while capturing and never again
        self._pinned = torch.zeros(shape, dtype=dtype, pin_memory=True) if device.type == "cuda" else None

    def set(self, content: list[Any]) -> None:
        """Have the table hold ``content``, numbers or 0-dim tensors; those on the device are not waited for."""
        if any(isinstance(value, Tensor) for value in content):
            on_device = [
                value.to(self.tensor.device, self.tensor.dtype)
                if isinstance(value, Tensor)
                else torch.full((), value, dtype=self.tensor.dtype, device=self.tensor.device)
                for value in content
            ]
            torch.stack(on_device, out=self.tensor.view(-1))
            self._content = []
            return
        if content == self._content:
            return
        self._content = content
        if self._pinned is None:
            self.tensor.view(-1).copy_(torch.tensor(content, dtype=self.tensor.dtype))
        elif torch.cuda.is_current_stream_capturing():
            self._pinned.view(-1).copy_(torch.tensor(content, dtype=self.tensor.dtype))
            self.tensor.copy_(self._pinned, non_blocking=True)
        else:  # memory of its own, for the copy before may still be under way
            once = torch.tensor(content, dtype=self.tensor.dtype, pin_memory=True)
            self.tensor.view(-1).copy_(once, non_blocking=True)


def memory_format(tensor: Tensor) -> torch.memory_format | None:
    """Return how the elements of ``tensor`` lie, without gaps; None where there are gaps, or an order of its own."""
    if tensor.is_contiguous():
        return torch.contiguous_format
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return None


def _laid_out(g: Tensor, format: torch.memory_format | None) -> Tensor:
    assert format is not None
    return g if g.is_contiguous(memory_format=format) else g.contiguous(memory_format=format)


def _key(entry: Entry) -> tuple[Any, ...]:
    m, r = entry.state["m"], entry.state["r"]
    return entry.p, local(entry.p).data_ptr(), m, r, _version(r), entry.group


def _same(entry: Entry, key: tuple[Any, ...]) -> bool:
    p, address, m, r, version, group = key
    state = entry.state
    return (
        entry.p is p
        and state["m"] is m
        and state["r"] is r
        and entry.group == group
        and local(p).data_ptr() == address
        and _version(r) == version
    )


def _version(r: Tensor) -> int:
    """Return how often torch has written to ``r``; our kernels do not count."""
    return 0 if r.is_inference() else r._version
