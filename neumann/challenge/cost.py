"""The cost of one step of an optimizer beside fused Adam's: time, state, and gradients that it takes."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from time import process_time

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from neumann.challenge.contracts import Make, Problem

SHAPES = [(16, 3, 3, 3), *[(16, 16, 3, 3), (16,), (16,)] * 6, *[(64, 64, 3, 3), (64,), (64,)] * 6, (10, 64), (10,)]
ROUNDS = 9  # in each both take STEPS steps, one after the other, so that both meet the same load
STEPS = 20


def cost(make: Make) -> dict[str, str]:
    """Return sentences on a step's time, state and gradients, measured here and now in one process.

    Times are processor time of `Optimizer.step` alone, with one thread, on the 240,000 weights of a small ResNet: the
    median ratio to fused Adam over rounds that alternate, with the lowest and the highest.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(make)
    finally:
        torch.set_num_threads(threads)


def _measured(make: Make) -> dict[str, str]:
    own, adam = _Stepped(make), _Stepped(lambda params: torch.optim.Adam(params, fused=True))
    for one in (own, adam):
        one.seconds(3)  # state is made in the first step
    ratios = []
    for _ in range(ROUNDS):
        ratios.append(own.seconds(STEPS) / adam.seconds(STEPS))
    low, mid, high = min(ratios), median(ratios), max(ratios)
    state, adams = own.state_bytes() / own.weights, adam.state_bytes() / adam.weights
    return {
        "processor time of a step": f"{mid:.2f} × fused Adam's ({low:.2f} to {high:.2f} in {ROUNDS} rounds)",
        "state": f"{state:.1f} bytes a weight (Adam: {adams:.1f})",
        "gradients a step": str(_gradients(make)),
    }


class _Stepped:
    """An optimizer over random weights with fixed gradients."""

    def __init__(self, make: Make) -> None:
        draw = torch.Generator().manual_seed(0)
        self.params = [Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
        for p in self.params:
            p.grad = 1e-3 * torch.randn(p.shape, generator=draw)
        self.weights = sum(p.numel() for p in self.params)
        self.optimizer: Optimizer = make(self.params)

    def _closure(self) -> Tensor:
        return torch.zeros(())

    def seconds(self, steps: int) -> float:
        """Return the processor time of a step, the mean of so many."""
        begun = process_time()
        for _ in range(steps):
            self.optimizer.step(self._closure)  # type: ignore[arg-type]
        return (process_time() - begun) / steps

    def state_bytes(self) -> int:
        """Return the bytes of all tensors in the state, those of one number left out."""
        tensors = (value for state in self.optimizer.state.values() for value in _tensors(state.values()))
        return sum(t.numel() * t.element_size() for t in tensors if t.numel() > 1)


def _tensors(values: Iterable[object]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _gradients(make: Make) -> int:
    """Return how often a step calls its closure, the most of five steps."""
    problem = Problem()
    optimizer = make(problem.params)
    most = 0
    for _ in range(5):
        calls = 0

        def closure() -> Tensor:
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss = problem.loss()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        most = max(most, calls)
    return most
