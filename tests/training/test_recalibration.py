"""Batch norm's statistics, gathered again at the weights that are evaluated: right, shared by all ranks, and put back."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from neumann.config import RunSpec, make_spec
from neumann.data.module import build
from neumann.errors import UserError
from neumann.optim.batch_norm import batch_norms, recalibrated
from neumann.store import find
from neumann.store.steps import STEPS
from neumann.store.vouching import CURVE, DIGEST
from neumann.training.distributed import RankGroup
from neumann.training.parts import check_recalibration
from neumann.training.run import run
from tests.support.quick_runs import Train, quick
from tests.support.rank_groups import together

EPS = 1e-5
NO_BATCH_NORM = ("model=timm", "model.name=vit_tiny_patch16_224", "+model.kwargs.patch_size=4", "+model.kwargs.depth=1")


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(3 * 36, 5), nn.BatchNorm1d(5, momentum=0.3), nn.Tanh(), nn.Linear(5, 2),
    )  # fmt: skip
    for _ in range(3):
        model(torch.randn(6, 1, 8, 8))
    return model


def inputs(count: int, size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(size, 1, 8, 8, generator=generator) * (1 + k) + k for k in range(count)]


def literally(model: nn.Sequential, batches: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of what comes into each batch norm, averaged over the batches, in float64."""
    means: dict[int, list[Tensor]] = {1: [], 6: []}
    variances: dict[int, list[Tensor]] = {1: [], 6: []}
    model = copy.deepcopy(model).double()
    for batch in batches:
        x = batch.double()
        for place, layer in enumerate(model):
            if place in means:
                flat = x.transpose(0, 1).reshape(x.shape[1], -1)
                n = flat.shape[1]
                mean = flat.sum(1) / n
                squares = ((flat - mean[:, None]) ** 2).sum(1)
                means[place].append(mean)
                variances[place].append(squares / (n - 1))
                shape = (1, -1) + (1,) * (x.dim() - 2)
                x = (x - mean.reshape(shape)) / (squares / n + EPS).sqrt().reshape(shape)
                x = x * layer.weight.reshape(shape) + layer.bias.reshape(shape)
            elif not isinstance(layer, nn.Dropout):
                x = layer(x)
    return [(torch.stack(means[k]).mean(0), torch.stack(variances[k]).mean(0)) for k in (1, 6)]


def statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(layer.running_mean.clone(), layer.running_var.clone()) for layer in batch_norms(model)]


def state(model: nn.Module) -> dict[str, Any]:
    buffers = {name: value.clone() for name, value in model.state_dict().items()}
    return {
        "buffers": buffers,
        "modes": [p.training for p in model.modules()],
        "momenta": [1.0 * n.momentum for n in all_norms(model)],
    }


