"""Tests of the number of cores: affinity, and quotas of cgroups v1 and v2 with those above them."""

from __future__ import annotations

import os

import pytest

from neumann import cores as module
from neumann.config import LocalLaunchConfig
from neumann.cores import cores
from neumann.launch.local import LocalLauncher
from neumann.store.provenance import provenance


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 12 cores; call it with /proc/self/cgroup's text and the files under /sys/fs/cgroup."""

    def make(membership: str, **files: str) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / name).write_text(text)

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.setattr(module, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(module, "CGROUPS", tmp_path / "cgroup")
    return make


@pytest.mark.parametrize(
    ("membership", "files", "wanted"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),  # a container, v2
        ("0::/\n", {"cpu.max": "max 100000\n"}, 12),
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "nonsense\n"}, 12),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),  # the slice above
        ("0::/a/b\n", {"a/b/cpu.max": "9000000 100000\n"}, 12),
        ("3:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 4),
        ("3:cpuacct,cpu:/docker/x\n", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("3:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 12),
        ("", {}, 12),
    ],
)  # fmt: skip
def test_quotas_of_containers_count(machine, membership, files, wanted):
    machine(membership, **files)
    assert cores() == wanted


def test_without_cgroups_affinity_counts(machine):
    assert cores() == 12


def test_cores_are_shared_out_by_the_quota(machine, monkeypatch):
    machine("0::/\n", **{"cpu.max": "400000 100000\n"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert LocalLauncher(LocalLaunchConfig()).parallel == 4
    assert provenance()["host"]["cores"] == 4
