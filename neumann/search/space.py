"""The space of a search and its settings, read from the overrides of a sweep with `hydra/sweeper=optuna`.

The syntax is that of Hydra's Optuna sweeper: `interval(0.001,1)` is searched evenly, `tag(log,interval(0.001,1))`
evenly in its logarithm, `int(interval(8,64))` in whole numbers, both ends included; `range(...)` holds the values that
Hydra lists for it, in their order, and `a,b` or `choice(a,b)` values without an order. Two rules are ours. Seeds are
not searched: `seed=0,1,2` trains every trial at each of them and judges it by their mean. A seed is not a setting:
choosing the best one would choose luck. And a key that cannot change a result cannot be searched. This module does not
import Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from neumann.config import why_not_tuned
from neumann.config.override_text import refuse_misread
from neumann.config.schema import TEXTS
from neumann.errors import UserError, did_you_mean

Value = str | int | float | bool
SWEEPERS = ("basic", "optuna")
SWEEPER = "hydra/sweeper"
SAMPLER = "hydra/sweeper/sampler"
SAMPLERS: dict[str, dict[str, Value]] = {  # the settings of each, under Optuna's own names, with their defaults
    "tpe": {"seed": 0, "n_startup_trials": 10, "n_ei_candidates": 24, "multivariate": True},
    "qmc": {"seed": 0, "qmc_type": "sobol", "scramble": True},
    "random": {"seed": 0},
}
LEAST = {"n_trials": 1, "n_jobs": 1, "n_ei_candidates": 1}  # lower bounds of settings; the others' is 0
CHOICES = {"qmc_type": ("sobol", "halton"), "direction": ("minimize",)}
MEANINGLESS = {
    "storage": "none is needed, as the same command finds the runs that are over and goes on",
    "study_name": "name the folder of the runs with study=NAME",
    "search_space": "write KEY=interval(A,B) on the command line or under hydra.sweeper.params",
    "custom_search_space": "a search executes no code of its configuration",
    "max_failure_rate": "a failed trial stops no other",
}
MOST_CHECKED = 200  # combinations that are composed before any run trains
MOST_RUNS = 10_000  # of one sweep: each is composed before the first one trains
EDGE = 0.05  # of an interval's width


@dataclass(frozen=True)
class Interval:
    """An interval of numbers, both ends included.

    low, high   the ends
    log         drawn evenly in the logarithm instead of evenly
    integer     whole numbers only
    line        the override that asked for it, as the user wrote it
    """

    low: float
    high: float
    log: bool
    integer: bool
    line: str

    def text(self, value: float) -> str:
        """Return a value as on the command line, without rounding."""
        return str(int(value)) if self.integer else repr(float(value))

    def corners(self) -> list[str]:
        """Return its ends, as on the command line."""
        return [self.text(self.low), self.text(self.high)]

    def edge(self, text: str) -> str | None:
        """Return "lower" or "upper" where a value lies within `EDGE` of the width from that end, else None."""
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, float(text)))
        share = (at - low) / (high - low)
        return "lower" if share <= EDGE else "upper" if share >= 1 - EDGE else None


@dataclass(frozen=True)
class Choices:
    """A list of values, as on the command line; those of a range are ``ordered``, so that each has neighbours."""

    values: tuple[str, ...]
    ordered: bool
    line: str

    def corners(self) -> list[str]:
        """Return the values that are composed before any run trains: all of them, or the two ends of a range."""
        return [self.values[0], self.values[-1]] if self.ordered else list(self.values)

    def edge(self, text: str) -> str | None:
        """Return "lower" or "upper" where a value is the first or the last of a range of three or more, else None."""
        if not self.ordered or len(self.values) < 3:
            return None
        return {self.values[0]: "lower", self.values[-1]: "upper"}.get(text)


@dataclass(frozen=True)
class Search:
    """A search as the user asked for it.

    space      what is searched, by key
    fixed      the overrides that are the same for every trial
    seeds      at which every trial is trained, as on the command line; empty: at the configuration's one seed
    sampler    a key of `SAMPLERS`
    settings   of the sampler
    n_trials   how many settings are tried
    n_jobs     how many trials are chosen at once; None: up to the sampler
    """

    space: dict[str, Interval | Choices]
    fixed: tuple[str, ...]
    seeds: tuple[str, ...]
    sampler: str
    settings: dict[str, Value]
    n_trials: int
    n_jobs: int | None

    def overrides(self, values: Mapping[str, str]) -> list[str]:
        """Return the overrides of a trial with these values, without a seed."""
        return [*self.fixed, *(f"{key}={text}" for key, text in values.items())]

    def runs(self, values: Mapping[str, str]) -> list[list[str]]:
        """Return the overrides of each run of a trial with these values: a run for every seed."""
        return [[*self.overrides(values), *seed] for seed in ([f"seed={s}"] for s in self.seeds)] or [
            self.overrides(values)
        ]

    def corners(self) -> list[list[str]]:
        """Return overrides of runs that hold every choice and both ends of every interval.

        They are composed before any run trains. All choices are combined where that makes at most `MOST_CHECKED` runs;
        lower ends are combined with lower ends, and upper ends with upper ends.
        """
        choices = {k: d.values for k, d in self.space.items() if isinstance(d, Choices) and not d.ordered}
        ends = {k: d.corners() for k, d in self.space.items() if k not in choices}
        if math.prod(len(values) for values in choices.values()) * 2 <= MOST_CHECKED:
            picks = [dict(zip(choices, row, strict=True)) for row in product(*choices.values())]
        else:  # each with the first of the others
            first = {k: values[0] for k, values in choices.items()}
            picks = [first | {k: value} for k, values in choices.items() for value in values]
        sides = [{k: pair[i] for k, pair in ends.items()} for i in ((0, 1) if ends else (0,))]
        return [self.runs({k: {**pick, **side}[k] for k in self.space})[0] for pick in picks for side in sides]


def is_sweeper(override: Override) -> bool:
    """Return whether ``override`` chooses the sweeper or one of its settings."""
    key = override.key_or_group
    return key == SWEEPER or key.startswith((f"{SWEEPER}/", "hydra.sweeper"))


def chosen_sweeper(overrides: Sequence[Override]) -> str:
    """Return "basic" or "optuna". Raises UserError for another sweeper, and for Optuna's settings without Optuna."""
    name = "basic"
    for override in overrides:
        if override.key_or_group == SWEEPER:
            name = str(override.value())
            if override.is_delete() or name not in SWEEPERS:
                raise UserError(f"there is no hydra/sweeper '{name}': {did_you_mean(name, SWEEPERS)}")
    for override in overrides:
        key = override.key_or_group
        if key.startswith("hydra.sweeper.params"):
            raise UserError(f"'{override.input_line}': on the command line the setting itself is given, as KEY=A,B")
        if name == "basic" and key != SWEEPER:
            raise UserError(f"'{override.input_line}' is a setting of the Optuna sweeper: add hydra/sweeper=optuna")
    return name


