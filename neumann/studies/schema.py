"""Schema of a study.yaml: its sections and keys, as pydantic reads them; `neumann.studies.definition` checks them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from neumann.errors import did_you_mean
from neumann.studies.results import POINTS
from neumann.studies.verdicts import Margin

ASKED = ("eval", *POINTS)  # eval: the base point where the optimizer has one, else the held point
FIGURES = ("errors", "curves", "tuning", "terms")
SET_BY_STUDY = ("seed", "study", "name", "output", "logger", "checkpoint", "launch")
FULL = "full"
TUNED, GRID = DESIGNS = ("tuned", "grid")  # one setting for all evaluation seeds, or one that each seed chooses itself
FEWEST_TUNING_SEEDS = 3  # that choose a setting for all others, where there are verdicts
AXES = ("trainer.max_epochs",)  # what rows may differ in although their differences by seed would show it


class Section(BaseModel):
    """A mapping of a study.yaml, which refuses an unknown key and a value of another kind."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_keys(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            if not isinstance(key, str):
                raise PydanticCustomError("name", "", {"key": key})
            if key not in cls.model_fields:
                raise PydanticCustomError("key", "", {"key": key, "hint": did_you_mean(key, cls.model_fields)})
        return given


class RowConfig(Section):
    """One row to compare, as docs/reference/study-file.md describes it."""

    label: str  # its name in the report
    overrides: list[str] = []  # of its runs, after the study's
    point: str = "eval"  # one of ASKED
    space: dict[str, list[Any]] | None = None  # null: the study's
    untuned: str | None = None  # why the row has one setting where others choose among several


class SeedsConfig(Section):
    """The seeds of both phases, disjoint: a setting must not be judged on a seed that chose it."""

    tuning: list[int] = []
    evaluation: list[int] = []


class ComparisonsConfig(Section):
    """The comparisons: every row with row ``reference``; that of row ``primary`` answers the question."""

    reference: str
    primary: str
    outcome: str = "error"  # one of OUTCOMES, on which the verdicts are
    margin: float | None = None  # the smallest effect of interest, as a share of the other row's: 0.1 is 10 %
    smallest_effect: float | None = None  # or in percentage points of test error
    sd: float | None = None  # by seed, of the primary effect in the margin's unit, as a pilot found it
    also: list[list[str]] = []  # further pairs [row, against]
    equal_settings: list[list[str]] = []  # pairs of a grid that are compared by the mean over its middle settings
    across: str | None = None  # one of AXES, where that is what the study compares
    batch: int | None = None  # one of the study's batches, at which the primary comparison is; null: the largest
    level: str | None = None  # one of the factor's levels, at which the primary comparison is; null: the first

    def named_margin(self) -> Margin:
        """Return the smallest effect of interest, of whichever kind the study names."""
        return Margin((self.smallest_effect or 0.0) / 100, False) if self.margin is None else Margin(self.margin, True)


class TargetConfig(Section):
    """The error to which steps and other costs are counted; one of the two."""

    error: float | None = None  # validation error, in percent
    of: str | None = None  # a row: the median of the validation errors that it ends with on the tuning seeds


class BatchConfig(Section):
    """One batch size of a batch-size study."""

    overrides: list[str] = []  # of its runs, after the rows'


class LevelConfig(Section):
    """One level of a factor."""

    label: str | None = None  # its name in the report; null: its key
    overrides: list[str] = []  # of its runs, after the rows'


class FactorConfig(Section):
    """What a study is repeated across: every row is trained at each level, and compared at equal ones."""

    name: str  # what the levels are of, such as model
    levels: dict[str, LevelConfig]


class BudgetConfig(Section):
    """A cheaper version of the study; null leaves the study's own number."""

    overrides: list[str] = []  # further ones of every run
    batches: list[int] | None = None  # those of the study's that it trains
    trials: int | None = None  # the middle ones of every space
    tuning_seeds: int | None = None  # the first ones
    evaluation_seeds: int | None = None  # the first ones
    pilot: bool = False  # it has no verdict, only effects and the n that would decide


class PaperConfig(Section):
    """The published numbers, by row, and what they measure."""

    source: str
    measure: str
    rows: dict[str, float] = {}  # in percent


class StudyConfig(Section):
    """A whole study.yaml; docs/reference/study-file.md describes every key."""

    title: str
    question: str
    design: str = TUNED  # one of DESIGNS
    overrides: list[str] = []
    rows: dict[str, RowConfig]
    batches: dict[int, BatchConfig] = {}  # by global batch size: every row is trained at each
    factor: FactorConfig | None = None  # another such axis, of named levels
    space: dict[str, list[Any]] = {}
    seeds: SeedsConfig
    comparisons: ComparisonsConfig
    target: TargetConfig | None = None
    budgets: dict[str, BudgetConfig] = {}
    paper: PaperConfig | None = None
    figures: dict[str, list[str]] = {}
    checks: dict[str, str] = {}  # what was found of an optimizer before it was trained, by name
    limits: list[str] = []

    def space_of(self, row: RowConfig) -> dict[str, list[Any]]:
        """Return what ``row`` chooses its setting from, nothing where it is not tuned."""
        if row.untuned is not None:
            return {}
        return self.space if row.space is None else row.space
