"""Tests of the fused path: the ‖r‖² carried from step to step is that of the present r, whatever happens in between."""

import copy
import math
import pickle
import subprocess
import sys
import tempfile
import warnings
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neumann.optim import Neumann
from neumann.optim.kernels import CHUNK, cpu
from tests.support.optimizer_paths import path
from tests.support.optimizer_problems import copies, new_params, relative, same_bits, train

STRONG = {"alpha": 3e-2, "beta": 1e-2}
KERNELS = pytest.mark.parametrize("name", ["C++", "Triton"])
SHAPES = ((3, 4), (5,), (), (CHUNK + 3,))  # the last one is of two chunks


def literal_distance(optimizer):
    return math.sqrt(sum(float((state["r"].double() ** 2).sum()) for state in optimizer.state.values() if "r" in state))


@pytest.mark.medium
@KERNELS
def test_r_is_looked_at_once_and_its_squares_are_carried_from_then_on(name):
    params = new_params(torch.float32, shapes=SHAPES)
    with path(name) as how:
        optimizer = Neumann(params, lr=0.05, **how, **STRONG)
        train(optimizer, params, range(3))
        (one_pass,) = optimizer._fused_passes
        with mock.patch.object(type(one_pass._kernel), "squares", side_effect=AssertionError("looked again")):
            train(optimizer, params, range(3, 12))
        assert optimizer._fused_passes == (one_pass,)
        assert float(optimizer.distance()) == pytest.approx(literal_distance(optimizer), rel=1e-6)
        assert len(one_pass.squares) == len(SHAPES) + 1


