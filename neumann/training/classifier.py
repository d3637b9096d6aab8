"""What does Lightning train? A classifier under cross-entropy that is always judged at its optimizer's eval point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from neumann.optim import at, eval_point
from neumann.training.distributed import Group

Batch = tuple[Tensor, Tensor]


class Tally:
    """Counts over an evaluation, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device if device.type != "mps" else "cpu")
        self.n = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits [B, classes], labels [B]."""
        logits = logits.float()
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        wrong = (logits.argmax(dim=1) != labels).sum()
        self._sums += torch.stack([loss.to(self._sums), wrong.to(self._sums)])
        self.n += len(labels)

    def scores(self, group: Group | None = None) -> dict[str, float]:
        """Return mean cross-entropy (nats), top-1 error (a fraction), and how many were wrong out of how many.

        With ``group`` they are those of all its ranks together, each of which must ask.
        """
        sums = torch.cat([self._sums.cpu(), torch.tensor([self.n], dtype=torch.float64)])
        loss, wrong, n = (sums if group is None else group.total(sums)).tolist()
        return {"loss": loss / n, "error": wrong / n, "wrong": int(wrong), "n": int(n)}


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put ``module`` into eval mode within the block, then each part back into its own: frozen norms stay so."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


class ImageClassifier(pl.LightningModule):
    """A classifier for `pytorch_lightning.Trainer`.

    ``optimizer`` makes the optimizer from the network: ``ImageClassifier(model, lambda m: Neumann(m.parameters(),
    lr=0.1))``. Validation, test and prediction move the weights to the optimizer's eval point (w − μm for Neumann and
    for Nesterov momentum) and back bit for bit, so they never change training. Where there is no optimizer
    (``trainer.test`` on a fresh module) the weights are taken as they are: load those of an eval point.
    """

    def __init__(
        self, model: nn.Module, optimizer: Callable[[nn.Module], Optimizer], *, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self._make_optimizer = optimizer
        self._evaluation = ExitStack()
        self._tally: Tally | None = None

    def configure_optimizers(self) -> Optimizer:
        """Make the optimizer."""
        return self._make_optimizer(self.model)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of images [B, C, H, W]."""
        logits: Tensor = self.model(x)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch.

        Nothing is logged here: `self.log` in every step costs 15 % on small models.
        """
        images, labels = batch
        return functional.cross_entropy(self.model(images), labels, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch for ``val_loss`` and ``val_error``."""
        self._count(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch for ``test_loss`` and ``test_error``."""
        self._count(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return class probabilities [B, classes]."""
        return self.model(batch[0]).softmax(dim=1)

    def _count(self, batch: Batch) -> None:
        if self._tally is None:
            self._tally = Tally(self.device)
        images, labels = batch
        self._tally.add(self.model(images), labels)

    def on_validation_epoch_end(self) -> None:
        """Log the validation scores once."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the test scores once."""
        self._log_scores("test")

    def _log_scores(self, prefix: str) -> None:
        tally, self._tally = self._tally, None
        if tally is not None:
            scores = tally.scores()
            self.log_dict({f"{prefix}_{key}": scores[key] for key in ("loss", "error")}, prog_bar=True)

    def _enter(self) -> None:
        self._evaluation.enter_context(eval_mode(self))
        if self.trainer.optimizers:
            optimizer = self.trainer.optimizers[0]
            self._evaluation.enter_context(at(optimizer, eval_point(optimizer)))

    def _leave(self) -> None:
        self._evaluation.close()

    def on_validation_model_eval(self) -> None:
        """Move to the eval point."""
        self._enter()

    def on_validation_model_train(self) -> None:
        """Move back, bit for bit."""
        self._leave()

    def on_test_model_eval(self) -> None:
        """Move to the eval point."""
        self._enter()

    def on_test_model_train(self) -> None:
        """Move back, bit for bit."""
        self._leave()

    def on_predict_model_eval(self) -> None:
        """Move to the eval point."""
        self._enter()

    def on_predict_model_train(self) -> None:
        """Move back, bit for bit."""
        self._leave()
