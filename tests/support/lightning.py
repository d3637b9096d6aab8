"""A small LightningModule under `AtEvalPoint`, with the trainers and comparisons of weights that its tests share."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from neumann.optim import Neumann, at, eval_point
from neumann.optim.lightning import AtEvalPoint

OPTIMIZERS = {
    "neumann": lambda params: Neumann(params, lr=0.05, burn_in_steps=2),
    "nesterov": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01),
}
EVERY = pytest.mark.parametrize("name", ["neumann", "nesterov", "adam"])
QUIETLY = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|srun|in eval mode at the start|no `val_dataloader`|using `ckpt_path`|exists and is not empty)"
)


class Body:
    """What a module does, for `Net`, which has `AtEvalPoint`, and for those that are compared with it."""

    def __init__(self, name: str = "neumann", fail_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        self.body[1].eval()  # a frozen norm
        self.name, self.fail_at = name, fail_at
        self.seen: list[torch.Tensor] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.name](self.parameters())

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return (self.body(batch[0]) - batch[1]).square().mean()

    def _look(self) -> None:
        assert not any(part.training for part in self.modules())
        self.seen.append(self.body[0].weight.detach().clone())

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        if self.fail_at is not None and len(self.seen) == self.fail_at:
            raise ZeroDivisionError
        self._look()

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self._look()

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self._look()
        return self.body(batch[0])


class Net(Body, AtEvalPoint, pl.LightningModule):
    """A module at the eval point."""


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        TensorDataset(torch.randn(40, 4, generator=generator), torch.randn(40, 1, generator=generator)), batch_size=10
    )


def trainer(epochs: int = 2, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", max_epochs=epochs, num_sanity_val_steps=0, **{**quiet, **options})


def weights(module: pl.LightningModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether the tensors of the names that both have are the same; one of them may hold buffers too."""
    names = one.keys() & other.keys()
    assert len(names) == min(len(one), len(other))
    return all(torch.equal(one[name], other[name]) for name in names)


def answer(module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    with at(optimizer, eval_point(optimizer)):
        return weights(module)
