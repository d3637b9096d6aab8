"""Specifications of runs from their records: `RunSpec.as_record` describes a run, `load_spec` makes it again.

A record may have been written on another machine or by another user, so it is data: nothing is interpolated, and what
it names as ``_target_`` is only believed where the name is ours or an optimizer of torch or timm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neumann.config.hydra_words import interpolation
from neumann.config.schema import RunConfig, check_values, structured
from neumann.config.signature import sign
from neumann.config.spec import RunSpec
from neumann.config.targets import TARGETS, check_target
from neumann.config.weights import weights_of
from neumann.data import facts
from neumann.errors import UserError

# A class straight in one of these packages. A longer path would lead from a module to anything that it has imported
# (torch.optim.optimizer.functools.partial).
TRUSTED = re.compile(r"(neumann|torch|timm)\.optim\.[A-Z]\w*")


def load_spec(record: Mapping[str, Any], *, trust: bool = False) -> RunSpec:
    """Return the run that `RunSpec.as_record` has described.

    ``trust`` allows a ``_target_`` that is neither in `TARGETS` nor `TRUSTED`. Raises UserError for such a target
    without ``trust``, for a name of ours from another version, for an interpolation, for what is not a record of a run,
    and where the data or the code have changed, so that the run would be another one.
    """
    match record:
        case {"config": dict() as config, "choices": dict() as choices, "signature": str() as signature}:
            pass
        case _:
            raise UserError("this is not a record of a run: it needs a config, its choices and a signature")
    for key, text in _texts(config):
        if "${" in text or text == "???":
            raise UserError(f"{key}={text}: the record of a run has no interpolations, every value stands as it is")
        if key.endswith("._target_"):
            try:
                check_target(text, key)
            except UserError as error:
                raise UserError(f"the record of run {signature} does not fit this version: {error}") from error
    if not trust:
        refuse_foreign_code(config)
    try:
        loaded = OmegaConf.to_object(OmegaConf.merge(structured(config.get("launch")), config))
    except OmegaConfBaseException as error:
        raise UserError(f"the record of run {signature} does not fit this version: {interpolation(error)}") from error
    assert isinstance(loaded, RunConfig)
    check_values(loaded)
    chosen = {str(k): str(v) for k, v in choices.items()}
    spec = RunSpec(loaded, facts(loaded.data), "", chosen, weights_of(asdict(loaded.model)))
    spec = replace(spec, signature=sign(spec.signed()))
    if spec.signature != signature:
        raise UserError(
            f"the record of run {signature} now gives run {spec.signature}: its data or the code has changed"
        )
    return spec


def refuse_foreign_code(config: Mapping[str, Any]) -> None:
    """Raise UserError for a ``_target_`` in a configuration that is neither in `TARGETS` nor `TRUSTED`."""
    for key, text in _texts(config):
        if key.endswith("._target_") and not (text in TARGETS or TRUSTED.fullmatch(text)):
            raise UserError(
                f"{key}={text} would run code that is neither ours nor an optimizer of torch.optim or timm.optim: "
                "add --trust to allow it"
            )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, string) for every string in ``value``."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _texts(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _texts(child, key)
    elif isinstance(value, str):
        yield key, value
