"""The runs of a study on W&B: where its report goes, which runs a row's curves are of, and what is not there yet.

A run is named there as its mirror names it (`neumann.training.mirror_rows`). Nothing is asked of a server: what is
known of a run is in its result and its folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neumann.errors import UserError
from neumann.store.records import read_config
from neumann.studies.collect import StudyRuns
from neumann.studies.plan import EVALUATION
from neumann.studies.study_run import StudyRun
from neumann.training.mirror_rows import mirror_id

UPLOADED, OFFLINE, ELSEWHERE, ARCHIVED, NONE = "uploaded", "offline", "elsewhere", "archived", "none"
ONE = {"are": "is", "were": "was"}  # verbs in the singular


@dataclass(frozen=True)
class Mirrored:
    """What a report on W&B needs to know of the mirrors of a study's runs.

    ``project`` and ``entity`` (user or team; None: the account's own) are those of the command's logger settings,
    ``group`` is what W&B files the runs under. ``ids`` has the W&B ids of each row's evaluation runs that finished, by
    key of the row. ``notes`` are sentences on runs that are not on W&B, or in another project, as far as that is known.
    """

    group: str
    project: str
    entity: str | None
    ids: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


def mirrored(runs: StudyRuns) -> Mirrored:
    """Return what is known of the mirrors of ``runs``. Raises UserError where the command has logger=none."""
    config = runs.tuning[0].spec.config
    if config.logger.kind == "none":
        raise UserError("logger=none sends nothing to W&B: leave it out, and logger.project says where the report goes")
    shown = [
        run for run in runs.evaluation if run.planned.role == EVALUATION and run.result is not None and not run.diverged
    ]
    ids = {row: tuple(_id(run) for run in shown if run.planned.row == row) for row in runs.study.config.rows}
    project, entity = config.logger.project, config.logger.entity
    distinct = list({run.spec.signature: run for run in shown}.values())
    notes = (*_not_there(distinct, project, entity), *_in_another(distinct, project, entity))
    return Mirrored(str(config.study), project, entity, ids, notes)


def _id(run: StudyRun) -> str:
    """Return the W&B id of the attempt that a run ended with, whose mirror is whole from the first step."""
    attempt = (run.result or {}).get("attempts")
    return mirror_id(run.spec.signature, attempt if isinstance(attempt, int) and attempt > 0 else 1)


def _state(run: StudyRun) -> str:
    """Return where the mirror of a run is, as far as its result and its folder tell."""
    mode = (run.result or {}).get("wandb")
    found = [] if run.from_archive else list(Path(run.folder.path).glob(f"wandb/*run-*-{_id(run)}"))
    offline = [path for path in found if path.name.startswith("offline-")]
    # the client marks what `wandb sync` has uploaded
    if mode == "online" or len(offline) < len(found) or any(any(path.glob("*.synced")) for path in offline):
        return UPLOADED
    if offline:
        return OFFLINE
    return ELSEWHERE if mode == "offline" else ARCHIVED if run.from_archive else NONE


def _not_there(runs: Sequence[StudyRun], project: str, entity: str | None) -> list[str]:
    """Return a sentence on each kind of run that may not be on W&B, with the command that brings it there."""
    if not runs:
        return ["no evaluation run has finished, so it has no panels"]
    by_state: dict[str, list[StudyRun]] = {}
    for run in runs:
        by_state.setdefault(_state(run), []).append(run)
    files, folders = (
        " ".join(dict.fromkeys(f"{shlex.quote(str(run.folder.path.parent))}/{glob}" for run in by_state.get(state, [])))
        for state, glob in ((OFFLINE, "*/wandb/offline-run-*"), (NONE, "*-s[0-9]*"))
    )
    where = f"--project {shlex.quote(project)}" + (f" --entity {shlex.quote(entity)}" if entity else "")
    said = {
        OFFLINE: ("are", f"in offline files that have not been uploaded: wandb sync {files}"),
        NONE: ("were", f"not mirrored to W&B: neumann runs mirror {folders} --to wandb --mode online {where}"),
        ELSEWHERE: ("were", "mirrored to offline files that are not here: whether they were uploaded is not known"),
        ARCHIVED: ("are", "in the study's archive alone, by which no mirror was made of them"),
    }
    return [f"{_of(runs, by_state[state], verb)} {words}" for state, (verb, words) in said.items() if state in by_state]


def _in_another(runs: Sequence[StudyRun], project: str, entity: str | None) -> list[str]:
    """Return a sentence on each other project that runs were mirrored to as they trained, by their configuration."""
    others: dict[tuple[str, str | None], list[StudyRun]] = {}
    for run in runs:
        if run.from_archive or not (run.result or {}).get("wandb"):
            continue
        try:
            logger = read_config(run.folder.path).get("logger")
        except UserError:  # it trained, and the project is not known any more
            continue
        if not isinstance(logger, dict):
            continue
        owner = logger.get("entity")
        there = str(logger.get("project")), None if owner is None else str(owner)
        if there[0] != project or (None not in (there[1], entity) and there[1] != entity):
            others.setdefault(there, []).append(run)
    said = []
    for (other, owner), its in others.items():
        words = shlex.join([f"logger.project={other}", *([f"logger.entity={owner}"] if owner else [])])
        said.append(f"{_of(runs, its, 'were')} mirrored to another project: with {words} the report goes there")
    return said


def _of(runs: Sequence[StudyRun], some: Sequence[StudyRun], verb: str) -> str:
    """Return how many of ``runs`` these are, with a ``verb`` ("are", "were") in their number."""
    if len(runs) == 1:
        return f"the one run that its panels are of {ONE[verb]}"
    counted = f"{'all ' if len(some) == len(runs) else ''}{len(some)}"
    return f"of the {len(runs)} runs that its panels are of, {counted} {ONE[verb] if len(some) == 1 else verb}"
