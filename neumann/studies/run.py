"""How does a study become a report? What is missing is trained, tuning first; then what is there is rendered."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from neumann.config import NOT_SIGNED, make_specs
from neumann.errors import UserError, did_you_mean
from neumann.store.files import replace_file
from neumann.store.folder import make_folder
from neumann.studies import stamp
from neumann.studies.collect import EVALUATION, TUNING, StudyRun, check_points, refreshed, runs_of, tried
from neumann.studies.definition import FULL, PACKAGED, Study, list_studies, load_study
from neumann.studies.results import StudyResults

ALLOWED = tuple(key for key in NOT_SIGNED if key not in ("study", "name"))  # what cannot change a result
REPORT = "report.html"
TO_PUBLISH = (".html", ".md", ".csv", ".svg", ".png")


def study(
    name: str,
    *,
    budget: str = FULL,
    plan: bool = False,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
    console: Console,
) -> int:
    """Train what ``name`` lacks at ``budget`` and render its report; return the exit code, 1 where a run failed.

    With ``plan`` it prints what would be trained and trains nothing. ``overrides`` may set only what cannot change a
    result. Raises UserError for a wrong study or configuration, and Interrupted where it was stopped.
    """
    one = load_study(name, budget, _checked(overrides), config_dirs)
    folder = _runs_folder(one, overrides) / f"report-{one.budget}"
    known = None if plan else stamp.unchanged(folder, _digest(one, overrides, config_dirs))
    if known is not None and not known["incomplete"]:  # nothing is missing, and nothing has changed since
        _print_end(console, folder, known["headline"])
        return 0
    if plan:
        _print_plan(one, config_dirs, console)
        return 0
    tuning = runs_of(one.tuning(), TUNING, partial(make_specs, config_dirs=config_dirs))
    check_points(one, tuning)
    folder = _report_folder(tuning[0], one)
    make_folder(folder)
    from neumann.launch import make_launcher
    from neumann.studies.progress import StudyView

    console.print(f"[bold]{escape(one.config.title)}[/]: {escape(one.config.question)}", highlight=False)
    failed = 0
    with (
        make_launcher(tuning[0].spec.config.launch, console) as launcher,
        StudyView(console, launcher.preparation, one, tuning) as view,
    ):
        failed += sum(o.status == "failed" for o in launcher.run([run.spec for run in tuning], view))
        tuning = [refreshed(run) for run in tuning]
        trials = {row: tried(one, row, tuning) for row in one.config.rows}
        from neumann.studies.analysis import assemble, evaluation_plan

        evaluation = runs_of(evaluation_plan(one, trials), EVALUATION, partial(make_specs, config_dirs=config_dirs))
        view.evaluating(trials, evaluation)
        failed += sum(o.status == "failed" for o in launcher.run([run.spec for run in evaluation], view))
    results = assemble(one, tuning, trials, [refreshed(run) for run in evaluation])
    _render(results, folder, one, overrides, config_dirs, tuning)
    from neumann.studies.report.tables import terminal_table

    console.print(terminal_table(results))
    console.print(escape(results.answer), highlight=False)
    _print_end(console, folder, results.headline)
    for run in results.runs:
        if run.status == "failed":
            console.print(f"[red]failed:[/] {escape(f'{run.folder}: {run.message}')}", highlight=False, soft_wrap=True)
    return 1 if failed else 0


def report(
    name: str,
    *,
    budget: str = FULL,
    publish: bool = False,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
    console: Console,
) -> int:
    """Render the report of ``name`` from what is there, or leave it where nothing has changed; return 0.

    With ``publish`` its files are copied to experiments/NAME/results of the checkout that the study lies in. Raises
    UserError.
    """
    one = load_study(name, budget, _checked(overrides), config_dirs)
    digest = _digest(one, overrides, config_dirs)
    folder = _runs_folder(one, overrides) / f"report-{one.budget}"
    known = stamp.unchanged(folder, digest)
    if known is None:
        from neumann.studies.analysis import assemble, read

        tuning, trials, evaluation = read(one, config_dirs)
        folder = _report_folder(tuning[0], one)
        make_folder(folder)
        results = assemble(one, tuning, trials, evaluation)
        _render(results, folder, one, overrides, config_dirs, tuning)
        headline, incomplete = results.headline, results.incomplete
    else:
        headline, incomplete = known["headline"], known["incomplete"]
    _print_end(console, folder, headline)
    if incomplete:
        again = "" if budget == FULL else f" --budget {budget}"
        console.print(escape(f"{incomplete} neumann study {name}{again} trains them."), highlight=False, soft_wrap=True)
    if publish:
        _publish(one, folder, incomplete, console)
    return 0


def print_studies(console: Console) -> None:
    """Print every study that can be named, with its question."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, file in list_studies().items():
        try:
            table.add_row(name, escape(load_study(str(file)).config.question))
        except UserError as error:
            table.add_row(name, f"[red]{escape(str(error))}[/]")
    console.print(table)


