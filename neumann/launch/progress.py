"""Live view of a launch, and the table of its runs at the end."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from neumann.config import RunSpec
from neumann.errors import printable
from neumann.fitting import fitted, table_width
from neumann.launch.protocol import RunOutcome
from neumann.store.code_digests import CodeCheck
from neumann.store.folder import OVER, STYLES, RunFolder
from neumann.store.lookup import find
from neumann.store.scores import headline
from neumann.store.steps import TERMS

REFRESH_S = 0.5
_AGAIN = {  # by whether a run has failed: its cause is there still
    True: "once the cause is mended, the same command tries them again",
    False: "the same command goes on with them",
}


class LiveView(ABC):
    """A `neumann.launch.protocol.LaunchView` for a console, as a context manager.

    On a terminal it redraws a table of the runs that train, with what `overview` returns above it; elsewhere it prints
    a line for each run that this launch has trained. A subclass says what a run is called and how many there are.

    console       where it is shown
    preparation   what the launcher does before the first run can begin (`Launcher.preparation`)
    """

    def __init__(self, console: Console, preparation: str) -> None:
        self._console, self._preparation = console, preparation
        self._over: dict[str, RunOutcome] = {}  # by signature
        self._folders: dict[str, RunFolder] = {}
        self._training: dict[str, int] = {}  # the step of each run that trains, by signature
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._announced = False
        self._begun = time.monotonic()
        self._shown = 0.0

    @abstractmethod
    def label(self, spec: RunSpec) -> str:
        """Return what a run is called here."""

    @abstractmethod
    def total(self) -> int:
        """Return how many runs the launch has."""

    @abstractmethod
    def count(self) -> str:
        """Return how many runs are over, out of how many."""

    def overview(self) -> RenderableType | None:
        """Return what stands above the table of the runs that train; None for nothing."""
        return None

    def left(self) -> str | None:
        """Return how long the rest takes, in words; None where that is not known."""
        return None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, spec: RunSpec) -> None:
        """Remember where the run's measurements will be."""
        self._folders[spec.signature] = find(spec)

    def done(self, outcome: RunOutcome) -> None:
        """Count the run; where there is no terminal, print its line if this launch has trained it."""
        self._over[outcome.spec.signature] = outcome
        if self._live is None and not outcome.reused:
            words = [self.count(), self.label(outcome.spec), outcome.status]
            words += [f"validation error {_error(outcome, 'validation')}"] if outcome.result else []
            words += [outcome.message] if outcome.message else []
            left = self.left()
            words += [f"{outcome.seconds:.1f} s", *([f"{left} left"] if left else [])]
            self._print("  ".join(words))

    def tick(self, running: Sequence[RunSpec], waiting: int) -> None:
        """Redraw the table at most every `REFRESH_S`; where there is no terminal, say once how many runs there are."""
        self._training = {spec.signature: self._training.get(spec.signature, 0) for spec in running}
        if self._live is None:
            if not self._announced:
                self._announced = True
                self._print(f"{len(running) + waiting} of {self.total()} runs to train; {self._preparation} for them")
            return
        if time.monotonic() - self._shown < REFRESH_S:
            return
        self._shown = time.monotonic()
        trains = self._running(running)  # first: it reads how far they are
        parts = [self.overview(), trains, self._footer(bool(running), waiting)]
        self._live.update(Group(*(part for part in parts if part is not None)), refresh=True)

    def _running(self, running: Sequence[RunSpec]) -> Text:
        rows = []
        for spec in running:
            measured = self._folders[spec.signature].last_measurement()
            error = f"{100 * headline(measured['validation'])['error']:.2f} %" if measured else ""
            step = self._training[spec.signature] = measured["step"] if measured else 0
            steps = f"{step}/{spec.config.derived.total_steps}"
            rows.append([Text(printable(self.label(spec))), Text(steps), Text(error)])
        names = ("running", "step", "validation error")
        return fitted(names, rows, self._console.width, right=names[1:])

    def _footer(self, running: bool, waiting: int) -> Text:
        counts = Counter(outcome.status for outcome in self._over.values())
        words = [f"{count} {status}" for status, count in counts.items()]
        words += [f"{waiting} waiting", f"{time.monotonic() - self._begun:.0f} s so far"]
        if (left := self.left()) is not None:
            words.append(f"{left} left")
        if waiting and not running and not self._folders:  # no run has begun yet
            words.insert(0, f"{self._preparation}, once for all runs")
        return Text(", ".join(words))

    def _print(self, text: str) -> None:
        self._console.print(Text(printable(text)), soft_wrap=True)


class SweepView(LiveView):
    """The live view of a sweep or a search.

    console       where it is shown
    preparation   what the launcher does before the first run can begin
    specs         the runs, as far as they are known
    labels        what each is called; where empty, its name
    total         how many runs there will be, where they are added as a search chooses them; None: those that are known
    """

    def __init__(
        self,
        console: Console,
        preparation: str,
        specs: Sequence[RunSpec] = (),
        labels: Sequence[str] = (),
        total: int | None = None,
    ) -> None:
        super().__init__(console, preparation)
        self._labels: dict[str, str] = {}  # by signature
        self._known_total = total
        self.add(specs, labels)

    def add(self, specs: Sequence[RunSpec], labels: Sequence[str]) -> None:
        """Take up further runs, each with its label."""
        for spec, label in zip(specs, labels, strict=True):
            self._labels.setdefault(spec.signature, label or spec.name)

    def label(self, spec: RunSpec) -> str:
        """Return the label that the run was added with."""
        return self._labels[spec.signature]

    def total(self) -> int:
        """Return how many runs there will be."""
        return self._known_total or len(self._labels)

    def count(self) -> str:
        """Return how many runs are over, out of how many."""
        return f"{len(self._over)}/{self.total()}"


