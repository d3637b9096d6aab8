"""A precision that is left open is the device's, and is signed and recorded as if it had been given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neumann import visible_gpus
from neumann.config import make_spec, precision
from neumann.config.launch_settings import LaunchConfig, LocalLaunchConfig, SlurmLaunchConfig
from neumann.config.precision import precision_of

HERE = LocalLaunchConfig()
GIVE_GPUS = [
    ("tres-per-task", "cpu:8,gres/gpu:1"),
    ("tres_per_task", "gres/gpu=2"),
    ("tres_per_task", "cpu=4,gres/gpu:a100=1"),
    ("tres_per_node", "gres:gpu:2"),
    ("gres", "gpu"),
    ("gres", "license:1,gpu:1g.5gb:1"),
    ("gres", "gpu:a100"),
    ("gres", "gpu:10(S:0-1)"),
    ("gres", "shard:4"),
    ("gpus", 2),
    ("gpus", "v100:0,k80:1"),
    ("gpus_per_socket", "a100:1"),
]
GIVE_NONE = [
    ("gres", "gpu:0"),
    ("gres", "gpu:a100:0"),
    ("gres", "gpumem:1"),
    ("gres", "none"),
    ("gpus", 0),
    ("gpus", "a100:0"),
    ("gpus-per-task", "0"),
    ("tres_per_task", "cpu:8"),
    ("tres_per_task", "cpu:8,gres/gpu:0"),
    ("constraint", "gpu"),
]


@pytest.mark.parametrize(
    ("given", "accelerator", "launch", "gpu", "resolved"),
    [
        ("auto", "auto", HERE, True, "bf16-mixed"),
        ("auto", "auto", HERE, False, "32-true"),
        ("auto", "cpu", HERE, True, "32-true"),
        ("auto", "gpu", HERE, False, "bf16-mixed"),
        ("64-true", "auto", HERE, True, "64-true"),
        ("32-true", "gpu", HERE, True, "32-true"),
        # the job's device counts under Slurm, not that of the machine which submits it
        ("auto", "auto", SlurmLaunchConfig(), True, "32-true"),
        ("auto", "auto", SlurmLaunchConfig(gpus_per_node=1), False, "bf16-mixed"),
        ("auto", "auto", SlurmLaunchConfig(sbatch={"gres": "gpu:a100:2"}), False, "bf16-mixed"),
        ("auto", "auto", SlurmLaunchConfig(sbatch={"gpus-per-task": 1}), False, "bf16-mixed"),
        ("auto", "auto", SlurmLaunchConfig(sbatch={"gres": "license:1"}), True, "32-true"),
        *(("auto", "auto", SlurmLaunchConfig(sbatch=dict([asked])), False, "bf16-mixed") for asked in GIVE_GPUS),
        *(("auto", "auto", SlurmLaunchConfig(sbatch=dict([asked])), True, "32-true") for asked in GIVE_NONE),
    ],
)
def test_the_device_decides_what_is_left_open(
    given: str, accelerator: str, launch: LaunchConfig, gpu: bool, resolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "torch_has_gpu", lambda: gpu)
    assert precision_of(given, accelerator, launch) == resolved


def test_two_devices_are_two_runs_and_a_given_precision_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    signatures = {}
    for gpu in (True, False):
        monkeypatch.setattr(precision, "torch_has_gpu", lambda gpu=gpu: gpu)
        for words in ((), ("trainer.precision=32-true",), ("trainer.precision=bf16-mixed",)):
            spec = make_spec(words)
            assert spec.config.trainer.precision == spec.as_record()["config"]["trainer"]["precision"] != "auto"
            signatures[gpu, words] = spec.signature
    assert len(set(signatures.values())) == 2
    assert signatures[True, ()] == signatures[False, ("trainer.precision=bf16-mixed",)]
    assert signatures[False, ()] == signatures[True, ("trainer.precision=32-true",)]


def test_torch_is_asked_only_where_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(asked.append(1)) or True)
    monkeypatch.setattr(visible_gpus, "visible_gpus", list)
    assert not visible_gpus.torch_has_gpu()
    assert not asked
    monkeypatch.setattr(visible_gpus, "visible_gpus", lambda: ["0"])
    assert visible_gpus.torch_has_gpu()
    monkeypatch.setattr(visible_gpus, "visible_gpus", list)
    monkeypatch.setattr(visible_gpus, "DEV", tmp_path)
    (tmp_path / "dxg").touch()
    assert visible_gpus.torch_has_gpu()
