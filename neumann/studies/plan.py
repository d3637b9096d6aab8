"""Plan of a study: its definition at one budget, and the runs of each row in both phases."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from neumann.bounds import as_yaml
from neumann.config import RunConfig, RunSpec
from neumann.config.override_text import as_text_value, key_of
from neumann.errors import UserError, did_you_mean
from neumann.store.archive import NAME, Archive
from neumann.studies.batches import batches_of, crossed, key_at
from neumann.studies.definition import PACKAGED, find_study, list_studies, name_of, read_study, settings_of
from neumann.studies.factor import crossed_with_levels
from neumann.studies.grid import middle
from neumann.studies.numbers import size
from neumann.studies.results import COSTS
from neumann.studies.scaling import BATCH, Cell
from neumann.studies.schema import AXES, FULL, GRID, BudgetConfig, StudyConfig
from neumann.studies.verdicts import seeds_for

TUNING, EVALUATION = "tuning", "evaluation"  # the two phases, and the roles of their runs
EQUAL = "equal settings"  # the role of a grid's further runs of the second phase, which no seed has chosen
KEPT = "checkpoint.keep=last"  # so that a grid's run that is chosen goes on to the test alone
UNTESTED = "trainer.test=false"  # a run that chooses is not scored on the test images
PRECISION = "trainer.precision"
ON_THE_PAGE = ("output=", "data.")  # command-line overrides that a report shows


@dataclass(frozen=True)
class PlannedRun:
    """One run of a row, described by its overrides.

    ``role`` is TUNING, EVALUATION or EQUAL, ``setting`` what the row's space gives ({"optimizer.lr": 0.1}), ``seed``
    that of initialisation and data order; ``overrides`` are all that `neumann train` needs to make the run.
    """

    row: str
    role: str
    setting: dict[str, Any]
    seed: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A checked study at one budget."""

    name: str  # of the folder of its runs
    asked: str  # what a command names it by: its name, or the path that was given
    file: Path  # its study.yaml
    budget: str  # "full", or a key of ``config.budgets``
    config: StudyConfig  # the content of ``file``, with a row for every row at every batch where it names batches
    overrides: tuple[str, ...]  # of every run: the study's, the budget's, then ``extra``
    extra: tuple[str, ...]  # those of the command line
    config_dirs: tuple[str, ...]  # folders with further configuration files
    tuning_seeds: tuple[int, ...]  # at this budget
    evaluation_seeds: tuple[int, ...]  # at this budget
    pilot: bool  # whether this budget has no verdict
    exploratory: str | None  # why it is taken as a pilot although it is none: a sentence
    spaces: Mapping[str, tuple[dict[str, Any], ...]]  # by row: those it tries, as many for every row that tunes
    taken_over: str | None = None  # the precision of its finished runs, which this machine would not have chosen
    uses_archive: bool = True  # whether runs in its archive count as finished
    cells: Mapping[str, Cell] = field(default_factory=dict)  # by row: what it is, in a study of batches or a factor

    @property
    def report(self) -> str:
        """Return the name of the report's folder, which lies beside the run folders."""
        return f"report-{self.budget}"

    @property
    def results(self) -> Path:
        """The folder of what is committed: results/BUDGET beside study.yaml, results/NAME/BUDGET beside NAME.yaml."""
        own = Path() if self.file.stem == "study" else Path(self.name)  # other studies may lie in that folder too
        home, here = self.file.resolve().parent, Path.cwd()
        return (home.relative_to(here) if home.is_relative_to(here) else home) / "results" / own / self.budget

    @cached_property
    def archive(self) -> Archive:
        """The archive of finished runs in ``results``, read once; empty where it is not used. Raises UserError."""
        file = self.results / NAME
        return Archive.read(file) if self.uses_archive else Archive(file, {})

    def command(self, verb: str) -> str:
        """Return the shell command `neumann VERB` of this study, with the overrides that say where its runs lie."""
        words = [self.asked, *(["--budget", self.budget] if self.budget != FULL else [])]
        words += [word for folder in self.config_dirs for word in ("--config-dir", folder)]
        words += [word for word in self.extra if word.startswith(ON_THE_PAGE)]
        words += [] if self.uses_archive else ["--no-archive"]
        return shlex.join(["neumann", verb, *words])

    def at_precision(self, precision: str) -> Study:
        """Return the study at the ``precision`` of its finished runs; rows and overrides that name one keep theirs."""
        return replace(self, overrides=(f"{PRECISION}={precision}", *self.overrides), taken_over=precision)

    @property
    def is_grid(self) -> bool:
        """Return whether every evaluation seed trains all settings and chooses its own."""
        return self.config.design == GRID

    @property
    def is_of_batches(self) -> bool:
        """Return whether the study trains every row at several batch sizes, to be read as curves."""
        return any(cell.factor == BATCH for cell in self.cells.values())

    @property
    def least(self) -> str | None:
        """Return the cost of which a seed of a grid chooses the least, None where it chooses by validation error."""
        named, target = self.config.comparisons, self.config.target
        known = self.is_grid and named.outcome in COSTS and target is not None and target.error is not None
        return named.outcome if known else None

    def reference_of(self, row: str) -> str:
        """Return the row that ``row`` is compared with: the study's reference, at its own level of a factor."""
        reference = self.config.comparisons.reference
        if not self.cells:
            return reference
        return key_at(self.cells[reference].row, self.cells[row].level)

    def shown(self, planned: PlannedRun) -> tuple[str, ...]:
        """Return the overrides of a run as a report shows them, without what its renderer alone has set."""
        return tuple(word for word in planned.overrides if word not in self.extra or word.startswith(ON_THE_PAGE))

    def tuning(self) -> list[PlannedRun]:
        """Return every run that chooses: all rows and all settings of their spaces, on the seeds that choose.

        Those of a grid are the evaluation seeds; on its tuning seeds the target's row alone is trained, after the
        others.
        """
        choosing = self.evaluation_seeds if self.is_grid else self.tuning_seeds
        groups = [(row, choosing) for row in self.config.rows]
        if self.is_grid and self.config.target is not None and self.config.target.of is not None:
            groups.append((self.config.target.of, self.tuning_seeds))
        return [
            self._planned(row, TUNING, setting, seed)
            for row, seeds in groups
            for setting in self.spaces[row]
            for seed in seeds
        ]

    def evaluation(self, row: str, setting: Mapping[str, Any]) -> list[PlannedRun]:
        """Return the evaluation runs of ``row`` at its chosen setting."""
        return self.evaluation_at(row, dict.fromkeys(self.evaluation_seeds, setting))

    def evaluation_at(self, row: str, settings: Mapping[int, Mapping[str, Any]]) -> list[PlannedRun]:
        """Return the evaluation runs of ``row``, each at the setting that its seed has in ``settings``."""
        return [self._planned(row, EVALUATION, dict(setting), seed) for seed, setting in settings.items()]

    def equal_settings(self, row: str) -> tuple[dict[str, Any], ...]:
        """Return the settings over which ``row`` is compared at equal ones, empty where it is not."""
        if not any(row in pair for pair in self.config.comparisons.equal_settings):
            return ()
        return tuple(self.spaces[row][i] for i in middle(self.spaces[row]))

    def equal(self, row: str, seeds: Sequence[int]) -> list[PlannedRun]:
        """Return the runs of ``row`` at `equal_settings` on ``seeds``."""
        return [self._planned(row, EQUAL, setting, seed) for setting in self.equal_settings(row) for seed in seeds]

    def _planned(self, row: str, role: str, setting: dict[str, Any], seed: int) -> PlannedRun:
        values = [f"{key}={value}" for key, value in setting.items()]
        words = (
            *self.overrides,
            *self.config.rows[row].overrides,
            *values,
            *(self._of_choosing() if role == TUNING else []),
            f"seed={seed}",
            f"study={as_text_value(self.name)}",
        )
        # the last override of a key wins: the budget's over the study's
        last = {key_of(word): word for word in words}
        return PlannedRun(row, role, setting, seed, tuple(last.values()))

    def _of_choosing(self) -> list[str]:
        """Return the overrides of a run that chooses; what the command line says of checkpoints goes before ours."""
        keeps = self.is_grid and not any(key_of(word).split(".")[0] == "checkpoint" for word in self.extra)
        return [UNTESTED, *([KEPT] if keeps else [])]


