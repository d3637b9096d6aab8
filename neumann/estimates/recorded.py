"""How long missing runs take, by what was measured of runs like them in the results folder.

Runs are alike where data, model, batch size, devices and precision are the same, and optimizer and recipe where such
runs were measured: their seconds a step are taken. A run with the same signature in another study is the same run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from neumann.config import LaunchConfig, LocalLaunchConfig, RunSpec, SlurmLaunchConfig
from neumann.config.inner_loop import InnerLoop
from neumann.errors import UserError
from neumann.estimates.rate import duration
from neumann.processes.ranks import world_size
from neumann.store.files import read_json
from neumann.store.scores import is_number

MOST_FOLDERS = 2_000  # of other runs that are read, which takes a second or two


def time_left(
    left: Sequence[tuple[RunSpec, float]], over: Iterable[tuple[RunSpec, Mapping[str, Any]]] = ()
) -> str | None:
    """Return in a sentence how long ``left`` takes, and on what that rests; None where nothing is left.

    left   runs without a result, each with how often it counts
    over   runs that have one, with it; those in the results folder are read here
    """
    if not left:
        return None
    specs = [spec for spec, _ in left]
    measured = _Measured(over, specs[0])
    known = [(seconds, times) for spec, times in left if (seconds := measured.seconds(spec)) is not None]
    if not known:
        return f"how long that takes is not known: no run like these was measured in {specs[0].config.output} yet"
    count = sum(times for _, times in known)
    total = sum(seconds * times for seconds, times in known)
    at_once = max(1, runs_at_once(specs[0].config.launch) // world_size(specs[0]))
    unknown = sum(times for _, times in left) - count
    were = "was" if measured.used == 1 else "were"
    return (
        f"that is up to {duration(total / min(at_once, count))} with {_runs(at_once)} at once, start-up aside: "
        f"{total / count:.1f} s a run, by {_runs(measured.used)} like these that {were} measured in "
        f"{specs[0].config.output}" + (f"; {unknown:.0f} are like none of them and not counted" if unknown >= 1 else "")
    )


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def runs_at_once(launch: LaunchConfig) -> int:
    """Return how many runs on one device a launch trains at once; for Slurm, where every job gets its place."""
    if isinstance(launch, SlurmLaunchConfig):
        return launch.workers * launch.runs_per_worker
    assert isinstance(launch, LocalLaunchConfig), launch
    from neumann.cores import cores
    from neumann.launch.gpus import GpuPool, chosen_gpus

    return launch.parallel or len(GpuPool(chosen_gpus(launch.devices), launch.runs_per_device)) or cores()


class _Measured:
    """The seconds of the runs in a results folder, by signature and by what decides how long a step takes."""

    def __init__(self, over: Iterable[tuple[RunSpec, Mapping[str, Any]]], example: RunSpec) -> None:
        self._whole: dict[str, float] = {}  # by signature
        self._alike: dict[str, dict[str, tuple[float, float]]] = {}  # (seconds, steps) by cost, then by signature
        self._named: set[str] = set()
        for spec, result in over:
            self._add(spec.signature, spec.signed(), result)
        for folder in islice(_folders(Path(example.config.output)), MOST_FOLDERS):
            signature = folder.name[-12:]
            if signature not in self._whole:
                with suppress(UserError):  # another user's, perhaps; what it took is not needed
                    self._add(signature, read_json(folder / "signed.json"), read_json(folder / "result.json"))

    def _add(self, signature: str, signed: Any, result: Any) -> None:
        if not (isinstance(signed, Mapping) and isinstance(result, Mapping)):
            return
        seconds: Any = result.get("train_seconds")
        step: Any = result.get("step")
        if is_number(seconds) and is_number(step) and step > 0:
            self._whole[signature] = seconds
            for cost in costs(signed):
                self._alike.setdefault(cost, {})[signature] = seconds, step

    @property
    def used(self) -> int:
        """How many runs the answers so far rest on."""
        return len(self._named)

    def seconds(self, spec: RunSpec) -> float | None:
        """Return how long ``spec`` takes; None where no run like it was measured."""
        if spec.signature in self._whole:
            self._named.add(spec.signature)
            return self._whole[spec.signature]
        cost = next((cost for cost in costs(spec.signed()) if cost in self._alike), None)
        if cost is None:
            return None
        alike = self._alike[cost]
        self._named |= alike.keys()
        seconds, steps = (sum(column) for column in zip(*alike.values(), strict=True))  # long runs tell most
        return seconds / steps * spec.config.derived.total_steps


def _folders(output: Path) -> Iterator[Path]:
    """Yield the folders of runs that are over, the newest studies first."""
    studies = sorted((path for path in output.glob("*") if path.is_dir()), key=lambda path: -path.stat().st_mtime)
    for study in studies:
        yield from (path.parent for path in study.glob("*-????????????/result.json"))


def costs(signed: Mapping[str, Any]) -> list[str]:
    """Return what decides how long a step takes, as text, first with the optimizer, then for any."""
    config = signed.get("config")
    parts = config if isinstance(config, Mapping) else {}
    optimizer, trainer, derived = (
        one if isinstance(one, Mapping) else {} for one in map(parts.get, ("optimizer", "trainer", "derived"))
    )
    same = [signed.get("data"), parts.get("model"), parts.get("batch"), derived.get("accumulation")]
    same += [trainer.get(key) for key in ("accelerator", "devices", "num_nodes", "precision")]
    if InnerLoop.of(optimizer) is not None:  # whose gradients no other optimizer takes
        same += [optimizer.get(key) for key in ("inner_steps", "inner_data", "solver")]
    return [
        json.dumps(rest, sort_keys=True, default=str)
        for rest in ([*same, optimizer.get("_target_"), optimizer.get("name"), parts.get("recipe")], same)
    ]
