"""The schema of a run's configuration: its sections, with their types, choices and bounds.

Sections that depend on what is chosen (data, optimizer, schedule) have their group's own YAML as schema: its keys are
the only valid ones, so a new optimizer costs one YAML and is as strict as the others (see `neumann.config.compose`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from neumann.bounds import check_fields, choice, kinds_of, number
from neumann.config.global_batch import BatchSolver, BatchSplit, rate_factor
from neumann.config.launch_settings import LAUNCHES, LaunchConfig, LocalLaunchConfig, SlurmLaunchConfig, check_slurm
from neumann.config.wandb_settings import check_logger
from neumann.data.settings import KINDS as DATA_KINDS
from neumann.errors import UserError, did_you_mean, printable
from neumann.folders import check_letters


@dataclass
class ModelConfig:
    """A classifier of timm by its ``name``, made with ``kwargs``; in_chans and num_classes are fitted to the data."""

    name: str = "small_cnn"
    kwargs: dict[str, Any] = field(default_factory=dict)
    channels_last: bool = False  # the memory format of convolutions
    compile: bool = False  # by torch.compile, in place
    checkpoint: str | None = None  # file of weights to start from; given as such, or as a run's folder or name
    auxiliary_weight: float | None = number(None, above=0)  # of the auxiliary head's loss; null: there is no such head


@dataclass
class TimingConfig:
    """The paper's time scales, in epochs (section 4 of the paper)."""

    burn_in: float = number(5.0, at_least=0)  # of plain SGD before Neumann starts
    ramp: float = number(5.0, at_least=0)  # of the linear ramp of the rate
    reset_period: float | None = number(10.0, above=0)  # to Neumann's second reset; null: one reset, after burn-in
    drop_every: float = number(40.0, above=0)  # between the drops of the synchronous schedule
    decay_every: float = number(2.0, above=0)  # between the decays of the exponential schedule
    average: float | None = number(None, above=0)  # that Neumann's average remembers; null: γ is the paper's a step
    momentum_unit: float | None = number(None, above=0)  # of t in Neumann's μ(t); null: one step, as in the paper


@dataclass
class BatchConfig:
    """The global batch and how it is split (`neumann.config.global_batch`)."""

    size: int = number(32, at_least=1)  # examples per optimizer step, shared by all devices
    max_per_device: int | None = number(None, at_least=1)  # examples that a device takes at once; null: no bound
    round: bool = False  # take the nearest size that can be split
    norm_size: int | None = number(None, at_least=1)  # batch norm's ghost batch; null: what a device takes at once


@dataclass
class TrainerConfig:
    """Horizon (the length of training), evaluation grid, devices and precision."""

    max_epochs: float = number(20.0, above=0)  # the horizon: training length in epochs
    check_val_every_n_epoch: float = number(1.0, above=0)  # epochs between evaluations
    test: bool = True  # whether the test images are scored after the last step
    accelerator: str = choice("auto", "auto", "cpu", "gpu", also={"cuda": "gpu"})  # auto: a GPU where there is one
    devices: int = number(1, at_least=1)  # per node, a process each
    num_nodes: int = number(1, at_least=1)  # machines that train one run
    deterministic: bool = False  # a GPU repeats to the bit
    log_every_n_steps: int = number(50, at_least=0)  # optimizer steps between two lines of steps.jsonl; 0: no lines
    track_grad_norm: bool = False  # whether a line has the norm of the gradient
    track_update_norm: bool = False  # and that of the move of the weights
    # Lightning's name: bits of the weights, or the type that autocast computes in; auto: `neumann.config.precision`
    precision: str = choice("auto", "auto", "32-true", "bf16-mixed", "16-mixed", "64-true")


@dataclass
class RecipeConfig:
    """Settings that every row of a comparison must share, for any optimizer."""

    label_smoothing: float = number(0.0, at_least=0, below=1)  # share of the label spread over all classes
    weight_decay_filter: str = choice("norm_and_bias", "norm_and_bias", "none")  # what is not decayed
    weight_average: float | None = number(None, at_least=0, below=1)  # γ; null: no average
    recalibrate_batch_norm: int = number(0, at_least=0, below=10**6)  # training batches before each evaluation
    lr_scaling: str = choice("none", "none", "linear", "sqrt")  # of the rate with the global batch size
    lr_base_size: int | None = number(None, at_least=1)  # the batch size that optimizer.lr is meant for


@dataclass
class TermsConfig:
    """What the optimizer's terms do, measured while the run trains and off its clock."""

    every: int | None = number(None, at_least=1)  # optimizer steps between two lines of terms.jsonl; null: no lines
    lanczos_steps: int = number(20, at_least=1, below=10**4)  # iterations, a product with the Hessian each
    newton: bool = False  # whether directions are held against Newton's, by the whole Hessian of a small network


@dataclass
class CheckpointConfig:
    """The weights that are kept of a finished run. An unfinished one keeps its last state, except under ``none``."""

    keep: str = choice("eval-weights", "none", "last", "eval-weights")


@dataclass
class LoggerConfig:
    """The mirror of a run on Weights & Biases, under its names."""

    kind: str = choice("wandb", "wandb", "none")  # none: no mirror
    mode: str = choice("offline", "offline", "online")  # offline: files in wandb/, for `wandb sync`
    project: str = "neumann"  # W&B's name of the project
    entity: str | None = None  # user or team; null: the account's own
    job_type: str = "train"  # by which W&B groups runs
    tags: list[str] = field(default_factory=list)  # by which W&B filters runs


