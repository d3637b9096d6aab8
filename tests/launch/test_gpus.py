"""Tests of the GPU pool, which gives GPUs to runs by name; the use of them by CUDA is in test_cuda.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from neumann import visible_gpus as listed
from neumann.config import LocalLaunchConfig, make_spec, make_specs
from neumann.errors import UserError
from neumann.launch.gpus import GpuPool, chosen_gpus
from neumann.launch.local import LocalLauncher
from neumann.search.grid import expand
from tests.support.launching import QUICK, RecordingView, own_optimizer


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for /dev, empty, with no variable that names GPUs set."""
    folder = tmp_path / "dev"
    folder.mkdir()
    monkeypatch.setattr(listed, "DEV", folder)
    monkeypatch.setattr(listed, "AMD_NODES", tmp_path / "nodes")
    listed._under_wsl.cache_clear()
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def four(dev: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (dev / name).touch()


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ["0", "1"]),
        ({"HIP_VISIBLE_DEVICES": "1"}, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["1"]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, ["0"]),  # HIP's own comes first
        ({"HIP_VISIBLE_DEVICES": ""}, []),
        ({"ROCR_VISIBLE_DEVICES": "1"}, ["0"]),  # HIP counts among these
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_amd_gpus_are_seen_by_the_kernels_topology(
    given: dict[str, str], names: list[str], dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node, units in enumerate((0, 304, 304)):  # the first is the processor
        folder = tmp_path / "nodes" / str(node)
        folder.mkdir(parents=True)
        (folder / "properties").write_text(f"cpu_cores_count {0 if units else 64}\nsimd_count {units}\n")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert listed.visible_gpus() == []  # without the driver's file
    (dev / "kfd").touch()
    assert listed.visible_gpus() == names


def test_gpus_under_wsl_are_asked_of_nvidia_smi(dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (dev / "dxg").touch()
    assert listed.visible_gpus() == []  # it is not there: an AMD GPU, or none
    listed._under_wsl.cache_clear()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0\necho 1\n")
    tool.chmod(0o755)
    monkeypatch.setattr(listed, "WSL_LIST", (str(tool),))
    assert listed.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert listed.visible_gpus() == ["1"]


def test_a_run_is_shown_its_gpus_by_the_variable_that_counts(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed.variables_for(["1", "3"]) == {"CUDA_VISIBLE_DEVICES": "1,3"}
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1,3")
    assert listed.variables_for(["3"]) == {"CUDA_VISIBLE_DEVICES": "3", "HIP_VISIBLE_DEVICES": "3"}


@pytest.mark.parametrize(
    ("given", "names"),
    [(None, ["0", "1", "2", "3"]), ("2,3", ["2", "3"]), ("", []), ("-1", []), ("1,-1,2", ["1"]), ("GPU-a", ["GPU-a"])],
)
def test_what_is_visible(given: str | None, names: list[str], four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert listed.visible_gpus() == names


def test_the_choice_counts_among_the_visible(four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_gpus([2, 0]) == ["2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert chosen_gpus([1]) == ["1"]
    assert chosen_gpus(None) == ["3", "1"]
    for wrong, words in (([2], "there are 2, counted from 0"), ([0, 0], "each GPU once"), ([], "each GPU once")):
        with pytest.raises(UserError, match=words):
            chosen_gpus(wrong)


def test_options_without_a_gpu_are_refused(dev: Path) -> None:
    with pytest.raises(UserError, match=r"launch.devices names GPU 0, and there is no GPU here"):
        LocalLauncher(LocalLaunchConfig(devices=[0]))
    with pytest.raises(UserError, match=r"launch.runs_per_device=2: there is no GPU"):
        LocalLauncher(LocalLaunchConfig(runs_per_device=2))


def test_a_pool_fills_the_emptiest_first() -> None:
    pool = GpuPool(["0", "1"], runs_each=2)
    assert len(pool) == 4
    assert [pool.take(1), pool.take(1), pool.take(1)] == [["0"], ["1"], ["0"]]
    assert pool.take(2) is None  # one has room left, not two
    pool.give_back(["0"])
    assert pool.take(2) == ["0", "1"]
    assert pool.take(1) is None
    assert GpuPool([], 1).take(3) == []


@pytest.mark.medium
def test_a_list_of_gpus_is_no_sweep() -> None:
    runs = expand(["launch.devices=0,1", "seed=0,1"])
    assert [make_spec(run).config.launch.devices for run in runs] == [[0, 1], [0, 1]]  # type: ignore[attr-defined]
    assert make_spec(["launch.devices=3"]).config.launch.devices == [3]  # type: ignore[attr-defined]


SAYS = """
import os, torch

class Mine(torch.optim.SGD):
    def __init__(self, params, lr, ends="", at=0, weight_decay=0.0):
        super().__init__(params, lr=lr)
        with open("seen", "a") as file:
            file.write(os.environ["CUDA_VISIBLE_DEVICES"] + "\\n")
"""


@pytest.mark.slow
def test_a_run_sees_its_own_gpus_alone(four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPUs' names are made up and training is on the CPU: only the environment is checked."""
    dirs = (own_optimizer(Path.cwd(), SAYS),)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    words = [*QUICK, "trainer.max_epochs=0.2", "optimizer=mine", "seed=0,1", "trainer.accelerator=cpu"]
    specs = make_specs(expand([*words, "trainer.devices=1,2"], dirs), dirs)
    settings = LocalLaunchConfig(devices=[1, 3], threads=1)
    with LocalLauncher(settings) as launcher:
        assert launcher.parallel == 2
        outcomes = launcher.run(specs, RecordingView())
        with pytest.raises(UserError, match=r"trainer.devices=4: the launch has 2 GPUs"):
            launcher.run([make_spec([*QUICK, "trainer.devices=4"])], RecordingView())
    assert [o.message for o in outcomes] == [None] * 4
    seen = set(Path("seen").read_text().split())
    assert seen <= {"1", "3", "1,3", "3,1"}
    assert seen & {"1,3", "3,1"}
    assert seen & {"1", "3"}
