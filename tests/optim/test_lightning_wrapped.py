"""`AtEvalPoint` around an optimizer that wraps another one, and under LightningCLI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tests.support.lightning import QUIETLY, Net, answer, loader, same, trainer, weights
from tests.support.sharpness import SAM

pytestmark = [QUIETLY, pytest.mark.medium]
SETTINGS: dict[str, dict[str, Any]] = {"neumann": {"lr": 0.05}, "sgd": {"lr": 0.05, "momentum": 0.9}}


class Sharp(Net):
    """Trains with SAM, by Lightning's closure."""

    def configure_optimizers(self) -> Any:
        optimizer = SAM(self.parameters(), self.name, **SETTINGS[self.name])
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)]


class ByHand(Sharp):
    """Trains with SAM, with a closure of its own."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        def closure() -> None:
            self.zero_grad()
            self.manual_backward(super(ByHand, self).training_step(batch, batch_idx))

        self.optimizers().step(closure)

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", [Sharp, ByHand])
@pytest.mark.parametrize("validated", [True, False])
def test_sam_is_judged_at_the_answer_and_resumes_to_the_same_bits(
    kind: type[Sharp], name: str, validated: bool, tmp_path: Path
) -> None:
    whole, resumed = kind(name), kind(name)
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=not validated)
    first, second = (trainer(4, callbacks=[saving]), trainer(4, enable_checkpointing=False))
    validation = loader() if validated else None
    first.fit(whole, loader(), validation)
    there = answer(whole, first.optimizers[0])
    assert same(weights(whole), there)
    assert not validated or torch.equal(whole.seen[-1], there["body.0.weight"])
    checkpoint = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)
    assert same(there, checkpoint["state_dict"])
    second.fit(resumed, loader(), validation, ckpt_path=str(tmp_path / "epoch=1.ckpt"))
    assert same(weights(resumed), weights(whole))
    optimizer = second.optimizers[0]
    assert optimizer.param_groups is optimizer.base_optimizer.param_groups, "a schedule reaches the one inside"
    assert optimizer.param_groups[0]["lr"] == first.optimizers[0].param_groups[0]["lr"]


def test_clipping_is_refused_inside_a_wrapper_too() -> None:
    with pytest.raises(ValueError, match=r"^Trainer\(gradient_clip_val=0\.5\) would break the method"):
        trainer(1, enable_checkpointing=False, gradient_clip_val=0.5).fit(Sharp(), loader())
