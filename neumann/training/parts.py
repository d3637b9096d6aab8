"""Parts of a run: everything that its configuration names, each built once, on the device that it trains on.

Building finds every error in the configuration, so it comes before anything is recorded.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from neumann.config import RunSpec
from neumann.config.inner_loop import TARGETS as LOOP_TARGETS
from neumann.config.inner_loop import batches_a_step, check_inner_loop, check_scaling, images_at_once
from neumann.config.schema import batch_split, rate_factor_of
from neumann.config.signature import normalised_as_pretrained
from neumann.config.spectral import followed, follows_spectrum
from neumann.config.weights import weights_of
from neumann.data import DataFacts
from neumann.data.module import ImageData
from neumann.data.module import build as build_data
from neumann.errors import UserError, first_line
from neumann.models.classifiers import build_model, own_statistics
from neumann.models.ghost_batch_norm import use_ghost_batches
from neumann.optim import WeightAverage, points
from neumann.optim.batch_norm import batch_norms
from neumann.optim.kernels.cpu import find_compiler
from neumann.optim.two_loop import TwoLoopNeumann, inner_loop_of
from neumann.processes.ranks import world_size
from neumann.seeds import derive
from neumann.training.distributed import TIMEOUT, RankEnvironment, RankGroup
from neumann.training.instantiate import build_schedule
from neumann.training.measured_terms import check_terms, check_whole
from neumann.training.optimizers import build_optimizer
from neumann.training.precision import slow_precision
from neumann.training.rate_schedules import RateSchedule, odd_rates
from neumann.training.spectral import check_spectral, spectral_schedule
from neumann.training.starting_weights import Start, read_weights
from neumann.training.stepping import SteppingClassifier

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation, per channel
FEW_IMAGES = 100  # of a split


@dataclass
class Parts:
    """Parts that one rank trains with."""

    data: ImageData  # this rank's batches
    module: SteppingClassifier  # on the device that it trains on
    schedule: RateSchedule  # of the one optimizer, which ``module`` gives to Lightning
    start: Start | None  # the weights that the run starts from
    trainer_options: dict[str, Any]  # keywords of ``pytorch_lightning.Trainer``


def accelerator_of(spec: RunSpec) -> str:
    """Return the accelerator that ``spec`` trains on here, gpu or cpu."""
    return "gpu" if spec.config.trainer.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def build_parts(spec: RunSpec, group: RankGroup) -> Parts:
    """Build everything that ``spec`` names, on this rank of ``group``. Raises UserError for a wrong configuration."""
    config = spec.config
    if weights_of(spec.section("model")) != spec.weights:
        raise UserError("the file of weights that the model starts from has changed since the command began: repeat it")
    trainer, split = config.trainer, batch_split(config)
    device = _device(spec)
    factor = build_schedule(config.schedule)
    check_inner_loop(config, spec.facts.train_count)
    accumulation = split.accumulation * batches_a_step(config)
    data = build_data(
        config.data,
        spec.facts,
        batch_size=split.micro_batch,
        accumulation=accumulation,
        norm_size=config.batch.norm_size,
        seed=config.seed,
        device=str(device),
        rank=group.rank,
        world_size=group.world_size,
    )
    data.check_shared_memory(trainer.devices)
    torch.manual_seed(derive(config.seed, "initialisation"))
    model = build_model_of(spec)
    start = load_start(spec, model)
    if normalised_as_pretrained(spec.as_dict()):
        data.mean, data.std = _statistics(model, start, data)
    # Where Lightning would put it, but before there is an optimizer: one with state from the start (Adagrad, a weight
    # average) makes that state like its parameters.
    model.to(device, torch.float64 if trainer.precision == "64-true" else None)
    if config.model.compile:
        model.compile(dynamic=False)  # in place, so that the keys of state_dict stay
    optimizer = build_optimizer_of(spec, model)
    if group.is_main:
        _warn_of_burn_in(optimizer, config.derived.total_steps)
        if start is not None and start.new_head:
            warnings.warn(start.sentence(spec.facts), stacklevel=2)
        for said in (
            *odd_rates(factor, config.schedule, config.derived.total_steps),
            *coarse_scores(spec.facts),
            *slow_precision(accelerator_of(spec), trainer.precision),
        ):
            warnings.warn(said, stacklevel=2)
    return Parts(
        data=data,
        module=SteppingClassifier(
            model,
            lambda _: optimizer,
            label_smoothing=config.recipe.label_smoothing,
            auxiliary_weight=config.model.auxiliary_weight,
        ),
        schedule=spectral_schedule(config, optimizer, factor),
        start=start,
        trainer_options={
            "accelerator": accelerator_of(spec),
            "devices": trainer.devices,
            "num_nodes": trainer.num_nodes,
            **_distributed(group, accelerator_of(spec)),
            "accumulate_grad_batches": accumulation,
            "precision": trainer.precision,
            "deterministic": trainer.deterministic or None,
            "max_epochs": 1,  # of one batch (see stepping.py)
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
        },
    )


def build_model_of(spec: RunSpec) -> torch.nn.Module:
    """Return the run's model, on torch's default device. Raises UserError as `build_model` and the checks here do."""
    config, facts = spec.config, spec.facts
    for key in ("pretrained", "checkpoint_path"):
        if config.model.checkpoint is not None and config.model.kwargs.get(key):
            raise UserError(f"model.checkpoint and model.kwargs.{key} both name weights to start from: leave one out")
    model = _network(spec, facts.num_classes)
    if config.batch.norm_size is not None:
        use_ghost_batches(model, config.batch.norm_size, torch.zeros(2, facts.channels, *facts.image_size))
    if 1 in (images_at_once(config), config.batch.norm_size):
        check_one_image(model, torch.zeros(1, facts.channels, *facts.image_size), _two_images(spec))
    check_recalibration(model, config.recipe.recalibrate_batch_norm, world_size(spec))
    check_terms(config, model)
    check_spectral(config, model)
    return model


def _network(spec: RunSpec, num_classes: int) -> torch.nn.Module:
    """Return the run's network for ``num_classes``, as its configuration names it."""
    model, facts = spec.config.model, spec.facts
    return build_model(
        model.name,
        model.kwargs,
        in_chans=facts.channels,
        num_classes=num_classes,
        image_size=facts.image_size,
        auxiliary_head=model.auxiliary_weight is not None,
        channels_last=model.channels_last,
    )


