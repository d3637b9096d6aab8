"""The private names of torch, timm and Lightning that the optimizers rest on, each with the version it was read in.

Nothing else in this package uses a private name, but for ``torch._foreach_*``, which torch documents as its lists of
tensors and keeps. `tests/optim/test_private_names.py` names the one that has moved, and what of ours needs it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import Optimizer

# torch 2.15: the base class of BatchNorm1d to 3d and of SyncBatchNorm
BatchNorm = _BatchNorm

# torch 2.15: how often torch has written to a tensor. Writes by our kernels, NumPy and collectives are not counted
write_count: Callable[[Tensor], int] = operator.attrgetter("_version")

# torch 2.15: as torch.compiler.disable, which imports the compiler at once instead of when something is compiled
outside_compiled_graphs: Callable[..., Any] = torch._disable_dynamo  # type: ignore[attr-defined]

# torch 2.15: Optimizer.__setstate__ puts this key among an optimizer's defaults, though no group has it
DEFAULT_OF_LOADING = "differentiable"

# torch 2.15: frames from a forward pre-hook's warnings.warn() to the caller of the module, 3 of them in nn.Module
CALLER_OF_MODULE = 5


def parts_of_one_device_and_dtype(tensors: list[Tensor]) -> Iterable[tuple[list[Tensor], list[int]]]:
    """Return ``tensors`` parted by device and type, each part with its places in the list (torch 2.15)."""
    lists: list[list[Tensor | None]] = [[*tensors]]
    parts: Any = Optimizer._group_tensors_by_device_and_dtype(lists, with_indices=True).values()
    return [(part, indices) for (part, *_), indices in parts]


def step_post_hooks(optimizer: Optimizer) -> list[Callable[..., Any]]:
    """Return what runs after each step of ``optimizer`` (torch 2.15)."""
    return list(optimizer._optimizer_step_post_hooks.values())


def runs_step_hooks(optimizer: Optimizer) -> bool:
    """Return whether torch has wrapped ``step()`` of the optimizer's class, so that step hooks run (torch 2.15).

    A wrapper that leaves out ``Optimizer.__init__`` has none, even where another object has had its class wrapped.
    """
    return getattr(type(optimizer).step, "hooked", False) and hasattr(optimizer, "_optimizer_load_state_dict_pre_hooks")


# torch 2.15: an optimizer with a true `_step_supports_amp_scaling` (phased.py) is given these two during a step


def gradient_scale(optimizer: Optimizer) -> Tensor | None:
    """Return what the gradients have been multiplied with, where ``GradScaler`` leaves it to the step to divide."""
    return getattr(optimizer, "grad_scale", None)


def found_inf(optimizer: Optimizer) -> Tensor | None:
    """Return a tensor that is not 0 where ``GradScaler`` has found a gradient that is not finite, else None."""
    return getattr(optimizer, "found_inf", None)


# Attributes in which wrappers keep the optimizer that they wrap: timm 1.0.31's Lookahead; SAM; accelerate 1.15's
# AcceleratedOptimizer and DeepSpeed's; apex's LARC and torch 2.15's PostLocalSGDOptimizer and ZeroRedundancyOptimizer
_INSIDE = ("_base_optimizer", "base_optimizer", "optimizer", "optim", "_optimizer")


def base_optimizer(optimizer: Any) -> Any:
    """Return the optimizer that a wrapper keeps inside, None for one that is no wrapper.

    What steps and has parameter groups counts: DeepSpeed's and apex's are no ``torch.optim.Optimizer``. Under any other
    name (Opacus's ``original_optimizer``) a torch optimizer of the same tensors counts.
    """
    for name in _INSIDE:
        inside = getattr(optimizer, name, None)
        if inside is None or inside is optimizer or not callable(getattr(inside, "step", None)):
            continue
        if isinstance(getattr(inside, "param_groups", None), list):
            return inside
    for inside in getattr(optimizer, "__dict__", {}).values():
        if isinstance(inside, Optimizer) and inside is not optimizer and _tensors(inside) == _tensors(optimizer):
            return inside
    return None


def optimizers_beside_each_other(optimizer: Any) -> list[Optimizer]:
    """Return the optimizers of parts of the model that ``optimizer`` keeps in a list, a tuple or a dict, if it does."""
    found: list[Optimizer] = []
    for value in getattr(optimizer, "__dict__", {}).values():
        members = value.values() if type(value) is dict else value if isinstance(value, (list, tuple)) else ()
        found += [each for each in members if isinstance(each, Optimizer) and each is not optimizer]
    return found


def _tensors(optimizer: Any) -> set[int]:
    groups = getattr(optimizer, "param_groups", ())
    return {id(p) for group in groups for p in group["params"]}


def is_sharding_wrapper(optimizer: Any) -> bool:
    """Return whether a wrapper gives each rank's inner optimizer a part of the weights or a copy of them.

    Such are torch's ZeroRedundancyOptimizer (torch 2.15) and DeepSpeed's (0.18).
    """
    kinds = type(optimizer).__mro__
    return any(
        kind.__name__ == "ZeroRedundancyOptimizer" or kind.__module__.split(".")[0] == "deepspeed" for kind in kinds
    )


def passes_modes_on(optimizer: Any) -> bool:
    """Return whether ``eval()`` and ``train()`` of a wrapper are no modes of its own: accelerate's (1.15)."""
    return any(kind.__module__.split(".")[0] == "accelerate" for kind in type(optimizer).__mro__)


def timm_registry() -> Any:
    """Return the registry in which timm's factory looks optimizers up (timm 1.0.31); this imports timm."""
    from timm.optim._optim_factory import default_registry

    return default_registry


def attached_trainer(module: Any) -> Any:
    """Return the trainer of a LightningModule (Lightning 2.6.6), None without one."""
    return getattr(module, "_trainer", None)  # the public `trainer` raises where there is none
