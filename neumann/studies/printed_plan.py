"""The plan of a study as it is printed: what each row has and needs, and what the rest would cost."""

from __future__ import annotations

from rich.console import Console

from neumann.estimates.recorded import time_left
from neumann.fitting import print_table, say, text_of
from neumann.studies.analysis import analyse
from neumann.studies.collect import StudyRuns
from neumann.studies.notes import notes_on, print_archive, print_lost, print_notes
from neumann.studies.numbers import choices_text, setting_text
from neumann.studies.plan import Study
from neumann.studies.remaining import over, remaining
from neumann.studies.results import choices, chosen


def print_plan(runs: StudyRuns, console: Console) -> None:
    """Print how many runs each row needs and has."""
    one, tuning, evaluation = runs.study, runs.tuning, runs.evaluation
    say(console, (one.name, "bold"), f", budget {one.budget}: {one.config.question}", folded=True)
    rows = []
    spaces: dict[str, dict[str, None]] = {}
    for key, row in one.config.rows.items():
        own = [run for run in tuning if run.planned.row == key]
        its = [run for run in evaluation if run.planned.row == key]
        setting, by_seed = chosen(runs.trials[key]), choices(runs.trials[key])
        settings = " | ".join(setting_text(tried) for tried in one.spaces[key])
        label = one.cells[key].label if one.cells else row.label
        if any(one.spaces[key]):
            spaces.setdefault(f"{', '.join(one.spaces[key][0])}: {settings}", {})[label] = None
        cells = (
            row.label,
            row.point,
            f"{sum(run.over for run in own)}/{len(own)}",
            choices_text(by_seed) if by_seed else setting_text(setting) if setting is not None else "after tuning",
            f"{sum(run.over for run in its)}/{len(one.evaluation_seeds)}",
        )
        rows.append([text_of(cell) for cell in cells])
    names = ("row", "judged at", "tuning", "chosen", "evaluation")
    print_table(console, names, rows, right=("tuning", "evaluation"), shortest=24)
    for space, labels in spaces.items():
        of = "every row" if len(spaces) == 1 else ", ".join(labels)
        say(console, f"tried for {of}: {space}")
    untuned = [row.label for key, row in one.config.rows.items() if len(one.spaces[key]) == 1]
    if untuned:
        say(console, f"not tuned, one setting only: {', '.join(untuned)}")
    say(console, _seeds_told(one))
    left = len({run.spec.signature for run in (*tuning, *([] if one.is_grid else evaluation)) if not run.over})
    say(
        console,
        f"to train: {left} run{'s' if left != 1 else ''}{_later(runs)} "
        "(rows that differ only in the evaluation point share theirs)",
    )
    print_archive(one, (*tuning, *evaluation), console)
    print_lost(tuning[0].spec.folder.parent / one.report, tuning, one, console)
    print_notes(notes_on(analyse(runs), runs))
    if (sentence := time_left(remaining(runs), over(runs))) is not None:
        say(console, sentence)


def _later(runs: StudyRuns) -> str:
    """Return what follows the runs that are known to be missing, "" where nothing does."""
    one = runs.study
    if one.is_grid:
        is_over = all(run.over for run in (*runs.tuning, *runs.evaluation))
        return "" if is_over else ", and then the test of what each seed chooses"
    waiting = sum(chosen(its) is None for its in runs.trials.values())
    return f" and up to {waiting * len(one.evaluation_seeds)} evaluation runs after tuning" if waiting else ""


def _seeds_told(one: Study) -> str:
    tuning, evaluation = (", ".join(map(str, seeds)) for seeds in (one.tuning_seeds, one.evaluation_seeds))
    if not one.is_grid:
        return f"tuning seeds {tuning}; evaluation seeds {evaluation}"
    target = f"; seeds of the target {tuning}" if tuning else ""
    return f"every seed trains all settings and chooses its own: {evaluation}{target}"


def print_cost(runs: StudyRuns, rate: str, console: Console) -> int:
    """Print what the runs without a result cost, those after tuning at the mean of their row's; return 0."""
    from neumann.estimates.printed import print_estimate

    left = [(spec, spec.name, times) for spec, times in remaining(runs)]
    finished = {run.spec.signature for run in (*runs.tuning, *runs.evaluation) if run.over}
    print_estimate(console, left, finished=len(finished), rate=rate, several=True)
    return 0
