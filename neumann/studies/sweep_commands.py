"""Commands that train the runs of a sweep again, each made and signed here, so that it is theirs or none."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from typing import Any

from neumann.config import MakeSpecs, making_specs
from neumann.config.override_text import key_of
from neumann.config.repeat import as_override, words_of
from neumann.errors import UserError
from neumann.store import records
from neumann.store.records import flat
from neumann.studies.sweep import Group
from neumann.studies.sweep_columns import CHOSEN
from neumann.studies.sweep_runs import SweepRun

PLACES = ("data.root", "data.name", "model.checkpoint")  # not signed, and needed to make the run
TRIED = 2  # runs of a row whose records are tried


def repeat_words(groups: Sequence[Group], columns: Sequence[str]) -> dict[str, list[str] | None]:
    """Return, by the `group` of its runs, the overrides that make each row's runs, without the seed.

    None where there are none: the data is not here, or the run was made of files of the user's own or of another
    version. The first row of each optimizer and schedule costs half a second; the others are tried with the settings of
    their columns in its words, which is one composition.
    """
    found: dict[str, list[str] | None] = {}
    like: dict[tuple[Any, ...], tuple[Group, list[str]]] = {}
    waiting = []
    with making_specs() as make:
        for one in groups:
            chosen = tuple(one.cells.get(section) for section in CHOSEN)
            if chosen in like:
                waiting.append((one, *like[chosen]))
                continue
            words = found[one.runs[0].group] = _words(make, one)
            if words is not None:
                like[chosen] = (one, words)
        for one, first, words in waiting:
            found[one.runs[0].group] = _changed(make, one, first, words, columns) or _words(make, one)
    return found


def _words(make: MakeSpecs, one: Group) -> list[str] | None:
    for run in one.runs[:TRIED]:
        try:
            words = words_of(_record(run), make)
        except (UserError, KeyError, TypeError, AttributeError):  # the folder may hold anything
            continue
        if words is not None:
            return [word for word in words if not word.startswith("seed=")]
    return None


def _record(run: SweepRun) -> Mapping[str, Any]:
    """Return the record of a run by what it signed; config.yaml only says where its images and weights lie."""
    config = copy.deepcopy(dict(run.signed["config"]))
    here: Mapping[str, Any] = {}
    if not run.archived:
        with contextlib.suppress(UserError):
            here = records.read_config(run.folder.path)
    for key in PLACES:
        section, name = key.split(".")
        known = here.get(section)
        if isinstance(known, Mapping) and isinstance(known.get(name), str):
            config[section][name] = known[name]
    return {"config": config, "choices": run.choices, "signature": run.signature}


def _changed(
    make: MakeSpecs, one: Group, first: Group, words: Sequence[str], columns: Sequence[str]
) -> list[str] | None:
    """Return ``words``, which make the runs of ``first``, with the columns of ``one``, or None."""
    ours, theirs = (dict(flat(each.runs[0].signed["config"])) for each in (one, first))
    keys = [key for key in columns if ours.get(key) != theirs.get(key)]
    if not keys or not all(key in ours and key in theirs for key in keys):
        return None
    # in the place of the old one, so that all rows read alike
    kept = [word for word in words if key_of(word).lstrip("+") not in keys]
    added = {key for key in keys if any(word.startswith(f"+{key}=") for word in words)}
    tried = [*kept, *(f"{'+' if key in added else ''}{key}={as_override(ours[key])}" for key in keys)]
    try:
        spec = make([[*tried, f"seed={one.runs[0].seed}"]])[0]
    except UserError:
        return None
    return tried if spec.signature == one.runs[0].signature else None