@pytest.mark.medium
@KERNELS
def test_a_resumed_run_has_the_squares_of_the_uninterrupted_one_to_the_bit(name, tmp_path):
    params = new_params(torch.float32, shapes=SHAPES)
    with path(name) as how:
        optimizer = Neumann(params, lr=0.05, reset_period=15, **how, **STRONG)
        train(optimizer, params, range(8))
        torch.save({"weights": copies(params), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
        carried = optimizer._fused_passes[0].squares.tolist()
        train(optimizer, params, range(8, 20))

        saved = torch.load(tmp_path / "state.pt", weights_only=True)
        others = [w.requires_grad_() for w in saved["weights"]]
        resumed = Neumann(others, lr=1.0, **how)
        resumed.load_state_dict(saved["optimizer"])
        assert list(resumed.state_dict()["state"][3]["squares"].values()) == carried[3:]  # before the first step too
        resumed.distance()
        assert resumed._fused_passes[0].squares.tolist() == carried
        train(resumed, others, range(8, 20))
        assert same_bits(others, params)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"]
)
def test_copies_carry_them_too(duplicate):
    params = new_params(torch.float32, shapes=SHAPES)
    with path("C++") as how:
        optimizer = Neumann(params, lr=0.05, **how, **STRONG)
        train(optimizer, params, range(8))
        twin, others = duplicate((optimizer, params))
        assert "squares" in twin.state[others[0]]
        assert "squares" not in optimizer.state[params[0]]  # the live ones are in the table
        for each, own in ((optimizer, params), (twin, others)):
            train(each, own, range(8, 16))
        assert same_bits(params, others)


@KERNELS
def test_squares_that_are_not_those_of_r_are_not_believed(name):
    """A checkpoint may have been edited."""
    params = new_params(torch.float32)
    with path(name) as how:
        optimizer = Neumann(params, lr=0.05, **how, **STRONG)
        train(optimizer, params, range(8))
        state = optimizer.state_dict()
        state["state"][0]["r"] = state["state"][0]["r"] * 2
        others = copies(params)
        edited = Neumann([w.requires_grad_() for w in others], lr=0.05, **how)
        edited.load_state_dict(state)
        assert float(edited.distance()) == pytest.approx(literal_distance(edited), rel=1e-6)


@KERNELS
def test_an_edit_of_r_is_noticed(name):
    params = new_params(torch.float64)
    with path(name) as how:
        optimizer = Neumann(params, lr=0.05, **how, **STRONG)
        train(optimizer, params, range(8))
        optimizer.state[params[1]]["r"].mul_(3.0)
        assert float(optimizer.distance()) == pytest.approx(literal_distance(optimizer), rel=1e-12)
        optimizer.state[params[1]]["r"] = torch.ones_like(params[1])
        assert float(optimizer.distance()) == pytest.approx(literal_distance(optimizer), rel=1e-12)
        before = copies(params)
        train(optimizer, params, [8])
        assert not same_bits(params, before)
        del optimizer.state[params[1]]
        assert float(optimizer.distance()) == pytest.approx(literal_distance(optimizer), rel=1e-12)


def test_weights_that_move_to_other_memory_are_found():
    params = new_params(torch.float64)
    with path("C++") as how:
        optimizer = Neumann(params, lr=0.05, **how, **STRONG)
        train(optimizer, params, range(5))
        old = params[0].data
        params[0].data = old.clone()
        kept = old.clone()
        train(optimizer, params, [5])
        assert torch.equal(old, kept)
        assert not torch.equal(params[0], kept)


@pytest.mark.medium
def test_the_number_of_threads_changes_no_bit():
    shapes = ((7 * CHUNK + 5,), (100,), (3 * CHUNK,))
    ended = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        params = new_params(torch.float32, shapes=shapes)
        with path("C++") as how:
            train(Neumann(params, lr=0.05, **how, **STRONG), params, range(6))
        ended.append(params)
    assert same_bits(ended[0], ended[1])
    assert same_bits(ended[0], ended[2])


@KERNELS
@pytest.mark.parametrize("layout", ["channels_last", "transposed gradient", "unaligned", "empty"])
def test_memory_may_lie_in_other_ways(name, layout):
    def weights(dtype=torch.float32):
        w = torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(dtype)
        if layout == "channels_last":
            w = w.contiguous(memory_format=torch.channels_last)
        if layout == "unaligned":
            w = torch.cat([torch.zeros(1), w.flatten()])[1:].view(w.shape)
        return [w.requires_grad_(), torch.zeros(0 if layout == "empty" else 2, requires_grad=True)]

    def run(**how):
        params = weights()
        optimizer = Neumann(params, lr=0.05, **how, **STRONG)
        for step in range(8):
            for p in params:
                p.grad = torch.sin(3 * p.detach() + step)
            if layout == "transposed gradient":
                params[0].grad = params[0].grad.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
            optimizer.step()
        return optimizer, params

    _, looped = run(foreach=False)
    with path(name) as how:
        optimizer, params = run(**how)
    assert optimizer._fused_passes
    assert params[0].stride() == looped[0].stride()
    assert relative(params, looped) < 1e-6


@KERNELS
def test_a_loaded_state_that_lies_otherwise_is_laid_out_anew(name):
    def weights(format):
        return [torch.linspace(-1, 1, 120).reshape(2, 3, 4, 5).contiguous(memory_format=format).requires_grad_()]

    with path(name) as how:
        first, params = (lambda ps: (Neumann(ps, lr=0.05, **how, **STRONG), ps))(weights(torch.contiguous_format))
        train(first, params, range(5))
        others = [params[0].detach().clone().contiguous(memory_format=torch.channels_last).requires_grad_()]
        second = Neumann(others, lr=0.05, **how)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        train(first, params, range(5, 10))
        train(second, others, range(5, 10))
    assert relative(others, params) < 1e-6


def test_gaps_between_the_elements_are_left_to_the_loop_or_refused():
    w = torch.ones(4, 6)[:, :3].requires_grad_()
    with path("C++"):
        optimizer = Neumann([w], lr=0.1)
        train(optimizer, [w], range(3))
        assert not optimizer._fused_passes
        with pytest.raises(
            ValueError, match=r"fused=True needs a kernel, and a parameter of strides \(6, 1\) is not dense"
        ):
            Neumann([w], lr=0.1, fused=True)
        with pytest.raises(ValueError, match=r"there is none for torch.float16 on cpu: leave fused at None"):
            Neumann([torch.zeros(2, dtype=torch.float16, requires_grad=True)], lr=0.1, fused=True)


def test_a_graph_that_needs_the_old_weights_notices():
    w = torch.ones(3, requires_grad=True)
    with path("C++") as how:
        optimizer = Neumann([w], lr=0.1, **how)
        loss = (w**2).sum()
        w.grad = torch.ones(3)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


WITHOUT_COMPILER = """
import torch, warnings
from neumann.optim import Neumann
w = torch.ones(3, requires_grad=True)
w.grad = torch.ones(3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for setting in ({"fused": False}, {"foreach": False}, {}, {}, {"fused": True}, {"fused": True}):
        optimizer = Neumann([w], lr=0.1, **setting)
        optimizer.step()
        print(len(caught), caught[-1].message if caught else "")
print(len(optimizer._fused_passes), w.tolist()[0] < 1)
"""


@pytest.mark.medium
@pytest.mark.parametrize("compiler", ["/no/such/compiler", pytest.param("false", marks=pytest.mark.slow)])
def test_without_a_compiler_it_is_said_once_and_the_plain_path_taken(python, monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("NEUMANN_CACHE", str(tmp_path / "empty"))
    *meant, told, again, asked, asked_again, taken = python(WITHOUT_COMPILER).splitlines()
    assert meant == ["0 ", "0 "]
    said = {
        "false": "the C++ compiler false failed",
        "/no/such/compiler": "no C++ compiler was found (looked for /no/such/compiler)",
    }
    assert told == again
    assert told.startswith("1 a step takes several times as long")
    assert said[compiler] in told
    assert asked == asked_again
    assert asked.startswith(f"2 fused=True: the slower path is taken, because {said[compiler]}")
    assert taken == "0 False"  # reset first, which moves nothing


@pytest.mark.medium
def test_the_library_is_compiled_once_and_kept_apart_by_compiler(tmp_path, monkeypatch):
    if cpu.load() is None:
        pytest.skip(cpu.problem())
    cpu.build(tmp_path / "a")
    (first,) = (tmp_path / "a").iterdir()
    assert first.stat().st_mode & 0o777 == 0o755  # folders of caches are shared
    with mock.patch.object(cpu, "_compile", side_effect=AssertionError("again")):
        cpu.build(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == [first]
    monkeypatch.setattr(cpu, "_processor", lambda: "another")
    cpu.build(tmp_path / "a")
    assert len(list((tmp_path / "a").iterdir())) == 2
    monkeypatch.setattr(cpu, "CHOICES", ((),))
    cpu.build(tmp_path / "a")
    assert len(list((tmp_path / "a").iterdir())) == 3


@pytest.mark.medium
@pytest.mark.parametrize("kept", [0, 4096, 9000, -1])
def test_a_damaged_library_is_not_loaded_but_compiled_again(tmp_path, kernel_library, kept):
    """Loading one that is cut short would end this process by SIGBUS."""
    if kernel_library is None:
        pytest.skip(cpu.problem())
    (tmp_path / "a").mkdir()
    damaged = tmp_path / "a" / kernel_library.name
    damaged.write_bytes(kernel_library.read_bytes()[:kept])
    cpu.build(tmp_path / "a")
    (made,) = (tmp_path / "a").iterdir()
    assert made.stat().st_size == kernel_library.stat().st_size
    with mock.patch.object(cpu, "_compile", side_effect=AssertionError("again")):
        cpu.build(tmp_path / "a")


@pytest.mark.medium
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    if cpu.load() is None:
        pytest.skip(cpu.problem())
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    kernel = cpu.build(tmp_path / "file" / "cache")
    assert not list((tmp_path / "temporary").iterdir())
    with mock.patch.object(cpu, "load", return_value=kernel):
        params = new_params(torch.float32)
        optimizer = Neumann(params, lr=0.1, fused=True)
        train(optimizer, params, range(3))
    assert optimizer._fused_passes


@pytest.mark.slow
def test_processes_that_compile_at_once_do_not_meet(tmp_path):
    if cpu.load() is None:
        pytest.skip(cpu.problem())
    code = f"from pathlib import Path; from neumann.optim.kernels import cpu; cpu.build(Path({str(tmp_path / 'c')!r}))"
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [each.wait(120) for each in started] == [0, 0, 0]
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_fused_is_what_is_picked_here_and_foreach_still_asks_for_lists():
    with path("C++"):
        for asked, passes in (({}, 1), ({"fused": False}, 0), ({"foreach": False}, 0), ({"foreach": True}, 0)):
            params = new_params(torch.float32)
            optimizer = Neumann(params, lr=0.1, **asked)
            train(optimizer, params, range(3))
            assert len(optimizer._fused_passes) == passes, asked


def test_groups_may_take_different_paths_and_share_one_norm():
    setting = {"lr": 0.05, "reset_period": 9, **STRONG}
    params, looped = new_params(), new_params()
    with path("C++"):
        groups = [
            {"params": params[:1], "fused": True},
            {"params": params[1:2], "foreach": True},
            {"params": params[2:], "fused": False},
        ]
        mixed = Neumann(groups, **setting)
        one = Neumann(looped, foreach=False, **setting)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(mixed, params, range(40))
        train(one, looped, range(40))
        assert len(mixed._fused_passes) == 1
    assert relative(params, looped) < 1e-12
    assert float(mixed.distance()) == pytest.approx(float(one.distance()), rel=1e-12)


PTX = """
import re, torch, triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from neumann.optim.kernels import gpu

names = gpu._step_kernel.arg_names
types = ["*i64"] * 3 + ["*fp64"] * 2 + ["i32"] + ["*fp64"] * 2
fixed = {"LARGEST": 3e38, "W": tl.float32, "S": tl.float32, "ALIGNED": True, "CHUNK": gpu.CHUNK, "BLOCK": gpu.BLOCK}
source = ASTSource(
    gpu._step_kernel,
    dict(zip(names, types)) | dict.fromkeys(fixed, "constexpr"),
    constexprs={(names.index(name),): value for name, value in fixed.items()},
    attrs={(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind[0] == "*"},
)
ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": gpu.WARPS, "enable_fp_fusion": False}).asm["ptx"]
print(ptx.count("ld.global.v4.b32"), ptx.count("st.global.v4.b32"), len(re.findall(r"\\batom|\\bred\\.", ptx)))
"""


@pytest.mark.slow
def test_the_cuda_kernel_compiles_without_a_gpu_and_moves_28_bytes(python, monkeypatch, tmp_path):
    """Its main loop reads four vectors of four float32 and writes three, 16 bytes each: 28 for each parameter."""
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    assert python(PTX).split() == ["4", "3", "0"]  # and has no atomics


class Named(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_foreach" in func.__name__:
            self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def test_lists_are_passed_over_as_rarely_as_can_be():
    """Two reads and a write are 12 bytes of float32, one of each 8: 76, and 4 for the norm of r, which is taken singly."""
    params = new_params(torch.float32)
    optimizer = Neumann(params, lr=0.05, foreach=True, **STRONG)
    train(optimizer, params, range(12))
    with Named() as called:
        train(optimizer, params, [12])
    bytes_of = {"_foreach_mul": 8, "_foreach_mul_": 8, "_foreach_add_": 12, "_foreach_lerp_": 12}
    assert sum(bytes_of[name] for name in called.names) == 76
