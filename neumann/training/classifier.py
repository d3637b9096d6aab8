"""The LightningModule: a classifier under cross-entropy, evaluated at its optimizer's eval point."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from neumann.optim.lightning import AtEvalPoint
from neumann.training.tally import Tally

Batch = tuple[Tensor, Tensor]  # images [B, C, H, W], labels [B]


class ImageClassifier(AtEvalPoint, pl.LightningModule):
    """A classifier for `pytorch_lightning.Trainer`: ``ImageClassifier(model, lambda m: Neumann(m.parameters(), 0.1))``.

    Validation, test, prediction and checkpoints are at the optimizer's eval point, see
    :class:`neumann.optim.lightning.AtEvalPoint`. Its scores count this process's batches alone; those of a run are
    counted over all ranks by `neumann.training.evaluation`.

    Args:
        model: maps images [B, C, H, W] to logits [B, classes].
        optimizer: makes the optimizer from ``model``.
        label_smoothing: share of the target spread over all classes, in [0, 1); in training alone.
        auxiliary_weight: of the loss of an auxiliary head, beside the main one's. ``model`` then returns two tensors of
            logits, the main head's first; in evaluation the main head alone counts. None: there is no such head.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[nn.Module], Optimizer],
        *,
        label_smoothing: float = 0.0,
        auxiliary_weight: float | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.auxiliary_weight = auxiliary_weight
        self._make_optimizer = optimizer
        self._tally: Tally | None = None

    def configure_optimizers(self) -> Optimizer:
        """Return the optimizer."""
        return self._make_optimizer(self.model)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of images [B, C, H, W], the main head's."""
        out = self.model(x)
        logits: Tensor = out if self.auxiliary_weight is None else out[0]
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | dict[str, Tensor]:
        """Return the mean cross-entropy of a batch, in nats.

        With an auxiliary head it is that of both, beside each head's own under ``loss_main`` and ``loss_auxiliary``.

        Nothing is logged here: `self.log` in every step costs 15 % on small models.
        """
        images, labels = batch
        out = self.model(images)
        if self.auxiliary_weight is None:
            return self._loss(out, labels)
        main, auxiliary = (self._loss(logits, labels) for logits in out)
        loss = main + self.auxiliary_weight * auxiliary
        return {"loss": loss, "loss_main": main.detach(), "loss_auxiliary": auxiliary.detach()}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch for ``val_loss`` and ``val_error``."""
        self._count(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch for ``test_loss`` and ``test_error``."""
        self._count(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return class probabilities [B, classes]."""
        probabilities: Tensor = self(batch[0]).softmax(dim=1)
        return probabilities

    def _count(self, batch: Batch) -> None:
        if self._tally is None:
            self._tally = Tally(self.device)
        images, labels = batch
        self._tally.add(self(images), labels)

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
