"""What is the answer? A study's runs become rows, comparisons and sentences, whatever part of them is there."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from neumann.config import making_specs
from neumann.studies.collect import (
    EVALUATION,
    TUNING,
    StudyRun,
    check_points,
    curve_of,
    edge,
    entries,
    point_of,
    runs_of,
    scores,
    tried,
)
from neumann.studies.definition import FULL, RowConfig, Study
from neumann.studies.report.tables import interval, p_value, percent, percentage_points
from neumann.studies.results import Comparison, Paper, RowResult, RunEntry, Setting, StudyResults, TuningTrial
from neumann.studies.statistics import Paired, decide, holm, paired, summarize

ALPHA, POWER = 0.05, 0.8


def collect(study: Study, config_dirs: Sequence[str] = ()) -> StudyResults:
    """Return the results of ``study`` as far as its runs are there. Trains nothing and writes nothing."""
    return assemble(study, *read(study, config_dirs))


def read(
    study: Study, config_dirs: Sequence[str] = ()
) -> tuple[list[StudyRun], dict[str, tuple[TuningTrial, ...]], list[StudyRun]]:
    """Return the tuning runs, every row's trials, and the evaluation runs of the rows whose setting is chosen."""
    with making_specs(config_dirs) as make:
        tuning = runs_of(study.tuning(), TUNING, make)
        check_points(study, tuning)
        trials = {row: tried(study, row, tuning) for row in study.config.rows}
        return tuning, trials, runs_of(evaluation_plan(study, trials), EVALUATION, make)


def evaluation_plan(study: Study, trials: Mapping[str, Sequence[TuningTrial]]) -> list[Any]:
    """Return the evaluation runs of every row whose setting is chosen."""
    return [
        planned
        for row, its in trials.items()
        for trial in its
        if trial.chosen
        for planned in study.evaluation(row, trial.setting)
    ]


def assemble(
    study: Study,
    tuning: Sequence[StudyRun],
    trials: Mapping[str, tuple[TuningTrial, ...]],
    evaluation: Sequence[StudyRun],
) -> StudyResults:
    """Return the results of ``study`` from its runs."""
    config = study.config
    by_row = {row: [run for run in evaluation if run.planned.row == row] for row in config.rows}
    errors = {row: _test(by_row[row], config.rows[row].point, "error") for row in config.rows}
    comparisons = _compare(study, errors)
    against = {c.row: c for c in comparisons if c.against == config.comparisons.reference}
    rows = tuple(_row(study, key, row, trials[key], by_row[key], against.get(key)) for key, row in config.rows.items())
    runs = (*entries(tuning), *entries(evaluation))
    primary = next(c for c in comparisons if c.primary)
    labels = {key: row.label for key, row in config.rows.items()}
    incomplete = _incomplete(study, runs, rows)
    some = next(iter(tuning)).spec
    answer, headline = _answer(study, primary, labels, rows)
    return StudyResults(
        name=study.name,
        title=config.title,
        question=config.question,
        budget=study.budget,
        answer=answer,
        headline=f"{study.name} ({study.budget}): {headline}" + (" (incomplete)" if incomplete else ""),
        incomplete=incomplete,
        data=_data(some.facts, some.config.data),
        recipe=study.overrides,
        tuned=tuple(dict.fromkeys(key for space in study.spaces.values() for trial in space for key in trial)),
        tuning_seeds=study.tuning_seeds,
        evaluation_seeds=study.evaluation_seeds,
        epochs=some.config.trainer.max_epochs,
        test_images=some.facts.test_count,
        validation_images=some.facts.validation_count,
        smallest_effect=config.comparisons.smallest_effect / 100,
        reference=config.comparisons.reference,
        rows=rows,
        comparisons=comparisons,
        runs=runs,
        paper=Paper(config.paper.source, config.paper.measure) if config.paper else None,
        limits=tuple(config.limits),
        figures={name: tuple(keys) for name, keys in config.figures.items()},
        provenance=_provenance(runs),
        commands=_commands(study, evaluation or tuning),
    )


def _test(runs: Sequence[StudyRun], point: str, key: str) -> dict[int, float]:
    found = {run.planned.seed: scores(run, "test", point) for run in runs if run.over}
    return {seed: values[key] for seed, values in found.items() if values is not None and values[key] is not None}


