"""Tests of what ranks exchange, and of the checks before and during training. Real processes over gloo."""

from __future__ import annotations

import socket
import textwrap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from neumann.config import RunSpec
from neumann.data.batches import ShardPlan
from neumann.errors import UserError
from neumann.processes.ranks import RankPlace
from neumann.training.census import Census, check_group, check_weights
from neumann.training.distributed import RankEnvironment, RankGroup, WrongShards
from neumann.training.evaluation import TrainingProgress
from neumann.training.parts import build_parts
from tests.support.quick_runs import quick
from tests.support.rank_groups import together


def words(group: RankGroup) -> dict[str, Any]:
    group_said = {
        "rank": (group.rank, group.world_size, group.is_main),
        "broadcast": group.broadcast({"from": group.rank}),
        "gather": group.gather(group.rank * 10),
        "total": group.total(torch.tensor([1.5, group.rank], dtype=torch.float32)).tolist(),
        "counts": group.counts(np.array([group.rank, 1], dtype=np.int32)).tolist(),
        "none": group.ask(0).answer(),
        "one": group.ask(15 * group.rank).answer(),
    }
    module = torch.nn.BatchNorm1d(2)
    module.running_mean += group.rank
    group.share_buffers(module)
    return {**group_said, "buffers": module.running_mean.tolist()}


def test_what_ranks_tell_each_other() -> None:
    zero, one = together(words, 2)
    assert (zero.pop("rank"), one.pop("rank")) == ((0, 2, True), (1, 2, False))
    assert zero == one
    assert zero == {
        "broadcast": {"from": 0},
        "gather": [0, 10],
        "total": [3.0, 1.0],
        "counts": [1, 2],
        "none": 0,
        "one": 15,
        "buffers": [0.0, 0.0],
    }


def test_a_group_of_one_says_the_same_to_itself() -> None:
    alone = words(RankGroup())
    assert alone["rank"] == (0, 1, True)
    assert alone["gather"] == [0]
    assert alone["total"] == [1.5, 0.0]
    assert not alone["one"]


def refusing(group: RankGroup, where: int) -> str:
    def work() -> str:
        if group.rank == where:
            raise UserError(f"refused on {where}")
        return "fine"

    try:
        if where == 0:
            group.on_main(work)
        group.everywhere(work)
    except UserError as error:
        return str(error)
    return "went on"


@pytest.mark.parametrize("where", [0, 1])
def test_what_stops_one_stops_all(where: int) -> None:
    assert together(refusing, 2, where) == [f"refused on {where}"] * 2


class Believes:
    """A trainer's view of its place."""

    def __init__(self, rank: int, size: int) -> None:
        self.global_rank, self.world_size = rank, size


def checked(group: RankGroup, specs: list[RunSpec], change: str) -> None:
    spec = specs[group.rank]
    parts = build_parts(spec, group)
    batches = {"training": parts.data.train_dataloader(), "validation": parts.data.val_dataloader()}
    trainer = Believes(group.rank, group.world_size)
    training = batches["training"].plan
    if change == "believes in one":
        trainer = Believes(0, 1)
    if change == "swapped":
        trainer = Believes(1 - group.rank, 2)
    if change == "same shard":
        batches["training"].plan = ShardPlan(training.indices, training.batch_size, training.seed, 0, 2)
    if change == "all of it":
        batches["training"].plan = ShardPlan(training.indices, training.batch_size, training.seed, 0, 1)
    if change == "other order":
        batches["training"].plan = ShardPlan(
            training.indices, training.batch_size, training.seed + group.rank, group.rank, 2
        )
    if change == "validation twice":
        batches["validation"].plan = ShardPlan(batches["validation"].plan.indices, 512, None, 0, 1)
    check_group(group, trainer, spec, batches, epoch=1)  # type: ignore[arg-type]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("nothing", None),
        ("believes in one", "the process group has 2 ranks, the trainer believes in 1"),
        ("swapped", "takes itself for rank"),
        ("other run", "the ranks train different runs"),
        ("same shard", r"the ranks load shards \[0, 0\] of the training split"),
        ("all of it", r"the ranks load shards \[0, 0\] of the training split"),
        ("other order", "the shards of the training split hold .* distinct examples, .* more than once"),
        ("validation twice", r"the ranks load shards \[0, 0\] of the validation split"),
    ],
)
def test_the_group_is_compared_with_the_trainer_and_the_configuration(change: str, words: str | None) -> None:
    specs = [quick("trainer.devices=2"), quick("trainer.devices=2", *(["seed=1"] if change == "other run" else []))]
    for answer in together(checked, 2, specs, change):
        if words is None:
            assert answer is None
        else:
            with pytest.raises(WrongShards, match=words):
                raise answer


def test_a_size_that_lightning_does_not_find_is_refused() -> None:
    def pretend(group: RankGroup) -> list[str]:
        assert group.ranks is not None
        environment = RankEnvironment(group.ranks)
        said = []
        for wrong in (lambda: environment.set_world_size(1), lambda: environment.set_global_rank(7)):
            try:
                wrong()
            except RuntimeError as error:
                said.append(str(error))
        environment.set_world_size(2)
        environment.set_global_rank(group.rank)
        return said

    for rank, said in enumerate(together(pretend, 2)):
        assert said == [
            "the trainer believes in 1 processes and the group has 2",
            f"the trainer takes itself for rank 7 and the group for rank {rank}",
        ]


