"""Conditions that the rows of a study were trained under, beside the optimizer: settings, code, libraries, devices.

A comparison is of optimizers only as far as the rest is the same, so what is not the same is named with its rows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from neumann.config import NOT_SIGNED, RunConfig
from neumann.config.schema import batch_split
from neumann.store import OVER
from neumann.store.code_digests import LIBRARIES, as_code, codes, differing
from neumann.store.records import flat
from neumann.studies.numbers import value
from neumann.studies.plan import Study
from neumann.studies.results import RunEntry
from neumann.studies.scaling import Cell
from neumann.studies.study_run import StudyRun

CODE_OF = "code of "  # opens the provenance label of a file's digest
DEVICE = "device"
ONE_VALUE = ("commit", *LIBRARIES.values(), DEVICE)  # provenance that may move the numbers where runs differ in it
# sections and settings that are told elsewhere, or follow from what is: the optimizer is what rows are about
TOLD = ("optimizer", "schedule", "timing", "derived", "batch", "seed", "trainer.max_epochs", "trainer.precision")

Rows = Mapping[str, tuple[str, ...]]  # {value: labels of the rows that have it}


def settings(study: Study, tuning: Sequence[StudyRun]) -> dict[str, Rows]:
    """Return {what: {value: labels of its rows}} for what decides a result beside the optimizer.

    Schedule, batch size, weight decay and precision are always named, every other setting where rows differ in it.
    """
    always = ("schedule", "batch size", "weight decay", "precision")
    found: dict[str, dict[str, tuple[str, ...]]] = {what: {} for what in always}
    others: dict[str, dict[str, set[str]]] = {}  # by row: the values of each other setting
    for key, row in study.config.rows.items():
        runs = [run for run in tuning if run.planned.row == key]
        configs = [run.spec.config for run in runs]
        values = {
            "schedule": {_schedule(config.schedule) for config in configs},
            "batch size": {_batch(config) for config in configs},
            "weight decay": {value(config.optimizer.get("weight_decay", 0)) for config in configs},
            "precision": {config.trainer.precision for config in configs},
        }
        for what, its in values.items():
            said = its.pop() if len(its) == 1 else "tuned"
            found[what][said] = (*found[what].get(said, ()), row.label)
        others[row.label] = _others(runs)
    if study.is_of_batches and all(said == cell.level for said, cell in _by_cell(study, found["batch size"])):
        sizes = sorted({cell.batch for cell in study.cells.values()})
        found["batch size"] = {f"{', '.join(map(str, sizes))}, as the row says": ()}
    for what in dict.fromkeys(name for known in others.values() for name in known):
        rows: dict[str, tuple[str, ...]] = {}
        for label, known in others.items():
            had = known.get(what, {"not set"})
            said = next(iter(had)) if len(had) == 1 else "tuned"
            rows[said] = (*rows.get(said, ()), label)
        if len(rows) > 1:
            found[what] = (_by_level(study, rows) if study.cells else None) or rows
    return found  # type: ignore[return-value]


def _by_cell(study: Study, found: Rows) -> Iterator[tuple[str, Cell]]:
    """Yield what was told of each row of a study across a factor, with what that row is."""
    labels = {row.label: study.cells[key] for key, row in study.config.rows.items()}
    yield from ((said, labels[label]) for said, rows in found.items() for label in rows)


def _by_level(study: Study, found: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]] | None:
    """Return what was told of rows as told of levels, where all rows of a study across a factor are alike at each."""
    told: dict[str, set[str]] = {cell.at: set() for cell in study.cells.values()}
    for said, cell in _by_cell(study, found):
        told[cell.at].add(said)
    if any(len(values) != 1 for values in told.values()):
        return None
    return {said: tuple(at for at in told if said in told[at]) for said in found}


def _others(runs: Sequence[StudyRun]) -> dict[str, set[str]]:
    """Return the settings of a row's ``runs`` that can change a result and that nothing else in a report names.

    Each has its values.
    """
    found: dict[str, set[str]] = {}
    for spec in (run.spec for run in runs):
        for key, given in flat({**spec.plain, **({"weights": spec.weights} if spec.weights else {})}):
            if given != {} and not _is_told(key):
                found.setdefault(key, set()).add(_shown(given))
    return found


@functools.cache
def _is_told(key: str) -> bool:
    """Return whether something else in a report names the setting, or the section that it is in, or nothing need."""
    above = [key, *itertools.accumulate(key.split("."), "{}.{}".format)]
    return any(name in TOLD or name in NOT_SIGNED for name in above)


def _shown(given: Any) -> str:
    if isinstance(given, bool) or given is None:
        return str(given).lower().replace("none", "null")
    return value(given) if isinstance(given, int | float | str) else str(given)


def _batch(config: RunConfig) -> str:
    """Return the batch size, and what batch norm takes its statistics over where that is less than a device's share."""
    if config.batch.norm_size is not None:
        return f"{config.batch.size}, ghost batches of {config.batch.norm_size}"
    split = batch_split(config)
    return f"{config.batch.size}" + (f", micro-batches of {split.micro_batch}" if split.accumulation > 1 else "")


