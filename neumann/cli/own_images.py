"""The images of a run's own data, for commands that use its weights afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neumann.errors import UserError
from neumann.folders import folder_of

if TYPE_CHECKING:
    from neumann.training.trained import Trained

WHERE = ("root", "workers", "download")  # settings of where images lie and how they are read, not of which they are


def own_section(run: Trained, asked: Sequence[str]) -> dict[str, Any]:
    """Return the run's own data section, with what ``asked`` says of where its images lie. Raises UserError."""
    from neumann.config.override_text import plain_value, value_of
    from neumann.store.records import read_config

    data = read_config(run.folder).get("data")
    if not isinstance(data, Mapping):
        raise UserError(f"{run.folder / 'config.yaml'} has no data section: it is not a run's configuration")
    section = {str(key): value for key, value in data.items()}
    for word in asked:
        name = word.partition("=")[0].removeprefix("data.")
        if name not in section:
            raise UserError(f"'{word}': the run's data.kind={section.get('kind')} has no such setting")
        section[name] = folder_of("data.root", value_of(word)) if name == "root" else plain_value(word)
    return section


def recorded_data(run: Trained) -> Mapping[str, Any]:
    """Return what the run's signature covers of its data: fingerprint and splits; empty where it cannot be read."""
    from neumann.store.files import read_json

    signed = read_json(run.folder / "signed.json")
    recorded = signed.get("data") if isinstance(signed, Mapping) else None
    recorded = recorded if isinstance(recorded, Mapping) else {}
    return {key: recorded.get(key) for key in ("fingerprint", "splits")}
