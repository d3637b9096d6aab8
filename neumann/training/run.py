"""How does a specification become a result? Claimed, built, trained, evaluated, recorded: the story of one run."""

from __future__ import annotations

import logging
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from rich.console import Console

from neumann.config import RunSpec
from neumann.data.module import ImageData
from neumann.data.module import build as build_data
from neumann.errors import Interrupted, UserError, first_line
from neumann.optim import WeightAverage, eval_point, points
from neumann.runs import RunFolder, find
from neumann.runs.files import read_json, replace_file, write_json
from neumann.runs.folder import remove_refused
from neumann.runs.panel import headline
from neumann.runs.provenance import provenance
from neumann.seeds import AXES, derive
from neumann.training.build import build_schedule
from neumann.training.checkpoints import Checkpointing, Resume, Stream, load_training_state, write_eval_weights
from neumann.training.classifier import ImageClassifier
from neumann.training.display import Display
from neumann.training.evaluation import Evaluation, Measurement, Progress, evaluate
from neumann.training.mirror import Mirror
from neumann.training.models import build_model
from neumann.training.optimizers import build_optimizer
from neumann.training.schedules import RateSchedule
from neumann.training.stopping import Stop


@dataclass
class _Parts:
    """What is built before anything trains; building it finds every error in the configuration."""

    data: ImageData
    module: ImageClassifier
    trainer_options: dict[str, Any]
    schedules: list[RateSchedule]  # one, from the moment that Lightning makes the optimizer

    def schedule(self) -> RateSchedule:
        return self.schedules[-1]


def run(spec: RunSpec, console: Console | None = None, *, threads: int | None = None) -> dict[str, Any]:
    """Train ``spec`` to its end, or return its result at once where it is over, and return the content of result.json.

    ``threads`` are torch's on the CPU, by default all cores.

    Raises UserError where the configuration is wrong (nothing is left behind then) and Interrupted where a signal
    stopped the run. Any other exception leaves the run as ``failed`` with its traceback in error.txt.
    """
    console = console or Console()
    _quieten()
    if threads is not None:
        torch.set_num_threads(threads)
    folder = find(spec)
    fresh = not folder.path.exists()
    with folder.claim():
        result = folder.result()
        if result is not None:
            return result
        try:
            parts = _build(spec)
            state = None if spec.config.checkpoint.keep == "none" else load_training_state(folder.last, spec.signature)
            attempt = int(folder.status().get("attempt", 0)) + 1
            record = _record(spec, folder, attempt)
            measured = folder.rewind_measurements(state["progress"]["step"] if state else 0)
            mirror = Mirror(spec, folder.path, record, attempt) if spec.config.logger.kind == "wandb" else None
        except (UserError, KeyboardInterrupt) as stop:
            if fresh:  # nothing was trained, so nothing is left
                remove_refused(folder)
            elif isinstance(stop, KeyboardInterrupt):
                folder.set_status("interrupted", attempt=folder.status().get("attempt", 0))
            raise
        return _Attempt(spec, folder, parts, console, attempt, mirror, measured).fit(state)


