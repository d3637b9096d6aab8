"""Analysis of a study: rows, paired comparisons and provenance, from the runs that are over.

It reads no file: `neumann.studies.collect` has read the run folders, and `neumann.studies.answer` puts the outcome into
sentences.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from neumann.config import RunConfig
from neumann.config.schema import batch_split
from neumann.data.settings import KINDS
from neumann.store import OVER
from neumann.store.code_digests import LIBRARIES, as_code, codes, differing
from neumann.studies.answer import answer, incomplete
from neumann.studies.collect import RowMeasurements, StudyRun, StudyRuns
from neumann.studies.definition import FULL, RowConfig
from neumann.studies.numbers import setting_text, value
from neumann.studies.plan import PlannedRun, Study
from neumann.studies.results import Comparison, Curve, Paper, RowResult, RunEntry, StudyResults, TuningTrial, chosen
from neumann.studies.statistics import Paired, Summary, Verdict, decide, holm, paired, summarize

ALPHA, POWER = 0.05, 0.8
CODE_OF = "code of "  # opens the provenance label of a file's digest


def analyse(runs: StudyRuns) -> StudyResults:
    """Return the results of a study from what its run folders say."""
    study, config = runs.study, runs.study.config
    comparisons = _compare(study, runs.measured)
    against = {c.row: c for c in comparisons if c.against == config.comparisons.reference}
    rows = tuple(
        _row(study, key, row, runs.trials[key], runs.measured[key], against.get(key), _mixed_code(runs.entries, key))
        for key, row in config.rows.items()
    )
    primary = next(c for c in comparisons if c.primary)
    left = incomplete(runs.entries, rows)
    said, headline = answer(primary, rows)
    spec = runs.tuning[0].spec
    return StudyResults(
        name=study.name,
        title=config.title,
        question=config.question,
        budget=study.budget,
        answer=said,
        headline=f"{study.name} ({study.budget}): {headline}" + (" (incomplete)" if left else ""),
        incomplete=left,
        data=_data(spec.facts, spec.config.data),
        recipe=study.overrides[: len(study.overrides) - len(study.extra)],  # not those that cannot change a result
        settings=_settings(study, runs.tuning),
        tuned=tuple(dict.fromkeys(key for space in study.spaces.values() for setting in space for key in setting)),
        tuning_seeds=study.tuning_seeds,
        evaluation_seeds=study.evaluation_seeds,
        epochs=tuple(sorted({run.spec.config.trainer.max_epochs for run in runs.tuning})),
        test_images=spec.facts.test_count,
        validation_images=spec.facts.validation_count,
        smallest_effect=config.comparisons.smallest_effect / 100,
        reference=config.comparisons.reference,
        rows=rows,
        comparisons=comparisons,
        runs=runs.entries,
        paper=Paper(config.paper.source, config.paper.measure) if config.paper else None,
        limits=tuple(config.limits),
        figures={name: tuple(keys) for name, keys in config.figures.items()},
        provenance=_provenance(runs.entries),
        commands=_commands(study, (*runs.evaluation, *runs.tuning)[0].planned),
    )


def _row(
    study: Study,
    key: str,
    row: RowConfig,
    trials: tuple[TuningTrial, ...],
    measured: RowMeasurements,
    reference: Comparison | None,
    mixed_code: tuple[str, ...],
) -> RowResult:
    errors, losses = measured.errors, measured.losses
    return RowResult(
        key=key,
        label=row.label,
        point=row.point,
        at=measured.at,
        overrides=tuple(row.overrides),
        trials=trials,
        setting=chosen(trials),
        edge=edge(trials),
        planned=len(study.evaluation_seeds),
        errors=errors,
        losses=losses,
        diverged=measured.diverged,
        error=_possible(errors.values(), 1.0) if errors else None,
        loss=_possible(losses.values(), math.inf) if losses else None,
        points={name: _possible(found.values(), 1.0) for name, found in measured.errors_at.items()},
        curve=_curve(measured.curve),
        reference=reference,
        paper=study.config.paper.rows.get(key) if study.config.paper else None,
        mixed_code=mixed_code,
    )


def _possible(values: Iterable[float], most: float) -> Summary:
    """Return the summary of values from 0 to ``most``, its interval without what no mean can be.

    Cutting off impossible values leaves the interval's coverage as it is.
    """
    found = summarize(values)
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(most, found.high))


def _mixed_code(runs: Sequence[RunEntry], row: str) -> tuple[str, ...]:
    """Return the names of the code of which the runs of ``row`` that are over had several versions."""
    own = [run for run in runs if row in run.rows and run.status in OVER]
    return tuple(differing(code for run in own for code in codes(run.attempts)))


def edge(trials: Sequence[TuningTrial]) -> str | None:
    """Return where the chosen setting lies on the border of a space of numbers, as a sentence, else None.

    A space of one setting is all border: nothing was tuned.
    """
    setting = chosen(trials)
    if setting is None:
        return None
    if len(trials) == 1:
        return f"{setting_text(setting)} is the only setting tried, so the row is not tuned"
    said = []
    for key, at in setting.items():
        values = sorted({trial.setting[key] for trial in trials}, key=lambda v: (isinstance(v, str), v))
        if len(values) < 2 or any(isinstance(v, str) for v in values):
            continue
        if at in (values[0], values[-1]):
            which = "smallest" if at == values[0] else "largest"
            said.append(f"{key}={at:g} is the {which} of {len(values)} tried")
    return "; ".join(said) or None


def _settings(study: Study, tuning: Sequence[StudyRun]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return {what: {value: labels of the rows that train with it}} for what decides a result beside the optimizer."""
    kinds = ("schedule", "batch size", "weight decay", "precision")
    found: dict[str, dict[str, tuple[str, ...]]] = {kind: {} for kind in kinds}
    for key, row in study.config.rows.items():
        configs = [run.spec.config for run in tuning if run.planned.row == key]
        values = {
            "schedule": {_schedule(config.schedule) for config in configs},
            "batch size": {_batch(config) for config in configs},
            "weight decay": {value(config.optimizer.get("weight_decay", 0)) for config in configs},
            "precision": {config.trainer.precision for config in configs},
        }
        for what, its in values.items():
            said = its.pop() if len(its) == 1 else "tuned"
            found[what][said] = (*found[what].get(said, ()), row.label)
    return found


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


