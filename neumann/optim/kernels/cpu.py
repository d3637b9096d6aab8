"""The C++ kernel, which is compiled for this machine at its first use and kept.

That takes a second or two, once a machine. The library lies in the cache folder (`neumann/cache_folder.py`), under a
name that is a hash of the source, the columns of its tables, the compiler and the processor.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neumann.optim.kernels.layout import ChunkRow, ScalarRow, TensorRow
from neumann.optim.kernels.protocol import CHUNK

SOURCE = Path(__file__).with_name("fused_step.cpp")
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno")
# The macros of the source, and the rows whose fields they list
COLUMNS: dict[str, Any] = {"TENSOR_COLUMNS": TensorRow, "CHUNK_COLUMNS": ChunkRow, "SCALAR_COLUMNS": ScalarRow}
CHOICES = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-march=native",),
    ("-fopenmp",),
    (),
)  # the first set that compiles
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}


class CpuKernel:
    """The compiled library, on as many threads as torch has; see :class:`neumann.optim.kernels.protocol.Kernel`."""

    types = tuple(TYPES)

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        self._step, self._squares = loaded.neumann_step, loaded.neumann_squares
        self._step.argtypes = [
            ctypes.c_int, *[pointer] * 3, whole, whole, pointer, pointer, whole, pointer, pointer, ctypes.c_int
        ]  # fmt: skip
        self._squares.argtypes = [ctypes.c_int, pointer, pointer, whole, whole, pointer]
        self._step.restype = self._squares.restype = None

    def step(
        self,
        weights: torch.dtype,
        tensors: Tensor,
        grads: Tensor,
        chunks: Tensor,
        scalars: Tensor,
        squares: Tensor,
        before: Tensor,
        after: Tensor,
        *,
        aligned: bool,
    ) -> None:
        """See :class:`neumann.optim.kernels.protocol.Kernel`."""
        self._step(
            TYPES[weights],
            tensors.data_ptr(),
            grads.data_ptr(),
            chunks.data_ptr(),
            len(chunks),
            CHUNK,
            scalars.data_ptr(),
            squares.data_ptr(),
            squares.numel(),
            before.data_ptr(),
            after.data_ptr(),
            torch.get_num_threads(),
        )

    def squares(self, weights: torch.dtype, tensors: Tensor, chunks: Tensor, out: Tensor) -> None:
        """See :class:`neumann.optim.kernels.protocol.Kernel`."""
        self._squares(TYPES[weights], tensors.data_ptr(), chunks.data_ptr(), len(chunks), CHUNK, out.data_ptr())


def load() -> CpuKernel | None:
    """Return the kernel, compiled now where it is missing; None where it cannot be, and :func:`problem` says why."""
    return _outcome()[0]


def problem() -> str:
    """Return why there is no kernel, in half a sentence; an empty string where there is one."""
    return _outcome()[1]


@functools.cache
def _outcome() -> tuple[CpuKernel | None, str]:
    from neumann.cache_folder import cache_folder  # the only module of the project that this package needs, and late

    try:
        return build(cache_folder()), ""
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error)


def build(folder: Path) -> CpuKernel:
    """Return the kernel for this source, compiler and processor from ``folder``, compiled where it is missing there.

    Several processes may build at once: each writes a file of its own and renames it. Where ``folder`` cannot be
    written, a temporary file serves this process.

    Raises:
        OSError: there is no C++ compiler, or it does not compile the source.
    """
    compiler = find_compiler()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False, timeout=60).stdout
    facts = (
        SOURCE.read_text(encoding="utf-8"),
        *compiler,
        version,
        *FLAGS,
        *_definitions(),
        str(CHOICES),
        _processor(),
    )
    library = folder / f"fused_step-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:16]}.so"
    with contextlib.suppress(OSError):  # it is missing, damaged, or another user's alone
        return CpuKernel(library)
    handle, temporary = _new_file(folder, f".{library.name}.")
    os.close(handle)
    try:
        _compile(compiler, temporary)
        kernel = CpuKernel(Path(temporary))  # stays loaded when the file is gone
        os.chmod(temporary, 0o755)  # users may share the folder
        with contextlib.suppress(OSError):
            os.replace(temporary, library)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return kernel


def _definitions() -> list[str]:
    """Return the compiler's arguments that define the columns of the tables."""
    return [f"-D{macro}={','.join(row._fields)}" for macro, row in COLUMNS.items()]


def _new_file(folder: Path, prefix: str) -> tuple[int, str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.mkstemp(prefix=prefix, dir=folder)
    except OSError:
        return tempfile.mkstemp(prefix=prefix)


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler: ``$CXX``, else c++, g++ or clang++.

    Raises:
        OSError: there is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    candidates = [named] if named else [["c++"], ["g++"], ["clang++"]]
    for command in candidates:
        if shutil.which(command[0]):
            return command
    raise OSError(f"no C++ compiler was found (looked for {', '.join(command[0] for command in candidates)})")


def _compile(compiler: list[str], target: str) -> None:
    said = ""
    for choice in CHOICES:
        command = [*compiler, *FLAGS, *_definitions(), *choice, str(SOURCE), "-o", target]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode == 0:
            return
        said = said or (done.stderr.strip().splitlines() or ["it said nothing"])[0]
    raise OSError(f"the C++ compiler {compiler[0]} failed: {said}")


def _processor() -> str:
    """Return what a binary for "this machine's processor" depends on: the machines of a cluster may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), *sorted(set(told))])
