"""What a study's finished runs say before it is over: a mark for each seed of a row, its outcome, the time left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean

from rich.text import Text

from neumann.config import RunSpec
from neumann.errors import UserError
from neumann.estimates.recorded import costs
from neumann.launch.protocol import RunOutcome
from neumann.store import OVER, RunFolder
from neumann.studies.collect import ways_of
from neumann.studies.numbers import measure
from neumann.studies.plan import Study
from neumann.studies.study_run import StudyRun, scores

MARKS = {  # of a seed of a row: what its runs are, and in which colour
    "waiting": ("·", ""),
    "begun": ("◦", ""),
    "training": ("▸", "cyan"),
    "over": ("✓", "green"),
    "diverged": ("!", "yellow"),
    "failed": ("✗", "red"),
}
LEGEND = "  ".join(f"{mark} {meaning}" for meaning, (mark, _) in MARKS.items())
MOST_MARKS = 40  # seeds of a row that get a mark each; more would leave a terminal no room


def marks(runs: Iterable[StudyRun], outcomes: Mapping[str, RunOutcome], training: Iterable[str]) -> Text:
    """Return a mark for each seed of a row's ``runs``, in order; nothing for more than `MOST_MARKS`.

    ``outcomes`` and ``training`` are by signature: the runs that are over or failed, and those that train now.
    """
    by_seed: dict[int, list[str]] = {}
    for run in runs:
        by_seed.setdefault(run.planned.seed, []).append(run.spec.signature)
    text = Text()
    if len(by_seed) > MOST_MARKS:
        return text
    now = set(training)
    for _, signatures in sorted(by_seed.items()):
        known = [outcomes[signature].status for signature in signatures if signature in outcomes]
        text.append(*MARKS[_meaning(known, len(signatures), bool(now & set(signatures)))])
    return text


def _meaning(known: Sequence[str], count: int, trains: bool) -> str:
    if any(status not in OVER for status in known):
        return "failed"
    if trains:
        return "training"
    if len(known) < count:
        return "begun" if known else "waiting"
    return "diverged" if "diverged" in known else "over"


class SoFar:
    """The outcome of a row over its seeds, as far as their runs are over.

    A seed counts with the least that one of its runs has: error at the row's point, or where the study's outcome is a
    cost to an error that it names, that cost.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        target = study.config.target
        named = None if target is None or study.least is None else target.error
        self._target = None if named is None else named / 100
        self._known: dict[tuple[str, str, str], float | None] = {}  # by split, row and signature

    def column(self, split: str) -> str:
        """Return the name of the column: the outcome on ``split``, "validation" or "test"."""
        return f"{split} error" if self._study.least is None else measure(self._study.least)

    def of(self, runs: Iterable[StudyRun], outcomes: Mapping[str, RunOutcome], split: str) -> str:
        """Return the mean over the seeds of ``runs``, which are of one row, and of how many; empty before the first."""
        best: dict[int, float] = {}
        for run in runs:
            outcome = outcomes.get(run.spec.signature)
            value = None if outcome is None or outcome.result is None else self._value(run, outcome, split)
            if value is not None:
                best[run.planned.seed] = min(value, best.get(run.planned.seed, value))
        if not best:
            return ""
        found = fmean(best.values())
        shown = f"{100 * found:.2f} %" if self._target is None else f"{found:,.0f}"
        return f"{shown} (n = {len(best)})"

    def _value(self, run: StudyRun, outcome: RunOutcome, split: str) -> float | None:
        key = split, run.planned.row, run.spec.signature
        if key not in self._known:
            now = replace(run, result=outcome.result)
            if not run.from_archive:
                now = replace(now, folder=RunFolder(outcome.folder))
            self._known[key] = None
            with suppress(UserError):  # what a study refuses, it refuses when it reads the phase, in one sentence
                self._known[key] = self._cost(now) if self._target is not None else self._error(now, split)
        return self._known[key]

    def _error(self, run: StudyRun, split: str) -> float | None:
        found = scores(run, split, self._study.config.rows[run.planned.row].point)
        return None if found is None else found["error"]

    def _cost(self, run: StudyRun) -> float | None:
        assert self._study.least is not None
        assert self._target is not None
        found = ways_of([run], self._study.config.rows[run.planned.row].point, self._target).get(run.planned.seed)
        return found.costs.get(self._study.least) if found is not None and found.reached else None


class TimeLeft:
    """How long the runs that are left take, by those that this launch has trained.

    A run takes as long a step as runs like it did (`neumann.estimates.recorded.costs`), or where there is none, as all
    did. As many train at once as have until now.
    """

    def __init__(self) -> None:
        self._alike: dict[str, list[tuple[float, int]]] = {}  # (seconds, steps) of runs, by what decides a step's cost
        self._kinds: dict[str, list[str]] = {}  # by signature
        self._at_once = 1

    def add(self, outcome: RunOutcome) -> None:
        """Take note of a run; one that was over before says nothing of this machine's load."""
        if outcome.reused or outcome.status not in OVER or outcome.result is None:
            return
        took = outcome.seconds, int(outcome.result["step"])
        for kind in ("", *self._kind(outcome.spec)):
            self._alike.setdefault(kind, []).append(took)

    def train(self, running: int) -> None:
        """Take note of how many runs train at the same time."""
        self._at_once = max(self._at_once, running)

    def seconds(self, left: Iterable[tuple[RunSpec, float]], steps: Mapping[str, int]) -> float | None:
        """Return how long ``left`` takes, each run with how often it counts; None before the first run is over.

        ``steps`` says how far runs are, by signature.
        """
        if not self._alike:
            return None
        total = 0.0
        for spec, times in left:
            known = next(self._alike[kind] for kind in (*self._kind(spec), "") if kind in self._alike)
            spent, taken = (sum(column) for column in zip(*known, strict=True))
            waiting = max(0, spec.config.derived.total_steps - steps.get(spec.signature, 0))
            total += times * waiting * spent / max(1, taken)
        return total / self._at_once

    def _kind(self, spec: RunSpec) -> list[str]:
        if spec.signature not in self._kinds:
            self._kinds[spec.signature] = costs(spec.signed_json)
        return self._kinds[spec.signature]
