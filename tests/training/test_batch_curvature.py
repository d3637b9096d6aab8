"""`batch_curvature` is the Hessian of the loss that a step trains on, over all ranks, and changes nothing of a run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from neumann.optim import Neumann
from neumann.training.batch_curvature import BatchCurvature, batch_curvature, flat
from neumann.training.classifier import Batch, ImageClassifier
from neumann.training.distributed import RankGroup
from tests.support.known_curvature import dense, exact_hessian
from tests.support.rank_groups import together

SMOOTHING = 0.1


def _model(*, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(4, 5), *([nn.BatchNorm1d(5)] if norm else []), nn.Tanh(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(5, 3)).double()


def _images(count: int = 12) -> Batch:
    torch.manual_seed(1)
    return torch.randn(count, 1, 2, 2, dtype=torch.float64), torch.arange(count) % 3


def _cut(batch: Batch, count: int) -> list[Batch]:
    return list(zip(*(tensor.chunk(count) for tensor in batch), strict=True))


def _module(model: nn.Module, **settings: Any) -> ImageClassifier:
    return ImageClassifier(model, lambda m: Neumann(m.parameters(), 0.1), label_smoothing=SMOOTHING, **settings)


def _loss(out: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(out, labels, label_smoothing=SMOOTHING)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_it_is_the_hessian_of_all_micro_batches_with_the_statistics_of_them_all(micro_batches: int) -> None:
    model, batch = _model(), _images()
    found = batch_curvature(_module(model), _cut(batch, micro_batches), RankGroup())
    held = copy.deepcopy(model)  # batch norm at the mean and the biased variance of all images
    before = held[1](batch[0].flatten(1)).detach()
    held[2].running_mean, held[2].running_var = before.mean(0), before.var(0, unbiased=False)
    torch.testing.assert_close(dense(found), exact_hessian(held, _loss, *batch), rtol=1e-9, atol=1e-11)
    assert (found.examples, found.dtype) == (12, torch.float64)


def test_gradients_there_and_elsewhere_are_those_of_the_loss_with_the_same_statistics() -> None:
    model, batch = _model(norm=False), _images()
    found = batch_curvature(_module(model), _cut(batch, 2), RankGroup())
    direction = torch.linspace(-1, 1, found.size, dtype=torch.float64)
    for displacement in (None, direction):
        moved = copy.deepcopy(model).eval()
        if displacement is not None:
            nn.utils.vector_to_parameters(
                nn.utils.parameters_to_vector(moved.parameters()) + displacement, moved.parameters()
            )
        _loss(moved(batch[0]), batch[1]).backward()
        torch.testing.assert_close(found.gradient(displacement), flat(moved, lambda p: p.grad), rtol=1e-12, atol=1e-14)
    near = (found.gradient(1e-5 * direction) - found.gradient(-1e-5 * direction)) / 2e-5
    torch.testing.assert_close(near, found @ direction, rtol=1e-6, atol=1e-8)


def test_nothing_that_training_sees_is_another() -> None:
    model, batch = _model(), _images()
    module = _module(model)
    optimizer = module.configure_optimizers()
    _loss(model(batch[0]), batch[1]).backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"], [p.grad for p in model.parameters()]))
    random, modes = torch.get_rng_state(), [part.training for part in model.modules()]
    found = batch_curvature(module, [batch], RankGroup())
    found @ torch.ones(found.size, dtype=torch.float64)
    found.gradient(torch.ones(found.size))
    after = (model.state_dict(), optimizer.state_dict()["state"], [p.grad for p in model.parameters()])
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [part.training for part in model.modules()]


def test_weights_of_16_bits_are_measured_in_float32() -> None:
    images, labels = _images()
    found = batch_curvature(_module(_model().bfloat16()), [(images.bfloat16(), labels)], RankGroup())
    product = found @ torch.ones(found.size)
    assert (found.dtype, product.dtype, bool(product.isfinite().all())) == (torch.float32, torch.float32, True)


def test_an_auxiliary_head_does_not_count() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.other = _model(norm=False), nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.main(x), self.other(x.flatten(1))

    model = TwoHeads()
    found = batch_curvature(_module(model, auxiliary_weight=0.4), [_images()], RankGroup())
    alone = batch_curvature(_module(model.main), [_images()], RankGroup())
    torch.testing.assert_close(dense(found)[: alone.size, : alone.size], dense(alone))
    assert dense(found)[alone.size :].count_nonzero() == 0


def test_a_vector_of_state_has_the_order_of_the_matrix() -> None:
    model = _model()
    model[1].bias.requires_grad_(False)
    found = batch_curvature(_module(model), [_images()], RankGroup())
    values = flat(model, lambda p: torch.full_like(p, 2.0) if p is model[1].weight else None)
    assert values.tolist() == [2.0] * 20 + [0.0] * (found.size - 20)


def _on_rank(group: RankGroup, batches: Sequence[Batch]) -> tuple[list[list[float]], list[float]]:
    found: BatchCurvature = batch_curvature(_module(_model(norm=False)), [batches[group.rank]], group)
    return dense(found).tolist(), found.gradient().tolist()


def test_every_rank_has_the_curvature_of_the_global_batch() -> None:
    batch = _images()
    whole = batch_curvature(_module(_model(norm=False)), [batch], RankGroup())
    first, second = together(_on_rank, 2, _cut(batch, 2))
    assert first == second
    torch.testing.assert_close(torch.tensor(first[0], dtype=torch.float64), dense(whole), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(torch.tensor(first[1], dtype=torch.float64), whole.gradient(), rtol=1e-10, atol=1e-13)
