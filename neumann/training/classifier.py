"""What does Lightning train? A classifier under cross-entropy that is always judged at its optimizer's eval point."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from neumann.optim.lightning import AtEvalPoint
from neumann.training.distributed import RankGroup

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

    def scores(self, group: RankGroup | None = None) -> dict[str, float]:
        """Return mean cross-entropy (nats), top-1 error (a fraction), and how many were wrong out of how many.

        With ``group`` they are those of all its ranks together, each of which must ask.
        """
        sums = torch.cat([self._sums.cpu(), torch.tensor([self.n], dtype=torch.float64)])
        loss, wrong, n = (sums if group is None else group.total(sums)).tolist()
        return {"loss": loss / n, "error": wrong / n, "wrong": int(wrong), "n": int(n)}


class ImageClassifier(AtEvalPoint, pl.LightningModule):
    """A classifier for `pytorch_lightning.Trainer`.

    ``optimizer`` makes the optimizer from the network: ``ImageClassifier(model, lambda m: Neumann(m.parameters(),
    lr=0.1))``. Validation, test, prediction and checkpoints are at the optimizer's eval point, see
    :class:`neumann.optim.lightning.AtEvalPoint`.
    """

    def __init__(
        self, model: nn.Module, optimizer: Callable[[nn.Module], Optimizer], *, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self._make_optimizer = optimizer
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
