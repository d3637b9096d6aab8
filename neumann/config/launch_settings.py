"""The launch section: how the runs of a sweep or a study share this machine or a Slurm cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neumann.bounds import number
from neumann.errors import UserError
from neumann.folders import folder_of, is_for_a_shell

MANY = 2**15  # processes and threads of one machine; torch counts threads in 32 bits


@dataclass
class LaunchConfig:
    """The launcher of runs and its settings; the chosen file of conf/launch sets ``kind``."""

    kind: str = "local"


@dataclass
class LocalLaunchConfig(LaunchConfig):
    """Runs on this machine, each in processes of its own."""

    parallel: int | None = number(None, at_least=1, below=MANY)  # runs at once; null: as many as GPUs, else as cores
    threads: int | None = number(None, at_least=1, below=MANY)  # torch's, of each process; null: the cores shared out
    devices: list[int] | None = None  # GPUs, counted among the visible ones; null: all
    runs_per_device: int = number(1, at_least=1)  # runs that share a GPU


@dataclass
class SlurmLaunchConfig(LaunchConfig):
    """Runs on a Slurm cluster: what each job asks for, and when the launch gives up. null: the cluster's default."""

    kind: str = "slurm"
    partition: str | None = None  # the queue
    account: str | None = None  # that is charged
    qos: str | None = None  # quality of service, by name
    time: str = "60"  # as sbatch takes it: minutes, or D-HH:MM:SS
    gpus_per_node: int | None = number(None, at_least=1)  # of a worker's job; null: none
    cpus_per_task: int = number(1, at_least=1)  # cores of each process that srun starts
    mem: str | None = None  # as sbatch takes it: 16G
    setup: list[str] = field(default_factory=list)  # lines of shell before Python starts
    sbatch: dict[str, Any] = field(default_factory=dict)  # further parameters of sbatch
    workers: int = number(8, at_least=1)  # jobs at once, at most: the size of the array
    runs_per_worker: int = number(1, at_least=1)  # runs at once in a job
    grace: int = number(120, at_least=1)  # seconds before the limit at which runs write a checkpoint and leave
    max_attempts: int = number(3, at_least=1)  # of one run
    stop_after_failures: int | None = number(5, at_least=1)  # runs in a row with the same message; null: never
    gpu_hours: float | None = number(None, above=0)  # of all jobs together; null: no limit


LAUNCHES: dict[str, type[LaunchConfig]] = {"local": LocalLaunchConfig, "slurm": SlurmLaunchConfig}

TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+|\d+-\d+:\d\d|\d+-\d+:\d\d:\d\d")
MEMORY = re.compile(r"\d+[KMGT]?")
# sbatch's parameters that another setting stands for; None: the launch itself sets it
TAKEN: dict[str, str | None] = {
    **{name: f"launch.{name}" for name in ("partition", "account", "qos", "time", "mem")},
    "gpus_per_node": "launch.gpus_per_node",
    "cpus_per_task": "launch.cpus_per_task",
    "array": "launch.workers",
    "signal": "launch.grace",
    "nodes": "trainer.num_nodes",
    "ntasks_per_node": "trainer.devices",
    **dict.fromkeys(("ntasks", "output", "error", "open_mode", "requeue", "no_requeue", "job_name", "chdir", "wrap")),
}


def seconds(time: str) -> int:
    """Return sbatch's time in seconds: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, _, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if days:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = parts if len(parts) == 3 else (0, *(*parts, 0)[:2])
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def check_slurm(launch: SlurmLaunchConfig) -> None:
    """Raise UserError for what sbatch would refuse, or only the job would notice, and for settings at odds."""
    if not TIME.fullmatch(launch.time):
        raise UserError(f"launch.time={launch.time} is not a time limit: write minutes or D-HH:MM:SS, as sbatch does")
    if seconds(launch.time) <= launch.grace:
        raise UserError(
            f"launch.time={launch.time} is {seconds(launch.time)} s and launch.grace={launch.grace} s of it are for "
            "leaving: give more time, or less grace"
        )
    if launch.mem is not None and not MEMORY.fullmatch(launch.mem):
        raise UserError(f"launch.mem={launch.mem} is not an amount of memory: write it as sbatch does, such as 16G")
    if launch.gpu_hours is not None and launch.gpus_per_node is None:
        raise UserError("launch.gpu_hours counts the GPUs that Slurm gives: set launch.gpus_per_node as well")
    for key in launch.sbatch:
        name = key.replace("-", "_")
        if launch.gpus_per_node is not None and name in ("gres", "gpus", "gpus_per_task", "gpus_per_socket"):
            raise UserError(f"launch.sbatch.{key} and launch.gpus_per_node both ask for GPUs: leave out one of the two")
        if name in TAKEN:
            own = TAKEN[name]
            raise UserError(f"launch.sbatch.{key} is set " + (f"by {own}" if own else "by the launch itself"))


def whole_paths(sbatch: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters of sbatch with a home folder in place of ``~``, which sbatch would take as a name.

    Raises UserError as `folder_of`: no shell replaces a variable in them, and a local file has no address.
    """
    return {
        key: folder_of(f"launch.sbatch.{key}", value) if isinstance(value, str) and is_for_a_shell(value) else value
        for key, value in sbatch.items()
    }
