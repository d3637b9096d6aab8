"""The optimizer of a run, from its section of the configuration; one filter of weight decay holds for all."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import timm.optim
import torch
from torch import nn

from neumann.bounds import as_yaml, check_kind
from neumann.config.targets import TARGETS
from neumann.errors import UserError, did_you_mean, first_line
from neumann.optim import TwoLoopNeumann
from neumann.refusals import as_raised, of_another_kind, users_line
from neumann.training.instantiate import check_settings, locate, split_target

ParamGroups = list[dict[str, Any]]
AS_WRITTEN = {"None": "null", "True": "true", "False": "false"}  # words of Python in the words of YAML


def param_groups(model: nn.Module, weight_decay: float, weight_decay_filter: str) -> ParamGroups:
    """Return the model's trainable parameters in groups, with ``weight_decay`` or 0 for each group.

    ``weight_decay_filter="norm_and_bias"`` exempts biases, tensors of one dimension (norms) and what the model itself
    exempts; ``"none"`` decays everything. The recipe sets it for every optimizer alike: the defaults of factories
    differ, and a comparison must not.
    """
    if weight_decay_filter == "none":
        return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": weight_decay}]
    exempts: Any = getattr(model, "no_weight_decay", tuple)  # transformers name their embeddings here
    exempt = exempts()
    groups = timm.optim.param_groups_weight_decay(model, weight_decay, no_weight_decay_list=exempt)
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, section: Mapping[str, Any], weight_decay_filter: str) -> torch.optim.Optimizer:
    """Return the optimizer that ``section`` describes, over ``model``'s trainable parameters.

    Raises UserError where it cannot be imported, is not an optimizer, does not take a setting or refuses a value.
    """
    target = locate(str(section.get("_target_")), "optimizer._target_")
    if inspect.isbuiltin(target) or (isinstance(target, type) and not issubclass(target, torch.optim.Optimizer)):
        raise UserError(f"optimizer._target_={section['_target_']} is not a torch.optim.Optimizer")
    call, settings, name = split_target(section, "optimizer")
    groups = param_groups(model, float(settings.get("weight_decay") or 0.0), weight_decay_filter)
    if section["_target_"] in TARGETS:  # a function of ours, which makes another's by its name
        optimizer = call(groups, **settings)
    else:
        optimizer = _made(call, groups, settings, name, "optimizer.{}".format)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"optimizer._target_={section['_target_']} makes a {type(optimizer).__name__}, not a torch.optim.Optimizer"
        )
    return optimizer


def _made(
    call: Callable[..., Any],
    params: ParamGroups,
    settings: Mapping[str, Any],
    name: str,
    key_of: Callable[[str], str],
    takes: Callable[..., Any] | None = None,
) -> Any:
    """Return what ``call`` makes of ``params`` and ``settings``. Raises UserError where it raises anything.

    call        the optimizer's class, or what makes it
    name        of the optimizer, for the sentence
    key_of      returns how a user names the setting of an argument
    takes       the class, where ``call`` is another function
    """
    try:
        return call(params, **settings)
    except UserError:
        raise
    except Exception as error:  # the user's own optimizer may raise anything
        if not isinstance(error, ValueError):  # which says itself what it refuses
            given = {key: value for key, value in settings.items() if value is not None}
            if sentence := of_another_kind([takes or call], given, key_of, name):
                raise UserError(sentence) from error
        raise UserError(f"optimizer: {name} {_refusal(error, settings)}") from error


def _refusal(error: Exception, given: Mapping[str, Any]) -> str:
    """Return what a constructor that raised ``error`` says of the settings ``given``.

    A ValueError names the setting. What Python raises within a constructor does not, so the settings are listed, and
    the line where it is the user's own. What it says of argument lists and of null is put in words of the settings.
    """
    said, own = first_line(error), users_line(error)
    listed = ", ".join(f"{key}={as_yaml(value)}" for key, value in given.items())
    if isinstance(error, ValueError):
        return f"refuses its settings: {re.sub('None|True|False', lambda word: AS_WRITTEN[word[0]], said)}"
    if own is not None:
        return f"fails{f' with {listed}' if listed else ''}: {as_raised(error)}"
    if isinstance(error, TypeError):
        if found := re.search(r"unexpected keyword argument '(\w+)'", said):
            return f"takes no '{found[1]}'"
        if found := re.search(r"multiple values for (?:keyword )?argument '(\w+)'", said):
            return f"takes no '{found[1]}': it is set here"
        if found := re.search(r"missing \d+ required (?:keyword-only |positional )?arguments?: (.+)", said):
            return f"needs {found[1]}, which its settings lack: add it to them"
        nulls = [key for key, value in given.items() if value is None]
        if nulls and "NoneType" in said:
            return f"refuses {nulls[0]}=null: give it a value"
    return f"refuses its settings ({listed}): {as_raised(error)}"


def _of_kwargs(argument: str) -> str:
    """Return the setting of an argument of an optimizer that is made by its name."""
    return f"optimizer.{argument}" if argument in ("lr", "weight_decay") else f"optimizer.kwargs.{argument}"


# Optimizers that one backward pass before each step cannot drive, and why
IMPOSSIBLE = {
    "lbfgs": "it evaluates the loss several times a step on one frozen batch",
    "sparseadam": "it takes sparse gradients only, and these networks have none",
    "muon": "it takes matrices only, and these networks have biases and norms",
    "adahessian": "it differentiates the gradient, and one backward pass does not keep its graph",
}


def _settings(name: str, lr: float, weight_decay: float, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a named optimizer's settings. Raises UserError for one in `IMPOSSIBLE`, or a setting given twice."""
    if name.lower() in IMPOSSIBLE:
        raise UserError(f"optimizer.name={name} cannot be trained here: {IMPOSSIBLE[name.lower()]}")
    for key in ("lr", "weight_decay"):
        if key in kwargs:
            raise UserError(f"optimizer.kwargs.{key} stands beside optimizer.{key}: set optimizer.{key} alone")
    return {"lr": lr, "weight_decay": weight_decay, **kwargs}


