"""Batch-size studies: every row at every batch size, as rows of their own that are compared at equal batch.

A study with ``batches`` asks how many steps each row needs to one error as the batch grows (Shallue et al. 2019,
Measuring the effects of data parallelism on neural network training). `crossed` makes a row of each pair, so that all
the rest of a study, search included, is that of any grid; `neumann.studies.scaling` reads the pairs as curves again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from neumann.bounds import Bounds
from neumann.config.override_text import key_of
from neumann.errors import UserError
from neumann.studies.scaling import BATCH, Cell
from neumann.studies.schema import FIGURES, GRID, BudgetConfig, RowConfig, StudyConfig

SIZE = "batch.size"


def key_at(row: str, level: int | str) -> str:
    """Return the key of ``row`` at a batch size or another level among the rows of a study that is crossed."""
    return f"{row}@{level}"


def batches_of(config: StudyConfig, budget: BudgetConfig) -> tuple[int, ...]:
    """Return the batch sizes of the study at ``budget``, smallest first; none where it is about something else."""
    return tuple(sorted(config.batches if budget.batches is None else budget.batches))


def crossed(config: StudyConfig, sizes: Sequence[int]) -> tuple[StudyConfig, dict[str, Cell]]:
    """Return ``config`` with a row for every row at every one of ``sizes``, and what each of them is, by key.

    Comparisons are made at each size; the primary one is that at ``comparisons.batch``. A figure shows its rows at that
    batch. A study without batch sizes is returned as it is.
    """
    if not sizes:
        return config, {}
    named = config.comparisons
    at = max(sizes) if named.batch is None else named.batch
    cells = {
        key_at(row, size): Cell(row, one.label, BATCH, str(size), f"{size:,}")
        for row, one in config.rows.items()
        for size in sizes
    }
    return crossed_at(config, {key: _row(config, cell) for key, cell in cells.items()}, sizes, at), cells


def crossed_at(
    config: StudyConfig, rows: Mapping[str, RowConfig], levels: Sequence[int | str], at: int | str
) -> StudyConfig:
    """Return ``config`` with ``rows``, each of its own at each of ``levels``: compared at each, the primary one ``at``.

    A figure shows its rows at that level.
    """
    named = config.comparisons
    comparisons = named.model_copy(
        update={
            "primary": key_at(named.primary, at),
            "reference": key_at(named.reference, at),
            "also": [[key_at(row, level) for row in pair] for pair in named.also for level in levels],
            "equal_settings": [[key_at(row, one) for row in pair] for pair in named.equal_settings for one in levels],
        }
    )
    shown = {name: [key_at(row, at) for row in config.figures.get(name, config.rows)] for name in FIGURES}
    paper = config.paper and config.paper.model_copy(update={"rows": {}})
    return config.model_copy(update={"rows": rows, "comparisons": comparisons, "figures": shown, "paper": paper})


def _row(config: StudyConfig, cell: Cell) -> RowConfig:
    row = config.rows[cell.row]
    words = [*row.overrides, *config.batches[cell.batch].overrides, f"{SIZE}={cell.batch}"]
    return row.model_copy(update={"label": f"{row.label}, {cell.at}", "overrides": words})


def check_batches(config: StudyConfig) -> None:
    """Refuse batch sizes that a study cannot compare. Raises UserError."""
    named, sizes = config.comparisons, config.batches
    if not sizes:
        if named.batch is not None:
            raise UserError(f"comparisons.batch={named.batch}: the study names no batches")
        for name, budget in config.budgets.items():
            if budget.batches is not None:
                raise UserError(f"budgets.{name}.batches={budget.batches}: the study names no batches")
        return
    for size in sizes:
        Bounds(at_least=1).check("batches", size)
    if len(sizes) < 2:
        raise UserError(f"batches: a curve takes at least two, and there is {len(sizes)}")
    if config.design != GRID or named.outcome != "steps" or config.target is None or config.target.error is None:
        raise UserError(
            "batches: steps are counted to one error at every batch, and every seed chooses the rate that needs the "
            "fewest: write design: grid, comparisons.outcome: steps and target.error, a validation error in percent "
            "that each batch can reach"
        )
    if config.paper is not None and config.paper.rows:
        raise UserError("paper.rows: a published number belongs to one batch size, and every row has several here")
    for name, kept in [("", batches_of(config, BudgetConfig())), *_of_budgets(config)]:
        for size in kept:
            if size not in sizes:
                raise UserError(f"{name}={list(kept)}: {size} is none of the study's batches: {_listed(sizes)}")
        if len(kept) < 2 or len(set(kept)) < len(kept):
            raise UserError(f"{name}={list(kept)}: name at least two batches, each once")
        if named.batch is not None and named.batch not in kept:
            where = f", so {name} must hold it" if name and named.batch in sizes else ""
            raise UserError(
                f"comparisons.batch={named.batch} is where the primary comparison is{where}: {_listed(kept)}"
            )
    for where, words in _words(config):
        if any(key_of(word) == SIZE for word in words):
            raise UserError(f"{where}: {SIZE} is what the study's batches set: leave it out")
    for size, one in sizes.items():
        keys = {key_of(word) for word in one.overrides}
        for where, words in _words(config):
            both = keys & {key_of(word) for word in words} if not where.startswith(("overrides", "batches")) else set()
            if both:
                raise UserError(f"batches.{size}.overrides and {where} both set {min(both)}: leave out one of them")


def _of_budgets(config: StudyConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, budget in config.budgets.items():
        if budget.batches is not None:
            yield f"budgets.{name}.batches", tuple(budget.batches)


def _words(config: StudyConfig) -> Iterator[tuple[str, Sequence[str]]]:
    yield "overrides", config.overrides
    for size, batch in config.batches.items():
        yield f"batches.{size}.overrides", batch.overrides
    for row_name, row in config.rows.items():
        yield f"rows.{row_name}.overrides", row.overrides
        yield f"rows.{row_name}.space", [f"{key}=" for key in row.space or {}]
    for name, budget in config.budgets.items():
        yield f"budgets.{name}.overrides", budget.overrides
    yield "space", [f"{key}=" for key in config.space]


def _listed(sizes: Mapping[int, object] | Sequence[int]) -> str:
    return f"choose from {', '.join(map(str, sorted(sizes)))}"
