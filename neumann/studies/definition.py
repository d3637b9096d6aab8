"""Definition of a study: its study.yaml, found, read strictly and checked before anything trains.

A study is a question, rows to compare, one search space with as many trials for every row, tuning seeds that choose a
setting by validation error, evaluation seeds that no choice has seen, and what is compared with what. A budget is a
subset of it: fewer trials, fewer seeds, or other settings such as a shorter run. `neumann.studies.plan` makes runs
of it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from neumann.bounds import KINDS, Bounds, as_yaml
from neumann.config import why_not_tuned
from neumann.config.hydra_words import interpolation
from neumann.config.override_text import key_of, refuse_twice
from neumann.config.yaml_files import read_yaml
from neumann.errors import UserError, did_you_mean
from neumann.studies.batches import check_batches
from neumann.studies.factor import check_factor, overrides_of_levels
from neumann.studies.grid import middle
from neumann.studies.results import COSTS, OUTCOMES
from neumann.studies.schema import (
    ASKED,
    AXES,
    DESIGNS,
    FEWEST_TUNING_SEEDS,
    FIGURES,
    FULL,
    GRID,
    SET_BY_STUDY,
    TUNED,
    BudgetConfig,
    StudyConfig,
)

PACKAGED = Path(__file__).resolve().parents[1] / "experiments"


def find_study(name: str) -> Path:
    """Return the study.yaml called ``name``, in ./experiments or else neumann's own; or that of the path ``name``.

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
    """Return {name: study.yaml}: neumann's own and those in ./experiments, which take the place of the former."""
    folders = (PACKAGED, Path("experiments"))
    return {file.parent.name: file for folder in folders for file in sorted(folder.glob("*/study.yaml"))}


def name_of(file: Path) -> str:
    """Return the name of the study in ``file``: its folder's, or its own where it is not called study.yaml."""
    return file.resolve().parent.name if file.stem == "study" else file.stem