def _schedule(section: Mapping[str, Any]) -> str:
    times = ", ".join(f"{key} {value(v)}" for key, v in section.items() if key not in ("_target_", "total_steps"))
    name = str(section.get("_target_")).rpartition(".")[2]
    return f"{name} ({times})" if times else name


# ------------------------------------------------------------------------------------------------ what trained the runs


def mixed(runs: Sequence[RunEntry], row: str) -> tuple[str, ...]:
    """Return the names of the code, the libraries and the device of which the runs of ``row`` had several."""
    return _several(_attempts(runs, row))


def unlike(runs: Sequence[RunEntry], row: str, other: str) -> tuple[str, ...]:
    """Return the names of the code, the libraries and the device that were not the same for two rows.

    Code that one of them alone has, as an optimizer of one's own beside SGD, is what is compared and not named.
    """
    both = [_attempts(runs, row), _attempts(runs, other)]
    if not all(both):
        return ()
    found = []
    for name in _several([*both[0], *both[1]]):
        one, two = ({_made_by(attempt).get(name) for attempt in attempts} for attempts in both)
        is_compared = any(
            had == {None} and any(attempt.get("code") for attempt in attempts)
            for had, attempts in zip((one, two), both, strict=True)
        )
        if one != two and not is_compared:
            found.append(name)
    return tuple(found)


def _attempts(runs: Sequence[RunEntry], row: str) -> list[Mapping[str, Any]]:
    return [attempt for run in runs if row in run.rows and run.status in OVER for attempt in run.attempts]


def _several(attempts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    code = differing(codes(attempts))
    made_by = [_made_by(attempt) for attempt in attempts]
    others = [
        name
        for name in (*LIBRARIES.values(), DEVICE)
        if len({its[name] for its in made_by if name in its}) > 1  # a record that lacks it is an earlier version's
    ]
    return tuple(dict.fromkeys([*others, *code]))


def _made_by(attempt: Mapping[str, Any]) -> dict[str, str]:
    """Return the code, the libraries and the device of an attempt, as far as its record names them."""
    known = {name: recorded(attempt, "packages", name) for name in LIBRARIES.values()}
    known[DEVICE] = recorded(attempt, "device")
    return {**{name: str(said) for name, said in known.items() if said is not None}, **as_code(attempt.get("code"))}


def provenance(runs: Sequence[RunEntry], labels: Mapping[str, str]) -> dict[str, Rows]:
    """Return {label: {value: labels of the rows whose runs have it}} over all runs that have a record.

    Runs that are over and have none are counted under "without a record". ``labels`` maps a row's key to its label.
    """
    found: dict[str, dict[str, dict[str, None]]] = {}
    without: dict[str, dict[str, None]] = {}
    for run in runs:
        rows = dict.fromkeys(labels[key] for key in run.rows)
        if run.status in OVER and not run.attempts:
            without.setdefault(run.signature, {}).update(rows)
        for record in run.attempts:
            for label, said in _told(record):
                if said is not None:
                    found.setdefault(label, {}).setdefault(str(said), {}).update(rows)
    told = {label: {said: tuple(rows) for said, rows in values.items()} for label, values in found.items()}
    if without:
        over = len({run.signature for run in runs if run.status in OVER})
        of = dict.fromkeys(label for rows in without.values() for label in rows)
        told["without a record"] = {f"{len(without)} of {over} runs": tuple(of)}
    return told  # type: ignore[return-value]


def _told(record: Mapping[str, Any]) -> list[tuple[str, str | int | None]]:
    """Return what a report tells of one attempt's record, each under its label."""
    code, made_by = as_code(record.get("code")), _made_by(record)
    return [
        ("commit", commit(record)),
        *((f"{CODE_OF}{name}", code[name]) for name in sorted(code.keys() - LIBRARIES.values())),
        ("neumann", recorded(record, "packages", "neumann")),
        *((library, made_by.get(library)) for library in LIBRARIES.values()),
        ("python", recorded(record, "python")),
        (DEVICE, made_by.get(DEVICE)),
        ("processor", recorded(record, "host", "processor")),
        ("cores", recorded(record, "host", "cores")),
        ("torch threads", recorded(record, "torch_threads")),
        ("data fingerprint", recorded(record, "data", "fingerprint")),
    ]


def commit(record: Mapping[str, Any]) -> str | None:
    """Return the commit of an attempt's code, and the digest of what was not committed; None for a package."""
    made, diff = recorded(record, "git", "commit"), recorded(record, "git", "diff_sha256")
    return f"{made[:12]}{f' with uncommitted changes {diff}' if diff else ''}" if isinstance(made, str) else None


def recorded(record: Mapping[str, Any], *keys: str) -> str | int | None:
    """Return a text or a whole number from a run's record, None for anything else: the file may hold anything."""
    found: Any = record
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, str | int) else None


def is_mixed(label: str, values: Rows) -> bool:
    """Return whether runs differ in a part of their provenance that may move the numbers."""
    return len(values) > 1 and (label in ONE_VALUE or label.startswith(CODE_OF))
