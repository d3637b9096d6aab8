"""The schema of a run's configuration: its sections, with their types, choices and bounds.

Sections that depend on what is chosen (data, optimizer, schedule) have their group's own YAML as schema: its keys are
the only valid ones, so a new optimizer costs one YAML and is as strict as the others (see `neumann.config.compose`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from neumann.bounds import check_fields, choice, number
from neumann.errors import UserError, did_you_mean


@dataclass
class ModelConfig:
    """A timm classifier; in_chans and num_classes are fitted to the data."""

    name: str = "small_cnn"
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class TimingConfig:
    """The paper's time scales, in epochs (paper section 4; SPEC section 7)."""

    burn_in: float = number(5.0, at_least=0)
    ramp: float = number(5.0, at_least=0)
    reset_period: float | None = number(10.0, above=0)
    drop_every: float = number(40.0, above=0)
    decay_every: float = number(2.0, above=0)


@dataclass
class BatchConfig:
    """The global batch, in examples per optimizer step."""

    size: int = number(32, at_least=1)


@dataclass
class TrainerConfig:
    """Horizon (epochs), evaluation grid (epochs), device and precision."""

    max_epochs: float = number(20.0, above=0)
    check_val_every_n_epoch: float = number(1.0, above=0)
    accelerator: str = choice("auto", "auto", "cpu", "gpu")
    devices: int = number(1, at_least=1)
    num_nodes: int = number(1, at_least=1)
    deterministic: bool = False
    precision: str = choice("32-true", "32-true", "bf16-mixed", "16-mixed", "64-true")


@dataclass
class RecipeConfig:
    """What must be the same for every row of a comparison."""

    label_smoothing: float = number(0.0, at_least=0, below=1)
    weight_decay_filter: str = choice("norm_and_bias", "norm_and_bias", "none")
    weight_average: float | None = number(None, at_least=0, below=1)  # γ; null: no average
    recalibrate_batch_norm: int = number(0, at_least=0)  # training batches


@dataclass
class CheckpointConfig:
    """What stays of a finished run's weights. An unfinished run keeps its last state, except under ``none``."""

    keep: str = choice("eval-weights", "none", "last", "eval-weights")


@dataclass
class LoggerConfig:
    """The mirror of a run on Weights & Biases."""

    kind: str = choice("wandb", "wandb", "none")
    mode: str = choice("offline", "offline", "online")
    project: str = "neumann"
    entity: str | None = None
    job_type: str = "train"
    tags: list[str] = field(default_factory=list)


@dataclass
class LaunchConfig:
    """Where the runs of a sweep or a study train: ``kind`` is what the chosen file of conf/launch is for."""

    kind: str = "local"


@dataclass
class LocalLaunchConfig(LaunchConfig):
    """How many runs of a sweep or a study train at once, and on how many threads each; null is by the machine."""

    parallel: int | None = number(None, at_least=1)
    threads: int | None = number(None, at_least=1)
    devices: list[int] | None = None  # GPUs, counted among the visible ones
    runs_per_device: int = number(1, at_least=1)


@dataclass
class SlurmLaunchConfig(LaunchConfig):
    """What Slurm is asked for, and when a launch on a cluster gives up. null leaves a setting to the cluster."""

    kind: str = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str = "60"  # as sbatch takes it: minutes, or D-HH:MM:SS
    gpus_per_node: int | None = number(None, at_least=1)
    cpus_per_task: int = number(1, at_least=1)
    mem: str | None = None  # as sbatch takes it: 16G
    setup: list[str] = field(default_factory=list)  # lines of shell before Python starts
    sbatch: dict[str, Any] = field(default_factory=dict)  # further parameters of sbatch
    workers: int = number(8, at_least=1)  # at most, size of the array
    runs_per_worker: int = number(1, at_least=1)
    grace: int = number(120, at_least=1)  # seconds before the limit at which runs write a checkpoint and leave
    max_attempts: int = number(3, at_least=1)
    stop_after_failures: int | None = number(5, at_least=1)
    gpu_hours: float | None = number(None, above=0)


LAUNCHES: dict[str, type[LaunchConfig]] = {"local": LocalLaunchConfig, "slurm": SlurmLaunchConfig}


