"""The display of a run that trains: a bar on a terminal, a line per evaluation elsewhere."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from neumann.errors import printable
from neumann.store.scores import headline
from neumann.store.session import Measurement
from neumann.training.evaluation import Evaluation

REFRESH_S = 0.25  # reading the loss waits for the device, so it is read at most this often


def _speed(steps_per_second: float) -> str:
    """Write a speed; a step of many accumulated micro-batches takes longer than a second."""
    return f"{steps_per_second:.0f}" if steps_per_second >= 10 else f"{steps_per_second:.2g}"


class Display(pl.Callback):
    """Shows the learning rate, the training loss, the validation error and the speed of a run.

    Args:
        console: a terminal or not; quiet on other ranks than 0.
        evaluation: knows how far the run is.
        name: the run's.
        total_steps: the run's.
    """

    def __init__(self, console: Console, evaluation: Evaluation, *, name: str, total_steps: int) -> None:
        self._console = console
        self._evaluation = evaluation
        self._name = Text(printable(name))
        self._total = total_steps
        self._error = "–"
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._shown = 0.0
        self._clock = (0.0, 0)  # time and step of the last refresh

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar, on a terminal."""
        self._clock = (time.perf_counter(), self._evaluation.progress.step)
        if not self._console.is_terminal:
            return
        self._console.print(self._name)
        self._bar = RichProgress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=self._total, completed=self._evaluation.progress.step, metrics="")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh the bar a few times a second."""
        now = time.perf_counter()
        if self._bar is None or self._task is None or now - self._shown < REFRESH_S:
            return
        self._shown = now
        then, step_then = self._clock
        step = self._evaluation.progress.step
        speed = (step - step_then) / max(now - then, 1e-9)
        self._clock = (now, step)
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        metrics = f"lr {rate:.3g}  loss {float(outputs['loss']):.3f}  val error {self._error}  {_speed(speed)} it/s"
        self._bar.update(self._task, completed=step, metrics=metrics)

    def measured(self, measurement: Measurement) -> None:
        """Show an evaluation; without a bar, print it as a line."""
        scores = headline(measurement["validation"])
        self._error = f"{100 * scores['error']:.2f} %"
        if self._bar is None:
            self._console.print(
                self._name + f"  step {measurement['step']}/{self._total}  epoch {measurement['epoch']:.4g}  "
                f"lr {measurement['lr']:.3g}  loss {measurement['train_loss']:.4f}  val error {self._error}",
                soft_wrap=True,
            )

    def close(self) -> None:
        """Remove the bar, however training ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
