"""The GPUs that this process may use: listed without torch, and whether torch can use them.

NVIDIA's driver makes a file in /dev for each GPU, AMD's a node of the kernel's topology, and under WSL 2 there is one
file for all of them, /dev/dxg, so that nvidia-smi is asked.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

DEV = Path("/dev")
AMD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")
WSL_LIST = ("/usr/lib/wsl/lib/nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
# of each maker the variables that name the visible ones, the first that is set counts: CUDA's, and HIP's on AMD GPUs
NVIDIA, AMD = ("CUDA_VISIBLE_DEVICES",), ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, under the names that CUDA_VISIBLE_DEVICES has for them."""
    here = sorted((path.name.removeprefix("nvidia") for path in DEV.glob("nvidia[0-9]*")), key=int)
    if here or (DEV / "dxg").exists():
        return _named(here or list(_under_wsl()), NVIDIA)
    there = [str(index) for index in range(_amd_gpus())]
    if (rocr := os.environ.get("ROCR_VISIBLE_DEVICES")) is not None and there:  # AMD's runtime counts anew among these
        there = [str(index) for index in range(len(_listed(rocr)))]
    return _named(there, AMD)


def variables_for(gpus: Sequence[str]) -> dict[str, str]:
    """Return the variables by which a process sees ``gpus`` alone; HIP's comes before CUDA's where it is set."""
    names = [name for name in AMD if name == "CUDA_VISIBLE_DEVICES" or name in os.environ]
    return dict.fromkeys(names, ",".join(gpus))


def torch_has_gpu() -> bool:
    """Return whether torch trains on a GPU here; torch is imported only where there is one to ask about."""
    if not visible_gpus() and not (DEV / "dxg").exists():  # behind which an AMD GPU may be as well
        return False
    import torch

    return torch.cuda.is_available()


def _named(here: list[str], variables: Sequence[str]) -> list[str]:
    """Return those of the GPUs ``here`` that the first of ``variables`` which is set names; all where none is."""
    given = next((os.environ[name] for name in variables if name in os.environ), None)
    return here if given is None or not here else _listed(given)


def _listed(given: str) -> list[str]:
    names = [name.strip() for name in given.split(",")]
    return names[: names.index("-1")] if "-1" in names else [name for name in names if name]


def _amd_gpus() -> int:
    """Return the number of AMD GPUs: nodes of the kernel's topology with vector units; a processor has none."""
    if not (DEV / "kfd").exists():
        return 0
    found = 0
    for path in AMD_NODES.glob("*/properties"):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:  # of a GPU that a container may not use
            continue
        found += any(line.startswith("simd_count ") and line.split()[1] != "0" for line in lines)
    return found


@cache
def _under_wsl() -> tuple[str, ...]:
    try:
        said = subprocess.run(WSL_LIST, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in said.splitlines() if line.strip().isdigit())
