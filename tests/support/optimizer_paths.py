"""The paths that a step of Neumann can take here: the kernel for CUDA runs under Triton's interpreter, on CPU tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import pytest

from neumann.optim.kernels import cpu

PLAIN = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}}
PATHS = {**PLAIN, "C++": {"fused": True}, "Triton": {"fused": True}}
EVERY_PATH = pytest.mark.parametrize("name", PATHS)
QUICK = pytest.mark.parametrize("name", [name for name in PATHS if name != "Triton"])


def every_path(arguments: str, cases: Iterable[Any], interpreted: Iterable[Any]) -> Callable[..., Any]:
    """Parametrize by cases and by ``name`` of a path.

    Triton's interpreter takes 50 ms for a step: of the cases it runs only the ``interpreted`` where tests must be fast.
    """
    names, interpreted = [*arguments.split(", "), "name"], list(interpreted)
    pairs = [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            name,
            marks=[pytest.mark.slow, pytest.mark.long] if name == "Triton" and case not in interpreted else [],
        )
        for case in cases
        for name in PATHS
    ]
    return pytest.mark.parametrize(names, pairs)


@contextlib.contextmanager
def path(name: str) -> Iterator[dict[str, Any]]:
    """Yield the settings with which Neumann takes the path within the block; skips where it is not there."""
    if name == "C++" and cpu.load() is None:
        pytest.skip(cpu.problem())
    if name != "Triton":
        yield PATHS[name]
        return
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        pytest.skip("with a GPU at hand Triton's interpreter is off; test_neumann_cuda.py runs the kernel itself")
    from neumann.optim.kernels import gpu

    with mock.patch("neumann.optim.fused.kernel_for", return_value=gpu.load()):
        yield PATHS[name]