def torch_optimizer(
    params: ParamGroups, name: str, lr: float, weight_decay: float, kwargs: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return the optimizer of torch.optim called ``name``, in any case. Raises UserError."""
    check_kind("optimizer.name", name, str)
    classes = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    found = classes.get(name.lower())
    if found is None:
        near = did_you_mean(name, [known.__name__ for known in classes.values()])
        raise UserError(f"torch.optim has no optimizer '{name}': {near}")
    settings = _settings(name, lr, weight_decay, kwargs)
    if weight_decay == 0 and "weight_decay" not in inspect.signature(found).parameters:
        del settings["weight_decay"]  # Rprop has none
    check_settings(found, settings, "optimizer.kwargs", found.__name__)
    made: torch.optim.Optimizer = _made(found, params, settings, name, _of_kwargs)
    return made


def two_loop_neumann(
    params: ParamGroups, lr: float, lr_in: float | None, inner_steps: int, **settings: Any
) -> torch.optim.Optimizer:
    """Return `neumann.optim.TwoLoopNeumann`; its outer rate is ``lr``, as that of every optimizer. Raises UserError."""
    given = {"lr_in": lr_in, "lr_out": lr, "inner_steps": inner_steps, **settings}
    made: torch.optim.Optimizer = _made(TwoLoopNeumann, params, given, "TwoLoopNeumann", "optimizer.{}".format)
    return made


def timm_optimizer(
    params: ParamGroups, name: str, lr: float, weight_decay: float, kwargs: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return the optimizer that timm calls ``name``, without timm's filter of weight decay. Raises UserError."""
    check_kind("optimizer.name", name, str)
    known = timm.optim.list_optimizers()
    if name.lower().rsplit("_", 1)[-1] not in known and name.lower() not in known:
        raise UserError(f"timm has no optimizer '{name}': {did_you_mean(name, known)}")
    settings = _settings(name, lr, weight_decay, kwargs)

    def make(params: ParamGroups, **settings: Any) -> Any:
        return timm.optim.create_optimizer_v2(params, opt=name, filter_bias_and_bn=False, **settings)

    takes = None if "_" in name else timm.optim.get_optimizer_class(name.lower(), bind_defaults=False)
    made: torch.optim.Optimizer = _made(make, params, settings, name, _of_kwargs, takes)
    return made
