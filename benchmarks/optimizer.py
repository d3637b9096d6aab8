"""The cost of a step of Neumann on every path, beside SGD, RMSprop and Adam, interleaved in one run.

    python benchmarks/optimizer.py [--device cpu|cuda] [--placements 5] [--rounds 8] [--write]

Each round takes every contender once, in an order of its own, on the tensors of ResNet-50 and of the small network for
digits: a burst of steps with gradients that stay, then a wait for the device. A ratio is that of two times of the same
round; median and quartiles of all rounds are given. Where the tensors happen to lie moves the time of the same code by
a tenth, so everything is made anew several times, in another order each time.

Bytes are what the operations of a step name as read and as written (counted by a dispatch mode; for the fused
kernels, which it cannot see, 4 reads and 3 writes). The bandwidth is that of copying 256 MiB, taken in every round too:
bytes read and bytes written. On a CPU a step's share of it can exceed 1, for temporaries that stay in a cache never
reach memory, and a copy also fetches what it is about to overwrite, which a step in place need not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, RMSprop
from torch.utils._python_dispatch import TorchDispatchMode

from neumann.optim import Neumann
from neumann.optim.kernels import cpu
from neumann.store.provenance import provenance

RESULTS = Path(__file__).parent / "results"
COPY_BYTES = 2**28
BASELINE = "Adam, fused"
Make = Callable[[list[Tensor]], Optimizer]

CONTENDERS: dict[str, Make] = {
    "Neumann, fused": lambda ps: Neumann(ps, lr=1e-3, fused=True),
    "Neumann, foreach": lambda ps: Neumann(ps, lr=1e-3, foreach=True),
    "Neumann, for-loop": lambda ps: Neumann(ps, lr=1e-3, foreach=False),
    "Neumann, default": lambda ps: Neumann(ps, lr=1e-3),
    "Adam, fused": lambda ps: Adam(ps, lr=1e-3, fused=True),
    "Adam, foreach": lambda ps: Adam(ps, lr=1e-3, foreach=True),
    "Adam, for-loop": lambda ps: Adam(ps, lr=1e-3, foreach=False),
    "RMSprop, foreach": lambda ps: RMSprop(ps, lr=1e-3, momentum=0.9, foreach=True),
    "RMSprop, for-loop": lambda ps: RMSprop(ps, lr=1e-3, momentum=0.9, foreach=False),
    "SGD with momentum, fused": lambda ps: SGD(ps, lr=1e-3, momentum=0.9, fused=True),
    "SGD with momentum, foreach": lambda ps: SGD(ps, lr=1e-3, momentum=0.9, foreach=True),
    "SGD with momentum, for-loop": lambda ps: SGD(ps, lr=1e-3, momentum=0.9, foreach=False),
}


NOTES = """\
"Neumann, default" is the same code as "Neumann, fused". Bytes of these rows are those of the kernel by design,
4 reads and 3 writes; the others are counted. On a CPU a copy also fetches what it is about to overwrite, which a step
in place need not, so shares above 100 % are no mistake. torch has no fused RMSprop.
"""


def shapes_of(model: str) -> list[torch.Size]:
    """Return the shapes of the parameters of ResNet-50, or of our small network for the digits."""
    with torch.device("meta"):
        if model == "ResNet-50":
            import timm

            net = timm.create_model("resnet50")
        else:
            from neumann.models.classifiers import small_cnn

            net = small_cnn(in_chans=1, num_classes=10)
    return [p.shape for p in net.parameters()]


class Bytes(TorchDispatchMode):
    """Adds up what the operations within read and write, by their schemas: every operand, wherever it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == "aten" and "empty" not in func.__name__:
            written = {a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write}
            if func.__name__.startswith("_fused") and kwargs.get("grad_scale") is None:
                written -= {"grads"}  # it says so for the sake of unscaling
            named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
            self.total += sum(_size(value) * (2 if name in written else 1) for name, value in named.items())
            returns = func._schema.returns
            fresh = all(r.alias_info is None for r in returns)
            self.total += _size(out) if fresh else 0
        return out


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 0


