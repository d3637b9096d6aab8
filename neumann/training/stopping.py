"""How does Ctrl-C leave a clean run? The first is noted, the run stops after its step; the second is Python's own.

The same for SIGTERM, and for SIGUSR1 and SIGUSR2, by which clusters say that the time is nearly up. Where several ranks
train, a signal reaches them at different steps, or only some of them; they agree on the step to stop after.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from neumann.processes.signals import STOP_SIGNALS
from neumann.training.distributed import Asked, RankGroup


class Stop(pl.Callback):
    """Remembers which signal asked the run to stop, and stops it after the step in hand, or the one after it.

    Several ranks ask each other at every step and read the answer at the next, so that nobody waits for it.
    """

    def __init__(self, group: RankGroup) -> None:
        self.signal: int | None = None
        self._group = group
        self._question: Asked | None = None
        self._agreed = False

    def asked(self) -> bool:
        """Return whether a signal has come to this process."""
        return self.signal is not None

    def agreed(self) -> bool:
        """Return whether all ranks stop after this step."""
        return self._agreed

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the trainer."""
        if self._group.world_size == 1:
            self._agreed = self.asked()
        else:
            agreed = self._question.answer() if self._question is not None else 0
            self._agreed = agreed > 0
            if self._agreed:
                self.signal = agreed  # the others' may be the only one
            self._question = None if self._agreed else self._group.ask(self.signal or 0)
        if self._agreed:
            trainer.should_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals within the block. Outside the main thread, where Python allows no handler, it does
        nothing.

        Lightning turns KeyboardInterrupt into SystemExit(1) and ignores later ones, so the trainer must not see the
        first.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            if self.signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            if self.signal is None:  # a cluster sends several, to the job and to each of its processes
                self.signal = number

        before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