@dataclass
class DerivedConfig:
    """Counts in optimizer steps and examples that follow from the data and the batch (`time_scales.derived`)."""

    train_examples: int = 0  # images of the training split
    steps_per_epoch: int = 0  # whole global batches in the training split
    total_steps: int = 0  # optimizer steps of the run
    eval_every_steps: int = 0  # optimizer steps between evaluations
    asked_batch_size: int = 0  # batch.size before batch.round
    micro_batch: int = 0  # examples that one device takes at once
    accumulation: int = 1  # micro-batches of each device in an optimizer step
    rate_factor: float = 1.0  # on optimizer.lr, by recipe.lr_scaling


@dataclass
class RunConfig:
    """One run. ``data``, ``optimizer`` and ``schedule`` have the keys of the YAML that was chosen for them."""

    data: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    timing: TimingConfig = field(default_factory=TimingConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    terms: TermsConfig = field(default_factory=TermsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    launch: LaunchConfig = field(default_factory=LocalLaunchConfig)
    derived: DerivedConfig = field(default_factory=DerivedConfig)
    seed: int = number(0, at_least=0)  # of every random stream (`neumann.seeds`)
    study: str = "default"  # folder in ``output`` that the run is filed under
    name: str | None = None  # the beginning of the run folder's name; null: made of the choices
    output: str = "runs"  # path of the results folder


def structured(launch: Any = None) -> DictConfig:
    """Return a fresh OmegaConf of RunConfig: a value merged into it is converted to its field's type or refused.

    ``launch`` is the launch section as plain data; its kind decides which settings it has. Raises UserError for an
    unknown kind.
    """
    kind = launch.get("kind", "local") if isinstance(launch, Mapping) else "local"
    if kind not in LAUNCHES:
        raise UserError(f"launch.kind={kind} is not a choice: {did_you_mean(str(kind), LAUNCHES)}")
    return copy.deepcopy(_structured(kind))


@cache
def _structured(kind: str) -> DictConfig:
    config: DictConfig = OmegaConf.structured(RunConfig(launch=LAUNCHES[kind]()))
    return config


# by the kind of their schema: dataclasses here, or the YAML that was chosen
_DEFAULTS = {f.name: getattr(RunConfig(), f.name) for f in fields(RunConfig)}
SECTIONS = tuple(_DEFAULTS)
FILLED_IN = ("derived",)  # by `neumann.config.resolution`, never by the user
TYPED_SECTIONS = tuple(name for name, value in _DEFAULTS.items() if is_dataclass(value) and name not in FILLED_IN)
CHOSEN_SECTIONS = tuple(name for name, value in _DEFAULTS.items() if isinstance(value, dict))
# Free-form sections, whose settings are checked by the function that they are passed to
OPEN_NODES = ("model.kwargs", "optimizer.kwargs", "launch.sbatch")


def _texts() -> frozenset[str]:
    """Return the settings that are texts by their annotation."""
    sections: list[tuple[str, type]] = [("", RunConfig)]
    sections += [(f"{name}.", type(_DEFAULTS[name])) for name in TYPED_SECTIONS]
    sections += [("launch.", kind) for kind in LAUNCHES.values()] + [("data.", kind) for kind in DATA_KINDS.values()]
    return frozenset(
        f"{prefix}{name}" for prefix, of in sections for name, (kind, _) in kinds_of(of).items() if kind is str
    )


TEXTS = _texts()


def check_step_lines(trainer: TrainerConfig) -> None:
    """Raise UserError where norms are asked for and there is no line that could have them."""
    for key in ("track_grad_norm", "track_update_norm"):
        if getattr(trainer, key) and trainer.log_every_n_steps == 0:
            raise UserError(
                f"trainer.{key}=true has nowhere to be written, since trainer.log_every_n_steps=0 logs no step: give "
                "trainer.log_every_n_steps=50, or another number of steps"
            )


def check_measured_terms(terms: TermsConfig) -> None:
    """Raise UserError where the Newton direction is asked for and nothing is measured."""
    if terms.newton and terms.every is None:
        raise UserError("terms.newton=true has no step to be measured at: give terms.every=100, or another number")


def solver_of(batch: BatchConfig, trainer: TrainerConfig) -> BatchSolver:
    """Return what splits global batches over the devices of ``trainer``. Raises UserError."""
    return BatchSolver(trainer.devices * trainer.num_nodes, batch.max_per_device, batch.norm_size)


def batch_split(config: RunConfig) -> BatchSplit:
    """Return how a run's global batch is split. Raises UserError where it cannot be."""
    return solver_of(config.batch, config.trainer).split(config.batch.size)


def rate_factor_of(config: RunConfig) -> float:
    """Return the factor on a run's ``optimizer.lr``. Raises UserError where its recipe does not say it."""
    return rate_factor(config.recipe.lr_scaling, config.batch.size, config.recipe.lr_base_size)


def check_values(config: RunConfig) -> None:
    """Raise UserError for the first value outside its choices or bounds, or at odds with another."""
    check_fields(config)
    batch_split(config)
    rate_factor_of(config)
    if isinstance(config.launch, SlurmLaunchConfig):
        check_slurm(config.launch)
    check_logger(config.logger)
    check_step_lines(config.trainer)
    check_measured_terms(config.terms)
    if not config.output:
        raise UserError("output is empty: name the folder that results go to")
    for key, value in (("study", config.study), ("name", config.name)):
        if value is not None and (
            not value or value in (".", "..") or "/" in value or "\\" in value or printable(value) != value
        ):
            raise UserError(
                f"{key}={value!r} cannot be a folder's name: leave out slashes, line breaks and what is no character"
            )
        if value is not None and value.startswith("-"):
            raise UserError(f"{key}={value} begins with a dash, so other commands would take it for an option")
        check_letters(key, value or "")
