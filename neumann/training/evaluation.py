"""Evaluation of a run: loss and error at every point that the optimizer has, on a fixed grid of steps.

With several ranks (DDP), each evaluates its own share of the split, no image twice and none left out. The sums of loss,
errors and images are added over the ranks in float64 (`neumann.training.tally`), and the images counted must be as many
as the split has, else WrongShards is raised. Batch norm's buffers are rank 0's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from neumann.data.batches import Batches
from neumann.data.splits import Indices
from neumann.errors import UserError
from neumann.optim import at, points
from neumann.optim.batch_norm import recalibrated
from neumann.optim.lightning import eval_mode
from neumann.store.session import Measurement
from neumann.training.classifier import ImageClassifier
from neumann.training.distributed import RankGroup, WrongShards
from neumann.training.rate_schedules import RateSchedule
from neumann.training.step_lines import StepLogging
from neumann.training.tally import Tally

CHECK_EVERY = 50  # steps between looks at the loss for nan and inf; each look waits for the device
PointScores = dict[str, dict[str, float]]  # by point


@dataclass
class TrainingProgress:
    """The progress of a run, as plain numbers that a checkpoint holds."""

    step: int = 0  # steps taken
    examples: int = 0  # trained on, over all ranks
    gradient_evaluations: int = 0  # of a global batch; an optimizer may ask for several a step
    train_seconds: float = 0.0  # without what came before the first step of an attempt
    eval_seconds: float = 0.0  # in evaluations
    terms_seconds: float = 0.0  # in measurements of the optimizer's terms
    loss_sum: float = 0.0  # of training losses since the last evaluation, nats
    loss_steps: int = 0  # how many
    head_loss_sums: dict[str, float] = field(default_factory=dict)  # by head, as loss_sum, of a model with two
    line_steps: int = 0  # steps since the last step line
    line_seconds: float = 0.0  # train_seconds at that line
    line_loss_sums: dict[str, float] = field(default_factory=dict)  # of those steps, by key of a line
    diverged_at: int | None = None  # the step at which the loss was found not to be finite

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the numbers of a checkpoint."""
        counted = {"gradient_evaluations": state["step"]}  # which checkpoints of earlier versions lack
        for key, value in {**counted, **state}.items():
            setattr(self, key, value)


class Evaluated(NamedTuple):
    """The scores of a split by point, and which of its images were right.

    ``recalibrated`` are the scores with batch norm's statistics gathered again, None without calibration batches.
    ``right`` is bool [N] by point, in the order of the split, and ``right_recalibrated`` the same of ``recalibrated``;
    ``confusion`` is int64 [pairs, (class, answer, images)] by point. All three are empty unless they were asked for.
    """

    scores: PointScores
    recalibrated: PointScores | None
    right: dict[str, NDArray[np.bool_]]
    right_recalibrated: dict[str, NDArray[np.bool_]]
    confusion: dict[str, NDArray[np.int64]]


def evaluate(
    module: ImageClassifier,
    batches: Batches,
    group: RankGroup,
    calibration: Batches | None = None,
    *,
    by_image: bool = False,
) -> Evaluated:
    """Return the scores over ``batches`` at every point of the optimizer; weights, buffers and modes are put back.

    Args:
        module: the classifier, in its trainer.
        batches: this rank's share of a split.
        group: the ranks that evaluate together, each of which must call this.
        calibration: this rank's share of the batches from which batch norm's statistics are gathered again.
        by_image: whether to say of each image whether it was right, and which classes were taken for which.

    Returns:
        All of it over all ranks.

    Raises:
        WrongShards: the ranks together did not count as many images as the split has.
    """
    optimizer = module.trainer.optimizers[0]
    precision = module.trainer.precision_plugin
    found = Evaluated({}, {} if calibration is not None else None, {}, {}, {})

    def logits(images: Tensor) -> Tensor:
        with precision.val_step_context():
            out: Tensor = module(images)
            return out

    def count_over_all_ranks(point: str, right: dict[str, NDArray[np.bool_]]) -> dict[str, float]:
        tally = Tally(module.device)
        places, answers, pairs = [], [], []
        for batch in batches:
            images, labels = precision.convert_input(batch)
            predicted = tally.add(logits(images), labels)
            if by_image:
                places.append(batches.taken)
                answers.append(predicted == labels)
                pairs.append(torch.stack([labels, predicted], dim=1))
        counted = tally.scores(group)
        if counted["n"] != len(batches.plan.indices):
            raise WrongShards(f"an evaluation counted {counted['n']} examples of {len(batches.plan.indices)}")
        if by_image:
            right[point] = _in_order(places, answers, len(batches.plan.indices), group)
            if right is found.right:
                found.confusion[point] = _confused(pairs, group)
        return counted

    group.share_buffers(module)
    with torch.no_grad():
        for point in points(optimizer):
            with at(optimizer, point):
                with eval_mode(module):
                    found.scores[point] = count_over_all_ranks(point, found.right)
                if calibration is not None and found.recalibrated is not None:
                    inputs = (precision.convert_input(batch)[0] for batch in calibration)
                    with recalibrated(module, inputs, forward=logits, total=group.total):
                        found.recalibrated[point] = count_over_all_ranks(point, found.right_recalibrated)
    return found


def _in_order(places: list[Indices], answers: list[Tensor], count: int, group: RankGroup) -> NDArray[np.bool_]:
    """Return bool [count] of ``answers`` at ``places`` of all ranks. Raises WrongShards where an image is not there."""
    seen = np.zeros((2, count), dtype=np.int32)  # how often, and how often right
    at = np.concatenate(places)
    np.add.at(seen[0], at, 1)
    np.add.at(seen[1], at, torch.cat(answers).cpu().numpy())
    times, right = group.counts(seen)
    if (times != 1).any():
        raise WrongShards(f"an evaluation took {int((times != 1).sum())} images of {count} never or more than once")
    return right.astype(bool)