class Contender:
    """One optimizer on tensors of its own."""

    def __init__(self, make: Make, shapes: Sequence[torch.Size], device: torch.device, burst: int) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self.params = [
            torch.randn(shape, generator=generator, device=device).mul_(0.1).requires_grad_() for shape in shapes
        ]
        for p in self.params:
            p.grad = torch.randn(p.shape, generator=generator, device=device).mul_(0.01)
        self.optimizer, self._device, self._burst = make(self.params), device, burst
        for _ in range(12):  # past the reset and the ramp of the momentum
            self.optimizer.step()

    def seconds(self) -> float:
        """Return the wall time of a step, in a burst."""
        wait(self._device)
        begun = time.perf_counter()
        for _ in range(self._burst):
            self.optimizer.step()
        wait(self._device)
        return (time.perf_counter() - begun) / self._burst

    def bytes(self, numel: int) -> float:
        """Return bytes read and written for each parameter."""
        passes = getattr(self.optimizer, "_fused_passes", ())
        if passes:
            return 28.0
        with Bytes() as counted:
            self.optimizer.step()
        return counted.total / numel

    def state_bytes(self) -> int:
        """Return the size of all tensors in the optimizer's state."""
        return sum(_size(value) for state in self.optimizer.state.values() for value in state.values())


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(model: str, device: torch.device, placements: int, rounds: int, burst: int) -> dict[str, Any]:
    """Return the times of every contender and of the copy, round by round, and what follows from them."""
    shapes = shapes_of(model)
    numel = sum(shape.numel() for shape in shapes)
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    took: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    copies: list[float] = []
    order = random.Random(0)
    for _ in range(placements):
        contenders = {
            name: Contender(CONTENDERS[name], shapes, device, burst)
            for name in order.sample(list(CONTENDERS), len(CONTENDERS))
        }
        for _ in range(rounds):
            wait(device)
            begun = time.perf_counter()
            target.copy_(source)
            wait(device)
            copies.append(time.perf_counter() - begun)
            for name in order.sample(list(contenders), len(contenders)):
                took[name].append(contenders[name].seconds())
        counted = {name: (each.bytes(numel), each.state_bytes()) for name, each in contenders.items()}
        del contenders
    bandwidth = 2 * COPY_BYTES / statistics.median(copies)
    rows = []
    for name in CONTENDERS:
        ratios = [ours / base for ours, base in zip(took[name], took[BASELINE], strict=True)]
        (moved, state), median = counted[name], statistics.median(took[name])
        places = [statistics.median(ratios[i : i + rounds]) for i in range(0, len(ratios), rounds)]
        rows.append(
            {
                "name": name,
                "ms": median * 1e3,
                "ms_quartiles": [q * 1e3 for q in quartiles(took[name])],
                "ratio": statistics.median(ratios),
                "ratio_quartiles": quartiles(ratios),
                "ratio_by_placement": places,
                "bytes_per_parameter": moved,
                "bandwidth_share": moved * numel / median / bandwidth,
                "state_bytes": state,
            }
        )
    return {
        "model": model,
        "tensors": len(shapes),
        "parameters": numel,
        "burst": burst,
        "placements": placements,
        "rounds": rounds,
        "copy_gb_s": bandwidth / 1e9,
        "rows": rows,
    }


def quartiles(values: Sequence[float]) -> list[float]:
    low, _, high = statistics.quantiles(values, n=4)
    return [low, high]


COMPILE = """
import time, torch
from neumann.optim import Neumann
device = torch.device("{device}")
w = torch.ones(1000, device=device, requires_grad=True)
w.grad = torch.ones_like(w)
Neumann([w], lr=0.1, fused=False).step()  # what torch itself loads at its first step
w.sum().item()
begun = time.perf_counter()
optimizer = Neumann([w], lr=0.1, fused=True)
optimizer.step()
w.sum().item()
print(time.perf_counter() - begun)
"""


