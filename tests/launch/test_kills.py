"""A run that is killed by SIGKILL again and again, at random moments, ends with the same bits as one that is not."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from neumann.config import LocalLaunchConfig, RunSpec, make_spec
from neumann.launch.local import LocalLauncher
from neumann.store import RunFolder, find
from neumann.store.steps import STEPS, read_lines
from neumann.store.vouching import CURVE, DIGEST
from tests.support.launching import RecordingView

KILLS = 10  # of each test
RUN = [
    "optimizer=neumann",
    "timing.reset_period=0.5",
    "batch.size=64",
    "trainer.max_epochs=3",
    "trainer.check_val_every_n_epoch=0.25",  # a third of the time is spent in evaluations
    "+model.kwargs.width=8",
    "+model.kwargs.drop_rate=0.2",
    "data.augmentation=crop",
    "checkpoint=last",
    "trainer.log_every_n_steps=4",
    "logger=none",
]
CLOCKS = {"train_seconds", "eval_seconds", "line_seconds", "examples_per_second"}
CLOCKS |= {"time", "first_step_at", "attempts", "study", DIGEST, CURVE, STEPS.key}


def spec_of(devices: int, seed: int, study: str) -> RunSpec:
    accumulated = "batch.max_per_device=8" if seed % 2 else "batch.max_per_device=null"
    return make_spec([*RUN, f"trainer.devices={devices}", f"seed={seed}", f"study={study}", accumulated])


def ranks() -> list[int]:
    """Return the processes of the runs under way: the fork server's children."""
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split()]
    return []


def moments(folder: RunFolder, draw: random.Random) -> Iterator[str]:
    """Wait until a random moment of the run in ``folder`` has come; yield what it was."""
    kind = draw.choice(["time", "time", "time", "checkpoint", "measurement", "renamed"])
    before = len(folder.read_measurements()) + draw.randint(1, 3)

    def come() -> bool:
        if kind == "checkpoint":
            return any(folder.path.glob(".last.ckpt.*.tmp"))
        if kind == "measurement":
            return len(folder.read_measurements()) >= before
        with contextlib.suppress(OSError):
            return (folder.path / "previous.ckpt").stat().st_nlink == 2
        return False

    if kind == "time":
        time.sleep(draw.uniform(0.0, 2.5))
    else:
        deadline = time.monotonic() + 20
        while not come() and time.monotonic() < deadline and ranks():
            pass
    yield kind


def launch_and_kill(launcher: LocalLauncher, spec: RunSpec, draw: random.Random, only_one: bool) -> bool:
    """Launch a run and kill its ranks at a random moment; return whether it came to that."""
    killed: list[int] = []

    def kill() -> None:
        while not ranks():
            if over.wait(0.005):
                return
        for _ in moments(find(spec), draw):
            living = ranks()
            for pid in draw.sample(living, 1) if only_one and living else living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    over = threading.Event()
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        (outcome,) = launcher.run([spec], RecordingView())
    finally:
        over.set()
        thread.join()
    assert outcome.status in ("failed", "finished"), outcome
    if outcome.status == "failed":
        assert killed, outcome
        assert "killed by signal 9" in str(outcome.message), outcome.message
    assert not ranks()
    return outcome.status == "failed"


def whole_state(folder: RunFolder) -> Any:
    import torch

    state = torch.load(folder.last, weights_only=True)
    state["steps"] = [json.loads(line) for line in state["steps"].splitlines()]
    clocked = [state, state["progress"], *state["measurements"], *state["steps"]]  # the state itself holds the attempts
    for record, clock in itertools.product(clocked, CLOCKS):
        record.pop(clock, None)
    return [state, torch.load(folder.eval_weights, weights_only=True)]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    import torch

    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def without_clocks(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in CLOCKS}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, 6))])
def test_killed_at_random_moments_it_ends_as_one_that_is_not(part: int) -> None:
    draw = random.Random(part)
    kills = {1: 0, 2: 0}
    with LocalLauncher(LocalLaunchConfig(parallel=2, threads=1)) as launcher:
        for devices, needed in ((1, KILLS // 2), (2, KILLS - KILLS // 2)):
            seed = 10 * part
            while kills[devices] < needed:
                reference, spec = (spec_of(devices, seed, study) for study in ("untouched", "killed"))
                (untouched,) = launcher.run([reference], RecordingView())
                assert untouched.status == "finished", untouched.message
                attempts = 0
                while launch_and_kill(launcher, spec, draw, only_one=devices == 2 and draw.random() < 0.5):
                    kills[devices] += 1
                    attempts += 1
                    if kills[devices] >= needed or attempts == 4:
                        (outcome,) = launcher.run([spec], RecordingView())
                        assert outcome.status == "finished", outcome.message
                        break
                folder, beside = find(spec), find(reference)
                assert_same(whole_state(folder), whole_state(beside))
                measured, expected = folder.read_measurements(), beside.read_measurements()
                assert [without_clocks(m) for m in measured] == [without_clocks(m) for m in expected]
                result, other = folder.result(), beside.result()
                assert result is not None
                assert other is not None
                assert without_clocks(result) == without_clocks(other)
                lines, expected = (read_lines(run.path, run.result()) for run in (folder, beside))
                assert [without_clocks(line) for line in lines] == [without_clocks(line) for line in expected]
                assert len(lines) > 3
                assert not list(folder.path.glob(".*.tmp"))
                seed += 1
    assert sum(kills.values()) >= KILLS
