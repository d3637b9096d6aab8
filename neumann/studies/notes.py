"""Lines that a command of a study prints beside what came out, and how it prints them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from neumann.fitting import say
from neumann.store.code_digests import CodeCheck
from neumann.studies.collect import StudyRuns
from neumann.studies.earlier import lost_runs
from neumann.studies.plan import Study
from neumann.studies.results import StudyResults
from neumann.studies.study_run import StudyRun


def precision_taken_over(study: Study) -> str | None:
    """Return a sentence where the study's precision is that of its finished runs and not this machine's."""
    if study.taken_over is None:
        return None
    return (
        f"trainer.precision={study.taken_over}, at which the runs that are there were trained: the study leaves it "
        "open, and this machine's own is another. To train it anew at that one, name it in the study's overrides"
    )


def notes_on(results: StudyResults, runs: StudyRuns) -> list[str]:
    """Return what a user should know of: too few seeds, precision taken over, unused archives, changed code."""
    check = CodeCheck()
    for run in {run.spec.signature: run for run in (*runs.tuning, *runs.evaluation)}.values():
        if run.result is not None:
            check.add(run.spec, run.folder.path, run.result, archived=run.from_archive)
    changed = check.note("output=NEW")
    unused = results.archive.notes if results.archive else ()
    found = [
        results.exploratory,
        precision_taken_over(runs.study),
        *(f"{runs.study.archive.file}: {note}" for note in unused),
        changed,
    ]
    return [note for note in found if note is not None]


def print_notes(notes: Iterable[str]) -> None:
    """Print each of ``notes`` on a line of standard error."""
    from neumann.launch.progress import print_note

    for note in notes:
        print_note(note)


def print_archive(study: Study, runs: Sequence[StudyRun], console: Console) -> None:
    """Say how many of ``runs`` the study's archive has and their folders lack, and what of it cannot be read."""
    every = {run.spec.signature: run.from_archive for run in runs}
    if archived := sum(every.values()):
        say(console, f"archived: {archived} of these {len(every)} runs are in {study.archive.file}")
    for sentence in study.archive.unread:
        say(console, (f"{study.archive.file}: {sentence}", "yellow"))


def print_lost(folder: Path, tuning: Sequence[StudyRun], study: Study, console: Console) -> None:
    """Say which runs of the report that is there will not be used."""
    lost = lost_runs(folder, tuning, study.archive)
    if lost:
        say(console, (lost, "yellow"))
