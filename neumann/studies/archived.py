"""The archive of a study as its report tells of it, and packing: finished runs written into it.

The archive lies in results/BUDGET beside study.yaml. Its runs count as finished where their folders hold no result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neumann.errors import UserError
from neumann.store import RunFolder
from neumann.store.archive import Archive, ArchivedRun, is_same, of_folder
from neumann.studies.collect import StudyRuns, collect
from neumann.studies.conditions import commit, recorded
from neumann.studies.earlier import differences
from neumann.studies.plan import Study
from neumann.studies.results import ArchiveUse, Origin, chosen
from neumann.studies.study_run import StudyRun


def use(runs: StudyRuns) -> ArchiveUse | None:
    """Return what a report tells of the archive of ``runs``, None where there is none."""
    archive, config = runs.study.archive, runs.study.config
    if not archive.runs and not archive.unread:
        return None
    origins: dict[tuple[str, str], tuple[set[str], dict[str, None]]] = {}
    for run in runs.entries:
        if run.archived:
            of = (_all(run.attempts, _code), _all(run.attempts, _machine))
            signatures, rows = origins.setdefault(of, (set(), {}))
            signatures.add(run.signature)
            rows |= dict.fromkeys(config.rows[key].label for key in run.rows)
    results = {run.spec.signature: run for run in (*runs.tuning, *runs.evaluation) if run.over}
    return ArchiveUse(
        file=Path(os.path.relpath(archive.file, runs.study.file.resolve().parent)).as_posix(),
        digest=archive.digest,
        archived=sum(len(signatures) for signatures, _ in origins.values()),
        over=len(results),
        origins=tuple(Origin(*of, len(signatures), tuple(rows)) for of, (signatures, rows) in origins.items()),
        notes=(*archive.unread, *_unused(runs, results)),
    )


def _all(attempts: tuple[Mapping[str, Any], ...], told: Any) -> str:
    """Return what is ``told`` of ``attempts``, each once."""
    return "; ".join(dict.fromkeys(map(told, attempts))) or "not recorded"


def _code(attempt: Mapping[str, Any]) -> str:
    version = recorded(attempt, "packages", "neumann")
    known = [f"commit {made}" if (made := commit(attempt)) else None, f"neumann {version}" if version else None]
    return ", ".join(filter(None, known)) or "not recorded"


def _machine(attempt: Mapping[str, Any]) -> str:
    cores = recorded(attempt, "host", "cores")
    known = [recorded(attempt, "host", "processor"), f"{cores} cores" if cores else None]
    known += [recorded(attempt, "device"), recorded(attempt, "host", "system")]
    return ", ".join(str(said) for said in known if said) or "not recorded"


def _unused(runs: StudyRuns, results: Mapping[str, StudyRun]) -> list[str]:
    """Return sentences on the runs of the archive that are read and not used."""
    archive, said = runs.study.archive.runs, []
    differing = [one for s, one in results.items() if s in archive and not is_same(archive[s].result, one.result or {})]
    if differing:
        said.append(
            f"{len(differing)} of its {len(archive)} runs {_have(len(differing))} another result in the folder of "
            f"runs, which counts, such as {differing[0].folder.path.name}"
        )
    today = runs.tuning[0].spec.signed_json["results_version"]
    versions = {s: run.signed.get("results_version") for s, run in archive.items()}
    for other in sorted({str(v) for v in versions.values() if v != today}):
        count = sum(str(v) == other for v in versions.values())
        said.append(
            f"{count} of its {len(archive)} runs {_are(count)} not used: they are of results version {other}, and "
            f"this neumann makes version {today}"
        )
    asked = {run.spec.signature: run.spec for run in (*runs.tuning, *runs.evaluation)}
    unasked = [run for s, run in archive.items() if s not in asked and versions[s] == today]
    # runs of the second phase are not known before the first is over
    all_known = not any(trial.missing for its in runs.trials.values() for trial in its)
    if unasked and (all_known or not archive.keys() & asked.keys()):
        said.append(
            f"{len(unasked)} of its {len(archive)} runs {_are(len(unasked))} not what the study asks for now: "
            f"{differences([run.signed for run in unasked[:10]], list(asked.values()))}"
        )
    return said


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


@dataclass(frozen=True)
class Packed:
    """The outcome of `pack`: the archive's ``file``, ``size`` in bytes and number of ``runs``.

    ``added`` of the runs are new in it, and ``missing`` of the study's runs are in neither folder nor archive.
    """

    file: Path
    size: int
    runs: int
    added: int
    missing: int


def pack(study: Study) -> Packed:
    """Write the runs of ``study`` that are over into its archive, beside those that are in it already.

    Where all are in it, the file stays as it is. Raises UserError where no run is over, where a folder or the archive
    is not what was written, and where both have a run with different results.
    """
    runs = collect(study)
    every = (*runs.tuning, *runs.evaluation)
    over = {run.spec.signature: run for run in every if run.over}  # of a grid's run, what the second phase made of it
    here = [_archived(run) for run in over.values() if not run.from_archive]
    there = Archive.read(study.archive.file)  # again: another process may have packed meanwhile
    merged = there.merged(here)
    if not merged.runs:
        raise UserError(f"no run of {study.name} is over yet, so there is nothing to pack: {study.command('study')}")
    added = sum(there.runs.get(s) is None or there.runs[s].digest != run.digest for s, run in merged.runs.items())
    size = merged.write() if added else there.file.stat().st_size
    waiting = 0 if study.is_grid else sum(chosen(its) is None for its in runs.trials.values())
    missing = len({run.spec.signature for run in every if not run.over}) + waiting * len(study.evaluation_seeds)
    return Packed(merged.file, size, len(merged.runs), added, missing)


def _archived(run: StudyRun) -> ArchivedRun:
    assert isinstance(run.folder, RunFolder)
    assert run.result is not None
    return of_folder(run.folder, run.spec.signed(), run.result)