def print_note(note: str | None) -> None:
    """Print one line that a user should know of to standard error, where there is one."""
    if note is not None:
        line = Text.assemble(("note: ", "bold yellow"), printable(note))
        Console(stderr=True).print(line, soft_wrap=True, highlight=False)


def print_notes(found: Sequence[tuple[RunSpec, Path, Mapping[str, Any]]]) -> None:
    """Say where results that are there are not what today's command would leave: of other code, or without a file."""
    check = CodeCheck()
    for spec, folder, result in found:
        check.add(spec, folder, result)
    print_note(check.note("study=NEW"))
    lacking = [(folder, name) for spec, folder, result in found if (name := _lacks(spec, folder, result)) is not None]
    if lacking:
        folder, name = lacking[0]
        whose = f"{folder} has" if len(lacking) == 1 else f"{len(lacking)} of these runs have"
        print_note(
            f"{whose} no {name}: what is kept was decided when the run was trained; study=NEW trains it again, and so "
            f"does the same command once {'the folder is' if len(lacking) == 1 else 'their folders are'} removed"
        )


def _print_rows(console: Console, names: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
    """Print a line for each run; a terminal that is too narrow gets its folder, the last cell, on a line below."""
    right = ("validation", "test", "seconds")
    wide = table_width(names, rows)
    if not console.is_terminal or wide <= console.width:
        console.print(fitted(names, rows, wide, right=right), soft_wrap=True)
        return
    console.print(Text(names[-1]), style="bold", soft_wrap=True)
    for row in rows:
        found = [
            Text.assemble(f"{name} ", cell) for name, cell in zip(names[2:-1], row[2:-1], strict=True) if cell.plain
        ]
        same = row[-1].plain.startswith(f"{row[0].plain}-")  # a run without a label has its folder's name
        console.print(Text("  ").join([*([] if same else [row[0]]), row[1], *found]), soft_wrap=True)
        console.print(Text("  ").append_text(row[-1]), soft_wrap=True)


def _lacks(spec: RunSpec, folder: Path, result: Mapping[str, Any]) -> str | None:
    """Return the file that ``spec`` keeps of a finished run and that ``folder`` does not have, None for none."""
    run, keep = RunFolder(folder), spec.config.checkpoint.keep
    if result["status"] == "finished" and spec.config.terms.every is not None and TERMS.key not in result:
        return TERMS.file
    if result["status"] != "finished" or keep == "none":
        return None
    wanted = [run.eval_weights, *([run.last] if keep == "last" else [])]
    return next((path.name for path in wanted if not path.exists()), None)


def status_table(console: Console, outcomes: Sequence[RunOutcome], labels: Sequence[str], *, test: bool = True) -> None:
    """Print a line for each run, under its label, and below them why some have no result.

    Notes follow, see `print_notes`.

    console    where it is printed; a file gets lines of any length
    outcomes   the runs
    labels     what each is called; where empty, its name
    test       False leaves the test error out: the runs of a search must not be chosen by it
    """
    home = {outcome.folder.parent for outcome in outcomes}
    where = f"folder in {printable(home.pop())}" if len(home) == 1 else "folder"
    names = ("run", "status", "validation", *(("test",) if test else ()), "seconds", where)
    rows = []
    for outcome, label in zip(outcomes, labels, strict=True):
        status = outcome.status
        if outcome.reused:
            status = "already there" if status == "finished" else f"{status}, already there"
        rows.append(
            [
                Text(printable(label or outcome.spec.name)),
                Text(status, style=STYLES[outcome.status]),
                Text(_error(outcome, "validation")),
                *([Text(_error(outcome, "test"))] if test else []),
                Text("" if outcome.reused else f"{outcome.seconds:.1f}"),
                Text(printable(outcome.folder if where == "folder" else outcome.folder.name)),
            ]
        )
    _print_rows(console, names, rows)
    print_notes([(o.spec, o.folder, o.result) for o in outcomes if o.result is not None])
    unfinished = [(o, label) for o, label in zip(outcomes, labels, strict=True) if o.status not in OVER]
    for outcome, label in unfinished:
        text = Text(f"{outcome.status}: ", style=STYLES[outcome.status])
        reason = f"{label or outcome.spec.name}: {outcome.message or 'no reason is known'}"
        text.append(printable(reason), style="default")
        trace = RunFolder(outcome.folder).error
        if outcome.status == "failed" and trace.exists():
            text.append(printable(f" (traceback in {trace})"), style="default")
        console.print(text, soft_wrap=True)
    if unfinished:
        failed = any(outcome.status == "failed" for outcome, _ in unfinished)
        console.print(
            f"{len(unfinished)} of {len(outcomes)} runs did not finish: {_AGAIN[failed]}",
            highlight=False,
            soft_wrap=True,
        )


def _error(outcome: RunOutcome, split: str) -> str:
    scores = (outcome.result or {}).get(split)
    return f"{100 * headline(scores)['error']:.2f} %" if scores else ""