class _InTurn(pl.Callback):
    """Several callbacks as one: Lightning spends time on every hook of every callback, also on empty ones."""

    def __init__(self, callbacks: list[pl.Callback]) -> None:
        self._callbacks = callbacks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for callback in self._callbacks:
            callback.on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for callback in self._callbacks:
            callback.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class _Attempt:
    """One attempt at a run, from its first to its last step."""

    def __init__(
        self,
        spec: RunSpec,
        folder: RunFolder,
        parts: _Parts,
        console: Console,
        attempt: int,
        mirror: Mirror | None,
        measured: list[Measurement],
    ) -> None:
        self.spec, self.folder, self.parts = spec, folder, parts
        self.attempt = attempt
        self.mirror = mirror
        self.measured = measured
        derived = spec.config.derived
        self.progress = Progress()
        self.evaluation = Evaluation(
            self.progress,
            parts.schedule,
            parts.data.val_dataloader(),
            every_steps=derived.eval_every_steps,
            total_steps=derived.total_steps,
            steps_per_epoch=derived.steps_per_epoch,
            batch_size=spec.config.batch.size,
            report=self._measured,
        )
        self.stop = Stop()
        self.display = Display(console, self.evaluation, name=spec.name, total_steps=derived.total_steps)

    def fit(self, state: dict[str, Any] | None) -> dict[str, Any]:
        """Train, evaluate and record; every way out leaves a status and a finished mirror."""
        summary: dict[str, Any] = {}
        exit_code = 1
        self.folder.error.unlink(missing_ok=True)
        self._set_status("running")
        try:
            with self.folder.heartbeat(), self.stop.listening():
                for measurement in self.measured:
                    if self.mirror is not None:  # a new W&B run for the attempt, whole from the start
                        self.mirror.log(measurement)
                trainer = self._train(state)
                if self.progress.diverged_at is None and self.progress.step < self.spec.config.derived.total_steps:
                    raise KeyboardInterrupt
                result = self._result(trainer)
                self._keep_and_finish(trainer, result)  # a Ctrl-C from here on is too late to interrupt anything
            summary = _summary(result)
            exit_code = 0
            return result
        except (KeyboardInterrupt, SystemExit) as error:
            # Lightning makes a SystemExit of a second Ctrl-C, and one of every SIGTERM at the end of its step
            asked = self.stop.asked() or isinstance(error.__context__, KeyboardInterrupt)
            if isinstance(error, SystemExit) and not asked:
                self._set_status("failed", message=f"the program left with exit code {error.code}")
                raise
            self._set_status("interrupted")
            summary, exit_code = {"status": "interrupted"}, 130
            raise Interrupted(f"stopped at step {self.progress.step} of {self.spec.name}") from None
        except Exception as error:
            replace_file(self.folder.error, traceback.format_exc().encode())
            self._set_status("failed", message=first_line(error))
            error.add_note(f"traceback in {self.folder.error}")
            summary = {"status": "failed"}
            raise
        finally:
            self.display.close()
            if self.mirror is not None:
                self.mirror.finish(summary, exit_code)

    def _set_status(self, status: str, **details: Any) -> None:
        self.folder.set_status(status, attempt=self.attempt, step=self.progress.step, **details)

    def _measured(self, measurement: Measurement) -> None:
        self.measured.append(measurement)
        self.folder.append_measurement(measurement)
        self.display.measured(measurement)
        if self.mirror is not None:
            self.mirror.log(measurement)

    def _train(self, state: dict[str, Any] | None) -> pl.Trainer:
        config = self.spec.config
        callbacks: list[pl.Callback] = [self.stop, self.evaluation]
        if state is not None:
            self.progress.load_state_dict(state["progress"])
            callbacks.insert(0, Resume(state, self.parts.schedule))
        if config.checkpoint.keep != "none":
            callbacks.append(
                Checkpointing(
                    self.folder.last, self.evaluation, self.parts.schedule, self.spec.signature, self.stop.asked
                )
            )
        callbacks.append(self.display)
        trainer = pl.Trainer(**self.parts.trainer_options, callbacks=[_InTurn(callbacks)])
        stream = Stream(self.parts.data.train_dataloader(), self.progress.step, config.derived.total_steps)
        torch.manual_seed(
            derive(config.seed, "noise")
        )  # dropout and its kin; a resumed run loads the stream's place instead
        trainer.fit(self.parts.module, train_dataloaders=stream)
        return trainer

    def _result(self, trainer: pl.Trainer) -> dict[str, Any]:
        progress = self.progress
        diverged = progress.diverged_at is not None
        test = None if diverged else evaluate(self.parts.module, self.parts.data.test_dataloader())
        point = eval_point(trainer.optimizers[0])
        errors = [headline(m["validation"])["error"] for m in self.measured]
        return {
            "status": "diverged" if diverged else "finished",
            "signature": self.spec.signature,
            "name": self.spec.name,
            "study": self.spec.config.study,
            "eval_point": point,
            "step": progress.step,
            "examples": progress.examples,
            "epoch": progress.step / self.spec.config.derived.steps_per_epoch,
            "validation": self.measured[-1]["validation"],
            "test": test,
            "best_validation_error": min(errors),  # of the curve, hence optimistic
            "train_loss": self.measured[-1]["train_loss"],
            "train_seconds": progress.train_seconds,
            "eval_seconds": progress.eval_seconds,
            "attempts": self.attempt,
            "device": str(self.parts.module.device),
            "wandb": self.mirror.folder if self.mirror else None,
            "wandb_online": bool(self.mirror) and self.spec.config.logger.mode == "online",
            "time": time.time(),
        }

    def _keep_and_finish(self, trainer: pl.Trainer, result: dict[str, Any]) -> None:
        """Write the weights that are to be kept, then the result, then drop what only an unfinished run needs."""
        keep = self.spec.config.checkpoint.keep
        if keep != "none" and result["status"] == "finished":
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
            write_eval_weights(self.folder.eval_weights, self.parts.module, trainer.optimizers[0], description)
            result["eval_weights"] = self.folder.eval_weights.name
        self.folder.write_result(result)
        self._set_status(result["status"])
        if keep != "last":
            self.folder.last.unlink(missing_ok=True)