def _row(
    study: Study,
    key: str,
    row: RowConfig,
    trials: tuple[TuningTrial, ...],
    runs: Sequence[StudyRun],
    reference: Comparison | None,
) -> RowResult:
    errors, losses = _test(runs, row.point, "error"), _test(runs, row.point, "loss")
    over = [run for run in runs if run.over]
    sound = [run for run in over if not run.diverged]
    names = list(sound[0].result["test"]) if sound and sound[0].result else []
    setting: Setting | None = next((trial.setting for trial in trials if trial.chosen), None)
    return RowResult(
        key=key,
        label=row.label,
        point=row.point,
        at=point_of(over[0], row.point) if over else None,
        overrides=tuple(row.overrides),
        trials=trials,
        setting=setting,
        edge=edge(trials),
        planned=len(study.evaluation_seeds),
        errors=errors,
        losses=losses,
        diverged=tuple(run.planned.seed for run in over if run.diverged),
        error=summarize(errors.values()) if errors else None,
        loss=summarize(losses.values()) if losses else None,
        points={name: summarize(_test(runs, name, "error").values()) for name in names},
        curve=curve_of(runs, row.point),
        reference=reference,
        paper=study.config.paper.rows.get(key) if study.config.paper else None,
    )


def _compare(study: Study, errors: Mapping[str, Mapping[int, float]]) -> tuple[Comparison, ...]:
    """Return the primary comparison, which stands alone, then the others, whose p are adjusted together by Holm."""
    config = study.config.comparisons
    pairs = [(config.primary, config.reference)]
    pairs += [(row, config.reference) for row in study.config.rows if row not in (config.primary, config.reference)]
    pairs += [(a, b) for a, b in config.also if (a, b) not in pairs]
    found = [_paired(errors[a], errors[b]) for a, b in pairs]
    family = {
        str(i): one.p for i, one in enumerate(found) if i > 0 and one is not None and one.p is not None
    }  # one seed has no p and is no member
    adjusted = holm(family, ALPHA) if family else {}
    comparisons = []
    for i, ((row, against), one) in enumerate(zip(pairs, found, strict=True)):
        p = adjusted[str(i)].adjusted if str(i) in adjusted else None
        verdict = None
        if one is not None:
            verdict = decide(one, config.smallest_effect / 100, ALPHA, adjusted_p=p, power=POWER)
        note = "the rows share no finished evaluation seed yet" if one is None else None
        comparisons.append(Comparison(row, against, i == 0, one, p, verdict, note))
    return tuple(comparisons)


def _paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired | None:
    return paired(a, b) if a.keys() & b.keys() else None


def _answer(study: Study, primary: Comparison, labels: Mapping[str, str], rows: Sequence[RowResult]) -> tuple[str, str]:
    """Return the answer in sentences, and short."""
    ours, other = labels[primary.row], labels[primary.against]
    never = "".join(
        f" Every setting of {label} diverged on some tuning seed, so it has no result." for label in _never_chosen(rows)
    )
    if never and {ours, other} & set(_never_chosen(rows)):
        return f"Not answered.{never}", "not answered: no setting trained without diverging"
    if primary.paired is None or primary.verdict is None:
        return f"Not answered yet: {ours} and {other} share no finished evaluation seed.", "not answered yet"
    one, verdict = primary.paired, primary.verdict
    size = percent(abs(one.mean))
    bounds = interval(one.low, one.high, percentage_points)
    counted = f"n = {one.n} paired seed{'s' if one.n != 1 else ''}"
    evidence = f"difference {percentage_points(one.mean)} points, 95 % interval {bounds}, {counted}, {_p(one.p)}"
    margin = percent(verdict.smallest_effect_of_interest)
    if verdict.answer == "equivalent":
        said = (
            f"{ours} and {other} are equivalent within ±{margin} points of test error, the smallest effect of interest "
            f"({evidence}; two one-sided tests, {_p(verdict.p_equivalence)})."
        )
        if verdict.p is not None and verdict.p <= ALPHA:
            said += " A difference is there, but it is smaller than what the study set out to find."
    elif verdict.answer == "no difference shown":
        said = f"No difference in test error was shown between {ours} and {other} ({evidence})."
    else:
        more = "lower" if verdict.answer == "better" else "higher"
        said = f"{ours} has a test error {size} points {more} than {other} ({evidence})."
    if verdict.smallest_detectable_effect is not None:
        seen = percent(verdict.smallest_detectable_effect)
        said += f" With these {one.n} seeds a true difference of {seen} points would be found 8 times in 10"
        said += f" (smallest effect of interest: {margin} points)."
    elif one.n == 1:
        said += " One seed has no interval and shows nothing."
    else:
        said += " All paired differences are equal, so the noise cannot be estimated and no effect is known to be seen."
    lost = [row for row in rows if row.key in (primary.row, primary.against) and row.diverged]
    for row in lost:
        said += f" {len(row.diverged)} of {row.planned} runs of {row.label} diverged and are not in the comparison."
    edges = [row.label for row in rows if row.key in (primary.row, primary.against) and row.edge]
    if edges:
        said += f" A better setting may lie outside the space, on whose edge {' and '.join(edges)} ended."
    said += never
    return said, f"{verdict.answer}, {percentage_points(one.mean)} points {bounds}, n = {one.n}"


