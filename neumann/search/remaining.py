"""The runs that a search has left, as far as they can be known: a search chooses each trial by those before it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from neumann.config import RunSpec, making_specs
from neumann.launch.protocol import LaunchView, RunOutcome
from neumann.search.optuna import search
from neumann.search.space import Search


class _NotOver(Exception):  # noqa: N818 - it ends the replay, and is no error
    """A generation holds runs that are not over."""


class _Replay:
    """A launcher that trains nothing: it reports the runs that are over, and stops the search where one is not."""

    preparation = "reading results"

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel
        self.over = 0
        self.left: list[RunSpec] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: no process was started."""

    def run(self, specs: Sequence[RunSpec], view: LaunchView) -> list[RunOutcome]:
        """Return the outcomes of runs that are over. Raises _NotOver where one is not."""
        found = [RunOutcome.of_result(spec) for spec in specs]
        self.left = [spec for spec, outcome in zip(specs, found, strict=True) if outcome is None]
        self.over += len(found) - len(self.left)
        if self.left:
            raise _NotOver
        return [outcome for outcome in found if outcome is not None]


class _NoView:
    """A view that shows nothing."""

    def add(self, specs: Sequence[RunSpec], labels: Sequence[str]) -> None:
        """Do nothing."""


def remaining(wanted: Search, config_dirs: Sequence[str], parallel: int) -> tuple[list[tuple[RunSpec, float]], int]:
    """Return the runs that ``wanted`` has left, each with how often it counts, and how many are over.

    The results that are there are told to Optuna as `search` does, so the next trials are those that would be trained
    next; the trials after them count as the mean of these. ``parallel`` is how many runs are trained at once. Raises
    UserError where a trial does not compose.
    """
    replay: Any = _Replay(parallel)
    view: Any = _NoView()
    with making_specs(config_dirs) as make, contextlib.suppress(_NotOver):
        search(wanted, make, replay, view)
    if not replay.left:
        return [], replay.over
    count = wanted.n_trials * max(1, len(wanted.seeds)) - replay.over
    return [(spec, count / len(replay.left)) for spec in replay.left], replay.over
