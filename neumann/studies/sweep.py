"""Results of a sweep: any finished runs, grouped by all that they signed but the seed, and told by what differs.

Nothing was fixed before these runs were seen, so nothing here is a verdict: there are means, intervals and paired
differences on the validation error, no p and no choice. A study (`neumann.studies.run`) answers a question.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from neumann.data.settings import KINDS
from neumann.errors import UserError, did_you_mean, printable
from neumann.store import OVER
from neumann.store.code_digests import contributing
from neumann.store.listing import SEED
from neumann.store.records import RUN
from neumann.store.scores import is_number
from neumann.studies.conditions import mixed, provenance, recorded, unlike
from neumann.studies.curves import by_epoch, mean_curve, possible
from neumann.studies.numbers import RATE, mean_and_interval, percent
from neumann.studies.plan import EVALUATION
from neumann.studies.results import Comparison, Results, RowResult, RunEntry, TuningTrial
from neumann.studies.statistics import Summary, paired
from neumann.studies.sweep_columns import Columns, columns_of, in_order, row_names
from neumann.studies.sweep_runs import LeftOut, SweepRun
from neumann.studies.terms import term_curves

EXPLORATORY = "Exploratory: nothing was fixed before these runs were seen."
NAMED = 4  # rows that a note names

Words = Mapping[str, Sequence[str] | None]  # by group: the overrides of its runs without the seed, None if not known


@dataclass(frozen=True)
class SweepResults(Results):
    """The results of a sweep. The ``errors`` and ``losses`` of its rows are on the validation images.

    ``patterns`` are the words that chose the runs, ``answer`` says in sentences what there is, ``seeds`` are all that
    any row has. ``tests`` has the test error of the rows whose runs were scored on the test images. ``differing`` are
    all settings in which rows differ, {key: (value of each row)}. ``rates`` are the rows by their rate, for the figure
    of errors against it: a row each for all that differs but the rate. ``notes`` are sentences that a reader must
    know of, ``left_out`` the runs that cannot be used. ``repeat`` is a command for each row that trains its runs again,
    None where it is not known.
    """

    patterns: tuple[str, ...]
    answer: str
    seeds: tuple[int, ...]
    tests: Mapping[str, Summary]
    differing: Mapping[str, tuple[str, ...]]
    rates: tuple[RowResult, ...]
    notes: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    repeat: Mapping[str, str | None]


@dataclass(frozen=True)
class Group:
    """The runs of one row, which differ in the seed alone: its ``name``, and the ``cells`` of its columns."""

    name: str
    cells: Mapping[str, float | int | str]
    runs: tuple[SweepRun, ...]

    @property
    def choices(self) -> dict[str, str]:
        """Return the options of conf/ on which all its runs agree."""
        return _choices(self.runs)


def _choices(runs: Sequence[SweepRun]) -> dict[str, str]:
    return {k: v for k, v in runs[0].choices.items() if all(run.choices.get(k) == v for run in runs)}


def group(runs: Iterable[SweepRun]) -> tuple[list[Group], Columns]:
    """Return the rows of a sweep in the order of their settings, and their columns.

    Raises UserError where the runs cannot be one table: none is over, or they were judged on different images.
    """
    every = sorted(runs, key=lambda run: (run.seed, str(run.folder.path)))
    _check_over(every)
    _check_images(every)
    by_group: dict[str, list[SweepRun]] = {}
    for run in every:
        by_group.setdefault(run.group, []).append(run)
    alike = [tuple(its) for _, its in sorted(by_group.items())]
    called = RUN.fullmatch(alike[0][0].folder.path.name)
    alone = SEED.sub("", called[1]) if called else "all runs"
    columns = columns_of([its[0].signed for its in alike], [_choices(its) for its in alike], alone)
    order = in_order(columns.cells, columns.keys)
    groups = [Group(columns.names[i], columns.cells[i], alike[i]) for i in order]
    differing = {key: tuple(values[i] for i in order) for key, values in columns.every.items()}
    return groups, Columns(columns.keys, tuple(columns.cells[i] for i in order), columns.names, differing)


def _check_over(runs: Sequence[SweepRun]) -> None:
    if not any(run.result is not None for run in runs):
        counts = ", ".join(f"{count} {status}" for status, count in Counter(run.status for run in runs).items())
        raise UserError(f"none of these runs is over{f': {counts}' if counts else ''}")


def _check_images(runs: Sequence[SweepRun]) -> None:
    """Raise UserError where the runs were judged on different images."""
    first = runs[0]
    for side, what in (("fingerprint", "their images differ"), ("splits", "the splits of their images differ")):
        other = next((run for run in runs if run.signed["data"][side] != first.signed["data"][side]), None)
        if other is None:
            continue
        data = [run.signed["config"]["data"] for run in (first, other)]
        key = next((key for key in {**data[0], **data[1]} if data[0].get(key) != data[1].get(key)), None)
        told = [
            f"data.{key}={of.get(key)}" if key else str(run.signed["data"][side])[:24]
            for of, run in zip(data, (first, other), strict=True)
        ]
        raise UserError(
            f"these runs cannot be one table: {what}, {printable(told[0])} in {first.folder.path} and "
            f"{printable(told[1])} in {other.folder.path}; choose runs of one of them with --runs"
        )


def results(
    groups: Sequence[Group],
    columns: Columns,
    left_out: Sequence[LeftOut],
    *,
    name: str,
    patterns: Sequence[str],
    against: str | None,
    words: Words,
    again: str,
) -> SweepResults:
    """Return the results of the sweep.

    ``against`` is the row that all others are compared with, None for the first, ``words`` what `repeat_words` has
    found, and ``again`` the command that renders the page. Raises UserError for a row that there is not.
    """
    reference = _reference(groups, against)
    entries = tuple(_entry(one, run, words) for one in groups for run in one.runs)
    rows = [_row(one, entries) for one in groups]
    base = next(row for row in rows if row.key == reference)
    found = [_compare(row, base, entries) for row in rows if row is not base]
    comparisons = {one.row: one for one in found}
    finished = [run for one in groups for run in one.runs if run.result is not None and not run.diverged]
    return SweepResults(
        name=name,
        title=f"Sweep {name}",
        incomplete=_incomplete(entries),
        data=_data([run for one in groups for run in one.runs]),
        tuned=columns.keys,
        test_images=_images(finished, "test"),
        validation_images=_images(finished, "validation"),
        reference=reference,
        rows=tuple(replace(row, reference=comparisons.get(row.key)) for row in rows),
        comparisons=tuple(found),
        runs=entries,
        provenance=provenance(entries, {row.key: row.label for row in rows}),
        commands={"Render this page again": again},
        patterns=tuple(patterns),
        answer=_answer(rows),
        seeds=tuple(sorted({run.seed for run in entries})),
        tests={one.name: summary for one in groups if (summary := _tested(one)) is not None},
        differing=columns.every,
        rates=_by_rate(groups, columns, name),
        notes=tuple(_notes(rows, left_out)),
        left_out=tuple(left_out),
        repeat={one.name: _repeat(one, words) for one in groups},
    )


def _reference(groups: Sequence[Group], against: str | None) -> str:
    names = [one.name for one in groups]
    if against is None or against in names:
        return names[0] if against is None else against
    near = [name for name in names if name.startswith(against)]
    if len(near) == 1:
        return near[0]
    raise UserError(f"--against {printable(against)} names no row: {did_you_mean(against, names)}")


def _entry(one: Group, run: SweepRun, words: Words) -> RunEntry:
    known, result = words.get(run.group), run.result
    return RunEntry(
        rows=(one.name,),
        role=EVALUATION,
        setting=one.cells,
        seed=run.seed,
        status=run.status,
        message=run.message,
        signature=run.signature,
        folder=str(run.folder.path),
        overrides=() if known is None else (*known, f"seed={run.seed}"),
        train_seconds=None if result is None else result["train_seconds"],
        validation=None if result is None else result["validation"],
        test=None if result is None else result["test"],
        attempts=tuple(contributing(run.folder.attempts())),
        archived=run.archived,
    )


def _row(one: Group, entries: Sequence[RunEntry]) -> RowResult:
    over = [run for run in one.runs if run.result is not None]
    sound = [run for run in over if not run.diverged]
    errors = {run.seed: float(_score(run, "validation", "error")) for run in sound}
    losses = {run.seed: loss for run in sound if is_number(loss := _score(run, "validation", "loss"))}
    at = {str(run.result["eval_point"]) for run in over if run.result is not None}
    return RowResult(
        key=one.name,
        label=one.name,
        point="eval",
        at=", ".join(sorted(at)) or None,
        overrides=(),
        trials=(),
        setting=one.cells,
        choices={},
        edge=None,
        planned=len(one.runs),
        errors=errors,
        losses=losses,
        diverged=tuple(run.seed for run in over if run.diverged),
        error=possible(errors.values(), 1.0) if errors else None,
        loss=possible(losses.values(), math.inf) if len(losses) == len(errors) > 0 else None,
        points={point: possible(found, 1.0) for point, found in _at_points(sound).items()},
        curve=mean_curve(by_epoch(run.curve for run in sound)),
        reference=None,
        paper=None,
        mixed=mixed(entries, one.name),
        to_target={},
        terms=term_curves(run.folder.terms(run.result) for run in sound if run.result is not None),
    )


def _score(run: SweepRun, split: str, key: str) -> Any:
    assert run.result is not None
    return run.result[split][run.result["eval_point"]].get(key)


def _at_points(sound: Sequence[SweepRun]) -> dict[str, list[float]]:
    """Return the validation errors at every evaluation point that all of the runs have."""
    measured = [run.result["validation"] for run in sound if run.result is not None]
    names = [point for point in measured[0] if all(point in scores for scores in measured)] if measured else []
    return {point: [scores[point]["error"] for scores in measured] for point in names}


def _compare(row: RowResult, base: RowResult, entries: Sequence[RunEntry]) -> Comparison:
    shared = {*row.errors, *row.diverged} & {*base.errors, *base.diverged}
    pair = None
    if shared:
        pair = paired(row.errors, base.errors, diverged_a=row.diverged, diverged_b=base.diverged)
    return Comparison(
        row=row.key,
        against=base.key,
        primary=False,
        paired=pair,
        effect=None,
        effects={},
        adjusted=None,
        verdict=None,
        note=None if shared else "the rows share no seed that is over",
        unlike=unlike(entries, row.key, base.key),
    )


def _tested(one: Group) -> Summary | None:
    tested = [run for run in one.runs if run.result and not run.diverged and run.result["test"] is not None]
    return possible([float(_score(run, "test", "error")) for run in tested], 1.0) if tested else None


def _images(finished: Sequence[SweepRun], split: str) -> tuple[int, ...]:
    """Return how many images of ``split`` the runs were scored on, which are the same for all; () where none was."""
    return tuple({int(_score(run, split, "n")) for run in finished if run.result and run.result[split]})


def _by_rate(groups: Sequence[Group], columns: Columns, alone: str) -> tuple[RowResult, ...]:
    """Return a row for all that differs but the rate, with a trial for each rate; none where no row has two rates."""
    keys = [key for key in columns.keys if key != RATE]
    families: dict[tuple[tuple[str, Any], ...], list[Group]] = {}
    for one in groups:
        if isinstance(one.cells.get(RATE), int | float):
            rest = tuple((key, one.cells[key]) for key in keys if key in one.cells)
            families.setdefault(rest, []).append(one)
    several = {rest: its for rest, its in families.items() if len(its) > 1}
    names = row_names(keys, [dict(rest) for rest in several], alone)
    return tuple(
        replace(_row(its[0], ()), key=name, label=name, trials=tuple(map(_trial, its)))
        for name, its in zip(names, several.values(), strict=True)
    )


def _trial(one: Group) -> TuningTrial:
    over = [run for run in one.runs if run.result is not None]
    errors = {run.seed: None if run.diverged else float(_score(run, "validation", "error")) for run in over}
    values = [error for error in errors.values() if error is not None]
    missing = tuple(run.seed for run in one.runs if run.result is None)
    mean = fmean(values) if values and len(values) == len(errors) else None
    return TuningTrial({RATE: one.cells[RATE]}, errors, missing, mean, chosen=False)


def _repeat(one: Group, words: Words) -> str | None:
    known = words.get(one.runs[0].group)
    if known is None:
        return None
    seeds = ",".join(str(run.seed) for run in one.runs)
    return shlex.join(["neumann", "train", *(["-m"] if len(one.runs) > 1 else []), *known, f"seed={seeds}"])


# ------------------------------------------------------------------------------------------------ sentences


def _answer(rows: Sequence[RowResult]) -> str:
    known = [row for row in rows if row.error is not None]
    if not known:
        return "Every run that is over diverged, so no row has an error."
    lowest = min(row.error.mean for row in known if row.error)
    best = [row for row in known if row.error and row.error.mean <= lowest * (1 + 1e-12)]
    shown = f"{mean_and_interval(best[0].error)} %, n = {len(best[0].errors)}"
    if len(rows) == 1:
        return f"The mean validation error of {best[0].label} is {shown}."
    have = f"{best[0].label} has" if len(best) == 1 else f"{len(best)} have"
    tied = f" ({'; '.join(row.label for row in best[:NAMED])}{'; …' if len(best) > NAMED else ''})"
    return (
        f"Of {len(rows)} rows, {have} the lowest mean validation error, {shown if len(best) == 1 else percent(lowest)}"
        f"{'' if len(best) == 1 else f' %{tied}'}. The lowest of several is partly luck: on new seeds it is higher on "
        "average. A study, with seeds of its own, answers which is better."
    )


def _incomplete(entries: Sequence[RunEntry]) -> str | None:
    left = Counter(run.status for run in entries if run.status not in OVER)
    if not left:
        return None
    told = ", ".join(f"{count} {status}" for status, count in left.items())
    return f"{sum(left.values())} of {len(entries)} runs are not over: {told}."


def _notes(rows: Sequence[RowResult], left_out: Sequence[LeftOut]) -> Iterable[str]:
    seeds = sorted({seed for row in rows for seed in (*row.errors, *row.diverged)})
    lacking = []
    for row in rows:
        if gone := [seed for seed in seeds if seed not in row.errors and seed not in row.diverged]:
            lacking.append(f"{row.label} has no {', '.join(map(str, gone))}")
    if lacking:
        more = f"; and {len(lacking) - NAMED} more rows" if len(lacking) > NAMED else ""
        yield f"Not all rows have the same seeds: {'; '.join(lacking[:NAMED])}{more}. Their means are of different n."
    if lost := [row for row in rows if row.diverged]:
        count = sum(len(row.diverged) for row in lost)
        yield f"{count} {'run' if count == 1 else 'runs'} diverged. A mean speaks of the runs that finished."
    if left_out:
        runs = "run or file is" if len(left_out) == 1 else "runs and files are"
        first = left_out[0]
        yield f"{len(left_out)} {runs} not used, such as {printable(first.folder)}: {printable(first.why)}."


def _data(runs: Sequence[SweepRun]) -> str:
    """Return a sentence on the images, by the records of the runs; counts are left out where none is recorded."""
    kind = str(runs[0].signed["config"]["data"].get("kind"))
    name = (KINDS[kind].title if kind in KINDS else "") or f"images of data.kind={printable(kind)}"
    for attempt in (attempt for run in runs for attempt in run.folder.attempts()):
        counts = [recorded(attempt, "data", f"{part}_count") for part in ("train", "validation", "test")]
        classes, is_what = recorded(attempt, "data", "num_classes"), recorded(attempt, "data", "test_is")
        if all(type(n) is int for n in (*counts, classes)):
            train, validation, test = counts
            said = f"{name}: {train:,} training, {validation:,} validation and {test:,} test images, {classes} classes"
            return f"{said}; test is {printable(is_what)}" if isinstance(is_what, str) else said
    return name
