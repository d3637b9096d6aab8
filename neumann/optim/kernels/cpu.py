"""The C++ kernel, which is compiled for this machine at its first use and kept.

That takes a second or two, once a machine. The library lies in the cache folder (`neumann/cache_folder.py`) as
fused_step-INPUTS-CONTENT.so: a hash of the source, the columns of its tables, the compiler and the processor, and one
of the library itself. A library that a crash has cut short would kill the process that loads it, so one whose content
does not have the hash in its name is never loaded but compiled again.
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
    version = _said(compiler, "--version", timeout=60).stdout
    inputs = (
        SOURCE.read_text(encoding="utf-8"),
        *compiler,
        version,
        *FLAGS,
        *_definitions(),
        str(CHOICES),
        _processor(),
    )
    stem = f"fused_step-{_hash(chr(0).join(inputs).encode())}"
    for library in folder.glob(f"{stem}-*.so"):
        with contextlib.suppress(OSError):  # it is another user's alone, or of another system
            if library.stem == f"{stem}-{_hash(library.read_bytes())}":
                return CpuKernel(library)
            library.unlink()
    handle, temporary = _new_file(folder, f".{stem}.")
    os.close(handle)
    try:
        _compile(compiler, temporary)
        kernel = CpuKernel(Path(temporary))  # stays loaded when the file is gone
        with contextlib.suppress(OSError):
            os.chmod(temporary, 0o755)  # users may share the folder
            _sync(temporary)
            os.replace(temporary, folder / f"{stem}-{_hash(Path(temporary).read_bytes())}.so")
    finally:
        Path(temporary).unlink(missing_ok=True)
    return kernel


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _sync(file: str) -> None:
    """Wait until the content of ``file`` is on the disk, so that a crash leaves no name without it."""
    handle = os.open(file, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _said(command: list[str], *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run ``command`` and return what it printed, which a compiler writes in the language of its user."""
    return subprocess.run(
        [*command, *words], capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=timeout
    )


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
        done = _said(compiler, *FLAGS, *_definitions(), *choice, str(SOURCE), "-o", target, timeout=300)
        if done.returncode == 0:
            return
        said = said or (done.stderr.strip().splitlines() or ["it said nothing"])[0]
    raise OSError(f"the C++ compiler {compiler[0]} failed: {said}")


def _processor() -> str:
    """Return what a binary for "this machine's processor" depends on: the machines of a cluster may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), *sorted(set(told))])
