"""Ghost batch norm is exactly batch norm over the stretches of a batch, one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from neumann.errors import UserError
from neumann.models.classifiers import SmallCNN
from neumann.models.ghost_batch_norm import GhostBatchNorm, use_ghost_batches
from neumann.optim.batch_norm import recalibrated
from neumann.optim.private_names import BatchNorm

IMAGES = torch.zeros(2, 3, 8, 8)


def norm(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    layer = make().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(3),
    "BatchNorm2d, cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "BatchNorm2d, no statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "BatchNormAct2d": lambda: BatchNormAct2d(3),
    "BatchNorm1d": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
def test_a_batch_is_its_ghost_batches_one_by_one(make: Callable[[], nn.Module]) -> None:
    plain = norm(make)
    ghost = copy.deepcopy(plain)
    # a layer alone is no classifier, so it is put into a container to be found
    use_ghost_batches(nn.Sequential(ghost), 4, IMAGES.double())
    for _ in range(2):
        x = torch.randn(12, 3, 8, 8, dtype=torch.float64)
        whole, parts = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = ghost(whole), torch.cat([plain(part) for part in parts.split(4)])
        assert torch.equal(out, expected)
        upstream = torch.randn_like(out)
        (out * upstream).sum().backward()
        (expected * upstream).sum().backward()
        assert torch.allclose(whole.grad, parts.grad, rtol=1e-12, atol=1e-14)
        for one, other in zip(ghost.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, rtol=1e-12, atol=1e-14)
        assert {k: v.tolist() for k, v in ghost.state_dict().items()} == {
            k: v.tolist() for k, v in plain.state_dict().items()
        }
    counts = [int(layer.num_batches_tracked) for layer in ghost.modules() if getattr(layer, "num_batches_tracked", None) is not None]  # fmt: skip
    assert counts in ([], [6])  # once a ghost batch
    assert torch.equal(ghost.eval()(x), plain.eval()(x))


def test_a_single_ghost_batch_is_the_layer_itself() -> None:
    plain = norm(LAYERS["BatchNorm2d"])
    ghost = copy.deepcopy(plain)
    use_ghost_batches(nn.Sequential(ghost), 6, IMAGES.double())
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(ghost(x), plain(x))
    assert not torch.equal(ghost(torch.cat([x, 2 * x])), plain(torch.cat([x, 2 * x])))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "efficientnet_b0", "densenet121"])
def test_a_model_of_timm_keeps_its_keys_and_its_answers(name: str) -> None:
    """Its batch norms with activations too; the weights then load into the plain model."""
    model = timm.create_model(name, num_classes=5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    parameters = list(model.parameters())
    use_ghost_batches(model, 2, torch.zeros(2, 3, 32, 32))
    assert [part.training for part in model.modules()] == modes
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    layers = [layer for layer in model.modules() if isinstance(layer, BatchNorm)]
    assert layers
    assert all(isinstance(layer, GhostBatchNorm) and layer.ghost_size == 2 for layer in layers)
    model.train()(torch.randn(4, 3, 32, 32))
    assert {int(layer.num_batches_tracked) for layer in layers} == {2}
    plain = timm.create_model(name, num_classes=5)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.eval()(x), copy.deepcopy(model).eval()(x))


def test_a_frozen_norm_stays_frozen() -> None:
    model = SmallCNN(in_chans=3, width=4)
    use_ghost_batches(model, 2, IMAGES)
    frozen = model.features[1]
    frozen.eval()
    model(torch.randn(4, 3, 8, 8))
    assert int(frozen.num_batches_tracked) == 0
    assert int(model.features[4].num_batches_tracked) == 2


def test_recalibration_gathers_the_statistics_of_ghost_batches() -> None:
    model, batch = SmallCNN(in_chans=3, width=4), torch.randn(8, 3, 8, 8)
    plain = copy.deepcopy(model)
    use_ghost_batches(model, 2, IMAGES)
    with recalibrated(model, [batch]), recalibrated(plain, batch.split(2)):
        for one, other in zip(model.buffers(), plain.buffers(), strict=True):
            assert torch.allclose(one, other, rtol=1e-5)
    assert int(model.features[1].num_batches_tracked) == 0


class Odd(nn.Module):
    """Statistics of its own, as timm's EvoNorm has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Rows(nn.Module):
    """Batch norm over the pixels of all images, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1).flatten(0, 2))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.Conv2d(3, 3, 1), "batch.norm_size=2: the model has no batch norm, so leave it at null"),
        (nn.Sequential(Odd()), "the model's 0 is a Odd: its statistics cannot be taken over ghost batches"),
        (nn.Sequential(nn.SyncBatchNorm(3)), "the model's 0 is a SyncBatchNorm"),
        (Rows(), "the model's norm takes 128 rows of 2 images"),
    ],
    ids=["none", "odd", "sync", "rows"],
)
def test_what_has_no_ghost_batches_is_refused_and_left_as_it_is(model: nn.Module, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        use_ghost_batches(model, 2, IMAGES)
    assert sentence in str(refused.value)
    assert not [layer for layer in model.modules() if isinstance(layer, GhostBatchNorm)]
    assert all(part.training for part in model.modules())


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    model = SmallCNN(in_chans=3, width=4)
    use_ghost_batches(model, 4, IMAGES)
    with pytest.raises(ValueError, match="a batch of 6 examples cannot be cut into ghost batches of 4"):
        model(torch.randn(6, 3, 8, 8))
