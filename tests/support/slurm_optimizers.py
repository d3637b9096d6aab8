"""Optimizers of the tests on a cluster: one that is slow until a file appears, and ones that fail."""

from __future__ import annotations

from pathlib import Path

MODULE = """
import os, time
import torch

class Mine(torch.optim.SGD):
    steps = 0
    def __init__(self, params, lr, ends="well", place=".", weight_decay=0.0):
        super().__init__(params, lr=lr)
        self.ends, self.place = ends, place
    def step(self, closure=None):
        self.steps += 1
        if self.ends == "raise" and self.steps == 10:
            raise RuntimeError("it broke on purpose")
        if self.ends == "second" and self.steps == 10 and os.environ.get("SLURM_PROCID") == "1":
            raise RuntimeError("it broke on one rank")
        if self.ends == "slow" and not os.path.exists(os.path.join(self.place, "go")):
            time.sleep(0.1)
        return super().step(closure)
"""


def write(place: Path) -> list[str]:
    """Write the module and its YAML into ``place``; return the words of the command line that choose them."""
    (place / "cluster_optimizers.py").write_text(MODULE)
    folder = place / "conf" / "optimizer"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"_target_: cluster_optimizers.Mine\nlr: 0.1\nends: well\nplace: {place}\n")
    return [f"--config-dir={place / 'conf'}", "optimizer=mine"]