def _curve(by_epoch: Mapping[float, Sequence[tuple[float, float]]]) -> Curve | None:
    if not by_epoch:
        return None
    epochs = sorted(by_epoch)
    errors = [_possible((error for error, _ in by_epoch[epoch]), 1.0) for epoch in epochs]
    losses = [_possible((loss for _, loss in by_epoch[epoch]), math.inf) for epoch in epochs]
    return Curve(
        epochs=tuple(epochs),
        n=tuple(s.n for s in errors),
        error=tuple(s.mean for s in errors),
        error_low=tuple(s.low for s in errors),
        error_high=tuple(s.high for s in errors),
        loss=tuple(s.mean for s in losses),
        loss_low=tuple(s.low for s in losses),
        loss_high=tuple(s.high for s in losses),
    )


def _compare(study: Study, measured: Mapping[str, RowMeasurements]) -> tuple[Comparison, ...]:
    """Return the primary comparison, which stands alone, then the others, whose p are adjusted together by Holm.

    A pair that is listed in both orders is one hypothesis, and one member of the family.
    """
    config = study.config.comparisons
    pairs = [(config.primary, config.reference)]
    pairs += [(row, config.reference) for row in study.config.rows if row not in (config.primary, config.reference)]
    pairs += [(a, b) for a, b in config.also if (a, b) not in pairs]
    found = [_paired(measured[a], measured[b]) for a, b in pairs]
    # A comparison on one seed has no p and is not a member of the family
    names = ["/".join(sorted(pair)) for pair in pairs]
    members = zip(names, found, strict=True)
    family = {name: one.p for name, one in members if name != names[0] and one is not None and one.p is not None}
    adjusted = holm(family, ALPHA) if family else {}
    comparisons = []
    for i, ((row, against), one) in enumerate(zip(pairs, found, strict=True)):
        p = adjusted[names[i]].adjusted if names[i] in adjusted else None
        verdict = None
        if one is not None:
            verdict = _bounded_verdict(decide(one, config.smallest_effect / 100, ALPHA, adjusted_p=p, power=POWER))
        note = "the rows share no evaluation seed that is over" if one is None else None
        comparisons.append(Comparison(row, against, i == 0, None if one is None else _bounded(one), p, verdict, note))
    return tuple(comparisons)