def read_search(sweeper: Sequence[Override], overrides: Sequence[Override]) -> Search:
    """Return the search that overrides ask for.

    sweeper     those that choose the sweeper, its sampler and their settings
    overrides   the others: the space, the seeds and what is fixed

    Raises UserError for a setting that does not exist or has no meaning here, and for a space that cannot be searched.
    """
    said = {o.key_or_group: o for o in sweeper if o.key_or_group != SWEEPER}
    sampler = _sampler(said)
    settings = dict(SAMPLERS[sampler])
    counts: dict[str, Any] = {"n_trials": 20, "n_jobs": None, "direction": "minimize"}
    for key, override in said.items():
        if key in (SAMPLER, "hydra.sweeper.sampler"):
            continue
        name = key.removeprefix("hydra.sweeper.")
        inner = name.removeprefix("sampler.")
        if name in MEANINGLESS:
            raise UserError(f"'{override.input_line}' has no meaning here: {MEANINGLESS[name]}")
        if inner != name and inner in settings:
            settings[inner] = _checked(override, inner, settings[inner])
        elif inner != name:
            raise UserError(f"{SAMPLER}={sampler} has no setting '{inner}': {did_you_mean(inner, settings)}")
        elif name in counts and key.startswith("hydra.sweeper."):
            counts[name] = _checked(override, name, "" if name == "direction" else 1)
        else:
            raise UserError(f"{SWEEPER}=optuna has no setting '{name}': {did_you_mean(name, [*counts, 'sampler'])}")
    unique = {o.key_or_group: o for o in overrides}
    space = {o.get_key_element(): _dimension(o) for o in unique.values() if o.is_sweep_override()}
    seeds = space.pop(next((key for key in space if key.lstrip("+") == "seed"), ""), None)
    if not space:
        raise UserError(
            "there is nothing to search: give a setting an interval, as KEY=interval(A,B), or several values"
        )
    fixed = tuple(str(o.input_line) for o in unique.values() if not o.is_sweep_override())
    values = seeds.values if isinstance(seeds, Choices) else ()
    return Search(space, fixed, values, sampler, settings, counts["n_trials"], counts["n_jobs"])


def _sampler(said: Mapping[str, Override]) -> str:
    for key in (SAMPLER, "hydra.sweeper.sampler"):
        if key in said:
            name = str(said[key].value())
            if name == "grid":
                raise UserError(f"'{said[key].input_line}': a grid is what -m trains without {SWEEPER}=optuna")
            if said[key].is_delete() or name not in SAMPLERS:
                raise UserError(f"there is no {SAMPLER} '{name}': {did_you_mean(name, SAMPLERS)}")
            return name
    return "tpe"