def read_study(file: Path) -> StudyConfig:
    """Return the checked content of ``file``. Raises UserError, one sentence that names the file and the key."""
    given = read_yaml(file)
    try:
        try:
            plain = OmegaConf.to_container(OmegaConf.create(given), resolve=True)
        except OmegaConfBaseException as error:
            raise UserError(interpolation(error)) from error
        try:
            config = StudyConfig.model_validate(plain)
        except ValidationError as invalid:
            raise UserError(_sentence(invalid.errors()[0])) from None
        _check(config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error.__cause__
    return config


KINDS_OF_PYDANTIC = {
    "list_type": "a list, such as [a, b]",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "string_type": "a text",
    "int_type": KINDS[int],
    "float_type": KINDS[float],
    "bool_type": KINDS[bool],
}


def _sentence(error: ErrorDetails) -> str:
    """Return a finding of pydantic in the words of the file: the key, its value, and what belongs there."""
    kind, value, details = error["type"], error["input"], error.get("ctx", {})
    of_batch = error["loc"][:1] == ("batches",)
    if of_batch and "[key]" in error["loc"]:
        return f"batches has '{value}', which is no batch size: name whole numbers"
    key = ".".join(
        str(part)
        for i, part in enumerate(error["loc"])
        if (isinstance(part, str) or (of_batch and i == 1)) and part != "[key]"
    )
    if kind == "name" or "[key]" in error["loc"]:
        return f"{key or 'the file'} has the name {details.get('key', value)}, which must be a word: put it in quotes"
    if kind == "key":
        return f"there is no '{f'{key}.' if key else ''}{details['key']}': {details['hint']}"
    if kind == "missing" or (kind == "string_type" and value is None):
        return f"it needs {key}"
    if kind == "string_type" and key.split(".")[-1] == "overrides" and isinstance(value, dict) and len(value) == 1:
        ((group, option),) = value.items()
        return f"{key}: {group}: {option} is not a text: write '{group}={option}', with an equals sign"
    bare = isinstance(value, bool) or kind in ("int_type", "float_type")
    shown = "nothing" if value is None else as_yaml(value) if bare else value
    return (
        f"{key}={shown} is not {KINDS_OF_PYDANTIC[kind]}"
        if kind in KINDS_OF_PYDANTIC
        else f"{key}={shown}: {error['msg']}"
    )


def _check(config: StudyConfig) -> None:
    rows = config.rows
    if len(rows) < 2:
        raise UserError(f"rows: a comparison takes at least two, and there are {len(rows)}")
    for name, row in rows.items():
        if row.point not in ASKED:
            raise UserError(
                f"rows.{name}.point={row.point} is not an evaluation point: {did_you_mean(row.point, ASKED)}"
            )
    for where, names in _references(config):
        for name in names:
            if name not in rows:
                raise UserError(f"{where} names the row '{name}', which does not exist: {did_you_mean(name, rows)}")
    if config.comparisons.primary == config.comparisons.reference:
        raise UserError("comparisons: primary and reference are the same row")
    for pair in config.comparisons.also:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise UserError(f"comparisons.also: {pair} is not a pair of two rows, written [row, against]")
        if config.comparisons.also.count(pair) > 1:  # each would count in Holm's family
            raise UserError(f"comparisons.also: {pair} stands there twice")
    across = config.comparisons.across
    if across is not None and across not in AXES:
        raise UserError(f"comparisons.across={across} cannot be compared by seed: {did_you_mean(across, AXES)}")
    labels = [row.label.strip() for row in rows.values()]
    for name, label in zip(rows, labels, strict=True):
        if not label or labels.count(label) > 1:
            raise UserError(
                f"rows.{name}.label={label!r}: a reader tells rows apart by their labels, so each needs its own"
            )
    _check_outcome(config)
    for name, value in (config.paper.rows if config.paper else {}).items():
        if not math.isfinite(value):
            raise UserError(f"paper.rows.{name}={value} is not a finite number")
    if FULL in config.budgets:
        raise UserError(f"budgets.{FULL} is the study as it stands: give this one another name")
    for name in config.budgets:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(f"budgets.'{name}' ends the name of a folder, report-NAME: use letters and digits")
    for name in config.figures:
        if name not in FIGURES:
            raise UserError(f"there is no figure '{name}': {did_you_mean(name, FIGURES)}")
    _check_seeds(config)
    _check_tuning_seeds(config)
    _check_spaces(config)
    check_batches(config)
    check_factor(config)
    _check_equal_settings(config)
    _check_budgets(config)
    for where, words in _override_lists(config):
        try:
            refuse_twice(words)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        for word in words:
            key = key_of(word)
            if "=" not in word:
                raise UserError(f"{where}: '{word}' is not an override, which is written key=value or group=option")
            if key == "trainer.test":
                raise UserError(
                    f"{where}: '{word}' does not belong in a study: runs that tune are not tested, others are"
                )
            if key.split(".")[0] in SET_BY_STUDY:
                raise UserError(
                    f"{where}: '{word}' does not belong in a study: {key.split('.')[0]} is set for each run"
                )


def _check_outcome(config: StudyConfig) -> None:
    """Refuse an outcome without a target to count to, and a margin that is none of it. Raises UserError."""
    named, target = config.comparisons, config.target
    if named.outcome not in OUTCOMES:
        raise UserError(
            f"comparisons.outcome={named.outcome} is not an outcome: {did_you_mean(named.outcome, OUTCOMES)}"
        )
    if (named.margin is None) == (named.smallest_effect is None):
        raise UserError(
            "comparisons: name the smallest effect of interest once, as margin: 0.1 for 10 % of the other row's, or as "
            "smallest_effect: 0.5 for half a percentage point of test error"
        )
    if named.smallest_effect is not None:
        Bounds(above=0).check("comparisons.smallest_effect", named.smallest_effect)
    if named.margin is not None:
        Bounds(above=0, below=1).check("comparisons.margin", named.margin)
    if named.sd is not None:
        Bounds(above=0).check("comparisons.sd", named.sd)
    if named.outcome in COSTS and named.margin is None:
        raise UserError(
            f"comparisons.smallest_effect is a difference of errors, and comparisons.outcome={named.outcome} is none: "
            "name margin: 0.1, a share of the other row's"
        )
    if named.outcome in COSTS and target is None:
        raise UserError(f"comparisons.outcome={named.outcome} is counted to a target: name one, such as target.of: ROW")
    if target is not None and (target.error is None) == (target.of is None):
        raise UserError("target: name error, a validation error in percent, or of, a row whose error it is")
    if target is not None and target.error is not None:
        Bounds(above=0, below=100).check("target.error", target.error)


def _references(config: StudyConfig) -> Iterator[tuple[str, Sequence[str]]]:
    yield "comparisons.reference", [config.comparisons.reference]
    yield "comparisons.primary", [config.comparisons.primary]
    for pair in config.comparisons.also:
        yield "comparisons.also", pair
    for pair in config.comparisons.equal_settings:
        yield "comparisons.equal_settings", pair
    for name, names in config.figures.items():
        yield f"figures.{name}", names
    if config.target is not None and config.target.of is not None:
        yield "target.of", [config.target.of]
    if config.paper is not None:
        yield "paper.rows", list(config.paper.rows)


def _override_lists(config: StudyConfig) -> Iterator[tuple[str, Sequence[str]]]:
    yield "overrides", config.overrides
    for name, row in config.rows.items():
        yield f"rows.{name}.overrides", row.overrides
    for size, batch in config.batches.items():
        yield f"batches.{size}.overrides", batch.overrides
    yield from overrides_of_levels(config.factor)
    for name, budget in config.budgets.items():
        yield f"budgets.{name}.overrides", budget.overrides


def _check_seeds(config: StudyConfig) -> None:
    seeds = config.seeds
    if config.design not in DESIGNS:
        raise UserError(f"design={config.design} is not a design: {did_you_mean(config.design, DESIGNS)}")
    of_target = config.target is not None and config.target.of is not None
    if config.design == GRID and seeds.tuning and not of_target:
        raise UserError(
            f"seeds.tuning={seeds.tuning}: the evaluation seeds of a grid choose their own settings, so these are for "
            "target.of alone: leave them out"
        )
    named = {"evaluation": seeds.evaluation} | ({"tuning": seeds.tuning} if config.design == TUNED or of_target else {})
    for kind, values in named.items():
        if not values or len(set(values)) < len(values) or min(values) < 0:
            raise UserError(f"seeds.{kind}={values}: name at least one seed, each once, none below 0")
    both = sorted(set(seeds.tuning) & set(seeds.evaluation))
    if both:
        raise UserError(f"seeds: {both} both tune and evaluate, so a setting would be judged on a seed that chose it")


def _check_tuning_seeds(config: StudyConfig) -> None:
    """Refuse a budget with verdicts in which fewer than three seeds choose among settings. Raises UserError."""
    if config.design != TUNED:
        return
    spaces = [config.space if row.space is None else row.space for row in config.rows.values()]
    for name, budget in {FULL: BudgetConfig(), **config.budgets}.items():
        seeds = len(config.seeds.tuning) if budget.tuning_seeds is None else budget.tuning_seeds
        trials = max(len(settings_of(space, budget.trials)) for space in spaces)
        if trials > 1 and seeds < FEWEST_TUNING_SEEDS and not budget.pilot:
            where = "seeds.tuning" if budget.tuning_seeds is None else f"budgets.{name}.tuning_seeds"
            raise UserError(
                f"{where}: {seeds} seed{'' if seeds == 1 else 's'} would choose among {trials} settings, mostly by "
                f"luck: take {FEWEST_TUNING_SEEDS} or more, or design: grid, in which every seed chooses"
                + ("" if name == FULL else f", or mark it as budgets.{name}.pilot: true, which has no verdicts")
            )


def _check_equal_settings(config: StudyConfig) -> None:
    """Refuse a comparison at equal settings that a study does not make or cannot make. Raises UserError."""
    named, rows = config.comparisons, config.rows
    made = [{named.primary, named.reference}, *({row, named.reference} for row in rows), *map(set, named.also)]
    for pair in named.equal_settings:
        where = f"comparisons.equal_settings: {pair}"
        if len(pair) != 2 or set(pair) not in made:
            raise UserError(f"{where} is not a comparison of the study: name the pair among comparisons.also")
        if config.design != GRID:
            raise UserError(f"{where} needs design: grid, where every seed has a run at every setting")
        if len({repr(config.space if rows[row].space is None else rows[row].space) for row in pair}) > 1:
            raise UserError(f"{where} have spaces of their own, so there are no equal settings")
        for budget, trials in (("full", None), *((name, one.trials) for name, one in config.budgets.items())):
            own = rows[pair[0]].space
            if not middle(settings_of(config.space if own is None else own, trials)):
                raise UserError(f"{where}: every setting of the {budget} budget lies on an edge: it takes three rates")


def settings_of(space: Mapping[str, Sequence[Any]], trials: int | None) -> tuple[dict[str, Any], ...]:
    """Return the settings of ``space``, multiplied out; the middle ones where there are to be so many ``trials``."""
    settings = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    count = len(settings) if trials is None else trials
    skipped = max(0, (len(settings) - count) // 2)
    return tuple(settings[skipped : skipped + count])


def _check_budgets(config: StudyConfig) -> None:
    """Refuse a budget's setting that rows set themselves, which would be ignored there. Raises UserError."""
    for budget, limits in config.budgets.items():
        for name, row in config.rows.items():
            both = {key_of(word) for word in limits.overrides} & {key_of(word) for word in row.overrides}
            if both:
                raise UserError(
                    f"budgets.{budget}.overrides and rows.{name}.overrides both set {min(both)}: leave out one of them"
                )


def _why_not_in_space(key: str) -> str | None:
    """Return why a study cannot tune ``key``, None where it can."""
    if key_of(key).split(".")[0] in SET_BY_STUDY:
        return f"{key_of(key).split('.')[0]} is set for each run, so it cannot be tuned"
    return why_not_tuned(key)


def _meaning(text: str) -> Any:
    """Return what an override makes of ``text``; the text itself where it cannot be read."""
    try:
        return OverridesParser.create().parse_override(f"x={text}").value()
    except (HydraException, ValueError):  # the latter for a number of 4,300 digits
        return text


def _check_spaces(config: StudyConfig) -> None:
    sizes = {}
    for name, row in config.rows.items():
        space = config.space if row.space is None else row.space
        where = "space" if row.space is None else f"rows.{name}.space"
        for key, values in space.items():
            if key.startswith("~") or [key_of(other) for other in space].count(key_of(key)) > 1:
                raise UserError(f"{where}.{key} names {key_of(key)}, which is written once, alone")
            if not all(isinstance(v, int | float | str) and not isinstance(v, bool) for v in values):
                raise UserError(f"{where}.{key}={as_yaml(values)}: values are numbers or words")
            if not values or any(v in values[:i] for i, v in enumerate(values)):
                raise UserError(f"{where}.{key}={as_yaml(values)}: name at least one value, each once")
            if (why := _why_not_in_space(key)) is not None:
                raise UserError(f"{where}.{key}: {why}")
            for value in values:
                if isinstance(value, str) and isinstance(_meaning(value), bool | int | float | None):
                    raise UserError(f"{where}.{key}: '{value}' is in quotes, which make a text of it: leave them out")
            budgets = ((f"budgets.{b}.overrides", c.overrides) for b, c in config.budgets.items())
            for of, words in (("overrides", config.overrides), (f"rows.{name}.overrides", row.overrides), *budgets):
                if any(key_of(word) == key_of(key) for word in words):
                    raise UserError(f"{where}.{key} is tuned and set by an override in {of}: leave out one of the two")
        if row.space == {}:  # the row tunes nothing, and says so
            continue
        if not space:
            raise UserError(
                f"{where} is empty: name what is tuned, such as optimizer.lr: [0.03, 0.1, 0.3], or "
                f"rows.{name}.space: {{}} for a row that tunes nothing"
            )
        sizes[name] = len(list(itertools.product(*space.values())))
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UserError(f"rows have unequal numbers of trials ({listed}): the one with more would be favoured")
