"""Trainings of test_sharded.py on the ranks of a group, and the same in one process."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel

from neumann.optim import Neumann, TwoLoopNeumann, at
from tests.support.optimizer_paths import path
from tests.support.optimizer_problems import gradient, new_params

HOW = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "C++": {"fused": True}}
SETTING = {"lr": 0.05, "alpha": 3e-2, "beta": 1e-2, "burn_in_steps": 4, "reset_period": 6, "weight_decay": 1e-2}
ABSOLUTE = {**SETTING, "beta": 5e-2, "beta_count": "absolute"}
QUIET = {1, 2, 3, 4, 5, 11}  # burn-in and resets: steps that do not ask for the norm
STEPS = 14


class Net(nn.Module):
    """Rows that 2 ranks cannot share evenly: weights of 3 rows and of 1, biases of 3 elements and of 1."""

    def __init__(self, dtype: torch.dtype = torch.float64, *, unused: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 1)
        self.unused = nn.Parameter(torch.zeros(3), requires_grad=unused)
        self.to(dtype)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def groups(net: nn.Module) -> list[dict[str, Any]]:
    """Biases are not decayed, and have a momentum of their own."""
    weights, biases = ([p for p in net.parameters() if (p.dim() > 1) == more] for more in (True, False))
    return [{"params": weights}, {"params": biases, "weight_decay": 0.0, "momentum": 0.7}]


def learn(
    net: Callable[[Tensor], Tensor], optimizer: Any, steps: Sequence[int], *, shared_out: bool = True
) -> list[Any]:
    """Train, each rank on its own share of the batches, and return what each step sent to other ranks."""
    sent = []
    alone = not shared_out or not dist.is_initialized()
    rank, size = (0, 1) if alone else getattr(net, "share", None) or (dist.get_rank(), dist.get_world_size())
    for step in steps:
        dtype = next(net.parameters()).dtype
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        y = torch.sin(x.sum(1, keepdim=True)).to(dtype)
        optimizer.zero_grad()
        (net(x.to(dtype)[rank::size]) - y[rank::size]).square().mean().backward()
        with Sent() as during:
            optimizer.step()
        sent.append(during.said)
    return sent


class Sent:
    """Record of the traffic within the block: the number of all collectives, and the elements of each all-reduce."""

    def __enter__(self) -> Sent:
        self.sizes: list[int] = []
        self.mode = CommDebugMode()
        real = dist.all_reduce

        def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.sizes.append(tensor.numel())
            return real(tensor, *args, **kwargs)

        self.patch = mock.patch.object(dist, "all_reduce", all_reduce)
        self.patch.start()
        self.mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)
        self.patch.stop()
        self.said = sum(self.mode.get_comm_counts().values()), self.sizes


def whole(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [(each.full_tensor() if isinstance(each, DTensor) else each).detach().clone() for each in tensors]


def told(params: Sequence[Tensor], optimizer: Neumann) -> dict[str, Any]:
    """Return the values to compare: the whole weights at every point, and the distance."""
    said: dict[str, Any] = {"distance": float(optimizer.distance())}
    for point in optimizer.points:
        with at(optimizer, point):
            said[point] = whole(params)
    return said


@functools.cache
def alone(steps: int = STEPS, dtype: torch.dtype = torch.float64, **setting: Any) -> dict[str, Any]:
    net = Net(dtype)
    optimizer = Neumann(groups(net), **{**SETTING, **setting})
    learn(net, optimizer, range(1, steps + 1), shared_out=False)
    return told(list(net.parameters()), optimizer)


def cut(net: Net, layout: str) -> Net:
    """Return ``net`` with its parameters cut over the ranks."""
    size = dist.get_world_size()
    if layout == "FSDP2":
        mesh = init_device_mesh("cpu", (size,))
    elif layout == "HSDP":
        mesh = init_device_mesh("cpu", (1, size), mesh_dim_names=("replicate", "shard"))
    else:  # FSDP2 over tensor parallel, on two ranks or on two times two
        both = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(net, both["tensor"], {"first": ColwiseParallel(), "second": RowwiseParallel()})
        mesh = both["data"]
        net.share = both.get_local_rank("data"), 2  # the ranks of a tensor see the same examples
    for layer in (net.first, net.second, net.last):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


# What the ranks do


def as_in_one_process(layout: str, cases: Sequence[tuple[torch.dtype, str, str]]) -> list[Any]:
    said = []
    for dtype, how, count in cases:
        net = cut(Net(dtype), layout)
        optimizer = Neumann(groups(net), **HOW[how], **SETTING, beta_count=count)
        sent = learn(net, optimizer, range(1, STEPS + 1))
        assert bool(optimizer._fused_passes) == (how == "C++")
        placements = sorted({type(where).__name__ for p in net.parameters() for where in p.placements})
        said.append({**told(list(net.parameters()), optimizer), "sent": sent, "placements": placements})
    return said


def strided() -> float:
    """The shards of FSDP2 over tensor parallel, which torch does not call shards."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = DTensor.from_local(torch.ones(2), mesh, [_StridedShard(0, split_factor=2)], run_check=False).requires_grad_()
    optimizer = Neumann([p], lr=0.5, momentum=0.0, gamma=0.5)
    for _ in range(2):  # a reset, and w ← w − 0.5, r ← −0.25
        p.grad = torch.ones_like(p)
        optimizer.step()
    return float(optimizer.distance())