def load_start(spec: RunSpec, model: torch.nn.Module) -> Start | None:
    """Load the run's ``model.checkpoint`` into ``model``, which may be on the meta device; None where there is none.

    Raises UserError where it does not fit.
    """
    checkpoint, name = spec.config.model.checkpoint, spec.config.model.name
    if checkpoint is None:
        return None
    weights = read_weights(Path(checkpoint))
    return Start(weights, weights.into(model, name, spec.facts, partial(_network, spec)))


def _statistics(model: torch.nn.Module, start: Start | None, data: ImageData) -> Statistics:
    """Return mean and standard deviation of the weights that ``model`` starts from, else those of ``data``."""
    if start is None:
        return own_statistics(model, data.in_chans)
    weights = start.weights
    if weights.mean is None or weights.std is None or len(weights.mean) != data.in_chans:
        return data.mean, data.std
    return weights.mean, weights.std


def build_optimizer_of(spec: RunSpec, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the run's optimizer over ``model``, with the recipe's weight average. Raises UserError."""
    section, factor = dict(spec.config.optimizer), rate_factor_of(spec.config)
    if factor != 1.0:
        section["lr"] *= factor
    if follows_spectrum(spec.config.schedule):
        section |= followed(section)
    optimizer = build_optimizer(model, section, spec.config.recipe.weight_decay_filter)
    check_inner_loop(spec.config, spec.facts.train_count)
    loop = inner_loop_of(optimizer)
    if loop is not None and section.get("_target_") not in LOOP_TARGETS:
        check_scaling(spec.config)
        _check_wrapped(loop, section)
    _keep_average(optimizer, spec.config.recipe.weight_average)
    check_whole(spec.config, optimizer)
    return optimizer


def _check_wrapped(loop: TwoLoopNeumann, section: dict[str, Any]) -> None:
    """Raise UserError where an inner loop within another optimizer asks for data that its own target alone is given."""
    group = loop.param_groups[0]
    if group["inner_data"] != "same":
        raise UserError(
            f"optimizer._target_={section['_target_']} wraps TwoLoopNeumann(inner_data={group['inner_data']!r}), whose "
            f"data a run cuts for _target_: {LOOP_TARGETS[0]} alone: choose inner_data='same'"
        )


def _device(spec: RunSpec) -> torch.device:
    """Return the device that this rank trains on. Raises UserError where ``spec`` asks for a missing device."""
    check_device(spec)
    gpu = accelerator_of(spec) == "gpu"
    return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")


def check_device(spec: RunSpec) -> None:
    """Raise UserError where ``spec`` asks for a device that this machine lacks."""
    trainer = spec.config.trainer
    if trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator=gpu: torch sees no CUDA device here, choose trainer.accelerator=cpu or auto"
        )
    accelerator = accelerator_of(spec)
    if accelerator == "gpu" and torch.cuda.device_count() < trainer.devices:
        raise UserError(
            f"trainer.devices={trainer.devices}: torch sees {torch.cuda.device_count()} CUDA devices here, choose "
            "at most as many, or trainer.accelerator=cpu (an srun task must see all GPUs of its node)"
        )
    if trainer.precision == "16-mixed" and accelerator == "cpu":
        raise UserError("trainer.precision=16-mixed needs a GPU: choose bf16-mixed or 32-true")
    if spec.config.model.compile:
        _check_compiler(accelerator)


def _check_compiler(accelerator: str) -> None:
    """Raise UserError where torch.compile has nothing to compile with."""
    if accelerator == "gpu" and importlib.util.find_spec("triton") is None:
        raise UserError("model.compile=true needs Triton on a GPU, which is not installed: set it to false")
    if accelerator == "cpu":
        try:
            find_compiler()
        except OSError as error:
            raise UserError(f"model.compile=true: {error}: install one, name it in CXX, or set it to false") from error


def _two_images(spec: RunSpec) -> str:
    """Return the nearest settings by which batch norm gets more than one image at once."""
    batch = spec.config.batch
    if batch.norm_size == 1:
        return "batch.norm_size=2 or more"
    if batch.max_per_device == 1:
        return "batch.max_per_device=2 or more"
    return f"batch.size={2 * world_size(spec)} or more"


def check_one_image(model: torch.nn.Module, image: Tensor, remedy: str) -> None:
    """Raise UserError where ``model`` cannot be trained on ``image`` alone, as batch norm over one pixel cannot.

    It names ``remedy``, the nearest settings for more images. No trace is left in ``model``.
    """
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(image)
    except Exception as error:  # a network may refuse a single image by an exception of its own
        raise UserError(
            f"batch.size gives each process one image at once, or batch norm one, and the model cannot be trained on "
            f"one ({first_line(error)}; batch norm needs several values a channel): choose {remedy}"
        ) from error
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


def check_recalibration(model: torch.nn.Module, batches: int, world_size: int) -> None:
    """Raise UserError where recalibrating ``model`` would change nothing, or would wait for ever on several ranks."""
    layers = batch_norms(model)
    if batches and not layers:
        raise UserError(
            f"recipe.recalibrate_batch_norm={batches}: the model has no batch norm with running statistics, so leave "
            "it at 0"
        )
    if batches and world_size > 1 and any(isinstance(layer, torch.nn.SyncBatchNorm) for layer in layers):
        raise UserError(
            f"recipe.recalibrate_batch_norm={batches}: the model has a SyncBatchNorm, which cannot run the batches of "
            "one device alone, so leave it at 0 on several devices"
        )


def _keep_average(optimizer: torch.optim.Optimizer, gamma: float | None) -> None:
    """Give ``optimizer`` the recipe's moving average; one of its own must have the same γ. Raises UserError."""
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


def coarse_scores(facts: DataFacts) -> list[str]:
    """Return sentences on splits of so few images that one of them is more than a percentage point of error."""
    counts = {"validation": facts.validation_count, "test": facts.test_count}
    return [
        f"{split} holds {count} image{'s' if count > 1 else ''}, so one image is {100 / count:.3g} percentage points "
        "of error"
        for split, count in counts.items()
        if 0 < count < FEW_IMAGES
    ]


def _warn_of_burn_in(optimizer: torch.optim.Optimizer, total_steps: int) -> None:
    """Say that a run never leaves its burn-in, whose name would promise another optimizer than plain SGD."""
    burn_in = min(group.get("burn_in_steps", 0) for group in optimizer.param_groups)
    if burn_in >= total_steps:
        warnings.warn(
            f"{type(optimizer).__name__} never leaves its burn-in, which is plain SGD: "
            f"optimizer.burn_in_steps={burn_in} and the run has {total_steps} steps; timing=relative makes it 2 % of "
            "the run",
            stacklevel=2,
        )


def _distributed(group: RankGroup, accelerator: str) -> dict[str, Any]:
    """Return the options with which Lightning trains in ``group``, already made, and looks for no cluster itself."""
    if group.ranks is None:
        return {"plugins": [LightningEnvironment()]}
    backend = "nccl" if accelerator == "gpu" else "gloo"
    return {
        "strategy": DDPStrategy(process_group_backend=backend, timeout=TIMEOUT),
        "plugins": [RankEnvironment(group.ranks)],
    }
