"""Count of an evaluation: cross-entropy and errors, summed over batches and then over ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from neumann.training.distributed import RankGroup


class Tally:
    """The sums of one evaluation, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device if device.type != "mps" else "cpu")
        self.n = 0

    def add(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Count a batch: logits [B, classes], labels [B]. Return the answers, int64 [B] on their device."""
        logits = logits.float()
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        predicted = logits.argmax(dim=1)
        self._sums += torch.stack([loss.to(self._sums), (predicted != labels).sum().to(self._sums)])
        self.n += len(labels)
        return predicted

    def scores(self, group: RankGroup | None = None) -> dict[str, float]:
        """Return ``loss`` (mean cross-entropy, nats), ``error`` (top-1, a fraction), ``wrong`` and ``n`` (images).

        With ``group`` they are those of all its ranks together, each of which must call this.
        """
        sums = torch.cat([self._sums.cpu(), torch.tensor([self.n], dtype=torch.float64)])
        loss, wrong, n = (sums if group is None else group.total(sums)).tolist()
        return {"loss": loss / n, "error": wrong / n, "wrong": int(wrong), "n": int(n)}