def without_regularizers() -> list[Any]:
    net = cut(Net(), "FSDP2")
    return learn(net, Neumann(groups(net), lr=0.05, alpha=0, beta=0), range(1, 8))


PLACED = [
    (Shard(0), (3, 4)),
    (Replicate(), (5,)),
    (Shard(1), (4, 3)),
    (None, (2, 2)),
    (Replicate(), ()),
    (Shard(0), (1,)),
]


def placed_by_hand(how: str, steps: int) -> dict[str, Any]:
    """DTensors cut by rows, by columns and not at all, beside plain tensors, with gradients placed as they come."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = [
        w if where is None else distribute_tensor(w, mesh, [where]).detach()
        for w, (where, _) in zip(new_params(shapes=[shape for _, shape in PLACED]), PLACED, strict=True)
    ]
    params = [p.detach().requires_grad_() for p in params]
    optimizer = Neumann(params, **HOW[how], **SETTING)
    sent = []
    for step in range(1, steps + 1):
        for index, p in enumerate(params):
            w = whole([p])[0]
            g = None if (index + step) % 4 == 0 else gradient(w, index, step)
            if g is not None and isinstance(p, DTensor):
                if step % 3 == 0:  # not reduced yet: each rank has half of it
                    g = DTensor.from_local(g / dist.get_world_size(), mesh, [Partial()])
                else:
                    g = distribute_tensor(g, mesh, p.placements)
            p.grad = g
        with Sent() as during:
            optimizer.step()
        sent.append(during.said)
    return {**told(params, optimizer), "sent": sent}


def by_hand_alone(steps: int) -> dict[str, Any]:
    params = new_params(shapes=[shape for _, shape in PLACED])
    optimizer = Neumann(params, **SETTING)
    for step in range(1, steps + 1):
        for index, p in enumerate(params):
            p.grad = None if (index + step) % 4 == 0 else gradient(p, index, step)
        optimizer.step()
    return told(params, optimizer)


def replicas(cases: Sequence[tuple[str, torch.dtype, bool]]) -> list[Any]:
    said = []
    for name, dtype, view in cases:
        steps = 8 if name == "Triton" else 50  # interpreted
        with path(name) as how:
            net = Net(dtype)
            ddp = DistributedDataParallel(net, gradient_as_bucket_view=view, find_unused_parameters=True)
            optimizer = Neumann(groups(net), **how, **SETTING)
            learn(ddp, optimizer, range(1, steps + 1))
            addresses = {p.grad.data_ptr() % 16 for p in net.parameters() if p.grad is not None}
            said.append((net.state_dict(), optimizer.state_dict(), net.unused.grad is None, addresses))
    return said


def saved(layout: str, folder: str, steps: int, point: str) -> dict[str, Any]:
    """Train, save the states of three kinds, go on."""
    net = cut(Net(unused=False), layout)  # torch wants a state of all that require gradients
    optimizer = Neumann(groups(net), **SETTING)
    learn(net, optimizer, range(1, steps + 1))
    optimizer.move_to(point)
    everything = StateDictOptions(full_state_dict=True, cpu_offload=True)
    full = {"net": get_model_state_dict(net, options=everything)}
    full["optimizer"] = get_optimizer_state_dict(net, optimizer, options=everything)
    if dist.get_rank() == 0:
        torch.save(full, Path(folder, "full.pt"))
    dcp.save(pieces(net, optimizer), checkpoint_id=Path(folder, "pieces"))
    optimizer.move_to("held")
    learn(net, optimizer, range(steps + 1, STEPS + 1))
    return told(list(net.parameters()), optimizer)


def pieces(net: nn.Module, optimizer: Neumann) -> dict[str, Any]:
    return {"net": get_model_state_dict(net), "optimizer": get_optimizer_state_dict(net, optimizer)}


def resumed(layout: str | None, folder: str, kind: str, point: str, steps: int) -> dict[str, Any]:
    """Go on from a state that was saved at the ``point``, on ranks or, without a ``layout``, in one process."""
    net = Net(unused=False) if layout is None else cut(Net(unused=False), layout)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    optimizer = Neumann(groups(net), **{**SETTING, "lr": 9.9})
    if kind == "full":
        state = torch.load(Path(folder, "full.pt"), weights_only=True)
        options = StateDictOptions(full_state_dict=True)
    else:
        pieces(net, optimizer)  # has the state made
        optimizer.move_to(point)
        state, options = pieces(net, optimizer), StateDictOptions()
        dcp.load(state, checkpoint_id=Path(folder, "pieces"), no_dist=layout is None)
    set_model_state_dict(net, state["net"], options=options)
    set_optimizer_state_dict(net, optimizer, state["optimizer"], options=options)
    optimizer.train()
    learn(net, optimizer, range(steps + 1, STEPS + 1), shared_out=layout is not None)
    return told(list(net.parameters()), optimizer)


def slices(how: str, steps: int, all_on_one: bool) -> dict[str, Any]:
    """Each rank holds half of the model's elements, or rank 0 all of them and rank 1 nothing."""
    halves = two_halves()
    mine = ([halves, []] if all_on_one else [halves[:1], halves[1:]])[dist.get_rank()]
    optimizer = Neumann([{"params": mine}], **HOW[how], **ABSOLUTE, process_group=dist.group.WORLD)
    sent = [step_on_halves(optimizer, halves, step) for step in range(1, steps + 1)]
    return {**told(mine, optimizer), "sent": sent}