def _never_chosen(rows: Sequence[RowResult]) -> list[str]:
    """Return the labels of rows whose tuning is over and has no setting that never diverged: that is their result."""
    return [row.label for row in rows if row.setting is None and all(not trial.missing for trial in row.trials)]


def _p(p: float | None) -> str:
    if p is None:
        return "no p"
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _incomplete(study: Study, runs: Sequence[RunEntry], rows: Sequence[RowResult]) -> str | None:
    left = sum(run.status not in ("finished", "diverged") for run in runs)
    undecided = [row.label for row in rows if row.setting is None]
    tuned_out = _never_chosen(rows)
    said = []
    if left:
        said.append(f"{left} of the {len(runs)} runs planned so far have no result")
    waiting = [label for label in undecided if label not in tuned_out]
    if waiting:
        said.append(f"no setting is chosen yet for {'; '.join(waiting)}")
    return f"Incomplete: {'; '.join(said)}." if said else None


def _data(facts: Any, section: Mapping[str, Any]) -> str:
    name = "digits (scikit-learn's 8×8 handwritten digits)" if facts.kind == "digits" else facts.kind
    if section.get("root"):
        name = f"images under {section['root']}"
    return (
        f"{name}: {facts.train_count:,} training, {facts.validation_count:,} validation and {facts.test_count:,} test "
        f"images, {facts.num_classes} classes; test is {facts.test_is}"
    )


def _provenance(runs: Sequence[RunEntry]) -> dict[str, tuple[str, ...]]:
    """Return {label: distinct values} over all runs that have a record, so that a mixture shows."""
    found: dict[str, dict[str, None]] = {}

    def note(label: str, value: Any) -> None:
        if value is not None:
            found.setdefault(label, {})[str(value)] = None

    for run in runs:
        record = run.provenance
        if record is None:
            continue
        git = record.get("git") or {}
        changed = f" with uncommitted changes {git['diff_sha256']}" if git.get("diff_sha256") else ""
        note("commit", f"{git['commit'][:12]}{changed}" if git.get("commit") else None)
        for package in ("neumann", "torch", "pytorch-lightning", "timm", "numpy"):
            note(package, record.get("packages", {}).get(package))
        note("python", record.get("python"))
        note("device", record.get("device"))
        host = record.get("host", {})
        note("processor", host.get("processor"))
        note("cores", host.get("cores"))
        note("torch threads", record.get("torch_threads"))
        note("data fingerprint", record.get("data", {}).get("fingerprint"))
    return {label: tuple(values) for label, values in found.items()}


def _commands(study: Study, runs: Sequence[StudyRun]) -> dict[str, str]:
    packaged = study.file.name == "study.yaml"
    name = study.name if packaged else str(study.file)
    folders = "".join(f" --config-dir {shlex.quote(folder)}" for folder in study.config_dirs)
    output = "".join(f" {shlex.quote(word)}" for word in study.extra if word.startswith(("output=", "data.")))
    budget = ("" if study.budget == FULL else f" --budget {study.budget}") + folders + output
    commands = {
        "Train what is missing, then render this page": f"neumann study {name}{budget}",
        "Render this page again from what is there": f"neumann report {name}{budget}",
        "See what would be trained": f"neumann study {name}{budget} --plan",
    }
    if runs:
        words = " ".join(shlex.quote(word) for word in runs[0].planned.overrides)
        commands["Train one of its runs by hand"] = f"neumann train{folders} {words}"
    return commands