def _build(spec: RunSpec) -> _Parts:
    config = spec.config
    trainer = config.trainer
    if trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator=gpu: torch sees no CUDA device here, choose trainer.accelerator=cpu or auto"
        )
    accelerator = "gpu" if trainer.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    if trainer.precision == "16-mixed" and accelerator == "cpu":
        raise UserError("trainer.precision=16-mixed needs a GPU: choose bf16-mixed or 32-true")
    factor = build_schedule(config.schedule)
    data = build_data(
        config.data,
        spec.facts,
        batch_size=config.batch.size,
        seed=config.seed,
        device="cuda" if accelerator == "gpu" else "cpu",
    )
    torch.manual_seed(derive(config.seed, "initialisation"))
    model = build_model(
        config.model.name,
        config.model.kwargs,
        in_chans=data.in_chans,
        num_classes=data.num_classes,
        image_size=data.image_size,
    )

    def make(model: torch.nn.Module) -> torch.optim.Optimizer:
        optimizer = build_optimizer(model, config.optimizer, config.recipe.weight_decay_filter)
        _keep_average(optimizer, config.recipe.weight_average)
        return optimizer

    make(
        model
    )  # its errors belong here, before anything is recorded; Lightning makes the one that trains, on the device
    schedules: list[RateSchedule] = []

    def make_scheduled(model: torch.nn.Module) -> torch.optim.Optimizer:
        optimizer = make(model)
        schedules.append(RateSchedule(optimizer, factor))
        return optimizer

    return _Parts(
        data=data,
        schedules=schedules,
        module=ImageClassifier(model, make_scheduled, label_smoothing=config.recipe.label_smoothing),
        trainer_options={
            "accelerator": accelerator,
            "devices": trainer.devices,
            "precision": trainer.precision,
            "max_epochs": 1,  # the whole run is one stream of batches (see checkpoints.py)
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
        },
    )


def _keep_average(optimizer: torch.optim.Optimizer, gamma: float | None) -> None:
    """Give ``optimizer`` the average of the recipe; one of its own must be of the same γ. Raises UserError."""
    if gamma is None:
        return
    if "average" not in points(optimizer):
        try:
            WeightAverage(optimizer, gamma)
        except ValueError as error:
            raise UserError(f"recipe.weight_average={gamma}: {error}") from error
        return
    for own in (group.get("gamma") for group in optimizer.param_groups):
        if own != gamma:
            name = type(optimizer).__name__
            raise UserError(
                f"recipe.weight_average={gamma} is not optimizer.gamma={own}: {name} keeps an average of its own, so "
                "set both to the same γ"
            )


def _record(spec: RunSpec, folder: RunFolder, attempt: int) -> Mapping[str, Any]:
    """Write the configuration and where this attempt comes from; return the latter."""
    first_line_ = f"# The resolved configuration of {spec.folder.name}; signed.json holds what its signature covers.\n"
    replace_file(folder.config, (first_line_ + OmegaConf.to_yaml(OmegaConf.create(spec.as_dict()))).encode())
    write_json(folder.signed, spec.signed())
    cuda = torch.cuda.is_available()
    record = {
        "attempt": attempt,
        "time": time.time(),
        **provenance(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "data": spec.facts.as_record(),
        "seeds": {axis: derive(spec.config.seed, axis) for axis in AXES},
        "choices": spec.choices,
    }
    earlier = read_json(folder.provenance)
    attempts = earlier.get("attempts", []) if isinstance(earlier, dict) else []
    write_json(folder.provenance, {"attempts": [*attempts, record]})
    return record


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return W&B's summary keys, each named for what it is."""
    summary = {
        key: result[key]
        for key in ("status", "step", "examples", "epoch", "train_loss", "train_seconds", "best_validation_error")
    }
    for split in ("validation", "test"):
        for point, scores in (result[split] or {}).items():
            summary |= {f"final/{split}/{point}/{key}": scores[key] for key in ("loss", "error", "n")}
    return summary


def _quieten() -> None:
    """Silence Lightning's notices on hardware and its tips: the run says what matters itself."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for pattern in (
        ".*You defined a `validation_step` but have no `val_dataloader`.*",  # evaluation.py evaluates
        ".*treespec, LeafSpec.*",  # Lightning's own use of a deprecated check
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
    ):
        warnings.filterwarnings("ignore", pattern)
