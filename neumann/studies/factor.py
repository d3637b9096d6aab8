"""Studies across a factor: every row at every level of it, such as model or horizon, compared at equal levels.

A study with a ``factor`` asks whether what it finds holds elsewhere. `crossed_with_levels` makes a row of each row and
level, as `neumann.studies.batches` does of each row and batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from neumann.config.override_text import key_of
from neumann.errors import UserError, did_you_mean
from neumann.studies.batches import crossed_at, key_at
from neumann.studies.scaling import BATCH, Cell
from neumann.studies.schema import FactorConfig, StudyConfig


def crossed_with_levels(config: StudyConfig) -> tuple[StudyConfig, dict[str, Cell]]:
    """Return ``config`` with a row for every row at every level of its factor, and what each of them is, by key.

    The primary comparison is that at ``comparisons.level``, the first level where the study names none. A study without
    a factor is returned as it is.
    """
    factor = config.factor
    if factor is None:
        return config, {}
    labels = {level: one.label or level for level, one in factor.levels.items()}
    rows, cells = {}, {}
    for row, one in config.rows.items():
        for level, its in factor.levels.items():
            key = key_at(row, level)
            cells[key] = Cell(row, one.label, factor.name, level, labels[level])
            words = [*one.overrides, *its.overrides]
            label = f"{one.label}, {factor.name} {labels[level]}"
            rows[key] = one.model_copy(update={"label": label, "overrides": words})
    at = config.comparisons.level
    return crossed_at(config, rows, list(factor.levels), next(iter(factor.levels)) if at is None else at), cells


def check_factor(config: StudyConfig) -> None:
    """Refuse a factor that a study cannot compare across. Raises UserError."""
    factor, named = config.factor, config.comparisons
    if factor is None:
        if named.level is not None:
            raise UserError(f"comparisons.level={named.level}: the study names no factor")
        return
    if config.batches:
        raise UserError("factor and batches: a study has one of them")
    if not factor.name.strip() or factor.name.strip().lower() == BATCH:
        raise UserError(f"factor.name={factor.name!r}: name what the levels are of, such as model, and batches apart")
    if len(factor.levels) < 2:
        raise UserError(f"factor.levels: a factor takes at least two, and there is {len(factor.levels)}")
    labels = [one.label or level for level, one in factor.levels.items()]
    for level, label in zip(factor.levels, labels, strict=True):
        if not label.strip() or labels.count(label) > 1:
            raise UserError(f"factor.levels.{level}.label={label!r}: levels are told apart by it: give each its own")
    if named.level is not None and named.level not in factor.levels:
        raise UserError(f"comparisons.level={named.level}: {did_you_mean(named.level, factor.levels)}")
    if named.across is not None:
        raise UserError(f"comparisons.across={named.across}: what rows differ in is the factor: leave it out")
    if config.target is not None and config.target.of is not None:
        raise UserError("target.of: a row has another error at each level of the factor: name target.error instead")
    if config.paper is not None and config.paper.rows:
        raise UserError("paper.rows: a published number belongs to one level, and every row has several here")
    for level, own in factor.levels.items():
        keys = {key_of(word) for word in own.overrides}
        for where, words in _words(config):
            if both := keys & {key_of(word) for word in words}:
                raise UserError(f"factor.levels.{level}.overrides and {where} both set {min(both)}: leave out one")
    if len({tuple(sorted(one.overrides)) for one in factor.levels.values()}) < len(factor.levels):
        raise UserError("factor.levels: two of them have the same overrides, so they are one level")


def overrides_of_levels(factor: FactorConfig | None) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield where each level's overrides stand, and the overrides."""
    for level, one in factor.levels.items() if factor is not None else ():
        yield f"factor.levels.{level}.overrides", one.overrides


def _words(config: StudyConfig) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield what would be set twice beside a level's overrides; those of the study itself may be replaced."""
    for row_name, row in config.rows.items():
        yield f"rows.{row_name}.overrides", row.overrides
        yield f"rows.{row_name}.space", [f"{key}=" for key in row.space or {}]
    for name, budget in config.budgets.items():
        yield f"budgets.{name}.overrides", budget.overrides
    yield "space", [f"{key}=" for key in config.space]
