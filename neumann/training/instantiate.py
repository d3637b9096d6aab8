"""Objects from a ``_target_`` in a YAML: it is imported, its settings are compared with its signature, then called.

Every error on the way is a UserError of one sentence.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.machinery import PathFinder
from typing import Any

from hydra.utils import get_object

from neumann.bounds import Bounds, check_kind
from neumann.config.targets import TARGETS, place_of
from neumann.errors import UserError, did_you_mean
from neumann.refusals import as_raised, missing, root_cause, users_line

SCHEDULE_BOUNDS = {  # of our own schedules' settings
    "factor": Bounds(above=0),
    "every_steps": Bounds(at_least=1),
    "ramp_steps": Bounds(at_least=0),
    "total_steps": Bounds(at_least=1),
    "lanczos_steps": Bounds(at_least=2, below=10**4),
    "smoothing": Bounds(at_least=0, below=1),
    "growth": Bounds(above=1),
    "peak": Bounds(at_least=0, below=1),
}


def locate(target: str, where: str) -> Callable[..., Any]:
    """Return the class or function with the dotted name ``target``. Raises UserError, which names ``where``.

    The working directory joins the import path where it alone has the target's module.
    """
    _reach(place_of(target).partition(".")[0])
    logging.getLogger("hydra").setLevel(logging.CRITICAL)  # it logs what is raised anyway
    try:
        found = get_object(place_of(target))
    except Exception as error:  # importing a user's module may raise anything
        cause = root_cause(error)
        lines = str(error).strip().splitlines()
        if users_line(cause) is not None:  # the user's module is there and fails
            reason = as_raised(cause)
        else:
            reason = _nearest(place_of(target)) or (lines[-1] if lines else type(error).__name__)  # the cause is last
        raise UserError(f"{where}={target} cannot be imported: {reason}") from error
    if not callable(found):
        raise UserError(f"{where}={target} is not a class or a function")
    return found


def _reach(module: str) -> None:
    """Put the working directory on the import path, last, where ``module`` lies there and nowhere else.

    Only such a run needs it. The folder may be another user's, and many packages import what need not be installed
    (apex, hydra_plugins, opt_einsum): a file of that name there would be executed by every command.
    """
    try:
        if importlib.util.find_spec(module) is None and PathFinder.find_spec(module, [here := os.getcwd()]) is not None:
            sys.path.append(here)
    except (ImportError, ValueError, OSError):  # no name of a module, or the folder is gone: the import says more
        pass


def _nearest(target: str) -> str | None:
    """Return the nearest class or function of the module in ``target``; None where the module cannot be imported."""
    module, _, name = target.rpartition(".")
    try:
        found = importlib.import_module(module)
    except Exception:  # noqa: BLE001 - what the import of the target itself has raised says more
        return None
    there = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
    return None if name in vars(found) else f"{module} has no {name}: {did_you_mean(name, there)}"


def check_settings(call: Callable[..., Any], settings: Mapping[str, Any], where: str, name: str) -> None:
    """Raise UserError for a setting that ``call`` does not take, with the nearest that it does, and for one it needs.

    ``where`` is the section of the settings and ``name`` that of ``call``, for the message.
    """
    if lacking := missing(call, settings):
        listed = " and ".join(f"'{key}'" for key in lacking)
        how = f"set {where}.{lacking[0]}" if "." in where else f"add '{lacking[0]}: VALUE' to its YAML"
        raise UserError(f"{where}: {name} needs {listed}, which {'is' if len(lacking) == 1 else 'are'} not set: {how}")
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):
        return  # some C functions have no signature; calling will tell
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in settings:
        if key not in parameters:
            valid = [p for p in parameters if p not in ("self", "params", "step")]
            raise UserError(f"{where}: {name} takes no '{key}': {did_you_mean(key, valid)}")


def split_target(section: Mapping[str, Any], where: str) -> tuple[Callable[..., Any], dict[str, Any], str]:
    """Return (callable, settings, short name) of a section with ``_target_``; lists become tuples.

    Raises UserError where the target cannot be imported or does not take a setting.
    """
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in section.items() if k != "_target_"}
    target = section.get("_target_")
    if not isinstance(target, str):
        raise UserError(f"{where} has no _target_: its YAML must name a class or a function")
    call = locate(target, f"{where}._target_")
    name = target.rsplit(".", 1)[-1]
    check_settings(call, settings, where, name)
    return call, settings, name


def build_schedule(section: Mapping[str, Any]) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the step, counted from 0. Raises UserError."""
    call, settings, name = split_target(section, "schedule")
    if section["_target_"] in TARGETS:
        for key, value in settings.items():
            check_kind(f"schedule.{key}", value, int if key.endswith("_steps") or key == "iterations" else float)
            SCHEDULE_BOUNDS[key].check(f"schedule.{key}", value)
    factor = partial(call, **settings)
    try:
        float(factor(0))
    except Exception as error:  # the user's own function may raise anything
        raise UserError(f"schedule: {name} fails at step 0: {as_raised(error)}") from error
    return factor
