"""The place of a process among the ranks of its run, from our launcher, torchrun or srun.

A rank is started with its run's specification, or with the command of one run. It never starts other ranks.
"""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from neumann.config import RunSpec
from neumann.errors import UserError

PORTS = (20_000, 30_000)  # for srun's ranks: srun assigns no port, and the kernel's ephemeral ports lie higher


@dataclass(frozen=True)
class RankPlace:
    """The place of one process among ``world_size``, and the address where they gather."""

    rank: int  # from 0
    world_size: int  # processes of the run, on all machines
    local_rank: int  # among the ranks of this machine
    node_rank: int  # the number of this machine
    main_address: str  # host of rank 0
    main_port: int  # at which rank 0 listens
    starter: str  # neumann | torchrun | srun

    @staticmethod
    def from_environment(environment: Mapping[str, str] | None = None) -> RankPlace | None:
        """Return the place that torchrun or srun gave this process, or None where neither has started it.

        A single srun task is not a rank, nor is a world of one that torchrun has not started: `neumann train` in
        them starts the ranks itself. Raises UserError where torchrun's variables are incomplete or not numbers.
        """
        given = os.environ if environment is None else environment
        if "TORCHELASTIC_RUN_ID" in given or "RANK" in given:
            left_over = "TORCHELASTIC_RUN_ID" not in given and given.get("WORLD_SIZE") == "1"
            return None if left_over else RankPlace._of_torchrun(given)
        tasks = given.get("SLURM_STEP_NUM_TASKS", "1")
        if tasks.isdecimal() and int(tasks) > 1 and "SLURM_PROCID" in given:
            return RankPlace._of_srun(given)
        return None

    @staticmethod
    def _of_torchrun(given: Mapping[str, str]) -> RankPlace:
        missing = [
            name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in given
        ]
        if missing:
            raise UserError(
                f"RANK is set without {', '.join(missing)}: start ranks with torchrun or srun, or unset RANK"
            )
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "MASTER_PORT"):
            if not given.get(name, "0").isdecimal():
                raise UserError(f"{name}={given[name]} in the environment is not a number, as torchrun would set it")
        return RankPlace(
            rank=int(given["RANK"]),
            world_size=int(given["WORLD_SIZE"]),
            local_rank=int(given["LOCAL_RANK"]),
            node_rank=int(given.get("GROUP_RANK", "0")),
            main_address=given["MASTER_ADDR"],
            main_port=int(given["MASTER_PORT"]),
            starter="torchrun",
        )

    @staticmethod
    def _of_srun(given: Mapping[str, str]) -> RankPlace:
        nodes = given.get("SLURM_STEP_NODELIST", "127.0.0.1")
        step = f"{given.get('SLURM_JOB_ID')}.{given.get('SLURM_STEP_ID')}.{given.get('SLURM_RESTART_COUNT')}"
        low, high = PORTS
        return RankPlace(
            rank=int(given["SLURM_PROCID"]),
            world_size=int(given["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(given.get("SLURM_LOCALID", "0")),
            node_rank=int(given.get("SLURM_NODEID", "0")),
            main_address=given.get("MASTER_ADDR") or first_host(nodes),
            main_port=int(given.get("MASTER_PORT") or low + zlib.crc32(step.encode()) % (high - low)),
            starter="srun",
        )

    def awaited(self) -> str:
        """Return the sentence that says which ranks this one waits for, where, and how to train without them."""
        whom = "rank 0" if self.rank else f"the other {self.world_size - 1} ranks" if self.world_size > 2 else "rank 1"
        way = "unset RANK WORLD_SIZE" if self.starter == "torchrun" else "unset SLURM_STEP_NUM_TASKS"
        return (
            f"rank {self.rank} of {self.world_size} waits for {whom} at {self.main_address}:{self.main_port}, as the "
            f"environment says; if nothing starts the others, '{way}' leaves them out"
        )

    def check(self, spec: RunSpec) -> None:
        """Raise UserError where the number of processes started is not the number that ``spec`` trains on."""
        trainer = spec.config.trainer
        if self.starter == "srun" and world_size(spec) == 1:
            raise UserError(
                f"SLURM_STEP_NUM_TASKS={self.world_size} says that srun started this as one of so many tasks, and the "
                "run wants one process: in an interactive shell that srun has started, leave the variable out "
                "(env -u SLURM_STEP_NUM_TASKS neumann ...); else give srun --ntasks=1"
            )
        if self.world_size != world_size(spec):
            raise UserError(
                f"{self.starter} started {self.world_size} processes and the run wants {world_size(spec)} "
                f"(trainer.devices={trainer.devices} × trainer.num_nodes={trainer.num_nodes}): make the two agree"
            )


def world_size(spec: RunSpec) -> int:
    """Return how many processes train ``spec``: one for each device on each node."""
    return spec.config.trainer.devices * spec.config.trainer.num_nodes


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm list such as ``gpu[01-03,07],login``, by scontrol where it is installed."""
    if "[" in nodes:
        try:
            command = ["scontrol", "show", "hostnames", nodes]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            pass
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    bracket = re.fullmatch(r"([^\[]*)\[(\d+)[^\]]*\](.*)", first)
    return "".join(bracket.groups()) if bracket else first