def counted(group: RankGroup, spec: RunSpec, repeat: bool) -> int | None:
    """Hand out an epoch by hand; rank 1 sees its first batch twice where ``repeat``."""
    parts = build_parts(spec, group)
    batches = parts.data.train_dataloader()
    progress = TrainingProgress()
    census = Census(spec, group, {"training": batches}, progress)
    trainer = SimpleNamespace(optimizers=[torch.optim.SGD(parts.module.parameters(), lr=0.1)])
    first = None
    for batch in batches:
        first = batches.taken if first is None else first
        if repeat and group.rank == 1:
            batches.taken = first
        census.count(batch)
        census.on_train_batch_end(trainer, parts.module, None, batch, 0)  # type: ignore[arg-type]
        progress.step += 1
    return census.distinct


@pytest.mark.medium
def test_the_examples_that_were_trained_on_are_counted() -> None:
    spec = quick("trainer.devices=2")
    assert together(counted, 2, spec, False) == [18 * 64, 18 * 64]
    for answer in together(counted, 2, spec, True):
        with pytest.raises(WrongShards, match=r"trained on 608 distinct examples, 1152 in all, where 1152 were due"):
            raise answer


def test_a_batch_that_is_not_the_one_that_was_loaded_is_noticed() -> None:
    spec = quick()
    batches = build_parts(spec, RankGroup()).data.train_dataloader()
    census = Census(spec, RankGroup(), {"training": batches}, TrainingProgress())
    images, labels = next(iter(batches))
    with pytest.raises(WrongShards, match="a batch has 63 examples where 64 were loaded"):
        census.count((images[1:], labels[1:]))


def drifted(group: RankGroup, how: str) -> None:
    model = torch.nn.Linear(3, 2)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    if group.rank == 1 and how == "weights":
        model.weight.data[1, 2] += 1e-7
    if group.rank == 1 and how == "swapped":
        model.bias.data[:] = model.bias.data.flip(0)
    if group.rank == 1 and how == "state":
        optimizer.state[model.bias]["momentum_buffer"][0] += 1
    check_weights(group, model, optimizer, 7)


@pytest.mark.parametrize(
    ("how", "where"),
    [("not", None), ("weights", "first in weight:"), ("swapped", "bias:"), ("state", "bias, the optimizer's momentum")],
)
def test_replicas_that_drift_apart_are_noticed(how: str, where: str | None) -> None:
    for answer in together(drifted, 2, how):
        if where is None:
            assert answer is None
        else:
            with pytest.raises(
                WrongShards, match=f"after step 7 the weights of rank 1 are not those of rank 0.*{where}"
            ):
                raise answer


def run_with(ranks: RankPlace, listener: socket.socket | None, spec: RunSpec) -> Any:
    from neumann.training.run import run

    return run(spec, Console(quiet=True), threads=1, ranks=ranks, listener=listener)


def assert_one_says(words: str, answers: list[Any]) -> None:
    """One rank at least raised WrongShards with ``words``; the other may have seen the connection to it break first."""
    for answer in answers:
        assert isinstance(answer, RuntimeError)
        assert words in str(answer) or "Connection closed" in str(answer)
    assert any(isinstance(answer, WrongShards) and words in str(answer) for answer in answers)


@pytest.mark.medium
def test_the_checks_are_made_by_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ranks load the first shard: the run refuses at the start, and, without that, in the first evaluation."""
    import neumann.training.parts as parts

    whole = parts.build_data
    monkeypatch.setattr(parts, "build_data", lambda *words, **options: whole(*words, **(options | {"rank": 0})))
    for answer in together(run_with, 2, quick("trainer.devices=2"), joined_already=False):
        with pytest.raises(WrongShards, match="load shards"):
            raise answer
    monkeypatch.setattr("neumann.training.census.check_group", lambda *words: None)
    assert_one_says(
        "576 distinct examples", together(run_with, 2, quick("trainer.devices=2", "seed=1"), joined_already=False)
    )


@pytest.mark.medium
def test_an_evaluation_that_counts_some_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import neumann.training.parts as parts

    whole = parts.build_data

    def all_of_it(*words: Any, **options: Any) -> Any:
        data = whole(*words, **options)
        data.val_dataloader = lambda: whole(*words, **(options | {"rank": 0, "world_size": 1})).val_dataloader()
        return data

    monkeypatch.setattr(parts, "build_data", all_of_it)
    monkeypatch.setattr("neumann.training.census.check_group", lambda *words: None)
    assert_one_says(
        "counted 600 examples of 300", together(run_with, 2, quick("trainer.devices=2"), joined_already=False)
    )


@pytest.mark.slow
def test_a_rank_that_waits_in_vain_says_for_whom(python: Callable[[str], str]) -> None:
    said = python(
        textwrap.dedent("""
        import contextlib, datetime, io, os, sys
        from neumann.processes.ranks import RankPlace
        from neumann.training import distributed
        sys.stderr = sys.stdout
        distributed.AWAITED_S, distributed.TIMEOUT = 0.1, datetime.timedelta(seconds=2)
        with contextlib.suppress(Exception), distributed.joined(
            RankPlace(1, 2, 1, 0, "127.0.0.1", 1, "torchrun"), cuda=False
        ):
            pass
    """)
    )
    assert "rank 1 of 2 waits for rank 0 at 127.0.0.1:1, as the environment says" in said
    assert "'unset RANK WORLD_SIZE' leaves them out" in said
