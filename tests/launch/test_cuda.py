"""Launches on a CUDA device: the fork server stays out of CUDA, ranks use NCCL, and a run goes on to the same bits."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from neumann.config import LocalLaunchConfig, RunSpec, make_specs
from neumann.launch.local import LocalLauncher
from neumann.search.grid import expand
from neumann.store import find
from tests.support.launching import QUICK, RecordingView

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
GPU = [
    *QUICK,
    "trainer.accelerator=gpu",
    "trainer.deterministic=true",
    "optimizer=neumann",
    "+model.kwargs.drop_rate=0.2",
]


def specs_of(*words: str) -> list[RunSpec]:
    return make_specs(expand([*GPU, *words]))


def weights(spec: RunSpec) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(find(spec).eval_weights, weights_only=True)["state_dict"]
    return state


def test_runs_of_a_sweep_share_a_gpu_and_repeat_to_the_bit() -> None:
    """A fork of a server that has touched CUDA could not use it at all."""
    specs = [*specs_of("seed=0,1", "study=a"), *specs_of("seed=0,1", "study=b")]
    with LocalLauncher(LocalLaunchConfig(devices=[0], runs_per_device=2)) as launcher:
        assert launcher.parallel == 2
        outcomes = launcher.run(specs, view := RecordingView())
    assert [o.message for o in outcomes] == [None] * 4
    assert view.most == 2
    assert {(o.result or {})["device"] for o in outcomes} == {"cuda:0"}
    for one, other in zip(specs[:2], specs[2:], strict=True):
        a, b = weights(one), weights(other)
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_one_rank_over_nccl_gives_what_no_group_gives() -> None:
    (alone,) = specs_of("study=alone")
    with LocalLauncher(LocalLaunchConfig()) as launcher:
        launcher.run([alone], RecordingView())
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    done = subprocess.run(
        [*start, "-m", "neumann", "train", *GPU, "study=nccl"], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    (ranked,) = specs_of("study=nccl")
    a, b = weights(alone), weights(ranked)
    for key in a:
        torch.testing.assert_close(a[key], b[key])
    assert (find(ranked).result() or {})["world_size"] == 1


def test_killed_on_a_gpu_it_goes_on_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from neumann.errors import Interrupted
    from neumann.training.run import run
    from neumann.training.stopping import Stop

    whole, stopped = specs_of("study=whole")[0], specs_of("study=stopped")[0]
    run(whole)
    original = Stop.on_train_batch_end

    def stop_once(self: Stop, *words: Any) -> None:
        if words[-1] == 20:
            monkeypatch.setattr(Stop, "on_train_batch_end", original)
            self.signal = 15
        original(self, *words)

    monkeypatch.setattr(Stop, "on_train_batch_end", stop_once)
    with pytest.raises(Interrupted):
        run(stopped)
    run(stopped)
    a, b = weights(whole), weights(stopped)
    assert all(torch.equal(a[key], b[key]) for key in a)