def load_study(
    name: str,
    budget: str = FULL,
    extra: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
    *,
    uses_archive: bool = True,
) -> Study:
    """Read and check the study ``name`` at ``budget``; ``extra`` are overrides that cannot change a result.

    Where ``uses_archive`` is false, the runs in the study's archive do not count. Raises UserError, one sentence that
    names the file and the key.
    """
    file = find_study(name)
    config = read_study(file)
    try:
        return _at_budget(file, config, _asked(name, file), budget, extra, config_dirs, uses_archive)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _asked(name: str, file: Path) -> str:
    """Return the name of the study in ``file`` where that leads to it, else ``name``, which led there."""
    known = list_studies().get(name_of(file))
    return name_of(file) if known is not None and known.resolve() == file.resolve() else name


def _at_budget(
    file: Path,
    config: StudyConfig,
    asked: str,
    budget: str,
    extra: Sequence[str],
    config_dirs: Sequence[str],
    uses_archive: bool,
) -> Study:
    known = {FULL: BudgetConfig(), **config.budgets}
    if budget not in known:
        raise UserError(f"there is no budget '{budget}': {did_you_mean(budget, known)}")
    limits = known[budget]
    config, cells = crossed(config, batches_of(config, limits))
    if not cells:
        config, cells = crossed_with_levels(config)

    def counted(what: str, count: int | None, most: int) -> int:
        if count is not None and not 1 <= count <= most:
            raise UserError(f"budgets.{budget}.{what}={count} is out of range: choose from 1 to {most}")
        return most if count is None else count

    seeds = config.seeds
    tuning = seeds.tuning
    if tuning or limits.tuning_seeds is not None:
        tuning = tuning[: counted("tuning_seeds", limits.tuning_seeds, len(tuning))]
    evaluation = seeds.evaluation[: counted("evaluation_seeds", limits.evaluation_seeds, len(seeds.evaluation))]
    spaces = {}
    for row_name, row in config.rows.items():
        space = config.space if row.space is None else row.space
        if space:
            counted("trials", limits.trials, len(settings_of(space, None)))
        spaces[row_name] = settings_of(space, limits.trials)
    exploratory = None if limits.pilot else too_few(config, len(evaluation))
    return Study(
        name=name_of(file),
        asked=asked,
        file=file,
        budget=budget,
        config=config,
        overrides=(*config.overrides, *limits.overrides, *extra),
        extra=tuple(extra),
        config_dirs=tuple(config_dirs),
        tuning_seeds=tuple(tuning),
        evaluation_seeds=tuple(evaluation),
        pilot=limits.pilot or exploratory is not None,
        exploratory=exploratory,
        spaces=spaces,
        uses_archive=uses_archive,
        cells=cells,
    )


