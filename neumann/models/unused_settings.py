"""Settings that a network of timm takes and makes nothing of, which a run would record as if they had counted.

timm's networks take their settings by name. Some drop what they do not know, and some list a setting that they do not
read, or a share of dropout that none of their layers has; timm tells none of it.
"""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg
from torch import nn
from torch.overrides import TorchFunctionMode

from neumann.bounds import as_yaml
from neumann.errors import UserError, did_you_mean
from neumann.models.timm_arguments import WEIGHTS, without_weights
from neumann.refusals import of_another_kind

UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")  # as Python says it of any function
UNKNOWN = "a_setting_that_no_network_has"
ELSEWHERE = {  # what is looked for in the network and stands beside it
    "smoothing": "recipe.label_smoothing",
    "label_smoothing": "recipe.label_smoothing",
    "channels_last": "model.channels_last",
    "compile": "model.compile",
}


def check_settings(
    name: str, settings: Mapping[str, Any], kwargs: Mapping[str, Any], model: nn.Module, image_size: tuple[int, int]
) -> None:
    """Raise UserError for the first setting of the user's that ``model`` has taken and does not use.

    Args:
        name: the network, as timm's factory knows it.
        settings: all that it was made of.
        kwargs: those that the user gave.
        model: the network.
        image_size: (height, width) of the images in pixels.
    """
    given = {key: value for key, value in kwargs.items() if key not in WEIGHTS and value is not None}
    own = {key: value for key, value in without_weights(settings).items() if value is not None}
    names = _settings_of(name, model)
    strange = [key for key in given if key not in names | _named(timm.create_model) | _named(build_model_with_cfg)]
    if strange and _network(name, {**own, UNKNOWN: 1}) is not None:
        raise UserError(
            f"model.kwargs.{strange[0]}: model.name={name} takes settings of any name, and has none of this: "
            f"{_nearest(strange[0], names)}"
        )
    for key, value in given.items():
        share = _is_share(key, value)
        if _is_read(key, value, name, model) and (not share or _counts(name, own, key, image_size)):
            continue
        shares = sorted(other for other in names - given.keys() if share and _is_share(other, 0.5))
        used = [other for other in shares if _counts(name, {**own, other: 0.5}, other, image_size)]
        instead = f", or set {' or '.join(used)}" if used else ""
        raise UserError(
            f"model.kwargs.{key}={as_yaml(value)}: model.name={name} takes it and makes nothing of it: leave it out"
            f"{instead}"
        )


def wrong_setting(name: str, settings: Mapping[str, Any], kwargs: Mapping[str, Any], error: Exception) -> str | None:
    """Return a sentence on the setting of the user's by which ``error`` was raised, None where it is not known.

    That is one that it refuses by name, with the nearest that there is, or one of another kind than the network's own.
    ``settings`` are all that ``name`` should have been made of, ``kwargs`` those of the user.
    """
    model = _network(name, {key: value for key, value in settings.items() if key not in kwargs})
    if model is None:
        return None
    found = UNEXPECTED.search(str(error))
    if found is not None and found[1] in kwargs:
        return f"model.name={name} has no setting {found[1]}: {_nearest(found[1], _settings_of(name, model))}"
    given = {key: value for key, value in kwargs.items() if key not in WEIGHTS}
    return of_another_kind(_functions(name, model), given, "model.kwargs.{}".format, name)


def _functions(name: str, model: nn.Module) -> list[Callable[..., Any]]:
    """Return what takes the settings: timm's function for ``name`` and the constructors of the class."""
    classes = [kind for kind in type(model).__mro__ if "__init__" in vars(kind) and kind not in (nn.Module, object)]
    return [timm.model_entrypoint(name), *(kind.__init__ for kind in classes)]  # type: ignore[misc] # not called


def _settings_of(name: str, model: nn.Module) -> set[str]:
    """Return the settings that the class of ``model``, or timm's function for ``name``, lists."""
    listed: set[str] = set().union(*map(_named, _functions(name, model)))
    return listed - {"self", "in_chans", "num_classes", "device", "dtype", *WEIGHTS}


def _named(function: Callable[..., Any]) -> set[str]:
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return {name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind in kinds}


def _is_read(key: str, value: Any, name: str, model: nn.Module) -> bool:
    """Return whether a function that lists the setting ``key`` reads it; True where each has ``value`` by itself."""
    listing = [
        function
        for function in _functions(name, model)
        if key in _named(function) and inspect.signature(function).parameters[key].default != value
    ]
    loads = (step for function in listing for step in dis.get_instructions(function) if "LOAD" in step.opname)
    names = (step.argval if isinstance(step.argval, tuple) else (step.argval,) for step in loads)  # some load two
    return not listing or any(key in each for each in names)


def _nearest(key: str, names: set[str]) -> str:
    return f"did you mean '{ELSEWHERE[key]}'?" if key in ELSEWHERE else did_you_mean(key, names)


class _Calls(TorchFunctionMode):
    """Notes the name of every function of torch that is called, and the numbers among its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Any, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        numbers = (value for value in (*args, *kwargs.values()) if isinstance(value, int | float))
        self.noted.append((getattr(func, "__name__", str(func)), *numbers))
        return func(*args, **kwargs)


def _is_share(key: str, value: Any) -> bool:
    """Return whether a setting is a share of something that is dropped in training, and not none of it."""
    return "drop" in key and not key.endswith("size") and isinstance(value, int | float) and 0 < value <= 1


def _counts(name: str, settings: Mapping[str, Any], key: str, image_size: tuple[int, int]) -> bool:
    """Return whether the network computes otherwise in training than with ``key`` at zero; True where that is open."""
    one, other = (_calls(name, its, image_size) for its in (settings, {**settings, key: 0.0}))
    return one is None or other is None or one != other


def _calls(name: str, settings: Mapping[str, Any], image_size: tuple[int, int]) -> list[tuple[Any, ...]] | None:
    """Return what the network calls in training on two images, None where it cannot be tried."""
    model = _network(name, settings)
    if model is None:
        return None
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    images = torch.zeros(2, int(settings["in_chans"]), *image_size, device=device)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _Calls() as calls:
        try:
            model.train()(images)
        except Exception:  # noqa: BLE001 - each network fails by an exception of its own
            return None
    return calls.noted


def _network(name: str, settings: Mapping[str, Any]) -> nn.Module | None:
    """Return the network of ``settings``, on the meta device where it knows that; None where it is refused."""
    for device in ("meta", "cpu"):
        with torch.random.fork_rng(devices=[]), torch.device(device):
            try:
                model: nn.Module = timm.create_model(name, **settings)
                return model
            except Exception:  # noqa: BLE001 - each of timm's models refuses by an exception of its own
                continue
    return None
