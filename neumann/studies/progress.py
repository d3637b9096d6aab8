"""The live view of a study: rows by seeds with what each is and the outcome so far, above the runs that train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from neumann.config import RunSpec
from neumann.errors import printable
from neumann.estimates.rate import duration
from neumann.fitting import fitted
from neumann.launch.progress import LiveView
from neumann.launch.protocol import RunOutcome
from neumann.store.folder import OVER
from neumann.studies.numbers import choices_text
from neumann.studies.plan import EVALUATION, TUNING, Study
from neumann.studies.results import TuningTrial, choices, chosen
from neumann.studies.so_far import LEGEND, SoFar, TimeLeft, marks
from neumann.studies.study_run import StudyRun


class StudyView(LiveView):
    """The live view of a study.

    console       where it is shown
    preparation   what the launcher does before the first run can begin
    study         whose rows are shown
    tuning        the runs of the first phase
    """

    def __init__(self, console: Console, preparation: str, study: Study, tuning: Sequence[StudyRun]) -> None:
        super().__init__(console, preparation)
        self._study = study
        self._runs: dict[str, list[StudyRun]] = {TUNING: list(tuning), EVALUATION: []}
        self._trials: Mapping[str, Sequence[TuningTrial]] = {}
        self._chosen_by: dict[str, RunOutcome] = {}  # by signature, of the first phase once it is over
        self._so_far, self._time_left = SoFar(study), TimeLeft()

    def evaluating(self, trials: Mapping[str, Sequence[TuningTrial]], evaluation: Sequence[StudyRun]) -> None:
        """Go on to the second phase: ``trials`` holds each row's trials with the chosen one marked.

        In a grid its runs are some of the first phase's, which go on to their test.
        """
        self._trials = trials
        self._runs[EVALUATION] = list(evaluation)
        self._chosen_by = dict(self._over)
        for run in evaluation:
            self._over.pop(run.spec.signature, None)

    def label(self, spec: RunSpec) -> str:
        """Return a run's name and the setting that its row tries."""
        runs = (run for phase in self._runs.values() for run in phase)
        setting = next((run.planned.setting for run in runs if run.spec.signature == spec.signature), {})
        rate = spec.config.optimizer.get("lr")
        if not setting and rate is None:  # schedule=spectral measures it
            return spec.name
        return f"{spec.name} {_in_words(setting or {'lr': rate})}"

    def total(self) -> int:
        """Return how many runs the phase has; rows may share some."""
        return len(self._signatures())

    def count(self) -> str:
        """Return the phase, and how many of its runs are over, out of how many."""
        return f"{self._phase} {len(self._signatures() & self._over.keys())}/{self.total()}"

    @property
    def _phase(self) -> str:
        return EVALUATION if self._runs[EVALUATION] else TUNING

    def _signatures(self) -> set[str]:
        return {run.spec.signature for run in self._runs[self._phase]}

    def done(self, outcome: RunOutcome) -> None:
        """Count the run, and how long it took."""
        self._time_left.add(outcome)
        super().done(outcome)

    def tick(self, running: Sequence[RunSpec], waiting: int) -> None:
        """Redraw as any live view."""
        self._time_left.train(len(running))
        super().tick(running, waiting)

    def left(self) -> str | None:
        """Return how long the runs that are known to be left take; None before the first, and for a grid's tests."""
        if self._study.is_grid and self._phase == EVALUATION:
            return None
        own = {run.spec.signature: run for run in self._runs[self._phase]}
        known = [(run.spec, 1.0) for signature, run in own.items() if signature not in self._over]
        if self._phase == TUNING and not self._study.is_grid:  # then each row is trained at its setting, on other seeds
            for row in self._study.config.rows:
                specs = [run.spec for run in self._own(TUNING, row)]
                known += [(spec, len(self._study.evaluation_seeds) / len(specs)) for spec in specs]
        seconds = self._time_left.seconds(known, self._training)
        return f"about {duration(seconds)}" if seconds and known else None

    def overview(self) -> Text:
        """Return a line per row: its seeds, how far both phases are, what was chosen, and the outcome so far."""
        rows = []
        outcome = self._so_far.column("test" if self._phase == EVALUATION else "validation")
        for key, row in self._study.config.rows.items():
            trials = self._trials.get(key, ())
            by_seed = choices(trials)
            said = choices_text(by_seed) if by_seed else _in_words(chosen(trials) or {})
            rows.append(
                [
                    Text(printable(row.label)),
                    marks(self._own(self._phase, key), self._over, self._training),
                    self._count(TUNING, key),
                    Text(printable(said)),
                    self._count(EVALUATION, key),
                    Text(self._outcome(key)),
                ]
            )
        names = ("row", "seeds", "tuning", "chosen", "evaluation", outcome)
        narrow = ("evaluation", "chosen", "seeds", outcome)
        if self._phase == EVALUATION:
            narrow = ("tuning", "seeds", "chosen", "evaluation")
        table = fitted(names, rows, self._console.width, right=("tuning", "evaluation", outcome), drop=narrow)
        title = Text(printable(f"{self._study.name}, budget {self._study.budget}"), style="italic")
        text = title.append("\n").append_text(table).append("\n")
        return text.append(f"{LEGEND}\n", style="dim") if "seeds" in table.plain.partition("\n")[0] else text

    def _own(self, role: str, key: str) -> list[StudyRun]:
        return [run for run in self._runs[role] if run.planned.row == key]

    def _count(self, role: str, key: str) -> Text:
        own = self._own(role, key)
        if not own:
            return Text("")
        known = self._chosen_by if role == TUNING and self._phase == EVALUATION else self._over
        over = [known[run.spec.signature] for run in own if run.spec.signature in known]
        good = sum(outcome.status in OVER for outcome in over)
        bad = len(over) - good
        text = Text(f"{good}/{len(own)}", style="green" if good == len(own) else "")
        return text.append(f" {bad} failed", style="red") if bad else text

    def _outcome(self, key: str) -> str:
        """Return the row's outcome so far: in the first phase on validation images, by the best run of each seed."""
        if self._phase == TUNING:
            return self._so_far.of(self._own(TUNING, key), self._over, "validation")
        # those at equal settings are beside the chosen one
        runs = [run for run in self._own(EVALUATION, key) if run.planned.role == EVALUATION]
        return self._so_far.of(runs, self._over, "test")


def _in_words(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix('optimizer.')}={value}" for key, value in setting.items())
