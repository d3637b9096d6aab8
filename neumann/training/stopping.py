"""Stop of training at SIGTERM, Ctrl-C or a cluster's signal: after the current step, with a checkpoint.

The first signal is noted, and a second Ctrl-C raises KeyboardInterrupt. Where several ranks train, a signal reaches
them at different steps, or only some of them, so they agree on the step to stop after.
"""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from typing import Any

import pytorch_lightning as pl

from neumann.processes.signals import listening
from neumann.training.distributed import Asked, RankGroup


class Stop(pl.Callback):
    """Remembers the signal that asked the run to stop, and stops it after the current step or the next.

    Several ranks ask each other at every step and read the answer at the next, so none waits for it.
    """

    def __init__(self, group: RankGroup) -> None:
        self.signal: int | None = None
        self._group = group
        self._pending: Asked | None = None
        self._agreed = False

    def asked(self) -> bool:
        """Return whether this process has been asked to stop."""
        return self.signal is not None

    def agreed(self) -> bool:
        """Return whether all ranks stop after this step."""
        return self._agreed

    def request(self, number: int = signal.SIGTERM) -> None:
        """Ask the run to stop as signal ``number`` does; the first request counts. Safe to call from any thread."""
        if self.signal is None:  # a cluster sends several, to the job and to each of its processes
            self.signal = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the trainer where this rank, or with several ranks any of them, was asked."""
        if self._group.world_size == 1:
            self._agreed = self.asked()
        else:
            agreed = self._pending.answer() if self._pending is not None else 0
            self._agreed = agreed > 0
            if self._agreed:
                self.signal = agreed  # it may have come to another rank alone
            self._pending = None if self._agreed else self._group.ask(self.signal or 0)
        if self._agreed:
            trainer.should_stop = True

    def listening(self) -> AbstractContextManager[None]:
        """Handle the stop signals within the block, in the main thread; elsewhere Python allows no handlers.

        Lightning turns KeyboardInterrupt into SystemExit(1) and ignores later ones, so it must not see the first.
        """
        return listening(self._heard)

    def _heard(self, number: int) -> None:
        if self.asked() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.request(number)
