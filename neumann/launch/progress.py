"""What does a person see while many runs train, and at their end? What is running, then a line for each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from neumann.config import RunSpec
from neumann.errors import printable
from neumann.launch.local import Outcome
from neumann.store.folder import OVER, RunFolder
from neumann.store.lookup import find
from neumann.store.scores import headline

REFRESH_S = 0.5
STYLES = {"finished": "green", "diverged": "yellow", "failed": "red", "interrupted": "yellow"}


class SweepProgress:
    """A `neumann.launch.local.View` of a sweep: a live table on a terminal, a line per finished run elsewhere."""

    def __init__(
        self,
        console: Console,
        specs: Sequence[RunSpec],
        labels: Sequence[str],
        total: int | None = None,
        first: str = "importing PyTorch",
    ) -> None:
        self._console = console
        self._labels: dict[str, str] = {}
        self._known_total = total  # where the runs come by and by
        self.add(specs, labels)
        self._announced = False
        self._first = first  # what happens until a run begins
        self._over: list[Outcome] = []
        self._folders: dict[str, RunFolder] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._begun = time.monotonic()
        self._shown = 0.0

    def add(self, specs: Sequence[RunSpec], labels: Sequence[str]) -> None:
        """Take up further runs, each with what it is called here."""
        for spec, label in zip(specs, labels, strict=True):
            self._labels.setdefault(spec.signature, label or spec.name)

    @property
    def _total(self) -> int:
        return self._known_total or len(self._labels)

    def __enter__(self) -> SweepProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, spec: RunSpec) -> None:
        """Remember where its measurements will be."""
        self._folders[spec.signature] = find(spec)

    def done(self, outcome: Outcome) -> None:
        """Count it; print it where there is no table, unless it was there before."""
        self._over.append(outcome)
        if self._live is None and not outcome.reused:
            label = self._labels[outcome.spec.signature]
            words = [f"{len(self._over)}/{self._total}", label, outcome.status]
            words += [f"validation error {_error(outcome, 'validation')}"] if outcome.result else []
            words += [outcome.message] if outcome.message else []
            self._print("  ".join([*words, f"{outcome.seconds:.1f} s"]))

    def tick(self, running: Sequence[RunSpec], waiting: int) -> None:
        """Refresh the table; where there is none, say once what the first seconds go into."""
        if self._live is None:
            if not self._announced:
                self._announced = True
                self._print(f"{len(running) + waiting} of {self._total} runs to train; {self._first} for them")
            return
        if time.monotonic() - self._shown < REFRESH_S:
            return
        self._shown = time.monotonic()
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("running", "step", "validation error"):
            table.add_column(name, justify="left" if name == "running" else "right", no_wrap=True)
        for spec in running:
            measured = self._folders[spec.signature].read_measurements()
            error = f"{100 * headline(measured[-1]['validation'])['error']:.2f} %" if measured else ""
            step = measured[-1]["step"] if measured else 0
            table.add_row(Text(self._labels[spec.signature]), f"{step}/{spec.config.derived.total_steps}", error)
        counts = Counter(outcome.status for outcome in self._over)
        said = [f"{count} {status}" for status, count in counts.items()]
        said += [f"{waiting} waiting", f"{time.monotonic() - self._begun:.0f} s so far"]
        if not running and waiting:
            said.insert(0, f"{self._first}, once for all runs")
        self._live.update(Group(table, Text(", ".join(said))), refresh=True)

    def _print(self, text: str) -> None:
        self._console.print(Text(printable(text)), soft_wrap=True)


def status_table(console: Console, outcomes: Sequence[Outcome], labels: Sequence[str], *, test: bool = True) -> None:
    """Print a line per run, ``labels`` telling them apart, and what became of those that have no result.

    Without ``test`` there is no test error in it: runs that are there to choose a setting are not to be chosen by it.
    """
    home = {outcome.folder.parent for outcome in outcomes}
    where = f"folder in {home.pop()}" if len(home) == 1 else "folder"
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("run", "status", "validation", *(("test",) if test else ()), "seconds", where):
        right = name in ("validation", "test", "seconds")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name in ("status", "run"))
    for outcome, label in zip(outcomes, labels, strict=True):
        said = outcome.status
        if outcome.reused:
            said = "already there" if said == "finished" else f"{said}, already there"
        table.add_row(
            Text(label or outcome.spec.name),
            Text(said, style=STYLES[outcome.status]),
            _error(outcome, "validation"),
            *((_error(outcome, "test"),) if test else ()),
            "" if outcome.reused else f"{outcome.seconds:.1f}",
            Text(str(outcome.folder) if where == "folder" else outcome.folder.name),
        )
    wide = console if console.is_terminal else Console(file=console.file, width=500)  # a file has no width to fold at
    wide.print(table)
    for outcome, label in zip(outcomes, labels, strict=True):
        if outcome.status not in OVER:
            text = Text(f"{outcome.status}: ", style=STYLES[outcome.status])
            said = f"{label or outcome.spec.name}: {outcome.message or 'no reason is known'}"
            text.append(printable(said), style="default")
            trace = RunFolder(outcome.folder).error
            if outcome.status == "failed" and trace.exists():
                text.append(f" (traceback in {trace})", style="default")
            console.print(text, soft_wrap=True)
    bad = sum(outcome.status not in OVER for outcome in outcomes)
    if bad:
        console.print(
            f"{bad} of {len(outcomes)} runs did not finish: the same command tries them again", highlight=False
        )


def _error(outcome: Outcome, split: str) -> str:
    scores = (outcome.result or {}).get(split)
    return f"{100 * headline(scores)['error']:.2f} %" if scores else ""
