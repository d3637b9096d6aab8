"""How does Ctrl-C leave a clean run? The first is noted, the run stops after its step; the second is Python's own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytorch_lightning as pl

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))


class Stop(pl.Callback):
    """Remembers which signal asked the run to stop, and stops it after the step in hand."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def asked(self) -> bool:
        """Return whether a signal has come."""
        return self.signal is not None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the trainer."""
        if self.asked():
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
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = number

        before = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
