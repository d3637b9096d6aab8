"""What does a person see while a study works? A table with a line per row, and the runs in hand."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from neumann.config import RunSpec
from neumann.launch.local import Outcome
from neumann.store.folder import OVER, RunFolder
from neumann.store.scores import headline
from neumann.studies.collect import StudyRun, scores
from neumann.studies.plan import EVALUATION, TUNING, Study
from neumann.studies.results import TuningTrial, chosen
from neumann.studies.statistics import summarize

REFRESH_S = 0.5


class StudyView:
    """A `neumann.launch.local.View`: a live table on a terminal, a line per finished run elsewhere."""

    def __init__(
        self, console: Console, study: Study, tuning: Sequence[StudyRun], first: str = "importing PyTorch"
    ) -> None:
        self._console = console
        self._study = study
        self._runs: dict[str, list[StudyRun]] = {TUNING: list(tuning), EVALUATION: []}
        self._trials: Mapping[str, Sequence[TuningTrial]] = {}
        self._over: dict[str, Outcome] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._shown = 0.0
        self._first = first  # what happens until a run begins
        self._begun = time.monotonic()

    def __enter__(self) -> StudyView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def evaluating(self, trials: Mapping[str, Sequence[TuningTrial]], evaluation: Sequence[StudyRun]) -> None:
        """Go on to the second phase: settings are chosen."""
        self._trials = trials
        self._runs[EVALUATION] = list(evaluation)

    def started(self, spec: RunSpec) -> None:
        """Nothing: the table shows what runs."""

    def done(self, outcome: Outcome) -> None:
        """Take note of a run that is over."""
        self._over[outcome.spec.signature] = outcome
        if self._live is None and not outcome.reused:
            role = EVALUATION if self._runs[EVALUATION] else TUNING
            signatures = {run.spec.signature for run in self._runs[role]}
            counted = f"{len(signatures & self._over.keys())}/{len(signatures)}"
            said = outcome.message or ""
            if outcome.result is not None:
                said = f"validation error {100 * headline(outcome.result['validation'])['error']:.2f} %"
            rate = outcome.spec.config.optimizer.get("lr")
            name = f"{outcome.spec.name} lr={rate}"
            self._console.print(
                escape(f"{role} {counted}  {name}  {outcome.status}  {said}  {outcome.seconds:.1f} s"),
                highlight=False,
                soft_wrap=True,
            )

    def tick(self, running: Sequence[RunSpec], waiting: int) -> None:
        """Refresh the table."""
        now = time.monotonic()
        if self._live is None or now - self._shown < REFRESH_S:
            return
        self._shown = now
        self._live.update(Group(self._table(), self._running(running, waiting)), refresh=True)

    def _table(self) -> Table:
        table = Table(title=f"{self._study.name}, budget {self._study.budget}", title_justify="left")
        for name in ("row", "tuning", "chosen", "evaluation", "test error"):
            table.add_column(name, justify="left" if name in ("row", "chosen") else "right", no_wrap=True)
        for key, row in self._study.config.rows.items():
            setting = chosen(self._trials.get(key, ()))
            table.add_row(
                escape(row.label),
                self._count(TUNING, key),
                ", ".join(f"{k.removeprefix('optimizer.')}={v}" for k, v in setting.items()) if setting else "",
                self._count(EVALUATION, key),
                self._error(key),
            )
        return table

    def _own(self, role: str, key: str) -> list[StudyRun]:
        return [run for run in self._runs[role] if run.planned.row == key]

    def _count(self, role: str, key: str) -> Text:
        own = self._own(role, key)
        if not own:
            return Text("")
        over = [self._over[run.spec.signature] for run in own if run.spec.signature in self._over]
        good = sum(outcome.status in OVER for outcome in over)
        bad = len(over) - good
        text = Text(f"{good}/{len(own)}", style="green" if good == len(own) else "")
        return text.append(f" {bad} failed", style="red") if bad else text

    def _error(self, key: str) -> str:
        errors = []
        for run in self._own(EVALUATION, key):
            outcome = self._over.get(run.spec.signature)
            if outcome is not None and outcome.result is not None:
                now = replace(run, result=outcome.result)
                found = scores(now, "test", self._study.config.rows[key].point)
                errors += [] if found is None else [found["error"]]
        return f"{100 * summarize(errors).mean:.2f} % (n = {len(errors)})" if errors else ""

    def _running(self, running: Sequence[RunSpec], waiting: int) -> Text:
        text = Text()
        for spec in running:
            measured = RunFolder(spec.folder).read_measurements()
            step = measured[-1]["step"] if measured else 0
            total = spec.config.derived.total_steps
            text.append(f"{spec.name} lr={spec.config.optimizer.get('lr')}  step {step}/{total}\n")
        seconds = time.monotonic() - self._begun
        starting = "" if running or self._over else f"{self._first} first; "
        return text.append(f"{starting}{waiting} waiting, {seconds:.0f} s so far")
