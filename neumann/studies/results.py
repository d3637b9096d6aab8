"""Results of a study as plain data, ready to be written as a table, a figure or a page; nothing here computes.

Errors are fractions of images (0.01 is 1 %), losses are nats, epochs are floats. `neumann.studies.collect` makes trials
and run entries of run folders, `neumann.studies.analysis` the rest; `neumann.studies.report` writes them down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neumann.studies.effects import Effect, Median
from neumann.studies.scaling import Cell, ScalingCurve
from neumann.studies.statistics import Paired, Summary
from neumann.studies.verdicts import Margin, Verdict

POINTS = ("held", "base", "average")  # those of `neumann.optim.points`, which imports torch

ERROR = "error"  # the outcome that is the test error at the fixed last step
COSTS = {  # the outcomes that are counted to the target, each in words
    "steps": "steps",
    "examples": "examples",
    "gradient_evaluations": "gradient evaluations",
    "device_seconds": "device-seconds",
}
OUTCOMES = (ERROR, *COSTS)

Setting = Mapping[str, float | int | str]  # what was tuned: {"optimizer.lr": 0.1}


@dataclass(frozen=True)
class TuningTrial:
    """One setting of a row's search space on the seeds that choose: validation error at the row's evaluation
    point, at the last step.

    ``errors`` maps a seed to its error, or to None where that run diverged; seeds whose run is not over are in
    ``missing``. ``mean`` is None unless every seed has an error. A setting is ``chosen`` once for all evaluation seeds,
    never where it diverged on any; in a grid, ``seeds`` are those that have each chosen it.
    """

    setting: Setting
    errors: Mapping[int, float | None]
    missing: tuple[int, ...]
    mean: float | None
    chosen: bool
    seeds: tuple[int, ...] = ()


def chosen(trials: Iterable[TuningTrial]) -> Setting | None:
    """Return the setting that was chosen among ``trials``, or None before their tuning is over."""
    return next((trial.setting for trial in trials if trial.chosen), None)


def choices(trials: Iterable[TuningTrial]) -> dict[int, Setting]:
    """Return the setting that each seed of a grid has chosen, by seed."""
    return dict(sorted((seed, trial.setting) for trial in trials for seed in trial.seeds))


def unchosen(trials: Sequence[TuningTrial]) -> bool:
    """Return whether runs that choose are still missing, so that no setting is chosen for all evaluation seeds."""
    return any(trial.missing for trial in trials)


@dataclass(frozen=True)
class Curve:
    """The learning curve of a row: means over its evaluation runs by epoch, and their 95 % intervals.

    ``n[i]`` is the number of runs at ``epochs[i]``. ``error`` is the validation error at the row's evaluation point,
    ``loss`` the mean training loss since the evaluation before. The bounds, ``*_low`` and ``*_high``, are None where a
    mean has no interval. ``along`` has what runs had spent by each epoch, as means: "steps", "examples" and "seconds"
    of training, each where all runs record it.
    """

    epochs: tuple[float, ...]
    n: tuple[int, ...]
    error: tuple[float, ...]
    error_low: tuple[float | None, ...]
    error_high: tuple[float | None, ...]
    loss: tuple[float, ...]
    loss_low: tuple[float | None, ...]
    loss_high: tuple[float | None, ...]
    along: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class TermCurve:
    """One quantity of a row by epoch: means over ``n`` runs each, with 95 % intervals; None where there is none."""

    epochs: tuple[float, ...]
    n: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True)
class RowResult:
    """The outcome of one row of the study: how it was tuned, and its test values at its evaluation point.

    ``key``, ``label`` and ``overrides`` are those of study.yaml, ``trials`` the settings that were tried. ``point`` is
    what the study asked for ("eval", "held", "base" or "average") and ``at`` the evaluation point that this means for
    the row's optimizer. ``setting`` is the chosen trial's, None until tuning is complete, and in a grid, where
    ``choices`` has that of each seed; ``edge`` says
    in a few words that it lies on the border of the space ("optimizer.lr=3 is the largest of 5 tried") or is all of it,
    else None.
    ``errors`` and ``losses`` are test values by evaluation seed (of a sweep validation values), of the runs that
    finished; ``planned`` is how many
    there should be, ``diverged`` are the seeds that have none. ``error`` and ``loss`` summarize them; ``points``
    summarizes the test error at each evaluation point that the optimizer has. ``paper`` is the published number in
    percent, where there is one; ``reference`` is the comparison of this row with the study's reference row; ``curve``
    is None without a finished run. ``to_target`` maps a cost to its median up to the target, empty without a target.
    ``mixed`` names the code, the libraries and the device that were not the same for
    all its runs. ``terms`` has the curves of what its optimizer's terms did, by key of terms.jsonl, where its
    evaluation runs have measured them.
    """

    key: str
    label: str
    point: str
    at: str | None
    overrides: tuple[str, ...]
    trials: tuple[TuningTrial, ...]
    setting: Setting | None
    choices: Mapping[int, Setting]
    edge: str | None
    planned: int
    errors: Mapping[int, float]
    losses: Mapping[int, float]
    diverged: tuple[int, ...]
    error: Summary | None
    loss: Summary | None
    points: Mapping[str, Summary]
    curve: Curve | None
    reference: Comparison | None
    paper: float | None
    mixed: tuple[str, ...]
    to_target: Mapping[str, Median]
    terms: Mapping[str, TermCurve] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The comparison of two rows by seed: test error of ``row`` minus that of ``against``, negative where ``row`` wins.

    ``primary`` marks the comparison that answers the question. ``effect`` is that on the study's outcome, which the
    ``verdict`` is on, in the unit of its margin; ``effects`` has that on every outcome of the study, the error as a
    ratio. ``adjusted`` is Holm's p over the family of all other comparisons, None for the primary one. ``paired``,
    ``effect`` and ``verdict`` are None where the rows share no seed that is over, and ``note`` says why. Where it is at
    equal settings, ``settings`` are those whose mean is compared, else it is empty.
    ``unlike`` names the code, the libraries and the device that were not the same for the
    two rows.
    """

    row: str
    against: str
    primary: bool
    paired: Paired | None
    effect: Effect | None
    effects: Mapping[str, Effect]
    adjusted: float | None
    verdict: Verdict | None
    note: str | None
    unlike: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True)
