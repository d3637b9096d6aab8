"""What does a study ask, of whom, and on which seeds? Its study.yaml, read strictly and checked before anything trains.

A study is a question, rows to compare, one search space with as many trials for every row, tuning seeds that choose a
setting by validation error, evaluation seeds that no choice has seen, and what is compared with what. A budget is a
subset of it: fewer trials, fewer seeds, or other settings such as a shorter run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neumann.errors import UserError, did_you_mean, first_line
from neumann.studies.results import POINTS

PACKAGED = Path(__file__).resolve().parents[1] / "experiments"
ASKED = ("eval", *POINTS)  # eval: the base point where the optimizer has one, else the held point
FIGURES = ("errors", "curves", "tuning")
SET_BY_STUDY = ("seed", "study", "name", "output", "logger", "checkpoint", "launch")
FULL = "full"


@dataclass
class RowConfig:
    """One line of the table: which run it is, and at which point it is judged."""

    label: str = "???"
    overrides: list[str] = field(default_factory=list)
    point: str = "eval"  # one of ASKED
    space: dict[str, list[Any]] | None = None  # null: the study's


@dataclass
class SeedsConfig:
    """Disjoint: what was chosen on a seed must not be judged on it."""

    tuning: list[int] = field(default_factory=list)
    evaluation: list[int] = field(default_factory=list)


@dataclass
class ComparisonsConfig:
    """What is compared: every row with ``reference``; the one with row ``primary`` answers the question."""

    reference: str = "???"
    primary: str = "???"
    smallest_effect: float = 0.5  # of interest, in points (percent of the test images)
    also: list[list[str]] = field(default_factory=list)  # further pairs [row, against]


@dataclass
class BudgetConfig:
    """A cheaper version of the study; null leaves what the study says."""

    overrides: list[str] = field(default_factory=list)
    trials: int | None = None  # the middle ones of every space
    tuning_seeds: int | None = None  # the first ones
    evaluation_seeds: int | None = None


@dataclass
class PaperConfig:
    """The published numbers, as data."""

    source: str = "???"
    measure: str = "???"
    rows: dict[str, float] = field(default_factory=dict)  # in percent


@dataclass
class StudyConfig:
    """A study.yaml; see `experiments/regularizers/study.yaml` for one with comments."""

    title: str = "???"
    question: str = "???"
    overrides: list[str] = field(default_factory=list)
    rows: dict[str, RowConfig] = field(default_factory=dict)
    space: dict[str, list[Any]] = field(default_factory=dict)
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    comparisons: ComparisonsConfig = field(default_factory=ComparisonsConfig)
    budgets: dict[str, BudgetConfig] = field(default_factory=dict)
    paper: PaperConfig | None = None
    figures: dict[str, list[str]] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PlannedRun:
    """One run that a row needs: the setting and the seed, and the overrides that make it."""

    row: str
    setting: dict[str, Any]
    seed: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A checked study at one budget."""

    name: str
    file: Path
    budget: str
    config: StudyConfig
    overrides: tuple[str, ...]
    extra: tuple[str, ...]  # those of them that the command line gave
    config_dirs: tuple[str, ...]
    tuning_seeds: tuple[int, ...]
    evaluation_seeds: tuple[int, ...]
    spaces: Mapping[str, tuple[dict[str, Any], ...]]

    def tuning(self) -> list[PlannedRun]:
        """Return every tuning run: all rows, all trials, all tuning seeds."""
        return [
            self._planned(row, setting, seed)
            for row in self.config.rows
            for setting in self.spaces[row]
            for seed in self.tuning_seeds
        ]

    def evaluation(self, row: str, setting: Mapping[str, Any]) -> list[PlannedRun]:
        """Return the evaluation runs of ``row`` at its chosen setting."""
        return [self._planned(row, dict(setting), seed) for seed in self.evaluation_seeds]

    def _planned(self, row: str, setting: dict[str, Any], seed: int) -> PlannedRun:
        values = [f"{key}={value}" for key, value in setting.items()]
        words = (*self.overrides, *self.config.rows[row].overrides, *values, f"seed={seed}", f"study={self.name}")
        last = {word.split("=", 1)[0]: word for word in words}  # a budget's own setting takes the place of the study's
        return PlannedRun(row, setting, seed, tuple(last.values()))


def find_study(name: str) -> Path:
    """Return the study.yaml called ``name``: in ./experiments, else among our own; or the file or folder of that path.

    Raises UserError with the nearest name.
    """
    path = Path(name)
    if path.suffix == ".yaml" or path.name != name:
        file = path / "study.yaml" if path.is_dir() else path
        if not file.is_file():
            raise UserError(f"there is no study at {name}: it must be a study.yaml or a folder with one in it")
        return file
    known = list_studies()
    if name not in known:
        raise UserError(f"there is no study '{name}' in ./experiments or in neumann's own: {did_you_mean(name, known)}")
    return known[name]


def list_studies() -> dict[str, Path]:
    """Return {name: study.yaml}: our own, then those in ./experiments of the working directory, which go before."""
    folders = (PACKAGED, Path("experiments"))
    return {file.parent.name: file for folder in folders for file in sorted(folder.glob("*/study.yaml"))}


