"""GPUs of this machine: which a launch may use, and which of them a run gets. Found without torch, so without CUDA.

The fork server never touches CUDA, and a run sees only its own GPUs, through CUDA_VISIBLE_DEVICES in its environment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from neumann.errors import UserError
from neumann.visible_gpus import visible_gpus


def chosen_gpus(devices: Sequence[int] | None) -> list[str]:
    """Return the names of the GPUs that ``devices`` counts among the visible ones, from 0; all of them for None.

    Raises UserError where there is no such GPU, and for a list that is empty or names one twice.
    """
    there = visible_gpus()
    if devices is None:
        return there
    for device in devices:
        if not 0 <= device < len(there):
            have = f"there are {len(there)}, counted from 0" if there else "there is no GPU here"
            raise UserError(f"launch.devices names GPU {device}, and {have}")
    if len(set(devices)) < len(devices) or not devices:
        raise UserError(
            f"launch.devices={list(devices)} must name each GPU once: several runs on one are launch.runs_per_device"
        )
    return [there[device] for device in devices]


class GpuPool:
    """GPUs with room for ``runs_each`` runs on each; a pool without GPUs refuses no run."""

    def __init__(self, gpus: Sequence[str], runs_each: int) -> None:
        self.names, self._each = list(gpus), runs_each
        self._load: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return how many runs on one GPU fit at once."""
        return len(self.names) * self._each

    def take(self, count: int) -> list[str] | None:
        """Return ``count`` GPUs with room, the emptiest first; None where fewer have it, [] in a pool without GPUs."""
        if not self.names:
            return []
        free = sorted((gpu for gpu in self.names if self._load[gpu] < self._each), key=lambda gpu: self._load[gpu])
        if len(free) < count:
            return None
        taken = free[:count]
        self._load.update(taken)
        return taken

    def give_back(self, gpus: Sequence[str]) -> None:
        """Take back what `take` has handed out."""
        self._load.subtract(gpus)