def two_halves() -> list[Tensor]:
    flat = torch.cat([p.detach().flatten() for p in new_params()])
    return [flat[0::2].clone().requires_grad_(), flat[1::2].clone().requires_grad_()]


def step_on_halves(optimizer: Neumann, halves: Sequence[Tensor], step: int) -> Any:
    for index, p in enumerate(halves):
        p.grad = None if index == step % 5 else gradient(p, 0, step)
    with Sent() as during:
        optimizer.step()
    return during.said


def halves_alone(steps: int) -> dict[str, Any]:
    halves = two_halves()
    optimizer = Neumann(halves, **ABSOLUTE)
    for step in range(1, steps + 1):
        step_on_halves(optimizer, halves, step)
    return told(halves, optimizer)


def refusals() -> list[str]:
    p = torch.zeros(2, requires_grad=True)
    group = dist.group.WORLD
    optimizer = Neumann([p], process_group=group, beta=1e-5, beta_count="absolute")
    other = Neumann([p], beta=1e-5)
    attempts = [
        lambda: Neumann([p], process_group=group),
        lambda: Neumann([p], process_group=group, beta_count="scalars"),
        lambda: Neumann([{"params": [p], "beta_count": "tensors"}], process_group=group, beta_count="absolute"),
        lambda: optimizer.add_param_group({"params": [torch.zeros(1)], "beta_count": "scalars"}),
        lambda: optimizer.load_state_dict(other.state_dict()),
        lambda: copy.deepcopy(optimizer),
        lambda: pickle.dumps(optimizer),
    ]
    Neumann([p], process_group=group, beta=0)
    said = []
    for attempt in attempts:
        try:
            attempt()
            said.append("")
        except (ValueError, TypeError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def zero(how: str, steps: int) -> dict[str, Any]:
    """ZeRO keeps the argument of the same name for itself, so Neumann's is bound before."""
    net = Net()
    ddp = DistributedDataParallel(net, find_unused_parameters=True)
    neumann = functools.partial(Neumann, process_group=dist.group.WORLD)
    optimizer = ZeroRedundancyOptimizer(groups(net), neumann, **HOW[how], **ABSOLUTE)
    sent = learn(ddp, optimizer, range(1, steps // 2 + 1))
    optimizer.consolidate_state_dict(to=0)
    state = [optimizer.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(state)
    optimizer = ZeroRedundancyOptimizer(groups(net), neumann, **HOW[how], **{**ABSOLUTE, "lr": 9.9})
    optimizer.load_state_dict(state[0])
    sent += learn(ddp, optimizer, range(steps // 2 + 1, steps + 1))
    mine = [name for name, p in net.named_parameters() if p in optimizer.optim.state]
    return {
        "held": whole(list(net.parameters())),
        "distance": float(optimizer.optim.distance()),
        "mine": mine,
        "sent": sent,
    }


def with_inner_loop(layout: str | None) -> list[Tensor]:
    """Return the weights after four steps of Algorithm 1 with regularizers, of a net that is cut, or of a whole one."""
    net = Net(unused=False)
    net = net if layout is None else cut(net, layout)
    optimizer = TwoLoopNeumann(net.parameters(), 0.1, 0.05, 3, mu=0.9, alpha=0.1, beta=1e-3, weight_decay=0.01)
    rank, size = (0, 1) if layout is None else (dist.get_rank(), dist.get_world_size())
    for step in range(4):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        y = torch.sin(x.sum(1, keepdim=True))

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = (net(x[rank::size]) - y[rank::size]).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in net.parameters()]
