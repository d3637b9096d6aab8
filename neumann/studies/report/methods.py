"""The methods paragraph: how a study was done, in the words of a paper, from the study and its runs alone."""

from __future__ import annotations

from collections.abc import Iterable

from neumann.studies.numbers import measure, printable, size, value
from neumann.studies.plan import EVALUATION, TUNING
from neumann.studies.report.tables import epochs_text, settings_text
from neumann.studies.report.text import label_of
from neumann.studies.results import ERROR, StudyResults
from neumann.studies.scaling import BATCH, FEWEST, LOOSE, RESAMPLES


def methods(results: StudyResults) -> list[str]:
    """Return the paragraph as its sentences' groups: task, search, comparison, what went wrong."""
    return [text for text in (_task(results), _search(results), _comparison(results), _lost(results)) if text]


def _task(results: StudyResults) -> str:
    labels = list(dict.fromkeys(cell.label for cell in results.cells.values())) or [row.label for row in results.rows]
    said = f"We trained {_and(labels)} on {printable(results.data)}."
    levels = dict.fromkeys(cell.level_label for cell in results.cells.values())
    factor = next((cell.factor for cell in results.cells.values()), "")
    if factor == BATCH:
        said += f" Every optimizer was trained at the global batch sizes {_and(levels)},"
        said += f" for {epochs_text(results).removesuffix(', as the row says')} according to the batch."
    else:
        said += f" Training lasted {epochs_text(results)}."
    if factor not in ("", BATCH):
        said += f" Every optimizer was trained at each level of the factor {printable(factor)} ({_and(levels)}), "
        said += "and optimizers are compared at equal levels."
    if results.settings:
        said += f" {settings_text(results)}"
    return f"{said} All runs have {', '.join(map(printable, results.recipe))}." if results.recipe else said


def _search(results: StudyResults) -> str:
    trials = max((len(row.trials) for row in results.rows), default=0)
    spaces: dict[str, dict[str, None]] = {}
    untuned = []
    for row in results.rows:
        if row.trials and not any(trial.setting for trial in row.trials):
            untuned.append(results.cells[row.key].label if results.cells else row.label)
            continue
        tried: dict[str, dict[str, None]] = {}
        for trial in row.trials:
            for key, v in trial.setting.items():
                tried.setdefault(key, {})[value(v)] = None
        text = "; ".join(f"{printable(key)} from {{{', '.join(values)}}}" for key, values in tried.items())
        label = results.cells[row.key].label if results.cells else row.label
        spaces.setdefault(text, {})[label] = None
    told = "; ".join(f"{text}{f' for {_and(labels)}' if len(spaces) > 1 else ''}" for text, labels in spaces.items())
    seeds = len(results.evaluation_seeds)
    if trials < 2:
        return f"Nothing was tuned. Each row was trained with {_seeds(seeds)} of initialisation and data order."
    said = f"Each row{' that was tuned' if untuned else ''} had {trials} trials: {told}."
    if untuned:
        said += f" Nothing was tuned for {_and(list(dict.fromkeys(untuned)))}."
    if results.grid:
        equal = ", and those at equal settings where these are compared" if _at_equal(results) else ""
        how = f"the fewest {measure(results.least)}" if results.least else "the lowest validation error after training"
        return (
            f"{said} Every one of {seeds} seeds of initialisation and data order trained all of them and chose its own "
            f"setting by {how}, so that the {seeds} replicates repeat the search too. No choice looked at the test "
            f"images: on them only the chosen runs count{equal}."
        )
    return (
        f"{said} The setting with the lowest mean validation error over {_seeds(len(results.tuning_seeds))} was chosen "
        f"for all others, and no choice looked at the test images. Each row was then trained at its "
        f"setting with {_seeds(seeds)} that no choice had seen."
    )


def _at_equal(results: StudyResults) -> bool:
    return any(c.settings for c in results.comparisons)


def _comparison(results: StudyResults) -> str:
    primary = next((c for c in results.comparisons if c.primary), None)
    if primary is None:
        return ""
    row, against = label_of(results, primary.row), label_of(results, primary.against)
    margin = size(results.margin.size, results.margin)
    said = f"The primary comparison, named beforehand, is that of {row} with {against} in {measure(results.outcome)}, "
    said += f"paired by seed, with a smallest effect of interest of {margin}"
    said += "; both rows are taken as the mean over equal settings." if primary.settings else "."
    if results.target is not None and results.target.error is not None:
        said += f" The target is a validation error of {100 * results.target.error:.4g} %, "
        said += f"{printable(results.target.source)}; the first evaluation at or below it counts."
    if results.outcome == ERROR:
        said += " Intervals are 95 % intervals by Student's t, for ratios of means by Fieller's method."
    else:
        said += " Intervals are 95 % t intervals of the log ratios; where a run missed the target, the log-rank test "
        said += "compares the rows."
    others = sum(not c.primary for c in results.comparisons)
    if others and not results.pilot:
        said += f" The p values of the other {others} comparisons are adjusted together by Holm's method."
    if results.scaling:
        said += f" S = S_min (1 + B_crit / B) was fitted to the logarithm of the mean steps where {FEWEST} batches or "
        said += f"more had no miss and the residual was below {LOOSE}, with percentile intervals of {RESAMPLES:,} "
        said += "bootstrap samples of the seeds."
    if results.pilot:
        return f"{said} This is a pilot, which has no verdicts."
    if results.seeds_planned:
        return f"{said} The number of seeds is enough to decide by that margin at the noise that a pilot found."
    return f"{said} The number of seeds was not computed from a pilot."


def _lost(results: StudyResults) -> str:
    tuning, evaluation = ([run for run in results.runs if run.role == role] for role in (TUNING, EVALUATION))
    lost = [
        (what, sum(run.status == "diverged" for run in runs))
        for what, runs in (("tuned", tuning), ("evaluated", evaluation))
    ]
    said = f"In all {len(results.runs):,} runs were planned"
    told = [f"{count} of the runs that {what} diverged" for what, count in lost if count]
    if results.incomplete:
        said += f", of which {sum(run.status not in ('finished', 'diverged') for run in results.runs):,} have no result"
    return f"{said}; {_and(told)}." if told else f"{said}; none diverged."


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _and(parts: Iterable[str]) -> str:
    *most, last = [printable(part) for part in parts]
    apart = "; " if any(", " in part for part in (*most, last)) else ", "  # labels with commas of their own
    return f"{apart.join(most)} and {last}" if most else last
