"""One attempt at a run: trained from its first step to its last, evaluated, and recorded however it ends.

Every rank goes the same way; rank 0 alone writes, shows and mirrors.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer

from neumann import compat
from neumann.config import RunSpec
from neumann.config.inner_loop import batches_a_step, images_at_once
from neumann.config.schema import batch_split, rate_factor_of
from neumann.errors import EXIT_INTERRUPTED, Interrupted, ending_of
from neumann.optim import eval_point
from neumann.store.scores import headline
from neumann.store.session import Follower, Measurement, Session
from neumann.training import stepping
from neumann.training.census import Census
from neumann.training.checkpoints import Checkpointing, Randomness, Stream, TrainingState, eval_weights
from neumann.training.display import Display
from neumann.training.distributed import RankGroup
from neumann.training.evaluation import Evaluation, TrainingProgress, evaluate
from neumann.training.measured_terms import terms_measuring
from neumann.training.mirror import Mirror
from neumann.training.mirror_rows import summary_of
from neumann.training.parts import Parts
from neumann.training.spectral import spectrum_measuring
from neumann.training.step_lines import StepLogging, StepNorms
from neumann.training.stopping import Stop


class _InTurn(pl.Callback):
    """Several callbacks as one, called once an optimizer step; the census sees every micro-batch.

    They are called with the step's number in this attempt, and with the mean losses of its micro-batches, each of which
    has been divided by their number already. Lightning calls the hooks of the run's start and end, and
    `neumann.training.stepping` the one after each micro-batch. `StepLogging` is called before the optimizer steps, too,
    when the gradients are whole.

    Args:
        callbacks: called in this order.
        census: counts the examples of every micro-batch.
        accumulation: micro-batches in a step.
        logging: makes the step lines, or None.
    """

    def __init__(
        self, callbacks: list[pl.Callback], census: Census, accumulation: int, logging: StepLogging | None
    ) -> None:
        self._callbacks, self._census, self._accumulation = callbacks, census, accumulation
        self._logging = logging
        self._losses: dict[str, Tensor] = {}  # of the micro-batches of the step under way

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for callback in self._callbacks:
            callback.on_train_start(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if self._logging is not None:
            self._logging.before_step(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._census.count(batch)
        for key, loss in outputs.items():
            self._losses[key] = self._losses[key] + loss if key in self._losses else loss
        step, left = divmod(batch_idx + 1, self._accumulation)
        if left:  # a signal, too, waits for the end of the step, where a checkpoint can be
            return
        mean, self._losses = self._losses, {}
        for callback in self._callbacks:
            callback.on_train_batch_end(trainer, pl_module, mean, batch, step - 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for callback in self._callbacks:
            callback.on_train_end(trainer, pl_module)


class _FirstAndLast(pl.Callback):
    """Calls ``first`` after the first step, and ``last`` at the end while everything is still on the device."""

    def __init__(self, first: Callable[[], None], last: Callable[[pl.Trainer], None]) -> None:
        self._first: Callable[[], None] | None = first
        self._last = last

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._first is not None:
            self._first()
            self._first = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last(trainer)


class Attempt:
    """One attempt at a run, from its first to its last step.

    Args:
        spec: the run.
        session: the run's files, as rank 0 or another rank has them; the attempt has begun there.
        parts: those that `neumann.training.parts.build_parts` built on this rank.
        console: where the run is shown; quiet on other ranks than 0.
        group: the ranks that train the run.
        mirror: the W&B run, None on other ranks than 0 and without W&B.
    """

    def __init__(
        self,
        spec: RunSpec,
        session: Session | Follower,
        parts: Parts,
        console: Console,
        group: RankGroup,
        mirror: Mirror | None,
    ) -> None:
        self.spec, self.session, self.parts, self.group, self.mirror = spec, session, parts, group, mirror
        derived = spec.config.derived
        self.progress = TrainingProgress()
        self.batches = {
            "training": parts.data.train_dataloader(),
            "validation": parts.data.val_dataloader(),
            "test": parts.data.test_dataloader(),
        }
        recalibrate = spec.config.recipe.recalibrate_batch_norm
        self.calibration = parts.data.calibration_batches(recalibrate) if recalibrate else None
        self.logging = self._step_logging()
        self.evaluation = Evaluation(
            self.progress,
            parts.schedule,
            self.batches["validation"],
            group,
            calibration=self.calibration,
            every_steps=derived.eval_every_steps,
            total_steps=derived.total_steps,
            steps_per_epoch=derived.steps_per_epoch,
            batch_size=spec.config.batch.size * batches_a_step(spec.config),
            report=self._measured,
            logging=self.logging,
        )
        termed = partial(self._logged, of_terms=True)
        self.terms = terms_measuring(spec.config, self.evaluation, parts.schedule, group, termed)
        self.spectrum = spectrum_measuring(spec.config, parts.schedule, self.progress, group)
        self.census = Census(spec, group, self.batches, self.progress)
        self.stop = Stop(group)
        self.display = Display(console, self.evaluation, name=spec.name, total_steps=derived.total_steps)
        self.checkpointing: Checkpointing | None = None
        self.first_step_at: float | None = None
        self.result: dict[str, Any] | None = None

    def fit(self, state: dict[str, Any] | None) -> dict[str, Any]:
        """Train, evaluate and record, from ``state`` if there is one; return the result.

        Every exit leaves a status and a finished mirror. Raises Interrupted where a signal stopped the run, and
        the exception itself where another one ended it.
        """
        summary: dict[str, Any] = {"status": "failed"}
        exit_code = 1
        with self.session.training(self.progress.step, self.stop.request), self.stop.listening():
            try:
                if self.mirror is not None:  # a new W&B run for the attempt, whole from the start
                    self.mirror.log_past(self.session.steps, self.session.measurements, self.session.terms)
                self._train(state)
                if self.result is None:
                    raise KeyboardInterrupt
                summary, exit_code = summary_of(self.result), 0
                return self.result
            except (KeyboardInterrupt, SystemExit) as error:
                # Lightning makes a SystemExit of a second Ctrl-C
                asked = self.stop.asked() or self.stop.agreed() or isinstance(error.__context__, KeyboardInterrupt)
                if isinstance(error, SystemExit) and not asked:
                    self._failed(error)
                    raise
                self.session.interrupted(self.progress.step)
                summary, exit_code = {"status": "interrupted"}, EXIT_INTERRUPTED
                raise self._stopped(state) from None
            except Exception as error:
                with contextlib.suppress(OSError):  # a full disk has no room for a status: then the run is found dead
                    self._failed(error)
                    error.add_note(f"traceback in {self.session.path / 'error.txt'}")
                raise
            finally:
                self.display.close()
                if self.mirror is not None:
                    self.mirror.finish(summary, exit_code)

    def _stopped(self, state: dict[str, Any] | None) -> Interrupted:
        """Return what says at which step a signal has stopped the run, and where the same command goes on.

        A second Ctrl-C does not wait for the step's end and its checkpoint. ``state`` is what the attempt began from.
        """
        step = self.progress.step
        saved = self.checkpointing.saved if self.checkpointing is not None else None
        saved = state["global_step"] if saved is None and state is not None else saved
        said = f"stopped at step {step} of {self.spec.name}"
        if saved is None:
            stopped = Interrupted(f"{said}, without a checkpoint")
            stopped.again = "begins anew"
        else:
            stopped = Interrupted(said if saved == step else f"{said}, whose last checkpoint is of step {saved}")
        stopped.signal = self.stop.signal
        return stopped

    def _failed(self, error: BaseException) -> None:
        rank = self.group.rank if self.group.world_size > 1 else None
        _, message = ending_of(error)
        self.session.failed(self.progress.step, message, traceback.format_exc(), rank)

    def _measured(self, measurement: Measurement) -> None:
        self.group.on_main(self.parts.data.check_stream)  # before a checkpoint and the record take on what was read
        self.session.measured(measurement)
        self.display.measured(measurement)
        if self.mirror is not None:
            self.mirror.log(measurement)

    def _step_logging(self) -> StepLogging | None:
        """Return what makes the step lines, None without any; every rank has it, since all fetch their losses then."""
        trainer, derived = self.spec.config.trainer, self.spec.config.derived
        if trainer.log_every_n_steps == 0:
            return None
        norms = StepNorms(gradient=trainer.track_grad_norm, update=trainer.track_update_norm)
        return StepLogging(
            self.progress,
            every=trainer.log_every_n_steps,
            total_steps=derived.total_steps,
            steps_per_epoch=derived.steps_per_epoch,
            batch_size=self.spec.config.batch.size * batches_a_step(self.spec.config),
            norms=norms if self.group.is_main and norms.asked else None,
            report=self._logged,
        )

    def _logged(self, line: dict[str, Any], *, of_terms: bool = False) -> None:
        (self.session.termed if of_terms else self.session.logged)(line)
        if self.mirror is not None:
            (self.mirror.log_terms if of_terms else self.mirror.log_step)(line)

    def _train(self, saved: dict[str, Any] | None) -> None:
        config = self.spec.config
        state = TrainingState(self.spec.signature, self.group, self.progress, self.parts.schedule, self.census)
        Randomness.seed(config.seed, self.group.rank)  # a resumed run loads where they were instead
        if saved is not None:
            state.take(saved)
        terms = [self.terms] if self.terms is not None else []  # before the checkpoint, which holds their lines
        callbacks: list[pl.Callback] = [state, self.census, self.stop, self.evaluation, *terms]
        if config.checkpoint.keep != "none":
            self.checkpointing = Checkpointing(
                self.session,
                self.evaluation,
                state,
                self.group,
                self.stop.agreed,
                total_steps=config.derived.total_steps,
            )
            callbacks.append(self.checkpointing)
        callbacks += [self.display, _FirstAndLast(self._begun, self._finish)]
        accumulation = self.batches["training"].plan.accumulation
        in_turn = _InTurn(callbacks, self.census, accumulation, self.logging)
        trainer = stepping.make_trainer(self.parts.trainer_options, [in_turn])
        compat.leave_signals_to_us(trainer)
        stream = Stream(self.batches["training"], self.progress.step, config.derived.total_steps)
        stepping.fit(
            trainer,
            self.parts.module,
            stream,
            before_step=in_turn.on_before_optimizer_step,
            after_batch=in_turn.on_train_batch_end,
            before_batch=[each.before_batch for each in (self.spectrum, self.terms) if each is not None],
        )

    def _begun(self) -> None:
        """Take note of the first step of this attempt."""
        self.first_step_at = time.time()
        if self.mirror is not None:
            self.mirror.begin()

    def _finish(self, trainer: pl.Trainer) -> None:
        """Evaluate and record a run that has come to its end; one that was stopped before has no result."""
        progress = self.progress
        if progress.diverged_at is None and progress.step < self.spec.config.derived.total_steps:
            return
        result, right, confused = self._result(trainer)
        kept = self.spec.config.checkpoint.keep != "none" and result["status"] == "finished"
        weights = self._eval_weights(trainer) if kept and self.group.is_main else None
        result = self.session.finish(result, weights, right, confused)
        self.result = self.group.broadcast(result)  # no rank leaves before it is written

    def _result(
        self, trainer: pl.Trainer
    ) -> tuple[dict[str, Any], dict[str, NDArray[np.bool_]], NDArray[np.int64] | None]:
        """Return the result, which test images were right, by the keys of `neumann.store.per_image`, and the confusion.

        A run that diverged, and one that is not to be tested, has neither.
        """
        progress, measured = self.progress, self.session.measurements
        diverged, point = progress.diverged_at is not None, eval_point(trainer.optimizers[0])
        test, again, right, confused = None, None, {}, None
        if not diverged and self.spec.config.trainer.test:
            found = evaluate(self.parts.module, self.batches["test"], self.group, self.calibration, by_image=True)
            test, again = found.scores, found.recalibrated
            right = {f"test.{point}": row for point, row in found.right.items()}
            right |= {f"test_recalibrated.{point}": row for point, row in found.right_recalibrated.items()}
            confused = found.confusion[point]
            self.group.on_main(self.parts.data.check_stream)
        errors = [headline(m["validation"])["error"] for m in measured]
        only = {}  # of some runs
        if self.calibration is not None:
            last = measured[-1]["validation_recalibrated"]
            only = {"validation_recalibrated": last, "test_recalibrated": again}
        config, split = self.spec.config, batch_split(self.spec.config)
        rate, factor = config.optimizer.get("lr"), rate_factor_of(config)
        result = {
            "status": "diverged" if diverged else "finished",
            "signature": self.spec.signature,
            "name": self.spec.name,
            "study": self.spec.config.study,
            "eval_point": point,
            "step": progress.step,
            "examples": progress.examples,
            "epoch": progress.step / self.spec.config.derived.steps_per_epoch,
            "world_size": self.group.world_size,
            "batch": {
                "asked": config.derived.asked_batch_size or config.batch.size,
                "size": config.batch.size,
                "micro_batch": split.micro_batch,
                "accumulation": split.accumulation,
                "devices": split.devices,
                "norm_size": config.batch.norm_size or images_at_once(config),
            },
            "lr": {
                "given": rate,
                "factor": factor,
                "scaled": None if rate is None else rate * factor,
            },
            **self._start(),
            "distinct_examples": {
                "training": self.census.distinct,
                "validation": headline(measured[-1]["validation"])["n"],
                "test": headline(test)["n"] if test else None,
            },
            "validation": measured[-1]["validation"],
            "test": test,
            **only,
            "best_validation_error": min(errors),  # of the curve, hence optimistic
            **{key: value for key, value in measured[-1].items() if key.startswith("train_loss")},
            "train_seconds": progress.train_seconds,
            "eval_seconds": progress.eval_seconds,
            **({"terms_seconds": progress.terms_seconds} if self.terms is not None else {}),
            **({"spectrum": self.spectrum.record()} if self.spectrum is not None else {}),
            "attempts": self.session.attempt,
            "device": str(self.parts.module.device),
            "wandb": self.spec.config.logger.mode if self.spec.config.logger.kind == "wandb" else None,
            "first_step_at": self.first_step_at,  # of the last attempt, in seconds since 1970, as time is
            "time": time.time(),
        }
        return result, right, confused

    def _start(self) -> dict[str, Any]:
        start = self.parts.start
        return {} if start is None else {"start": start.record(self.spec.weights["model.checkpoint"])}

    def _eval_weights(self, trainer: pl.Trainer) -> bytes:
        """Return the content of eval-weights.pt."""
        description = {
            "signature": self.spec.signature,
            "model": {
                **self.spec.section("model"),
                "num_classes": self.parts.data.num_classes,
                "in_chans": self.parts.data.in_chans,
            },
            "data": {
                "class_names": list(self.spec.facts.class_names),
                "image_size": list(self.spec.facts.image_size),
                "mean": list(self.parts.data.mean),
                "std": list(self.parts.data.std),
            },
        }
        return eval_weights(self.parts.module, trainer.optimizers[0], description)