def _checked(override: Override, name: str, like: Value) -> Any:
    """Return a setting's value. Raises UserError where it is not of the kind of ``like``, or not in its bounds."""
    value: Any = override.value()
    if override.is_sweep_override() or override.is_delete():
        raise UserError(f"'{override.input_line}': a search has one {name}")
    if name == "n_jobs" and value is None:
        return None
    if name in CHOICES:
        if value not in CHOICES[name]:
            why = " (it is validation error)" if name == "direction" else ""
            raise UserError(f"'{override.input_line}' is not a choice: {did_you_mean(str(value), CHOICES[name])}{why}")
        return value
    if isinstance(like, bool):
        if not isinstance(value, bool):
            raise UserError(f"'{override.input_line}': {name} is true or false")
        return value
    least = LEAST.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"'{override.input_line}': {name} is a whole number, at least {least}")
    return value


def _dimension(override: Override) -> Interval | Choices:
    key, line = override.key_or_group, str(override.input_line)
    if key != "seed" and (why := why_not_tuned(key)) is not None:
        raise UserError(f"'{line}': {why}")
    sweep: Any = override.value()
    tags: set[str] = getattr(sweep, "tags", set())
    if unknown := sorted(tags - ({"log"} if isinstance(sweep, IntervalSweep) else set())):
        raise UserError(f"'{line}': the tag '{unknown[0]}' has no meaning here, only tag(log,interval(A,B)) has one")
    if isinstance(sweep, IntervalSweep):
        return _interval(key, line, sweep)
    values = tuple(listed_values(override))
    if not values:
        raise UserError(f"the search holds no run: '{line}' has no value")
    if isinstance(sweep, ChoiceSweep | RangeSweep) and sweep.shuffle:
        values = tuple(
            sorted(values)
        )  # a shuffled order would differ from start to start, and the sampler draws anyway
    return Choices(values, isinstance(sweep, RangeSweep) and not sweep.shuffle, line)


def count_values(override: Override) -> int:
    """Return how many values a list or a range has, without making them; 1 where ``override`` gives one value.

    Raises UserError for a range that never ends and for more than `MOST_RUNS` values.
    """
    sweep: Any = override.value()
    if not override.is_discrete_sweep():
        return 1
    count = len(sweep.list) if isinstance(sweep, ChoiceSweep) else 1
    if isinstance(sweep, RangeSweep):
        start, stop, step = (float(number or 0) for number in (sweep.start, sweep.stop, sweep.step))
        if step == 0 or not all(map(math.isfinite, (start, stop, step))):
            raise UserError(
                f"'{override.input_line}': a range with the step 0 has no end, nor has one to infinity: give another"
            )
        count = max(0, math.ceil((stop - start) / step))
    if count > MOST_RUNS:
        raise UserError(
            f"'{override.input_line}' has {count:,} values, and one command trains at most {MOST_RUNS:,} runs"
        )
    return count


def listed_values(override: Override) -> list[str]:
    """Return the values of one setting in a sweep, each as on the command line, each once, in Hydra's order.

    Raises UserError as `count_values` does.
    """
    line = str(override.input_line)
    sweep: Any = override.value()
    if not override.is_sweep_override():
        return [line.partition("=")[2].strip()]
    count_values(override)
    texts = [str(text) for text in override.sweep_string_iterator()]
    elements = list(sweep.list) if isinstance(sweep, ChoiceSweep) else []
    meanings: list[Any] = list(texts)
    if override.key_or_group in TEXTS:  # of a text that looks like a number, no digit is lost
        written = [word.strip() for word in line.partition("=")[2].split(",")]
        if len(written) == len(texts) and not any(mark in line for mark in "'\"([{\\$"):
            meanings = texts = written
    else:
        refuse_misread(line, elements)
        if len(elements) == len(texts):  # 0.1 and 1e-1 are one run
            meanings = [x if isinstance(x, int | float) and not isinstance(x, bool) else str(x) for x in elements]
    once: dict[Any, str] = {}
    for meaning, text in zip(meanings, texts, strict=True):
        once.setdefault(meaning, text)
    return list(once.values())


def _interval(key: str, line: str, sweep: IntervalSweep) -> Interval:
    if key == "seed":
        raise UserError(f"'{line}': seeds are not searched, list those that every trial is trained at, as seed=0,1,2")
    refuse_misread(line, None)
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"'{line}': an interval goes from a lower to a higher number")
    log = "log" in sweep.tags
    if log and low <= 0:
        raise UserError(f"'{line}': a logarithmic interval begins above 0")
    return Interval(low, high, log, isinstance(low, int) and isinstance(high, int), line)