def too_few(config: StudyConfig, count: int) -> str | None:
    """Return why ``count`` seeds decide nothing by the margin, None where they may or no pilot's sd is named."""
    named, margin = config.comparisons, config.comparisons.named_margin()
    if named.sd is None:
        return None
    sd = named.sd if margin.relative else named.sd / 100
    needed = seeds_for(sd, margin, is_cost=named.outcome in COSTS)
    if needed is not None and count >= needed:
        return None
    would = "a million seeds would not" if needed is None else f"{needed:,} would"
    return (
        f"{count} seed{'' if count == 1 else 's'} cannot decide by the margin of {size(margin.size, margin)} at the "
        f"pilot's standard deviation of {size(sd, margin)}: {would}. So this is exploratory: a pilot, without a verdict"
    )


def refuse_package(study: Study, what: str) -> None:
    """Raise UserError where ``what`` would write into an installed package instead of a checkout's folder."""
    package = PACKAGED.resolve()
    if package in study.file.resolve().parents and not (package.parent / "pyproject.toml").exists():
        raise UserError(f"{what} writes into a checkout's experiments folder, and this neumann is an installed package")


def check_points(study: Study, configs: Mapping[str, RunConfig]) -> None:
    """Refuse, before anything trains, an evaluation point that a row's optimizer is known not to have.

    ``configs`` maps a row to the composed configuration of one of its runs. A point that only the run's scores show to
    be missing is refused when they are read. Raises UserError.
    """
    for key, row in study.config.rows.items():
        config = configs[key]
        # An optimizer whose file has a γ keeps a moving average of its own; Algorithm 1's is no point to evaluate at
        averages = "gamma" in config.optimizer and "inner_steps" not in config.optimizer
        if row.point == "average" and config.recipe.weight_average is None and not averages:
            raise UserError(
                f"{study.file}: rows.{key}.point=average: its optimizer keeps no average, which "
                "recipe.weight_average=0.99 among the overrides would add"
            )
        of_torch = str(config.optimizer.get("_target_")).startswith("torch.optim.")
        nesterov = config.optimizer.get("nesterov") and config.optimizer.get("momentum")
        if row.point == "base" and of_torch and not nesterov:
            raise UserError(f"{study.file}: rows.{key}.point=base: its optimizer has no base point, use point=eval")


