"""Commands of a study: train what is missing, tuning first, and render the report of what is over.

`neumann study` and `neumann report` go one way: definition, plan, collection of both phases (which `Training` trains),
analysis, report. A report that nothing has changed since is answered from its stamp.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding

from neumann.config import NOT_SIGNED, ignored_variables
from neumann.config.override_text import key_of, value_of
from neumann.errors import UserError, printable
from neumann.fitting import padded, say, text_of
from neumann.folders import folder_of, left_out_if_refused
from neumann.processes.beside import beside
from neumann.store.code_digests import targets_of
from neumann.store.files import replace_file
from neumann.store.folder import OVER, make_folder
from neumann.studies import stamp
from neumann.studies.analysis import analyse
from neumann.studies.collect import StudyRuns, collect
from neumann.studies.definition import list_studies, read_study
from neumann.studies.earlier import lost_runs, stands_on
from neumann.studies.notes import notes_on, precision_taken_over, print_archive, print_lost, print_notes
from neumann.studies.plan import Study, load_study, refuse_package
from neumann.studies.printed_plan import print_cost, print_plan
from neumann.studies.report import preload
from neumann.studies.results import StudyResults, TuningTrial
from neumann.studies.schema import FULL
from neumann.studies.study_run import StudyRun

if TYPE_CHECKING:
    from neumann.launch.protocol import Launcher
    from neumann.studies.progress import StudyView

# what cannot change a result; the study names its runs, and what is derived follows from the others
ALLOWED = tuple(key for key in NOT_SIGNED if key not in ("study", "name") and not key.startswith("derived."))
REPORT, WANDB_REPORT = "report.html", "wandb-report.json"
TO_PUBLISH = (".html", ".md", ".csv", ".svg", ".png", ".pdf", ".tex")


def study(
    name: str,
    *,
    budget: str = FULL,
    plan: bool = False,
    estimate: str | None = None,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
    no_archive: bool = False,
    console: Console,
) -> int:
    """Train what ``name`` lacks at ``budget`` and render its report; return the exit code, 1 where a run failed.

    With ``plan`` it prints what would be trained and trains nothing; with ``estimate``, a rate that
    `neumann.estimates.rate.read_rate` reads, it prints what that would cost. ``overrides`` may set only what cannot
    change a result. With ``no_archive`` the runs in the study's archive do not count. Raises UserError for a wrong
    study or configuration, and Interrupted where it was stopped.
    """
    one = load_study(name, budget, checked(overrides), config_dirs, uses_archive=not no_archive)
    if plan:
        print_plan(collect(one), console)
        return 0
    if estimate is not None:
        return print_cost(collect(one), estimate, console)
    folder = report_folder(one)
    known = stamp.unchanged(folder, stamp.digest(one, folder.parent))
    if known is not None and not known["incomplete"]:  # nothing is missing, and nothing has changed since
        print_end(console, Rendered(folder, known["headline"], None, known["notes"]))
        return 0
    with Training(console) as training:
        runs = collect(one, train=training)
    results = analyse(runs)
    notes = notes_on(results, runs)
    kept = _kept(results, runs)
    if kept is None:
        # A run that others finish meanwhile is not in an incomplete report, which is to be written again then
        made_of = stamp.digest(one, folder.parent) if results.incomplete is None else ""
        folder = _render(results, runs, notes, made_of)
    from neumann.studies.report.scaling import print_scaling
    from neumann.studies.report.tables import print_main_table

    if results.scaling:
        print_scaling(console, results)
    else:
        print_main_table(console, results)
    say(console, results.answer, folded=True)
    if kept is None:
        print_end(console, Rendered(folder, results.headline, results.incomplete, notes))
    else:
        say(console, kept)
    for run in results.runs:
        if run.status == "failed":
            say(console, ("failed: ", "red"), f"{run.folder}: {run.message}")
    return 1 if training.failed else 0


def report(
    name: str,
    *,
    budget: str = FULL,
    publish: bool = False,
    wandb_report: bool = False,
    push: bool = False,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
    no_archive: bool = False,
    console: Console,
) -> int:
    """Render the report of ``name`` from what is there, or leave it where nothing has changed; return 0.

    With ``publish`` its files are copied to experiments/NAME/results of the checkout that the study lies in. With
    ``wandb_report`` it is written for W&B too, and with ``push`` sent there. With ``no_archive`` the runs in the
    study's archive do not count. Raises UserError.
    """
    if wandb_report:
        from neumann.studies import wandb_report as for_wandb

        for_wandb.check_installed()
    one = load_study(name, budget, checked(overrides), config_dirs, uses_archive=not no_archive)
    made = rendered(one)
    print_end(console, made)
    if made.incomplete:
        say(console, f"{made.incomplete} {one.command('study')} trains them.")
    if wandb_report:
        runs, results = made.read or _read(one)
        for_wandb.write(results, runs, made.folder / WANDB_REPORT, console, push=push)
    if publish:
        _publish(one, made.folder, made.incomplete, console)
    return 0


@dataclass(frozen=True)
class Rendered:
    """A report that is there: its ``folder``, what it says in a line, what is missing, and what a user should know.

    ``read`` are the runs and results that it was made of, None where it was left as it is.
    """

    folder: Path
    headline: str
    incomplete: str | None
    notes: Sequence[str]
    read: tuple[StudyRuns, StudyResults] | None = None


def rendered(one: Study, refresh: int | None = None) -> Rendered:
    """Render the report of ``one`` from what is there, or leave it where nothing has changed.

    With ``refresh`` a browser loads the page again after so many seconds, and the report counts as changed. Raises
    UserError as `collect` does, and where the report that is there stands on more runs.
    """
    folder = report_folder(one)
    made_of = stamp.digest(one, folder.parent)  # before the runs are read, of which others may end meanwhile
    known = None if refresh is not None else stamp.unchanged(folder, made_of)
    if known is not None:
        return Rendered(folder, known["headline"], known["incomplete"], known["notes"])
    runs, results = _read(one)
    kept = _kept(results, runs)
    if kept is not None:
        raise UserError(f"{kept}. {one.command('study')} trains what is missing and writes it anew")
    notes = notes_on(results, runs)
    folder = _render(results, runs, notes, made_of, refresh)
    return Rendered(folder, results.headline, results.incomplete, notes, (runs, results))


def _read(one: Study) -> tuple[StudyRuns, StudyResults]:
    collected = beside(collect, one)
    preload()  # meanwhile
    runs = collected()
    return runs, analyse(runs)


def print_studies(console: Console) -> None:
    """Print every study that can be named, with its question."""
    found = list_studies()
    wide = max((cell_len(printable(name)) for name in found), default=0) + 2
    for name, file in found.items():
        try:
            question = read_study(file).question
        except UserError as error:
            say(console, padded(printable(name), wide), (str(error), "red"))
            continue
        if console.is_terminal and wide + cell_len(printable(question)) > console.width:
            say(console, name)
            console.print(Padding(text_of(question), (0, 0, 0, 2)))  # folded between words
        else:
            say(console, padded(printable(name), wide), question)


class Training:
    """Trains the phases of a study, called with the runs of each, by one launcher and under one live table.

    Runs that the study's archive has are shown as over and never reach the launcher.

    The launcher is made at the first call, from what the runs' configuration says. ``failed`` counts failed runs.
    """

    def __init__(self, console: Console) -> None:
        self.failed = 0
        self._console = console
        self._open = ExitStack()
        self._launcher: Launcher | None = None
        self._view: StudyView | None = None

    def __enter__(self) -> Training:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def __call__(self, study: Study, runs: Sequence[StudyRun], trials: Mapping[str, Sequence[TuningTrial]]) -> None:
        """Train what of ``runs`` is not over. Raises UserError and Interrupted as the launcher does."""
        if self._launcher is not None and self._view is not None:
            self._view.evaluating(trials, runs)
            self._train(self._launcher, self._view, runs)
            return
        folder = runs[0].spec.folder.parent / study.report
        with left_out_if_refused([folder]):
            make_folder(folder)  # refused now, not after hours of training
            self._train(*self._opened(study, folder, runs), runs)

    def _opened(self, study: Study, folder: Path, runs: Sequence[StudyRun]) -> tuple[Launcher, StudyView]:
        """Return the launcher and the view of the study, whose report goes to ``folder``."""
        from neumann.launch import make_launcher
        from neumann.studies.progress import StudyView

        title, question = study.config.title, study.config.question
        say(self._console, (title, "bold"), f": {question}", folded=True)
        for ignored in ignored_variables(runs[0].spec.config):
            say(self._console, ignored)
        if (sentence := precision_taken_over(study)) is not None:
            say(self._console, (sentence, "yellow"))
        print_archive(study, runs, self._console)
        print_lost(folder, runs, study, self._console)
        launcher = self._open.enter_context(make_launcher(runs[0].spec.config.launch, self._console))
        view = self._open.enter_context(StudyView(self._console, launcher.preparation, study, runs))
        self._launcher, self._view = launcher, view
        return launcher, view

    def _train(self, launcher: Launcher, view: StudyView, runs: Sequence[StudyRun]) -> None:
        from neumann.launch.protocol import RunOutcome

        for run in runs:
            if run.from_archive:
                assert run.result is not None
                done = RunOutcome(run.spec, run.result["status"], dict(run.result), None, True, 0.0, run.folder.path)
                view.done(done)
        # Rows take turns, seed by seed, so that an hour in which the machine is slower is no row's alone
        in_turns = sorted(runs, key=lambda run: run.planned.seed)
        left = [run.spec for run in in_turns if not run.from_archive]
        outcomes = launcher.run(left, view) if left else []
        self.failed += sum(outcome.status == "failed" for outcome in outcomes)


def checked(overrides: Sequence[str]) -> list[str]:
    """Return ``overrides``, none of which can change a result. Raises UserError for one that can."""
    for word in overrides:
        key = key_of(word)
        if "=" not in word or not any(key == allowed or key.startswith(f"{allowed}.") for allowed in ALLOWED):
            near = get_close_matches(key, ALLOWED, n=1, cutoff=0.75)
            raise UserError(
                f"'{word}' may change what a study finds, so it belongs in its study.yaml; here you can set "
                f"{', '.join(ALLOWED)}" + (f" (did you mean '{near[0]}'?)" if near else "")
            )
    return list(overrides)


def report_folder(study: Study) -> Path:
    """Return where the report is looked for before anything is composed: under ``output`` of the command line."""
    output = [value_of(word) for word in study.extra if key_of(word) == "output"]
    return Path(folder_of("output", output[-1]) if output else "runs") / study.name / study.report


def _kept(results: StudyResults, runs: StudyRuns) -> str | None:
    """Return why the report that is there is left as it is: it stands on more, by runs that are not asked for now."""
    folder = runs.tuning[0].spec.folder.parent / runs.study.report
    over = sum(run.status in OVER for run in results.runs)
    if results.incomplete is None or over >= stands_on(folder):
        return None
    lost = lost_runs(folder, runs.tuning, runs.study.archive)
    return f"The report is left as it is: {lost}" if lost else None


def _render(
    results: StudyResults, runs: StudyRuns, notes: Sequence[str], made_of: str, refresh: int | None = None
) -> Path:
    """Write the report beside the run folders, with its stamp, which keeps ``notes``, and return its folder.

    ``made_of`` is the digest of what it was made of. A page that a browser is to ``refresh`` is not stamped, so that
    the next command writes the one without.
    """
    from neumann.studies.report.page import render

    folder = runs.tuning[0].spec.folder.parent / runs.study.report
    make_folder(folder)
    (folder / WANDB_REPORT).unlink(missing_ok=True)  # it says what the page said before
    if refresh is not None:
        (folder / stamp.NAME).unlink(missing_ok=True)
        render(results, folder, refresh)
        return folder
    written = render(results, folder)
    data = {run.spec.facts.fingerprint: run.spec.config.data for run in runs.tuning}
    stamp.write(
        folder,
        made_of,
        [(section, fingerprint) for fingerprint, section in data.items()],
        _targets(runs),
        written,
        headline=results.headline,
        incomplete=results.incomplete,
        notes=notes,
    )
    return folder


def _targets(runs: StudyRuns) -> set[str]:
    """Return what the runs name as ``_target_``; runs that differ in the seed alone share the sections that do."""
    sections: dict[int, Mapping[str, Any]] = {}
    for run in (*runs.tuning, *runs.evaluation):
        sections |= {id(part): part for part in run.spec.plain.values() if isinstance(part, dict)}
    return {target for section in sections.values() for target in targets_of(section)}


def print_end(console: Console, made: Rendered) -> None:
    """Print what a user should know of a report, what it says, and where it is."""
    print_notes(made.notes)
    say(console, (made.headline, "bold"))
    say(console, f"report: {made.folder / REPORT}")


def _publish(one: Study, folder: Path, incomplete: str | None, console: Console) -> None:
    """Copy the report to results/BUDGET beside study.yaml, or to results/NAME/BUDGET beside NAME.yaml.

    Raises UserError where it is incomplete.
    """
    if incomplete:
        raise UserError(f"--publish: {incomplete}")
    refuse_package(one, "--publish")
    target = one.results
    make_folder(target)
    names = []
    for path in sorted(folder.iterdir()):
        if path.suffix in TO_PUBLISH:
            replace_file(target / path.name, path.read_bytes())
            names.append(path.name)
    for old in target.iterdir():
        if old.name not in names and old.suffix in TO_PUBLISH:
            old.unlink()
    shutil.copystat(folder / REPORT, target / REPORT)
    say(console, f"published: {target}")