@dataclass
class DerivedConfig:
    """What follows from the data and the batch: filled in by `neumann.config`, in steps and examples."""

    train_examples: int = 0
    steps_per_epoch: int = 0
    total_steps: int = 0
    eval_every_steps: int = 0


@dataclass
class RunConfig:
    """One run, whole. ``data``, ``optimizer`` and ``schedule`` carry the keys of the YAML that was chosen."""

    data: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    timing: TimingConfig = field(default_factory=TimingConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    launch: LaunchConfig = field(default_factory=LocalLaunchConfig)
    derived: DerivedConfig = field(default_factory=DerivedConfig)
    seed: int = number(0, at_least=0)
    study: str = "default"
    name: str | None = None
    output: str = "runs"


def structured(launch: Any = None) -> DictConfig:
    """Return a fresh OmegaConf of RunConfig, which converts what is merged into it to the types above or refuses it.

    ``launch`` is the plain launch section, whose kind says which settings it has. Raises UserError for a kind that
    there is not.
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


def check_values(config: RunConfig) -> None:
    """Raise UserError for the first value outside its choices or bounds, or at odds with another."""
    check_fields(config)
    processes = config.trainer.devices * config.trainer.num_nodes
    if config.batch.size % processes:
        least = config.batch.size // processes * processes
        near = f"{least} or {least + processes}" if least else str(processes)
        raise UserError(
            f"batch.size={config.batch.size} is the global batch and cannot be shared evenly by {processes} devices: "
            f"choose {near}"
        )
    if isinstance(config.launch, SlurmLaunchConfig):
        _check_slurm(config.launch)
    if not config.output:
        raise UserError("output is empty: name the folder that results go to")
    for key, value in (("study", config.study), ("name", config.name)):
        if value is not None and (not value or value in (".", "..") or any(c in value for c in "/\\\0\n")):
            raise UserError(f"{key}={value!r} cannot be a folder's name: leave out slashes and line breaks")


TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+|\d+-\d+:\d\d|\d+-\d+:\d\d:\d\d")
MEMORY = re.compile(r"\d+[KMGT]?")
# sbatch's parameters that have a setting of their own, or that the launch itself sets; None: it is not to be set
TAKEN: dict[str, str | None] = {
    **{name: f"launch.{name}" for name in ("partition", "account", "qos", "time", "mem")},
    "gpus_per_node": "launch.gpus_per_node",
    "cpus_per_task": "launch.cpus_per_task",
    "array": "launch.workers",
    "signal": "launch.grace",
    "nodes": "trainer.num_nodes",
    "ntasks_per_node": "trainer.devices",
    **dict.fromkeys(("ntasks", "output", "error", "open_mode", "requeue", "no_requeue", "job_name", "chdir", "wrap")),
}


def _seconds(time: str) -> int:
    """Return sbatch's time in seconds: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, _, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if days:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = parts if len(parts) == 3 else (0, *(*parts, 0)[:2])
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _check_slurm(launch: SlurmLaunchConfig) -> None:
    """Raise UserError for what sbatch would refuse after the queue, or what two settings would say at once."""
    if not TIME.fullmatch(launch.time):
        raise UserError(f"launch.time={launch.time} is no time limit: write minutes, or D-HH:MM:SS as sbatch takes it")
    if _seconds(launch.time) <= launch.grace:
        raise UserError(
            f"launch.time={launch.time} is {_seconds(launch.time)} s and launch.grace={launch.grace} s of it are for "
            "leaving: give more time, or less grace"
        )
    if launch.mem is not None and not MEMORY.fullmatch(launch.mem):
        raise UserError(f"launch.mem={launch.mem} is no amount of memory: write it as sbatch takes it, such as 16G")
    if launch.gpu_hours is not None and launch.gpus_per_node is None:
        raise UserError("launch.gpu_hours counts the GPUs that Slurm gives: set launch.gpus_per_node as well")
    for key in launch.sbatch:
        name = key.replace("-", "_")
        if launch.gpus_per_node is not None and name in ("gres", "gpus", "gpus_per_task"):
            raise UserError(f"launch.sbatch.{key} and launch.gpus_per_node both ask for GPUs: leave out one of the two")
        if name in TAKEN:
            own = TAKEN[name]
            raise UserError(f"launch.sbatch.{key} is set " + (f"by {own}" if own else "by the launch itself"))