def _checked(overrides: Sequence[str]) -> list[str]:
    """Refuse what would change a result: that belongs in the study's file, where it can be read."""
    for word in overrides:
        key = word.split("=", 1)[0].lstrip("+")
        if "=" not in word or not any(key == allowed or key.startswith(f"{allowed}.") for allowed in ALLOWED):
            near = did_you_mean(key, ALLOWED)
            raise UserError(
                f"'{word}' may change what a study finds, so it belongs in its study.yaml; here you can set "
                f"{', '.join(ALLOWED)}" + (f" ({near})" if near.startswith("did") else "")
            )
    return list(overrides)


def _runs_folder(one: Study, overrides: Sequence[str]) -> Path:
    output = [word.split("=", 1)[1] for word in overrides if word.startswith("output=")]
    return Path(output[-1] if output else "runs") / one.name


def _report_folder(run: StudyRun, one: Study) -> Path:
    return run.spec.folder.parent / f"report-{one.budget}"


def _digest(one: Study, overrides: Sequence[str], config_dirs: Sequence[str]) -> str:
    words = [word for word in overrides if word.startswith(("output=", "data."))]  # the rest is on no page
    return stamp.current(one.file, one.budget, words, config_dirs, _runs_folder(one, overrides))


def _render(
    results: StudyResults,
    folder: Path,
    one: Study,
    overrides: Sequence[str],
    config_dirs: Sequence[str],
    tuning: Sequence[StudyRun],
) -> None:
    from neumann.studies.report.page import render

    written = render(results, folder)
    data = {run.spec.facts.fingerprint: run.spec.config.data for run in tuning}
    stamp.write(
        folder,
        _digest(one, overrides, config_dirs),
        [(section, fingerprint) for fingerprint, section in data.items()],
        written,
        headline=results.headline,
        incomplete=results.incomplete,
    )


def _print_end(console: Console, folder: Path, headline: str) -> None:
    console.print(f"[bold]{escape(headline)}[/]", highlight=False, soft_wrap=True)
    console.print(escape(f"report: {folder / REPORT}"), highlight=False, soft_wrap=True)


def _print_plan(one: Study, config_dirs: Sequence[str], console: Console) -> None:
    """Print how many runs each row needs and has."""
    from neumann.studies.analysis import read
    from neumann.studies.report.tables import setting_text

    tuning, trials, evaluation = read(one, config_dirs)
    console.print(f"[bold]{escape(one.name)}[/], budget {one.budget}: {escape(one.config.question)}", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("row", "judged at", "tuning", "chosen", "evaluation"):
        table.add_column(column, justify="right" if column in ("tuning", "evaluation") else "left", no_wrap=True)
    spaces: dict[str, list[str]] = {}
    for key, row in one.config.rows.items():
        own = [run for run in tuning if run.planned.row == key]
        its = [run for run in evaluation if run.planned.row == key]
        chosen = next((trial.setting for trial in trials[key] if trial.chosen), None)
        settings = " | ".join(setting_text(setting) for setting in one.spaces[key])
        spaces.setdefault(f"{', '.join(one.spaces[key][0])}: {settings}", []).append(row.label)
        table.add_row(
            escape(row.label),
            row.point,
            f"{sum(run.over for run in own)}/{len(own)}",
            setting_text(chosen) if chosen else "after tuning",
            f"{sum(run.over for run in its)}/{len(one.evaluation_seeds)}",
        )
    console.print(table)
    for space, labels in spaces.items():
        of = "every row" if len(labels) == len(one.config.rows) else ", ".join(labels)
        console.print(escape(f"tried for {of}: {space}"), highlight=False, soft_wrap=True)
    seeds = [", ".join(map(str, those)) for those in (one.tuning_seeds, one.evaluation_seeds)]
    console.print(f"tuning seeds {seeds[0]}; evaluation seeds {seeds[1]}", highlight=False, soft_wrap=True)
    left = {run.spec.signature for run in (*tuning, *evaluation) if not run.over}
    unchosen = sum(all(not trial.chosen for trial in its) for its in trials.values())
    later = f" and up to {unchosen * len(one.evaluation_seeds)} evaluation runs after tuning" if unchosen else ""
    console.print(
        f"to train: {len(left)} runs{later} (rows that differ only in the point share theirs)",
        highlight=False,
        soft_wrap=True,
    )
    seconds = [run.result["train_seconds"] for run in (*tuning, *evaluation) if run.result is not None]
    if seconds and left:
        mean = sum(seconds) / len(seconds)
        console.print(f"a run took {mean:.1f} s of training so far (n = {len(seconds)})", highlight=False)


def _publish(one: Study, folder: Path, incomplete: str | None, console: Console) -> None:
    """Copy the report to where it is committed; only a whole one, so that nothing half done is published."""
    if incomplete:
        raise UserError(f"--publish: {incomplete}")
    home = one.file.resolve().parent
    if PACKAGED.resolve() in home.parents and not (PACKAGED.resolve().parent / "pyproject.toml").exists():
        raise UserError(
            "--publish writes into a checkout's experiments folder, and this neumann is an installed package"
        )
    target = home / "results" / one.budget
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
    console.print(escape(f"published: {target}"), highlight=False, soft_wrap=True)
