"""Processes that train a run together, and their communication.

The process group is made before Lightning, which finds it there and takes it. So the group's real size is known before
the first step and can be compared with what Lightning and the configuration say (`neumann.training.census`).
"""

from __future__ import annotations

import datetime
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pytorch_lightning.plugins.environments import ClusterEnvironment  # type: ignore[attr-defined]
from torch import Tensor, nn

from neumann.errors import UserError
from neumann.processes.ranks import RankPlace

T = TypeVar("T")
AWAITED_S = 10.0  # until a rank says that it waits for the others
TIMEOUT = datetime.timedelta(minutes=30)  # a rank may wait as long while another writes or evaluates


class WrongShards(RuntimeError):  # noqa: N818 - it says what is wrong
    """The ranks do not train what the configuration says: their number, their runs, examples or weights differ."""


class RankGroup:
    """The processes of one run. All of them must call every method, in the same order; properties are local.

    A run on one device is a group of one, in which nothing is sent.

    Args:
        ranks: this process's place, None for a group of one; `joined` has made torch's process group before.
        control: a gloo group on the CPU, beside the one that carries gradients.
    """

    def __init__(self, ranks: RankPlace | None = None, control: dist.ProcessGroup | None = None) -> None:
        self.ranks = ranks
        self._control = control
        self.rank = dist.get_rank() if ranks else 0
        self.world_size = dist.get_world_size() if ranks else 1

    @property
    def is_main(self) -> bool:
        """Return whether this process writes the run's files."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """Return rank 0's ``value``."""
        if self._control is None:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        received: T = box[0]
        return received

    def gather(self, value: T) -> list[T]:
        """Return the ``value`` of each rank, by rank."""
        if self._control is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def everywhere(self, work: Callable[[], T]) -> T:
        """Return ``work()``. If any rank raises UserError, every rank raises that of the lowest such rank."""
        value: T | None = None
        error: UserError | None = None
        try:
            value = work()
        except UserError as refused:
            error = refused
        first = next((e for e in self.gather(error) if e is not None), None)
        if first is not None:
            raise first
        return value  # type: ignore[return-value]

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Do ``work`` on rank 0 alone; where it raises UserError, all ranks do. The other ranks get None."""
        return self.everywhere(lambda: work() if self.is_main else None)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over the ranks, in float64 on the CPU; of counts it is exact."""
        values = values.detach().to("cpu", torch.float64)
        if self._control is not None:
            dist.all_reduce(values, group=self._control)
        return values

    def counts(self, counts: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the elementwise sum of an array of int32 over the ranks."""
        if self._control is None:
            return counts
        summed = torch.from_numpy(counts.copy())
        dist.all_reduce(summed, group=self._control)
        return summed.numpy()

    def ask(self, number: int) -> Asked:
        """Start an asynchronous all-reduce (MAX) of ``number``."""
        return Asked(number, self._control)

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers of rank 0, as DDP does before each training step; evaluation takes these."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


class Asked:
    """Pending all-reduce of `RankGroup.ask`."""

    def __init__(self, number: int, group: dist.ProcessGroup | None) -> None:
        self._answer = torch.tensor([number])
        self._work = None if group is None else dist.all_reduce(self._answer, dist.ReduceOp.MAX, group, async_op=True)

    def answer(self) -> int:
        """Wait for the answer and return it, the largest number."""
        if self._work is not None:
            self._work.wait()
        return int(self._answer.item())


class RankEnvironment(ClusterEnvironment):
    """Lightning's cluster environment: rank and size of the real process group, which Lightning cannot change."""

    def __init__(self, ranks: RankPlace) -> None:
        super().__init__()
        self._ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        """Return True: the launcher, torchrun or srun has started every rank."""
        return True

    @property
    def main_address(self) -> str:
        """Return the address of rank 0."""
        return self._ranks.main_address

    @property
    def main_port(self) -> int:
        """Return the port at which rank 0 listens."""
        return self._ranks.main_port

    @staticmethod
    def detect() -> bool:
        """Return False: the trainer is given this environment and need not look for it."""
        return False

    def world_size(self) -> int:
        """Return the size of the real process group."""
        return dist.get_world_size()

    def set_world_size(self, size: int) -> None:
        """Raise RuntimeError for another size than the real one."""
        if size != dist.get_world_size():
            raise RuntimeError(f"the trainer believes in {size} processes and the group has {dist.get_world_size()}")

    def global_rank(self) -> int:
        """Return the rank in the real process group."""
        return dist.get_rank()

    def set_global_rank(self, rank: int) -> None:
        """Raise RuntimeError for another rank than the real one."""
        if rank != dist.get_rank():
            raise RuntimeError(f"the trainer takes itself for rank {rank} and the group for rank {dist.get_rank()}")

    def local_rank(self) -> int:
        """Return the rank among those of this machine."""
        return self._ranks.local_rank

    def node_rank(self) -> int:
        """Return the number of this machine."""
        return self._ranks.node_rank


@contextmanager
def joined(ranks: RankPlace | None, *, cuda: bool, listener: socket.socket | None = None) -> Iterator[RankGroup]:
    """Join the process group of ``ranks`` within the block, or a group of one where it is None.

    Gradients travel over NCCL where ``cuda``, all else over gloo. ``listener`` is rank 0's listening socket at
    the gathering port, where our launcher has made one: another program could take a port that is bound only later.
    """
    if ranks is None:
        yield RankGroup()
        return
    if ranks.starter == "neumann":
        _stay_on_this_machine()
        store = dist.TCPStore(  # type: ignore[attr-defined]
            ranks.main_address,
            ranks.main_port,
            ranks.world_size,
            is_master=ranks.rank == 0,
            timeout=TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener.detach() if listener is not None else None,
        )
        place: dict[str, Any] = {"store": store}
    else:
        os.environ |= {"MASTER_ADDR": ranks.main_address, "MASTER_PORT": str(ranks.main_port)}
        place = {"init_method": "env://"}
    if cuda:
        torch.cuda.set_device(ranks.local_rank)
        place["device_id"] = torch.device("cuda", ranks.local_rank)
    with _saying_who_is_awaited(ranks):
        control = _gathered(ranks, place, cuda=cuda)
    yield RankGroup(ranks, control)
    dist.destroy_process_group()  # not after an error: the others may be gone, and the process is about to end


def _gathered(ranks: RankPlace, place: dict[str, Any], *, cuda: bool) -> dist.ProcessGroup:
    """Wait for all ranks, and return the gloo group beside the one that carries gradients."""
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", rank=ranks.rank, world_size=ranks.world_size, timeout=TIMEOUT, **place
    )
    control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    assert isinstance(control, dist.ProcessGroup)
    return control


@contextmanager
def _saying_who_is_awaited(ranks: RankPlace) -> Iterator[None]:
    """Print after `AWAITED_S` whom this rank waits for: left-over variables may name ranks that never come."""
    timer = threading.Timer(AWAITED_S, lambda: print(ranks.awaited(), file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _stay_on_this_machine() -> None:
    """Have gloo use the loopback device: the host's name may resolve to an address at which nothing answers."""
    names = {name for _, name in socket.if_nameindex()}
    for loopback in ("lo", "lo0"):
        if loopback in names:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
