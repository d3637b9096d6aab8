"""Records in a run's folder: its configuration, and the record that its specification is rebuilt from.

A folder may come from another user: nothing in it is executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neumann.errors import UserError, first_line
from neumann.store.files import read_file, read_json

RUN = re.compile(r"(.+)-([0-9a-f]{12})", re.DOTALL)  # a run folder's name: the run's name and its signature
LARGEST = 2**17  # bytes of a configuration; a real one has about 2,000


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.yaml as plain data; an interpolation in it stays a string.

    Raises UserError where the file is missing, damaged or not plain data.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError, scan  # type: ignore[import-untyped]
    from yaml.tokens import AliasToken  # type: ignore[import-untyped]

    path = folder / "config.yaml"
    try:
        content = read_file(path, LARGEST).decode()
        if "*" in content and any(isinstance(token, AliasToken) for token in scan(content)):
            raise ValueError("it has aliases, which no run writes, and a few of which stand for any size")
        config = OmegaConf.to_container(OmegaConf.create(content), resolve=False) if content.strip() else None
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.yaml: it is not a run's folder, or the run never began") from None
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, RecursionError, AssertionError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else first_line(error)
        raise UserError(f"{path} is damaged or not plain data: {why}") from error
    if not isinstance(config, dict) or not config:
        raise UserError(f"{path} is not a run's configuration")
    return {str(key): value for key, value in config.items()}


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record from which `neumann.config.load_spec` makes the run of ``folder`` again. Raises UserError."""
    match = RUN.fullmatch(folder.resolve().name)
    if match is None:
        raise UserError(f"{folder} is not a run's folder: its name does not end with a signature")
    provenance = read_json(folder / "provenance.json")
    try:
        choices = provenance["attempts"][-1]["choices"]  # type: ignore[index]
    except (TypeError, KeyError, IndexError):
        choices = {}  # they only make the run's name
    return {
        "config": read_config(folder),
        "choices": choices if isinstance(choices, dict) else {},
        "signature": match[2],
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf of a configuration."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