def _bounded(found: Paired) -> Paired:
    """Return a comparison of errors, its interval without what no difference of two errors can be."""
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))


def _bounded_verdict(found: Verdict) -> Verdict:
    """Return a verdict on errors, its interval as `_bounded` has that of the comparison."""
    low, high = found.equivalence_low, found.equivalence_high
    if low is None or high is None:
        return found
    return replace(found, equivalence_low=max(-1.0, low), equivalence_high=min(1.0, high))


def _paired(a: RowMeasurements, b: RowMeasurements) -> Paired | None:
    if not {*a.errors, *a.diverged} & {*b.errors, *b.diverged}:
        return None
    return paired(a.errors, b.errors, diverged_a=a.diverged, diverged_b=b.diverged)


def _data(facts: Any, section: Mapping[str, Any]) -> str:
    name = KINDS[facts.kind].title or f"images under {section['root']}"
    copied = facts.copies.get("test_in_train", 0)
    leak = f", {copied:,} of its images are training images too" if copied else ""
    return (
        f"{name}: {facts.train_count:,} training, {facts.validation_count:,} validation and {facts.test_count:,} test "
        f"images, {facts.num_classes} classes; test is {facts.test_is}{leak}"
    )


def _provenance(runs: Sequence[RunEntry]) -> dict[str, tuple[str, ...]]:
    """Return {label: distinct values} over all runs that have a record, so that a mixture shows."""
    found: dict[str, dict[str, None]] = {}

    def note(label: str, said: Any) -> None:
        if said is not None:
            found.setdefault(label, {})[str(said)] = None

    for record in (attempt for run in runs for attempt in run.attempts):
        commit, diff = _recorded(record, "git", "commit"), _recorded(record, "git", "diff_sha256")
        changed = f" with uncommitted changes {diff}" if diff else ""
        note("commit", f"{commit[:12]}{changed}" if isinstance(commit, str) else None)
        code = as_code(record.get("code"))
        for name in sorted(code.keys() - LIBRARIES.values()):
            note(f"{CODE_OF}{name}", code[name])
        note("neumann", _recorded(record, "packages", "neumann"))
        for library in LIBRARIES.values():
            note(library, code.get(library) or _recorded(record, "packages", library))
        note("python", _recorded(record, "python"))
        note("device", _recorded(record, "device"))
        note("processor", _recorded(record, "host", "processor"))
        note("cores", _recorded(record, "host", "cores"))
        note("torch threads", _recorded(record, "torch_threads"))
        note("data fingerprint", _recorded(record, "data", "fingerprint"))
    return {label: tuple(values) for label, values in found.items()}


def _recorded(record: Mapping[str, Any], *keys: str) -> str | int | None:
    """Return a text or a whole number from a run's record, None for anything else: the file may hold anything."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str | int) else None


def _commands(study: Study, example: PlannedRun) -> dict[str, str]:
    packaged = study.file.name == "study.yaml"
    name = study.name if packaged else str(study.file)
    folders = "".join(f" --config-dir {shlex.quote(folder)}" for folder in study.config_dirs)
    output = "".join(f" {shlex.quote(word)}" for word in study.extra if word.startswith(("output=", "data.")))
    budget = ("" if study.budget == FULL else f" --budget {study.budget}") + folders + output
    return {
        "Train what is missing, then render this page": f"neumann study {name}{budget}",
        "Render this page again from what is there": f"neumann report {name}{budget}",
        "See what would be trained": f"neumann study {name}{budget} --plan",
        "Train one of its runs by hand": f"neumann train{folders} {shlex.join(example.overrides)}",
    }