class RunEntry:
    """One run as a report lists it. ``role`` is "tuning" or "evaluation", ``status`` one of `neumann.store.STATUSES`.

    ``rows`` are the keys of all rows that read it: rows that differ only in the evaluation point share their runs.
    ``validation`` and ``test`` map an evaluation point to its scores ({"error", "loss", "wrong", "n"}), None while
    there is no result; ``test`` is always None for tuning runs. ``attempts`` are the records of the attempts whose
    steps are in its result, first to last.
    ``archived`` says that the study's archive holds the result, which may lie in its folder too.
    ``setting`` is what was tuned, ``overrides`` all that `neumann train` needs to make the run, ``message`` why it has
    its status, ``folder`` the path of its folder, and ``train_seconds`` the time in training alone.
    """

    rows: tuple[str, ...]
    role: str
    setting: Setting
    seed: int
    status: str
    message: str | None
    signature: str
    folder: str
    overrides: tuple[str, ...]
    train_seconds: float | None
    validation: Mapping[str, Mapping[str, float]] | None
    test: Mapping[str, Mapping[str, float]] | None
    attempts: tuple[Mapping[str, Any], ...]
    archived: bool = False


@dataclass(frozen=True)
class Origin:
    """Code and machine that trained archived runs: how many, and the labels of their rows."""

    code: str
    machine: str
    runs: int
    rows: tuple[str, ...]


