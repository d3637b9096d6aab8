"""Tests of the rank of a process, as torchrun and srun set it in the environment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from neumann.config import make_spec
from neumann.errors import UserError
from neumann.processes.ranks import PORTS, RankPlace, first_host

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


def test_torchrun() -> None:
    assert RankPlace.from_environment(TORCHRUN) == RankPlace(3, 4, 1, 1, "node0", 29500, "torchrun")
    with pytest.raises(UserError, match="WORLD_SIZE=many in the environment is not a number"):
        RankPlace.from_environment(TORCHRUN | {"WORLD_SIZE": "many"})
    with pytest.raises(UserError, match="RANK is set without WORLD_SIZE, MASTER_PORT: "):
        RankPlace.from_environment({k: v for k, v in TORCHRUN.items() if k not in ("WORLD_SIZE", "MASTER_PORT")})


def test_srun() -> None:
    ranks = RankPlace.from_environment(SRUN)
    assert ranks is not None
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.node_rank) == (3, 4, 1, 1)
    assert ranks.main_address == "gpu07"
    assert PORTS[0] <= ranks.main_port < PORTS[1]
    others = [RankPlace.from_environment(SRUN | change) for change in ({"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "8"})]
    assert len({ranks.main_port, *(other.main_port for other in others if other)}) == 3
    again = RankPlace.from_environment(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"})
    assert again is not None
    assert again.main_port == ranks.main_port
    set_by_hand = RankPlace.from_environment(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"})
    assert set_by_hand is not None
    assert (set_by_hand.main_address, set_by_hand.main_port) == ("10.0.0.1", 1234)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
    ],
    ids=["nothing", "a world of one", "a world of one without an address", "one task", "a batch script, before srun"],
)
def test_who_is_alone(environment: dict[str, str]) -> None:
    assert RankPlace.from_environment(environment) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("login", "login"),
        ("a,b", "a"),
        ("gpu[01-03,07],login", "gpu01"),
        ("gpu[12]", "gpu12"),
        ("r1n[3-4].local,r2n5", "r1n3.local"),
    ],
)
def test_the_first_host_without_scontrol(nodes: str, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert first_host(nodes) == first


def test_as_many_processes_as_the_run_wants() -> None:
    ranks = RankPlace.from_environment(TORCHRUN)
    assert ranks is not None
    ranks.check(make_spec(["trainer.devices=2", "trainer.num_nodes=2"]))
    with pytest.raises(UserError, match=r"torchrun started 4 processes and the run wants 2 \(trainer.devices=2"):
        ranks.check(make_spec(["trainer.devices=2"]))


@pytest.mark.medium
def test_it_is_answered_without_torch(python: Callable[[str], str]) -> None:
    assert python("import sys, neumann.processes.ranks; print('torch' in sys.modules)") == "False\n"
