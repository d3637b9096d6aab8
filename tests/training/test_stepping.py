"""A step of a run is a step of Lightning's Trainer, to the bit."""

from __future__ import annotations

import os
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader

from neumann.errors import UserError
from neumann.models.classifiers import SmallCNN
from neumann.optim import Neumann
from neumann.training.classifier import Batch, ImageClassifier
from neumann.training.stepping import SteppingClassifier, fit, make_trainer

SETTINGS: dict[str, Any] = {
    "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


def batches() -> DataLoader[Batch]:
    draw = torch.Generator().manual_seed(1)
    made = [(torch.randn(8, 1, 8, 8, generator=draw), torch.arange(8) % 5) for _ in range(8)]
    return DataLoader(made, batch_size=None)  # type: ignore[arg-type]


def classifier(kind: type[ImageClassifier]) -> Any:
    torch.manual_seed(0)
    model = SmallCNN(num_classes=5, width=4, drop_rate=0.2)
    return kind(model, lambda m: Neumann(m.parameters(), lr=0.1, burn_in_steps=1), label_smoothing=0.1)


class Seen(pl.Callback):
    """Notes the loss of every micro-batch, as Lightning gives it."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert batch_idx == len(self.losses)
        self.losses.append(outputs["loss"].clone())


def outcome(trainer: pl.Trainer, module: ImageClassifier, seen: Seen) -> list[Tensor]:
    """Return every tensor that the steps have made."""
    states = [value for state in trainer.optimizers[0].state.values() for value in state.values()]
    tensors = [*module.state_dict().values(), *seen.losses, torch.get_rng_state()]
    return [*tensors, *map(torch.as_tensor, states)]


def of(precision: Any) -> dict[str, Any]:
    """Return the Trainer's setting; float16 with a scaler of gradients is given as a plugin, since this is a CPU."""
    if precision != "16-mixed":
        return {"precision": precision}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=2)  # too large: some steps are skipped
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


@pytest.mark.parametrize(
    ("precision", "accumulation"), [("32-true", 1), ("64-true", 2), ("bf16-mixed", 4), ("16-mixed", 2)]
)
def test_a_step_is_lightnings_to_the_bit(precision: Any, accumulation: int) -> None:
    settings = {**SETTINGS, "accumulate_grad_batches": accumulation}
    theirs, ours = classifier(ImageClassifier), classifier(SteppingClassifier)
    seen, mine = Seen(), Seen()
    trainer = pl.Trainer(**settings, **of(precision), callbacks=[seen])
    trainer.fit(theirs, train_dataloaders=batches())
    expected = outcome(trainer, theirs, seen)
    classifier(SteppingClassifier)  # so that dropout draws the same numbers
    trainer = pl.Trainer(**settings, **of(precision))
    fit(trainer, ours, batches(), after_batch=mine.on_train_batch_end)
    found = outcome(trainer, ours, mine)
    assert len(mine.losses) == 8
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


def test_it_stops_after_the_step_that_asks_for_it() -> None:
    seen: list[int] = []

    def stop(trainer: pl.Trainer, module: Any, losses: Any, batch: Any, index: int) -> None:
        seen.append(index)
        trainer.should_stop = index == 2

    fit(pl.Trainer(**SETTINGS), classifier(SteppingClassifier), batches(), after_batch=stop)
    assert seen == [0, 1, 2]


class WithoutClosure(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step by the gradients that are there."""


class Ended(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """End an iterator by mistake."""
        next(iter(()))


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        (WithoutClosure, UserError, "WithoutClosure.step does not call the closure"),
        (Ended, RuntimeError, "a step has raised StopIteration"),
    ],
)
def test_a_step_that_takes_none_ends_the_run(kind: Any, error: type[Exception], said: str) -> None:
    module = SteppingClassifier(SmallCNN(num_classes=5, width=4), lambda m: kind(m.parameters(), lr=0.1))
    with pytest.raises(error, match=said):
        fit(pl.Trainer(**SETTINGS), module, batches(), after_batch=Seen().on_train_batch_end)


def test_no_variable_of_the_surroundings_is_a_setting_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"MAX_EPOCHS": "9", "LIMIT_TRAIN_BATCHES": "2", "GRADIENT_CLIP_VAL": "1e-6", "PRECISION": "64-true"}
    for name, value in given.items():
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)
    trainer = make_trainer({"accelerator": "cpu", "logger": False, "enable_checkpointing": False}, [])
    untouched = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert (untouched.limit_train_batches, untouched.gradient_clip_val, untouched.precision) == (2, 1e-6, "64-true")
    assert (trainer.limit_train_batches, trainer.gradient_clip_val, trainer.precision) == (1.0, None, "32-true")
    assert trainer.max_epochs != 9
    assert {name: os.environ[f"PL_TRAINER_{name}"] for name in given} == given
