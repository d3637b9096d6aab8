"""Cost of the launcher and of the W&B mirror: starts of runs, and a sweep against the sum of its training times.

    python benchmarks/launch.py [--runs 24] [--seconds 10] [--starts 12] [--write]

A start is the time in seconds from the moment that the launcher schedules a run to the end of its first training step,
as result.json has it, once with W&B offline and once without. The sweep trains ``--runs`` runs of about ``--seconds``
each on all cores, W&B offline, one thread a run; its wall time is divided by the runs' time in training and evaluation,
summed over the runs and divided by the number of cores. The fork server is warm by then: it warms up once in a process,
which takes about as long as the imports of a fresh interpreter, timed beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neumann.config import LocalLaunchConfig, RunSpec, make_specs
from neumann.launch.local import LocalLauncher
from neumann.launch.protocol import RunOutcome
from neumann.store.provenance import provenance

RESULTS = Path(__file__).parent / "results"


class Clock:
    """A view that records when each run was scheduled, in seconds since 1970."""

    def __init__(self) -> None:
        self.scheduled: dict[str, float] = {}

    def label(self, spec: RunSpec) -> str:
        return spec.name

    def started(self, spec: RunSpec) -> None: ...

    def done(self, outcome: RunOutcome) -> None:
        self.scheduled[outcome.spec.signature] = time.time() - outcome.seconds

    def tick(self, running: Sequence[RunSpec], waiting: int) -> None: ...


def launch(runs: list[list[str]], parallel: int) -> tuple[float, list[RunOutcome], Clock]:
    """Return the wall time in seconds, the outcomes and the clock of a launch."""
    clock, specs = Clock(), make_specs(runs)
    begun = time.monotonic()
    with LocalLauncher(LocalLaunchConfig(parallel=parallel, threads=1)) as launcher:
        outcomes = launcher.run(specs, clock)
    wall = time.monotonic() - begun
    for outcome in outcomes:
        assert outcome.result is not None, outcome.message
    return wall, outcomes, clock


def starts(place: str, count: int, logger: str) -> dict[str, Any]:
    """Return median and maximum of the seconds from scheduling to the first step, one run at a time."""
    words = [f"output={place}", f"study=starts-{logger}", f"logger={logger}", "trainer.max_epochs=1"]
    _, outcomes, clock = launch([[*words, f"seed={seed}"] for seed in range(count)], parallel=1)
    took = [float((o.result or {})["first_step_at"]) - clock.scheduled[o.spec.signature] for o in outcomes]
    return {"logger": logger, "n": count, "median_s": statistics.median(took), "max_s": max(took)}


def sweep(place: str, count: int, seconds: float, cores: int) -> dict[str, Any]:
    """Return the wall time of a sweep, and its ratio to the training in it shared out over the cores."""

    def words(epochs: float) -> list[str]:
        return [f"output={place}", f"study=sweep-{epochs}", "logger=wandb", f"trainer.max_epochs={epochs}"]

    _, trial, _ = launch([[*words(10), f"seed={seed}"] for seed in range(cores)], cores)  # as many at once as later
    took = statistics.mean(_training(o) for o in trial)
    epochs = max(1, round(10 * seconds / took))
    wall, outcomes, _ = launch([[*words(epochs), f"seed={seed}"] for seed in range(count)], cores)
    inside = [_training(o) for o in outcomes]
    return {
        "runs": count,
        "cores": cores,
        "epochs": epochs,
        "wall_s": wall,
        "training_s": {"sum": sum(inside), "median": statistics.median(inside), "max": max(inside)},
        "ratio": wall / (sum(inside) / cores),
    }


def _training(outcome: RunOutcome) -> float:
    result = outcome.result or {}
    return float(result["train_seconds"]) + float(result["eval_seconds"])


def fresh() -> float:
    """Return the seconds in which a fresh interpreter imports what a run needs."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import neumann.training.run, wandb"], check=True)
    return time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--starts", type=int, default=12)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/launch.json and launch.md")
    given = parser.parse_args()
    os.environ["WANDB_SILENT"] = "true"
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        measured: dict[str, Any] = {"fresh_interpreter_s": fresh()}
        measured["starts"] = [starts(place, given.starts, logger) for logger in ("none", "wandb")]
        measured["sweep"] = sweep(place, given.runs, given.seconds, cores)
    lines = table(measured)
    print("\n".join(lines))
    if given.write:
        RESULTS.mkdir(exist_ok=True)
        where = provenance()
        measured |= {"host": where["host"], "packages": where["packages"], "git": where["git"]}
        (RESULTS / "launch.json").write_text(json.dumps(measured, indent=2) + "\n")
        host = where["host"]
        about = f"{host['cores']} cores, {host['processor']}, torch {where['packages']['torch']}"
        (RESULTS / "launch.md").write_text("\n".join(["# make bench-launch", "", about, "", *lines]) + "\n")


def table(measured: dict[str, Any]) -> list[str]:
    """Return the measurements as a Markdown table."""
    lines = ["| what | measured | goal |", "|---|---|---|"]
    lines += [f"| imports in a fresh interpreter | {measured['fresh_interpreter_s']:.1f} s | |"]
    for start in measured["starts"]:
        name = "W&B offline" if start["logger"] == "wandb" else "no logger"
        took = f"median {start['median_s']:.2f} s, at most {start['max_s']:.2f} s (n = {start['n']})"
        lines.append(f"| scheduled to first step, {name} | {took} | 0.5 s |")
    sweep = measured["sweep"]
    what = f"{sweep['runs']} runs of {sweep['training_s']['median']:.1f} s on {sweep['cores']} cores, W&B offline"
    ratio = f"{sweep['wall_s']:.0f} s, {sweep['ratio']:.3f} × training / {sweep['cores']}"
    return [*lines, f"| {what} | {ratio} | 1.15 |"]


if __name__ == "__main__":
    main()