@dataclass(frozen=True)
class ArchiveUse:
    """The archive that a study's runs are in.

    ``file`` is its path from the folder of the study's file, ``digest`` that of its content. ``archived`` of the
    study's ``over`` runs that have a result are in it, with the ``origins`` that their records name. ``notes`` are
    sentences on what of it is not used.
    """

    file: str
    digest: str
    archived: int
    over: int
    origins: tuple[Origin, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Paper:
    """The published work: where its numbers stand, and what they measure."""

    source: str
    measure: str


@dataclass(frozen=True)
class Target:
    """The validation ``error`` (fraction) that costs are counted to, and in a few words where it is from.

    ``error`` is None before tuning is over, where the target is a row's own. ``every`` says how far apart evaluations
    are, which a cost is exact to.
    """

    error: float | None
    source: str
    every: str


@dataclass(frozen=True)
class Results:
    """The runs of a page and what they say by row: what a study and a sweep have in common.

    ``name`` is short, for folders and commands, ``title`` is the page's; ``incomplete`` is a sentence on what is still
    to be trained, or None. ``data`` describes the data set in a sentence; ``test_images`` and ``validation_images``
    count its images, of each where there are several sets. ``tuned`` are the keys of the rows' settings, ``reference``
    is the key of the row that all others are compared with.
    ``provenance`` maps a label ("commit", "torch", ...) to its distinct values over all runs, each with the labels of
    its rows, so that mixed provenance shows. ``commands`` maps a label to the shell command that reproduces it.
    """

    name: str
    title: str
    incomplete: str | None
    data: str
    tuned: tuple[str, ...]
    test_images: tuple[int, ...]
    validation_images: tuple[int, ...]
    reference: str
    rows: tuple[RowResult, ...]
    comparisons: tuple[Comparison, ...]
    runs: tuple[RunEntry, ...]
    provenance: Mapping[str, Mapping[str, tuple[str, ...]]]
    commands: Mapping[str, str]

    def is_reference(self, row: RowResult) -> bool:
        """Return whether other rows are compared with ``row``."""
        return row.key == self.reference

    def row(self, key: str) -> RowResult:
        """Return the row called ``key``. Raises KeyError."""
        for row in self.rows:
            if row.key == key:
                return row
        raise KeyError(key)

    def points(self) -> tuple[str, ...]:
        """Return every evaluation point that any row's error was taken at, the known ones first."""
        found = {point for row in self.rows for point in row.points}
        return (*(point for point in POINTS if point in found), *sorted(found - set(POINTS)))


@dataclass(frozen=True)
class StudyResults(Results):
    """The results of a study, as far as its runs are over.

    ``question`` and ``budget`` are the study's. ``answer`` is the finding in one or two sentences and ``headline`` the
    short form for a terminal.
    ``epochs`` are the lengths of training, several where rows differ in their batch or the study compares horizons.
    ``recipe`` are the overrides of every run, ``settings`` what decides a result beside the optimizer ("schedule",
    "batch size", "weight decay", "precision", and every other setting in which rows differ), each as {value: labels of
    its rows}.
    ``outcome`` is what verdicts are on, one of OUTCOMES, and ``margin`` the smallest effect of interest there;
    ``target`` what costs are counted to, None without one; a ``pilot`` has no verdicts; in a ``grid`` every seed
    chooses its own setting. ``checks`` is what was found of an optimizer before it was trained, ``limits`` are
    sentences on what the study cannot show, and ``figures``
    names the rows of each figure.
    ``exploratory`` says why it is a pilot although it is not marked as one; with ``seeds_planned`` n was held against a
    pilot's standard deviation. ``archive`` is None where the study has none or does not use it. ``cells`` says what
    each row is in a batch-size study, by key, and ``scaling`` has its curves; ``least`` is the cost of which each seed
    of a grid chose the least, None where it chose by validation error.
    """

    question: str
    budget: str
    answer: str
    headline: str
    recipe: tuple[str, ...]
    settings: Mapping[str, Mapping[str, tuple[str, ...]]]
    tuning_seeds: tuple[int, ...]
    evaluation_seeds: tuple[int, ...]
    epochs: tuple[float, ...]
    outcome: str
    margin: Margin
    target: Target | None
    pilot: bool
    grid: bool
    paper: Paper | None
    checks: Mapping[str, str]
    limits: tuple[str, ...]
    figures: Mapping[str, tuple[str, ...]]
    archive: ArchiveUse | None = None
    exploratory: str | None = None
    seeds_planned: bool = False
    least: str | None = None
    cells: Mapping[str, Cell] = field(default_factory=dict)
    scaling: tuple[ScalingCurve, ...] = ()

    def is_reference(self, row: RowResult) -> bool:
        """Return whether other rows are compared with ``row``; there is one at every batch of a batch-size study."""
        if not self.cells:
            return super().is_reference(row)
        return self.cells[row.key].row == self.cells[self.reference].row