def compiling(device: torch.device) -> dict[str, float]:
    """Return the seconds of the first step in a fresh process, with nothing compiled and with everything."""
    with tempfile.TemporaryDirectory() as place:
        env = os.environ | {"NEUMANN_CACHE": place, "TRITON_CACHE_DIR": place}
        command = [sys.executable, "-c", COMPILE.format(device=device.type)]
        cold, warm = (
            float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout) for _ in range(2)
        )
    return {"cold_s": cold, "warm_s": warm}


def table(part: dict[str, Any]) -> list[str]:
    """Return what was measured of one model as Markdown."""
    many = f"{part['parameters'] / 1e6:.3g} million parameters in {part['tensors']} tensors"
    lines = [
        f"## {part['model']}: {many}",
        "",
        f"{part['placements']} placements, {part['rounds']} rounds of {part['burst']} steps in each; "
        f"a copy moves {part['copy_gb_s']:.1f} GB/s.",
        "",
        "| optimizer, path | ms a step (quartiles) | × Adam, fused (quartiles) | median by placement "
        "| bytes a parameter | share of the copy's bandwidth | state, bytes a parameter |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in part["rows"]:
        low, high = row["ms_quartiles"]
        below, above = row["ratio_quartiles"]
        lines.append(
            f"| {row['name']} | {row['ms']:.3g} ({low:.3g}–{high:.3g}) "
            f"| {row['ratio']:.2f} ({below:.2f}–{above:.2f}) "
            f"| {min(row['ratio_by_placement']):.2f}–{max(row['ratio_by_placement']):.2f} "
            f"| {row['bytes_per_parameter']:.1f} | {row['bandwidth_share']:.0%} "
            f"| {row['state_bytes'] / part['parameters']:.3f} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--placements", type=int, default=5, help="how often everything is made anew")
    parser.add_argument("--rounds", type=int, default=8, help="in each placement")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/optimizer-DEVICE.json and .md")
    given = parser.parse_args()
    device = torch.device(given.device)
    bursts = {"ResNet-50": 1 if device.type == "cpu" else 20, "small CNN": 100}
    measured: dict[str, Any] = {"models": []}
    lines: list[str] = []
    for model, burst in bursts.items():
        measured["models"].append(measure(model, device, given.placements, given.rounds, burst))
        part = table(measured["models"][-1])
        print("\n".join(part))
        lines += part
    measured["compile"] = compiling(device)
    cold, warm = measured["compile"]["cold_s"], measured["compile"]["warm_s"]
    ending = f"First fused step in a fresh process: {cold:.2f} s with nothing compiled, {warm:.2f} s afterwards."
    print(ending)
    lines += [ending, "", NOTES]
    if not given.write:
        return
    where = provenance()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    threads = torch.get_num_threads()
    measured |= {
        "host": where["host"],
        "gpu": gpu,
        "threads": threads,
        "packages": where["packages"],
        "git": where["git"],
    }
    host = where["host"]
    about = f"{gpu or host['processor']}, {threads} of {host['cores']} cores, torch {where['packages']['torch']}"
    if device.type == "cpu":
        compiler = subprocess.run([*cpu.find_compiler(), "--version"], capture_output=True, text=True, check=True)
        measured["compiler"] = compiler.stdout.splitlines()[0]
        about += f", {measured['compiler']}"
    missing = [] if device.type == "cuda" else ["CUDA: not yet measured; no GPU was at hand."]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"optimizer-{device.type}.json").write_text(json.dumps(measured, indent=2) + "\n")
    text = ["# make bench-optimizer", "", about, "", *lines, *missing]
    (RESULTS / f"optimizer-{device.type}.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