def all_norms(model: nn.Module) -> list[Any]:
    return [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def assert_unchanged(before: dict[str, Any], model: nn.Module) -> None:
    after = state(model)
    assert after["modes"] == before["modes"]
    assert after["momenta"] == before["momenta"]
    assert all(torch.equal(before["buffers"][name], value) for name, value in after["buffers"].items())


@pytest.mark.parametrize("training", [True, False])
def test_the_statistics_are_those_of_the_batches_in_float64(training: bool) -> None:
    model, batches = network().train(training), inputs(5)
    before, random = state(model), torch.get_rng_state()
    with recalibrated(model, batches):
        assert not any(part.training for part in model.modules())
        for (mean, variance), (mean64, variance64) in zip(statistics(model), literally(model, batches), strict=True):
            torch.testing.assert_close(mean.double(), mean64, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(variance.double(), variance64, rtol=1e-5, atol=1e-6)
        assert model[1].num_batches_tracked == 5
        assert not torch.allclose(model[1].running_mean, before["buffers"]["1.running_mean"])
    assert_unchanged(before, model)
    assert torch.equal(torch.get_rng_state(), random)  # dropout was off


def test_in_float64_it_is_the_literal_computation_to_the_last_digits() -> None:
    model, batches = network().double(), [batch.double() for batch in inputs(4)]
    with recalibrated(model, [(batch, "labels") for batch in batches]):
        for ours, theirs in zip(statistics(model), literally(model, batches), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def on_ranks(group: RankGroup, count: int) -> list[list[float]]:
    model = network()
    mine = inputs(count)[group.rank :: group.world_size]
    with recalibrated(model, mine, total=group.total):
        found = [value for pair in statistics(model) for value in pair]
    return [value.double().tolist() for value in found]


@pytest.mark.parametrize("count", [4, 5, 1])  # the same number each, unequal numbers, and a rank that has none
def test_two_ranks_find_what_one_does(count: int) -> None:
    zero, one = together(on_ranks, 2, count)
    assert zero == one
    alone = on_ranks(RankGroup(), count)
    expected = [value.tolist() for pair in literally(network(), inputs(count)) for value in pair]
    for ours, single, exact in zip(zero, alone, expected, strict=True):
        assert ours == pytest.approx(single, rel=1e-6, abs=1e-7)
        assert ours == pytest.approx(exact, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("where", ["in the block", "in a forward"])
def test_everything_comes_back_on_exceptions(where: str) -> None:
    model = network()
    before = state(model)

    def forward(batch: Tensor) -> Tensor:
        model(batch)
        if where == "in a forward":
            raise KeyError
        return batch

    with pytest.raises(KeyError), recalibrated(model, inputs(2), forward=forward):
        raise KeyError
    assert_unchanged(before, model)


def test_frozen_layers_and_those_that_no_batch_reaches_keep_theirs() -> None:
    model = network()
    model.add_module("unused", nn.BatchNorm1d(4))
    model.unused.running_mean += 3
    model[1].eval()
    frozen = model[1].running_mean.clone()
    before = state(model)

    def forward(batch: Tensor) -> Tensor:
        return nn.Sequential(*list(model)[:-1])(batch)

    with recalibrated(model, inputs(3), forward=forward):
        assert torch.equal(model[1].running_mean, frozen)
        assert model.unused.running_mean.tolist() == [3] * 4
        assert model.unused.running_var.tolist() == [1] * 4
        assert not torch.equal(model[6].running_mean, before["buffers"]["6.running_mean"])
    assert_unchanged(before, model)


def test_a_layer_that_is_used_twice_counts_both_uses() -> None:
    norm = nn.BatchNorm1d(2)
    model = nn.Sequential(norm, nn.Linear(2, 2), norm)
    batch = torch.randn(16, 2)
    with recalibrated(model, [batch]):
        assert norm.num_batches_tracked == 2
        first = nn.functional.batch_norm(batch, None, None, norm.weight, norm.bias, training=True)
        expected = (batch.mean(0) + model[1](first).mean(0)) / 2
        torch.testing.assert_close(norm.running_mean, expected)


def test_no_batch_is_said() -> None:
    model = network()
    before = state(model)
    with pytest.raises(ValueError, match="no batch has come through"), recalibrated(model, []):
        pass
    assert_unchanged(before, model)


def test_without_batch_norm_there_is_nothing_to_do() -> None:
    with recalibrated(nn.Linear(2, 2), []):
        pass


@pytest.mark.medium
def test_a_compiled_model_is_recalibrated_too() -> None:
    model, batches = network(), inputs(2)
    compiled = torch.compile(model, backend="eager")
    compiled(batches[0])
    with recalibrated(model, batches, forward=compiled):
        assert model[1].num_batches_tracked == 2
        torch.testing.assert_close(
            statistics(model)[0][0].double(), literally(model, batches)[0][0], rtol=1e-5, atol=1e-6
        )


def test_what_says_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="the model has no batch norm with running statistics, so leave it at 0"):
        check_recalibration(nn.Linear(2, 2), 3, 1)
    with pytest.raises(UserError, match="no batch norm"):
        check_recalibration(nn.BatchNorm1d(2, track_running_stats=False), 3, 1)
    check_recalibration(nn.Linear(2, 2), 0, 2)
    with pytest.raises(UserError, match="SyncBatchNorm"):
        check_recalibration(nn.SyncBatchNorm(2), 3, 2)
    check_recalibration(nn.SyncBatchNorm(2), 3, 1)
    spec = make_spec([*NO_BATCH_NORM, "logger=none", "recipe.recalibrate_batch_norm=2"])
    with pytest.raises(UserError, match=r"recipe\.recalibrate_batch_norm=2: the model has no batch norm"):
        run(spec, Console(quiet=True))
    assert not find(spec).path.exists()
    with pytest.raises(UserError, match=r"recipe\.recalibrate_batch_norm=-1 is out of range"):
        quick("recipe.recalibrate_batch_norm=-1")


def dealt(spec: RunSpec, count: int, rank: int, size: int) -> list[Tensor]:
    data = build(spec.config.data, spec.facts, batch_size=64 // size, seed=spec.config.seed, rank=rank, world_size=size)
    batches = data.calibration_batches(count)
    assert len(batches) == len(list(batches))
    return [images for images, _ in batches]


@pytest.mark.parametrize("count", [1, 5, 40])  # an epoch has 16 batches
def test_the_batches_are_the_same_whatever_the_number_of_processes(count: int) -> None:
    spec = quick("data.augmentation=crop")
    alone = dealt(spec, count, 0, 1)
    assert [len(images) for images in alone] == [64] * count
    assert all(torch.equal(a, b) for a, b in zip(alone, dealt(spec, count, 0, 1), strict=True))
    for size in (2, 4):
        for rank in range(size):
            mine = dealt(spec, count, rank, size)
            assert len(mine) == len(alone[rank::size])
            assert all(torch.equal(a, b) for a, b in zip(mine, alone[rank::size], strict=True))


def weights(folder: Any) -> dict[str, Tensor]:
    return torch.load(folder.eval_weights, weights_only=True)["state_dict"]


def plain(record: dict[str, Any]) -> dict[str, Any]:
    leave = {
        "train_seconds",
        "eval_seconds",
        "time",
        "first_step_at",
        "signature",
        DIGEST,
        CURVE,
        STEPS.key,
        "test_correct",
    }
    return {k: v for k, v in record.items() if k not in leave and not k.endswith("_recalibrated")}


@pytest.mark.medium
@pytest.mark.parametrize("optimizer", ["neumann", "nesterov", "sgd", "adam"])
def test_a_run_records_both_at_every_point_and_trains_the_same_bits(optimizer: str, train: Train) -> None:
    choice = (f"optimizer={optimizer}", "data.augmentation=crop", "+model.kwargs.drop_rate=0.3")
    result, folder = train(*choice, "recipe.recalibrate_batch_norm=3")
    other, without = train(*choice)
    assert result["signature"] != other["signature"]
    assert plain(result) == plain(other)
    assert [plain(m) for m in folder.read_measurements()] == [plain(m) for m in without.read_measurements()]
    ours, theirs = weights(folder), weights(without)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not any("recalibrated" in key for key in other)
    for record in (result, *folder.read_measurements()):
        assert list(record["validation_recalibrated"]) == list(record["validation"])
        for point, scores in record["validation_recalibrated"].items():
            assert scores["n"] == record["validation"][point]["n"]
            assert scores["loss"] != record["validation"][point]["loss"]
    assert list(result["test_recalibrated"]) == list(result["test"])
    assert result["validation_recalibrated"] == list(folder.read_measurements())[-1]["validation_recalibrated"]


@pytest.mark.medium
def test_what_is_recorded_is_what_a_plain_loop_finds(train: Train) -> None:
    from neumann.models.classifiers import SmallCNN

    result, folder = train("optimizer=neumann", "recipe.recalibrate_batch_norm=4")
    model = SmallCNN(width=8)
    saved = torch.load(folder.eval_weights, weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in saved.items()})
    spec = quick("optimizer=neumann", "recipe.recalibrate_batch_norm=4")
    data = build(spec.config.data, spec.facts, batch_size=64, seed=spec.config.seed)
    with recalibrated(model, data.calibration_batches(4)), torch.no_grad():
        loss = sum(
            float(nn.functional.cross_entropy(model(images), labels, reduction="sum"))
            for images, labels in data.test_dataloader()
        )
    recorded = result["test_recalibrated"]["base"]
    assert loss / recorded["n"] == pytest.approx(recorded["loss"], rel=1e-5)


@pytest.mark.medium
def test_a_resumed_run_records_the_same(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from neumann.training.attempt import Attempt

    choice = ("optimizer=neumann", "recipe.recalibrate_batch_norm=3")
    whole, folder = train(*choice)
    measured = [plain(m) | {"again": m["validation_recalibrated"]} for m in folder.read_measurements()]
    result_of = Attempt._result

    def fail(self: Attempt, trainer: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    monkeypatch.setattr(Attempt, "_result", fail)
    with pytest.raises(ZeroDivisionError):
        train(*choice, "output=elsewhere")
    monkeypatch.setattr(Attempt, "_result", result_of)
    resumed, again = train(*choice, "output=elsewhere")
    assert resumed["attempts"] == 2
    assert [plain(m) | {"again": m["validation_recalibrated"]} for m in again.read_measurements()] == measured
    assert resumed["test_recalibrated"] == whole["test_recalibrated"]
