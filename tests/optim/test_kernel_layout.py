"""Python, C++ and Triton read the same columns of the kernels' tables, whatever their order is."""

import importlib.util
import itertools
import math
from typing import NamedTuple
from unittest import mock

import pytest
import torch

from neumann.optim.kernels import CHUNK, cpu, layout
from neumann.optim.phases import Phase

pytestmark = pytest.mark.medium

DECAY, SCALE, SKIPPED = 0.3, 4.0, 0.0
PHASE = Phase(carry=0.7, alpha=0.2, beta=0.5, min_distance=9.0, eta_m=0.11, mu_u=0.6, eta_u=0.13, gamma=0.8)
KERNELS = pytest.mark.parametrize("language", ["C++", "Triton"])


def in_another_order(row: type) -> type:
    """Return the row with its columns turned by one: none is where it was."""
    names = [*row._fields[1:], row._fields[0]]
    return NamedTuple(row.__name__, [(name, float) for name in names])


class Rows:
    """The rows that a kernel is given, and a step with them."""

    def __init__(self, tensor: type, chunk: type, scalar: type) -> None:
        self.tensor, self.chunk, self.scalar = tensor, chunk, scalar

    def step(self, kernel, squares: float) -> list[torch.Tensor]:
        """Return w, m, r, and the squares of chunks, of three tensors: the last has no gradient, and the second group's
        step is skipped."""
        tensors = [[start + torch.linspace(-1, 1, n, dtype=torch.float64) for start in (0, 1, 2, 3)] for n in NUMELS]
        tables = [
            self.tensor(w=w.data_ptr(), m=m.data_ptr(), r=r.data_ptr(), numel=w.numel(), group=group)
            for (w, _, m, r), group in zip(tensors, (0, 1, 0), strict=True)
        ]
        chunks = [self.chunk(tensor=i, start=start) for i, n in enumerate(NUMELS) for start in range(0, n, CHUNK)]
        values = PHASE.scalar_row(DECAY, True, SCALE)._asdict()
        scalars = [self.scalar(**values), self.scalar(**{**values, "active": SKIPPED})]
        tables, chunks = (torch.tensor(rows, dtype=torch.int64) for rows in (tables, chunks))
        before, after = torch.empty(2, len(chunks), dtype=torch.float64)
        kernel.squares(torch.float64, tables, chunks, before)
        kernel.step(
            torch.float64,
            tables,
            torch.tensor([tensors[0][1].data_ptr(), tensors[1][1].data_ptr(), 0]),
            chunks,
            torch.tensor(scalars, dtype=torch.float64),
            torch.tensor([squares], dtype=torch.float64),
            before,
            after,
            aligned=False,
        )
        return [*(each for w, _, m, r in tensors for each in (w, m, r)), before, after]


NUMELS = (CHUNK + 5, 7, 3)
TODAY = Rows(layout.TensorRow, layout.ChunkRow, layout.ScalarRow)
TURNED = Rows(*map(in_another_order, (layout.TensorRow, layout.ChunkRow, layout.ScalarRow)))


def by_the_formula(squares: float) -> list[torch.Tensor]:
    """As `phases.py` says it."""
    told = []
    before = []
    after = []
    c = 0.2 * math.sqrt(squares) - 0.5 / 9.0**3
    for n, moves in zip(NUMELS, (True, False, False), strict=True):
        w, g, m, r = (start + torch.linspace(-1, 1, n, dtype=torch.float64) for start in (0, 1, 2, 3))
        before += [part.square().sum() for part in r.split(CHUNK)]
        if moves:
            d = -g / SCALE + DECAY * w + c * r
            m = 0.7 * m - 0.11 * d
            u = 0.6 * m - 0.13 * d
            w, r = w + u, 0.8 * (r + u)
        after += [part.square().sum() for part in r.split(CHUNK)]
        told += [w, m, r]
    return [*told, torch.stack(before), torch.stack(after)]


def kernel_made_of(rows: Rows, language: str, folder) -> object:
    """Return the kernel as it is compiled where these rows are the definition."""
    if language == "C++":
        if cpu.load() is None:
            pytest.skip(cpu.problem())
        columns = {"TENSOR_COLUMNS": rows.tensor, "CHUNK_COLUMNS": rows.chunk, "SCALAR_COLUMNS": rows.scalar}
        assert columns.keys() == cpu.COLUMNS.keys()
        with mock.patch.object(cpu, "COLUMNS", columns):
            return cpu.build(folder)
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        pytest.skip("with a GPU at hand Triton's interpreter is off")
    from neumann.optim.kernels import gpu

    names = {"TensorRow": rows.tensor, "ChunkRow": rows.chunk, "ScalarRow": rows.scalar}
    spec = importlib.util.spec_from_file_location("gpu_of_these_rows", gpu.__file__)
    made = importlib.util.module_from_spec(spec)
    with mock.patch.multiple(layout, **names):
        spec.loader.exec_module(made)
    return made.GpuKernel()


def equal(ours, theirs) -> bool:
    return all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(ours, theirs, strict=True))


@KERNELS
@pytest.mark.parametrize("rows", [TODAY, TURNED], ids=["today", "turned"])
def test_a_kernel_reads_each_column_by_its_name(language, rows, tmp_path):
    kernel = kernel_made_of(rows, language, tmp_path)
    assert equal(rows.step(kernel, 2.0), by_the_formula(2.0))


@KERNELS
@pytest.mark.slow
def test_each_scalar_counts_so_that_no_two_columns_can_be_exchanged_unseen(language, tmp_path):
    kernel = kernel_made_of(TODAY, language, tmp_path)
    expected = by_the_formula(2.0)
    for one, other in itertools.combinations(layout.ScalarRow._fields, 2):

        def exchanged(one=one, other=other, **values):
            return layout.ScalarRow(**{**values, one: values[other], other: values[one]})

        assert not equal(Rows(TODAY.tensor, TODAY.chunk, exchanged).step(kernel, 2.0), expected), (one, other)


def test_the_library_of_other_columns_has_another_name(tmp_path):
    kernel_made_of(TODAY, "C++", tmp_path)
    kernel_made_of(TURNED, "C++", tmp_path)
    assert len(list(tmp_path.glob("*.so"))) == 2