def check_distinct(study: Study, specs: Mapping[str, Sequence[RunSpec]]) -> None:
    """Refuse two rows that are one: their difference would be nothing, which reads as equivalence. Raises UserError."""
    known: dict[tuple[frozenset[str], str], str] = {}
    for key, its in specs.items():
        other = known.setdefault((frozenset(spec.signature for spec in its), study.config.rows[key].point), key)
        if other != key:
            raise UserError(
                f"{study.file}: rows.{other} and rows.{key} are the same runs judged at the same point, so there is "
                "nothing to compare: check their overrides"
            )


def check_comparable(study: Study, specs: Mapping[str, Sequence[RunSpec]]) -> None:
    """Refuse, before anything trains, rows that their data, horizon or devices' precision would tell apart by seed.

    ``specs`` maps a row to its tuning runs. Rows that are compared must have the same images in the same splits, and as
    many epochs or as many steps (of two batch sizes only one can be the same), evaluated on one grid; the horizon may
    differ where ``comparisons.across`` names it, and the precision where a row names it. Raises UserError.
    """
    references = dict.fromkeys(map(study.reference_of, specs))
    for key, its in (*((key, specs[key]) for key in references), *specs.items()):
        reference = study.reference_of(key)
        one = specs[reference][0]
        for other in its:
            differ = _differ(one, other, study.config.comparisons.across) or (
                None if any(_says_precision(study, row) for row in (key, reference)) else _precisions(one, other)
            )
            if differ:
                rows = f"rows.{key} and rows.{reference}" if key != reference else f"two settings of rows.{key}"
                raise UserError(f"{study.file}: {rows} are compared seed by seed and differ in {differ}")


def _says_precision(study: Study, row: str) -> bool:
    """Return whether ``row`` names its precision, which is then what the study compares."""
    config = study.config.rows[row]
    space = study.config.space if config.space is None else config.space
    return PRECISION in {*map(key_of, config.overrides), *space}


def _precisions(one: RunSpec, other: RunSpec) -> str | None:
    """Return how ``other`` computes in another precision than ``one``, as the default of another device is, or None."""
    values = [spec.config.trainer.precision for spec in (other, one)]
    if values[0] == values[1]:
        return None
    return (
        f"their precision, which their devices decide (trainer.precision={values[0]} and {values[1]}): set it for all "
        "rows, in the study's overrides, or for the rows that are to differ in it"
    )


def _differ(one: RunSpec, other: RunSpec, across: str | None) -> str | None:
    """Return what makes ``other`` incomparable with ``one``, and how to mend it, or None."""
    data = one.config.data
    changed = [
        f"data.{k}={as_yaml(v)} and {as_yaml(data.get(k))}" for k, v in other.config.data.items() if v != data.get(k)
    ]
    told = f" ({', '.join(changed)})" if changed else ""
    if other.facts.fingerprint != one.facts.fingerprint:
        return f"their images{told}: name one data set for all rows, in the study's overrides"
    if other.facts.split_digest != one.facts.split_digest:
        return f"the split of their images{told}: name one for all rows, in the study's overrides"
    grids = [("the horizon", "max_epochs", "total_steps")]
    if across is None:  # a longer run may have a coarser grid
        grids.append(("the evaluation grid", "check_val_every_n_epoch", "eval_every_steps"))
    for what, epochs, steps in grids:
        values = [getattr(spec.config.trainer, epochs) for spec in (other, one)]
        counts = [getattr(spec.config.derived, steps) for spec in (other, one)]
        if values[0] != values[1] and counts[0] != counts[1] and across != f"trainer.{epochs}":
            where = "set it for all rows, in the study's overrides"
            if f"trainer.{epochs}" in AXES:
                where += f", or say that it is what the study compares: comparisons.across: trainer.{epochs}"
            return f"{what} (trainer.{epochs}={values[0]:g} and {values[1]:g}): {where}"
    return None
