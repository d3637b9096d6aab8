"""Quick runs, a recording view, optimizers that end badly, and a search for left-over processes, for tests of launches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from neumann.config import RunSpec
from neumann.launch.protocol import RunOutcome

QUICK = ["trainer.max_epochs=2", "batch.size=64", "+model.kwargs.width=8", "logger=none"]
LONG = ["trainer.max_epochs=2000", *QUICK[1:]]

OPTIMIZERS = """
import os, signal, time
import torch

class Mine(torch.optim.SGD):
    steps = 0
    def __init__(self, params, lr, ends="well", at=20, weight_decay=0.0):
        super().__init__(params, lr=lr)
        self.ends, self.at = ends, at
    def step(self, closure=None):
        self.steps += 1
        if self.steps == self.at:
            print(f"said at step {self.at}")
            if self.ends == "raise": raise RuntimeError("it broke\\nin two lines")
            if self.ends == "exit": os._exit(3)
            if self.ends == "leave": raise SystemExit(4)
            if self.ends == "kill": os.kill(os.getpid(), signal.SIGKILL)
            if self.ends == "hang": time.sleep(1000)
            if self.ends == "stop": os.kill(os.getpid(), signal.SIGTERM)
            if self.ends == "mark": open("mark", "w").write(os.environ["MARK"])
        return super().step(closure)
"""


def own_optimizer(place: Path, text: str = OPTIMIZERS) -> str:
    """Write the module into ``place`` and its YAML beside it; return the config folder."""
    (place / "my_optimizers.py").write_text(text)
    folder = place / "conf" / "optimizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text("_target_: my_optimizers.Mine\nlr: 0.1\nends: well\nat: 20\n")
    return str(place / "conf")


class RecordingView:
    """A view that records what it is told; ``at_tick`` is called with the runs that train."""

    def __init__(self, at_tick: Callable[[Sequence[RunSpec]], None] | None = None) -> None:
        self.begun: list[RunSpec] = []
        self.over: list[RunOutcome] = []
        self.most = 0
        self._at_tick = at_tick

    def label(self, spec: RunSpec) -> str:
        return spec.name

    def started(self, spec: RunSpec) -> None:
        self.begun.append(spec)

    def done(self, outcome: RunOutcome) -> None:
        self.over.append(outcome)

    def tick(self, running: Sequence[RunSpec], waiting: int) -> None:
        self.most = max(self.most, len(running))
        if self._at_tick is not None:
            self._at_tick(running)


def left_over(marker: str, besides: int = 0) -> list[int]:
    """Return the living processes that have ``marker`` in the environment they were started with."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            mine = marker.encode() in (path / "environ").read_bytes()
            zombie = (path / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            continue
        if mine and not zombie and int(path.name) not in (os.getpid(), besides):
            found.append(int(path.name))
    return found


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Return when ``condition`` holds; fail where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