def _confused(pairs: list[Tensor], group: RankGroup) -> NDArray[np.int64]:
    """Return int64 [pairs, (class, answer, images)] of all ranks; each has [images, (class, answer)] in ``pairs``."""
    mine = torch.cat(pairs).cpu().numpy()
    found, images = np.unique(np.concatenate(group.gather(mine)), axis=0, return_counts=True)
    return np.column_stack([found, images]).astype(np.int64)


class Evaluation(pl.Callback):
    """Counts steps, evaluates on a grid of steps and after the last one, and stops a run that diverges.

    Args:
        progress: counted up here, once a step.
        schedule: the learning rate's.
        validation: this rank's batches of the validation split.
        group: the ranks that train the run.
        calibration: this rank's batches for `evaluate`, or None.
        every_steps: steps between two evaluations.
        total_steps: the run's.
        steps_per_epoch: the run's.
        batch_size: examples a step, over all ranks.
        report: takes each measurement.
        logging: makes the step lines, or None.
    """

    def __init__(
        self,
        progress: TrainingProgress,
        schedule: RateSchedule,
        validation: Batches,
        group: RankGroup,
        *,
        calibration: Batches | None,
        every_steps: int,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        report: Callable[[Measurement], None],
        logging: StepLogging | None = None,
    ) -> None:
        self.progress = progress
        self._schedule = schedule
        self._validation = validation
        self._calibration = calibration
        self._group = group
        self._every = every_steps
        self._total = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._report = report
        self._logging = logging
        self._pending: list[Mapping[str, Tensor]] = []  # losses of steps that are not read from the device yet, by key
        self._clock = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._clock = time.perf_counter()
        if self._logging is not None:
            self._logging.begin()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, then read the loss, log, evaluate or stop where that is due."""
        progress, logging = self.progress, self._logging
        if logging is not None:
            logging.after_step()
        progress.step += 1
        progress.examples += self._batch_size
        progress.gradient_evaluations += getattr(pl_module, "gradients", 1)
        progress.loss_steps += 1
        self._pending.append(outputs)
        due = progress.step % self._every == 0 or progress.step == self._total
        looks = due or progress.step % CHECK_EVERY == 0
        logs = logging is not None and logging.is_due(progress.step)
        if looks or logs:
            self.flush()
        if looks and not math.isfinite(progress.loss_sum):  # a line looks at none: its steps are the user's to choose
            progress.diverged_at = progress.step
        if logging is not None and (logs or progress.diverged_at is not None):
            logging.write(trainer.optimizers[0].param_groups[0], self._schedule.count)
        if due or progress.diverged_at is not None:
            self._measure(trainer, pl_module)
        if progress.diverged_at is not None:
            trainer.should_stop = True
        if batch_idx == 0 and trainer.precision != "16-mixed" and self._schedule.count == 0:
            name = type(trainer.optimizers[0]).__name__
            raise UserError(
                f"{name} runs no step hooks, so no schedule can move its rate: derive it from torch.optim.Optimizer"
            )

    def flush(self) -> None:
        """Add up the losses that are still on the device, of all ranks, and read the clock."""
        if self._pending:
            keys = ["loss", *(key for key in self._pending[0] if key != "loss")]
            losses = torch.stack([step[key] for step in self._pending for key in keys]).double()
            self._pending = []
            means = (self._group.total(losses) / self._group.world_size).view(-1, len(keys)).tolist()
            for step in means:  # one by one: the sums do not depend on how often this is called
                self._add_up(dict(zip(keys, step, strict=True)))
        now = time.perf_counter()
        self.progress.train_seconds += now - self._clock
        self._clock = now

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Count the block's time as ``terms_seconds`` instead of training's. Every rank must call this."""
        self.flush()
        try:
            yield
        finally:
            now = time.perf_counter()
            self.progress.terms_seconds += now - self._clock
            self._clock = now

    def _add_up(self, losses: Mapping[str, float]) -> None:
        """Add the losses of a step, the mean over all ranks, to the sums and to the next line's."""
        sums = self.progress.head_loss_sums
        for key, loss in losses.items():
            if key == "loss":
                self.progress.loss_sum += loss
            else:
                sums[key] = sums.get(key, 0.0) + loss
        if self._logging is not None:
            self._logging.add({f"train_{key}": loss for key, loss in losses.items()})

    def mean_loss(self) -> float:
        """Return the mean training loss since the last evaluation, in nats."""
        return self.progress.loss_sum / max(1, self.progress.loss_steps)

    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ImageClassifier)
        progress = self.progress
        found = evaluate(module, self._validation, self._group, self._calibration)
        now = time.perf_counter()
        progress.eval_seconds += now - self._clock
        self._clock = now
        measurement = {
            "step": progress.step,
            "epoch": progress.step / self._steps_per_epoch,
            "examples": progress.examples,
            "optimizer_step": self._schedule.count,
            "gradient_evaluations": progress.gradient_evaluations,
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "train_loss": self.mean_loss(),
            **{f"train_{key}": value / progress.loss_steps for key, value in progress.head_loss_sums.items()},
            "train_seconds": round(progress.train_seconds, 4),
            "eval_seconds": round(progress.eval_seconds, 4),
            "validation": found.scores,
            **({"validation_recalibrated": found.recalibrated} if found.recalibrated is not None else {}),
        }
        progress.loss_sum, progress.loss_steps, progress.head_loss_sums = 0.0, 0, {}
        self._report(measurement)