def load_study(name: str, budget: str = FULL, extra: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> Study:
    """Read and check the study ``name`` at ``budget``; ``extra`` are overrides that cannot change a result.

    Raises UserError, one sentence that names the file and the key.
    """
    file = find_study(name)
    config = _read(file)
    try:
        _check(config)
        return _at_budget(file, config, budget, extra, config_dirs)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _read(file: Path) -> StudyConfig:
    try:
        loaded = OmegaConf.load(file)
        plain = OmegaConf.to_container(loaded, resolve=True)
        if not isinstance(plain, dict):
            raise UserError(f"{file} is not a study: it must be a mapping with question, rows, space and seeds")
        _check_kinds(plain)
        _check_keys(plain, StudyConfig(), "")
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyConfig), plain))
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (OmegaConfBaseException, OSError, ValueError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{file}: {f'{key}: ' if key else ''}{first_line(error)}") from error
    except Exception as error:  # PyYAML's errors have no common base that is imported here
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    assert isinstance(config, StudyConfig)
    return config


LISTS = (
    *("overrides", "limits", "rows.*.overrides", "rows.*.space.*", "space.*", "seeds.tuning", "seeds.evaluation"),
    *("figures.*", "comparisons.also", "comparisons.also.*", "budgets.*.overrides"),
)
MAPPINGS = (
    *("rows", "rows.*", "rows.*.space", "space", "seeds", "comparisons", "budgets", "budgets.*", "paper"),
    *("paper.rows", "figures"),
)
TEXTS = ("title", "question", "rows.*.label", "rows.*.point", "paper.source", "paper.measure")


def _check_kinds(node: Any, key: str = "", pattern: str = "") -> None:
    """Refuse a list where a mapping belongs and the like, in words of YAML: OmegaConf's name types, not keys."""
    for kind, kinds, patterns in (
        (list, "a list, such as [a, b]", LISTS),
        (dict, "a mapping of names to values", MAPPINGS),
        (str, "a text", TEXTS),
    ):
        optional = node is None and pattern not in ("comparisons", "seeds", "rows", "space", "rows.*")
        if pattern in patterns and not isinstance(node, kind) and not optional:
            raise UserError(f"{key}={'nothing' if node is None else node} is not {kinds}")
    if isinstance(node, dict):
        for name, child in node.items():
            if not isinstance(name, str):
                raise UserError(f"{key or 'the file'} has the name {name}, which must be a word: put it in quotes")
            known = not key or pattern in ("seeds", "comparisons", "paper") or pattern in ("rows.*", "budgets.*")
            part = name if known else "*"
            _check_kinds(child, f"{key}.{name}" if key else name, f"{pattern}.{part}" if pattern else part)
    elif isinstance(node, list) and pattern == "comparisons.also":
        for child in node:
            _check_kinds(child, key, f"{pattern}.*")


NAMED = {"rows": RowConfig, "budgets": BudgetConfig}  # whose keys are names of the author's own
SECTIONS = {"paper": PaperConfig, "seeds": SeedsConfig, "comparisons": ComparisonsConfig}


def _check_keys(given: Mapping[Any, Any], schema: Any, where: str) -> None:
    """Refuse a misspelt key, and a required one that is missing, with the nearest valid one."""
    valid = [f.name for f in fields(schema)]
    for key, value in given.items():
        if key not in valid:
            raise UserError(f"there is no '{where}{key}': {did_you_mean(str(key), valid)}")
        section: Any = SECTIONS.get(key) if not where else None
        if section is not None and isinstance(value, Mapping):
            _check_keys(value, section(), f"{key}.")
        if not where and key in NAMED and isinstance(value, Mapping):
            for name, child in value.items():
                if child is not None and not isinstance(child, Mapping):
                    raise UserError(f"{key}.{name} is a single value: it takes {', '.join(_names(NAMED[key]))}")
                _check_keys(child or {}, NAMED[key](), f"{key}.{name}.")
    for f in fields(schema):
        if getattr(schema, f.name) == "???" and given.get(f.name) is None:
            raise UserError(f"it needs {where}{f.name}")


def _names(schema: type) -> list[str]:
    assert is_dataclass(schema)
    return [f.name for f in fields(schema)]


def _check(config: StudyConfig) -> None:
    rows = config.rows
    if len(rows) < 2:
        raise UserError(f"rows: a comparison takes at least two, and there are {len(rows)}")
    for name, row in rows.items():
        if row.point not in ASKED:
            raise UserError(f"rows.{name}.point={row.point} is not a point: {did_you_mean(row.point, ASKED)}")
    for where, names in _references(config):
        for name in names:
            if name not in rows:
                raise UserError(f"{where} names the row '{name}', which is not there: {did_you_mean(name, rows)}")
    if config.comparisons.primary == config.comparisons.reference:
        raise UserError("comparisons: primary and reference are the same row")
    for pair in config.comparisons.also:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise UserError(f"comparisons.also: {pair} is not a pair of two rows, written [row, against]")
    labels = [row.label.strip() for row in rows.values()]
    for name, label in zip(rows, labels, strict=True):
        if not label or labels.count(label) > 1:
            raise UserError(
                f"rows.{name}.label={label!r}: a reader tells rows apart by their labels, so each needs its own"
            )
    if not 0 < config.comparisons.smallest_effect < math.inf:
        raise UserError("comparisons.smallest_effect must be a number above 0 (points)")
    for name, value in (config.paper.rows if config.paper else {}).items():
        if not math.isfinite(value):
            raise UserError(f"paper.rows.{name}={value} is not a finite number")
    if FULL in config.budgets:
        raise UserError(f"budgets.{FULL} is the study as it stands: give this one another name")
    for name in config.figures:
        if name not in FIGURES:
            raise UserError(f"there is no figure '{name}': {did_you_mean(name, FIGURES)}")
    _check_seeds(config.seeds)
    _check_spaces(config)
    for where, words in _override_lists(config):
        for word in words:
            key = word.split("=", 1)[0].lstrip("+~")
            if "=" not in word:
                raise UserError(f"{where}: '{word}' is not an override, which is written key=value or group=option")
            if key.split(".")[0] in SET_BY_STUDY:
                raise UserError(f"{where}: '{word}' is not for a study to say: {key.split('.')[0]} is set for each run")


def _references(config: StudyConfig) -> Iterator[tuple[str, Sequence[str]]]:
    yield "comparisons.reference", [config.comparisons.reference]
    yield "comparisons.primary", [config.comparisons.primary]
    for pair in config.comparisons.also:
        yield "comparisons.also", pair
    for name, names in config.figures.items():
        yield f"figures.{name}", names
    if config.paper is not None:
        yield "paper.rows", list(config.paper.rows)


def _override_lists(config: StudyConfig) -> Iterator[tuple[str, Sequence[str]]]:
    yield "overrides", config.overrides
    for name, row in config.rows.items():
        yield f"rows.{name}.overrides", row.overrides
    for name, budget in config.budgets.items():
        yield f"budgets.{name}.overrides", budget.overrides


def _check_seeds(seeds: SeedsConfig) -> None:
    for kind, values in (("tuning", seeds.tuning), ("evaluation", seeds.evaluation)):
        if not values or len(set(values)) < len(values) or min(values) < 0:
            raise UserError(f"seeds.{kind}={values}: name at least one seed, each once, none below 0")
    both = sorted(set(seeds.tuning) & set(seeds.evaluation))
    if both:
        raise UserError(f"seeds: {both} both tune and evaluate, so a choice would be judged by what it saw")


def _check_spaces(config: StudyConfig) -> None:
    sizes = {}
    for name, row in config.rows.items():
        space = config.space if row.space is None else row.space
        where = "space" if row.space is None else f"rows.{name}.space"
        for key, values in space.items():
            if not values or any(v in values[:i] for i, v in enumerate(values)):
                raise UserError(f"{where}.{key}={values}: name at least one value, each once")
            if not all(isinstance(v, int | float | str) and not isinstance(v, bool) for v in values):
                raise UserError(f"{where}.{key}={values}: values are numbers or words")
            if any(word.split("=", 1)[0] == key for word in (*config.overrides, *row.overrides)):
                raise UserError(f"{where}.{key} is tuned and set by an override: do one of them")
        if not space:
            raise UserError(f"{where} is empty: name what is tuned, such as optimizer.lr: [0.03, 0.1, 0.3]")
        sizes[name] = len(list(itertools.product(*space.values())))
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(f"rows have unequal numbers of trials ({listed}): the one with more would be favoured")


def _at_budget(file: Path, config: StudyConfig, budget: str, extra: Sequence[str], config_dirs: Sequence[str]) -> Study:
    known = {FULL: BudgetConfig(), **config.budgets}
    if budget not in known:
        raise UserError(f"there is no budget '{budget}': {did_you_mean(budget, known)}")
    chosen = known[budget]

    def first(what: str, values: list[int], count: int | None) -> tuple[int, ...]:
        if count is not None and not 1 <= count <= len(values):
            raise UserError(f"budgets.{budget}.{what}={count} is out of range: choose from 1 to {len(values)}")
        return tuple(values[:count])

    tuning = first("tuning_seeds", config.seeds.tuning, chosen.tuning_seeds)
    evaluation = first("evaluation_seeds", config.seeds.evaluation, chosen.evaluation_seeds)
    spaces = {}
    for name, row in config.rows.items():
        space = config.space if row.space is None else row.space
        trials = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
        count = len(trials) if chosen.trials is None else chosen.trials
        if not 1 <= count <= len(trials):
            raise UserError(f"budgets.{budget}.trials={count} is out of range: choose from 1 to {len(trials)}")
        skipped = (len(trials) - count) // 2
        spaces[name] = tuple(trials[skipped : skipped + count])
    words = (*config.overrides, *chosen.overrides, *extra)
    name_ = file.resolve().parent.name if file.stem == "study" else file.stem
    return Study(name_, file, budget, config, words, tuple(extra), tuple(config_dirs), tuning, evaluation, spaces)
