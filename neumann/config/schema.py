"""What may a run's configuration say? The fixed sections, with their types, choices and bounds.

Sections that depend on what is chosen (data, optimizer, schedule) have their group's own YAML as schema: its keys are
the only valid ones, so a new optimizer costs one YAML and is as strict as the others (see `neumann.config.compose`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from neumann.errors import UserError, did_you_mean


def _choice(default: str, *choices: str) -> Any:
    return field(default=default, metadata={"choices": choices})


def _above(default: Any, bound: float, *, or_equal: bool = False) -> Any:
    return field(default=default, metadata={"bound": bound, "or_equal": or_equal})


@dataclass
class ModelConfig:
    """A timm classifier; in_chans and num_classes are fitted to the data."""

    name: str = "small_cnn"
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class TimingConfig:
    """The paper's time scales, in epochs (paper section 4; SPEC section 7)."""

    burn_in: float = _above(5.0, 0, or_equal=True)
    ramp: float = _above(5.0, 0, or_equal=True)
    reset_period: float | None = _above(10.0, 0)
    drop_every: float = _above(40.0, 0)
    decay_every: float = _above(2.0, 0)


@dataclass
class BatchConfig:
    """The global batch, in examples per optimizer step."""

    size: int = _above(32, 1, or_equal=True)


@dataclass
class TrainerConfig:
    """Horizon (epochs), evaluation grid (epochs), device and precision."""

    max_epochs: float = _above(20.0, 0)
    check_val_every_n_epoch: float = _above(1.0, 0)
    accelerator: str = _choice("auto", "auto", "cpu", "gpu")
    devices: int = _above(1, 1, or_equal=True)
    num_nodes: int = _above(1, 1, or_equal=True)
    deterministic: bool = False
    precision: str = _choice("32-true", "32-true", "bf16-mixed", "16-mixed", "64-true")


@dataclass
class RecipeConfig:
    """What must be the same for every row of a comparison."""

    label_smoothing: float = _above(0.0, 0, or_equal=True)
    weight_decay_filter: str = _choice("norm_and_bias", "norm_and_bias", "none")
    weight_average: float | None = None  # γ
    recalibrate_batch_norm: int = _above(0, 0, or_equal=True)  # training batches


@dataclass
class CheckpointConfig:
    """What stays of a finished run's weights. An unfinished run keeps its last state, except under ``none``."""

    keep: str = _choice("eval-weights", "none", "last", "eval-weights")


@dataclass
class LoggerConfig:
    """The mirror of a run on Weights & Biases."""

    kind: str = _choice("wandb", "wandb", "none")
    mode: str = _choice("offline", "offline", "online")
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

    parallel: int | None = _above(None, 1, or_equal=True)
    threads: int | None = _above(None, 1, or_equal=True)
    devices: list[int] | None = None  # GPUs, counted among the visible ones
    runs_per_device: int = _above(1, 1, or_equal=True)


@dataclass
class SlurmLaunchConfig(LaunchConfig):
    """What Slurm is asked for, and when a launch on a cluster gives up. null leaves a setting to the cluster."""

    kind: str = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str = "60"  # as sbatch takes it: minutes, or D-HH:MM:SS
    gpus_per_node: int | None = _above(None, 1, or_equal=True)
    cpus_per_task: int = _above(1, 1, or_equal=True)
    mem: str | None = None  # as sbatch takes it: 16G
    setup: list[str] = field(default_factory=list)  # lines of shell before Python starts
    sbatch: dict[str, Any] = field(default_factory=dict)  # further parameters of sbatch
    workers: int = _above(8, 1, or_equal=True)  # at most, size of the array
    runs_per_worker: int = _above(1, 1, or_equal=True)
    grace: int = _above(120, 1, or_equal=True)  # seconds before the limit at which runs write a checkpoint and leave
    max_attempts: int = _above(3, 1, or_equal=True)
    stop_after_failures: int | None = _above(5, 1, or_equal=True)
    gpu_hours: float | None = _above(None, 0)


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
    seed: int = _above(0, 0, or_equal=True)
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


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield (dotted key, value, field metadata) of every leaf of a dataclass tree."""
    for f in fields(config):
        value = getattr(config, f.name)
        key = f"{prefix}{f.name}"
        if is_dataclass(value):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value, dict(f.metadata)


def check_values(config: RunConfig) -> None:
    """Raise UserError for the first value outside its choices or bounds."""
    for key, value, metadata in leaves(config):
        choices = metadata.get("choices")
        if choices is not None and value not in choices:
            raise UserError(f"{key}={value} is not a choice: {did_you_mean(str(value), choices)}")
        bound = metadata.get("bound")
        if bound is None or value is None:
            continue
        at_least = metadata["or_equal"]
        if not (value >= bound if at_least else value > bound) or value in (float("inf"), float("-inf")):
            raise UserError(f"{key}={value} is out of range: it must be {'at least' if at_least else 'above'} {bound}")
    if config.recipe.label_smoothing >= 1:
        raise UserError(f"recipe.label_smoothing={config.recipe.label_smoothing} is out of range: it must be below 1")
    gamma = config.recipe.weight_average
    if gamma is not None and not 0 <= gamma < 1:
        raise UserError(
            f"recipe.weight_average={gamma} is out of range: it must be at least 0 and below 1, or null for no average"
        )
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
