"""The Lightning module in a user's own Trainer: evaluated at the eval point, and never changed by it."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from neumann.data.module import ImageData, build
from neumann.models.classifiers import SmallCNN
from neumann.optim import Neumann
from neumann.optim.lightning import eval_mode
from neumann.training.classifier import ImageClassifier
from neumann.training.tally import Tally
from tests.support.quick_runs import quick


@pytest.fixture
def data() -> ImageData:
    spec = quick()
    return build(spec.config.data, spec.facts, batch_size=64, seed=0)


def classifier() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(SmallCNN(width=8), lambda m: Neumann(m.parameters(), lr=0.1, burn_in_steps=4))


def trainer(**options: object) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(accelerator="cpu", max_epochs=2, num_sanity_val_steps=0, **{**quiet, **options})  # type: ignore[arg-type]


@pytest.mark.medium
def test_lightnings_validation_is_at_the_eval_point_and_changes_nothing(data: ImageData) -> None:
    plain, judged = classifier(), classifier()
    trainer(limit_val_batches=0).fit(plain, datamodule=data)
    judge = trainer(val_check_interval=6)
    judge.fit(judged, datamodule=data)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), judged.state_dict().values(), strict=True)
    )
    optimizer = judge.optimizers[0]
    assert isinstance(optimizer, Neumann)
    optimizer.eval()
    judged.eval()
    with torch.no_grad():
        wrong = sum(int((judged(x).argmax(1) != y).sum()) for x, y in data.val_dataloader())
    assert float(judge.callback_metrics["val_error"]) == pytest.approx(wrong / 300)


def test_predict_gives_probabilities(data: ImageData) -> None:
    batches = trainer().predict(classifier(), datamodule=data)
    assert batches is not None
    out = torch.cat([b for b in batches if isinstance(b, torch.Tensor)])
    assert out.shape == (300, 10)
    assert torch.allclose(out.sum(1), torch.ones(300))


def test_modes_come_back_part_by_part() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model[0].eval()
    with eval_mode(model):
        assert not model[1].training
    assert [part.training for part in model.modules()] == [True, False, True]


def test_labels_are_smoothed_in_training_and_not_in_evaluation() -> None:
    torch.manual_seed(0)
    model = SmallCNN(width=4)
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6)
    smooth = ImageClassifier(model, lambda m: torch.optim.SGD(m.parameters(), lr=0.1), label_smoothing=0.3)
    sharp = ImageClassifier(model, lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    model.eval()
    log_p = model(images).log_softmax(1)
    target = torch.full((6, 10), 0.03).scatter(1, labels[:, None], 0.73)
    assert float(smooth.training_step((images, labels), 0)) == pytest.approx(float(-(target * log_p).sum(1).mean()))
    tally = Tally(torch.device("cpu"))
    tally.add(model(images), labels)
    assert tally.scores()["loss"] == pytest.approx(float(sharp.training_step((images, labels), 0)))
