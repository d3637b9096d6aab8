"""How does Optuna choose the runs of a sweep? Asked for a generation, trained by our launcher, told in order.

Nothing of Optuna's is stored. A sampler is seeded and hears the same results in the same order, so the same command
asks for the same trials again, however the last one ended: what is over is found by its signature, and the search goes
on. A trial whose run failed is told as failed, and TPE leaves it out; one that diverged on any seed is told as the
worst possible error, so TPE keeps away from there. Nothing is pruned or stopped early.
"""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.text import Text

from neumann.config import MakeSpecs, RunSpec, making_specs
from neumann.errors import Interrupted, UserError
from neumann.launch import make_launcher
from neumann.launch.local import Outcome, View
from neumann.launch.progress import SweepProgress, status_table
from neumann.search.space import Choices, Interval, Search
from neumann.store.folder import OVER
from neumann.store.scores import headline, objective

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class Trial:
    """One setting, as on the command line, and what became of its runs, one for each seed."""

    number: int
    values: dict[str, str]
    outcomes: list[Outcome]

    @property
    def status(self) -> str:
        """Return finished, diverged where any seed did, else failed."""
        statuses = {outcome.status for outcome in self.outcomes}
        return "failed" if statuses - set(OVER) else "diverged" if "diverged" in statuses else "finished"

    def told(self) -> float:
        """Return what Optuna hears of a trial that did not fail: the mean objective of its seeds, or the worst."""
        if self.status == "diverged":
            return max(objective(outcome.result or {}) for outcome in self.outcomes)
        return fmean(objective(outcome.result or {}) for outcome in self.outcomes)

    def rank(self) -> tuple[float, float, int]:
        """Return what orders finished trials: validation error, then validation loss, then who came first."""
        losses = [headline((outcome.result or {})["validation"])["loss"] for outcome in self.outcomes]
        return self.told(), fmean(math.inf if loss is None else loss for loss in losses), self.number

    def label(self) -> str:
        """Return its values for a table, where four digits are enough."""
        return " ".join([f"trial {self.number}", *(f"{key}={_short(text)}" for key, text in self.values.items())])


class Trainer(Protocol):
    """What a search needs of `LocalLauncher`."""

    parallel: int

    def run(self, specs: Sequence[RunSpec], view: View) -> list[Outcome]:
        """Train what is not over yet and return the outcomes in the order of ``specs``."""


def run_search(wanted: Search, config_dirs: Sequence[str], console: Console) -> bool:
    """Run the search and print its trials and the best one; return whether every run came to its end.

    Raises UserError where Optuna is missing or any corner of the space does not compose, before anything trains.
    """
    _optuna()
    with making_specs(config_dirs) as make:
        corners = make(wanted.corners())
        total = wanted.n_trials * max(1, len(wanted.seeds))
        with (
            make_launcher(corners[0].config.launch, console) as launcher,
            SweepProgress(console, [], [], total, launcher.first) as view,
        ):
            console.print(Text(_heading(wanted, launcher)), soft_wrap=True)
            trials = search(wanted, make, launcher, view)
    outcomes = [outcome for trial in trials for outcome in trial.outcomes]
    labels = [_run_label(wanted, trial, outcome.spec) for trial in trials for outcome in trial.outcomes]
    status_table(console, outcomes, labels, test=False)
    for line in conclusion(wanted, trials, config_dirs):
        console.print(Text(line), soft_wrap=True)
    return all(outcome.status in OVER for outcome in outcomes)


def search(wanted: Search, make: MakeSpecs, launcher: Trainer, view: SweepProgress) -> list[Trial]:
    """Ask, train and tell until all trials are over; return them. Raises Interrupted as the launcher does."""
    optuna = _optuna()
    distributions = {key: _distribution(dimension) for key, dimension in wanted.space.items()}
    study = optuna.create_study(direction="minimize", sampler=_sampler(wanted, distributions))
    size = _generation(wanted, launcher)
    trials: list[Trial] = []
    while len(trials) < wanted.n_trials:
        asked = [study.ask(distributions) for _ in range(min(size, wanted.n_trials - len(trials)))]
        fresh = [_trial(wanted, trial.number, trial.params) for trial in asked]
        specs = [(trial, spec) for trial in fresh for spec in make(wanted.jobs(trial.values))]
        view.add([spec for _, spec in specs], [_run_label(wanted, trial, spec) for trial, spec in specs])
        try:
            outcomes = launcher.run([spec for _, spec in specs], view)
        except Interrupted:
            raise Interrupted(f"stopped with {len(trials)} of {wanted.n_trials} trials over") from None
        for (trial, _), outcome in zip(specs, outcomes, strict=True):
            trial.outcomes.append(outcome)
        for open_trial, trial in zip(asked, fresh, strict=True):
            if trial.status == "failed":
                study.tell(open_trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(open_trial, trial.told())
        trials += fresh
    return trials


def conclusion(wanted: Search, trials: Sequence[Trial], config_dirs: Sequence[str]) -> list[str]:
    """Return what is to be said of a search that is over: the best trial, its command, and what to make of it."""
    different = len({tuple(trial.values.items()) for trial in trials})
    count = f"{len(trials)} trials" + (f" ({different} different settings)" if different < len(trials) else "")
    other = [f"{n} {s}" for s in ("diverged", "failed") if (n := sum(trial.status == s for trial in trials))]
    finished = [trial for trial in trials if trial.status == "finished"]
    if not finished:
        return [f"none of {count} finished: {', '.join(other)}"]
    best = min(finished, key=Trial.rank)
    seeds = f", mean of {len(wanted.seeds)} seeds" if len(wanted.seeds) > 1 else ""
    words = [word for folder in config_dirs for word in ("--config-dir", folder)] + wanted.overrides(best.values)
    words += [f"seed={','.join(wanted.seeds)}"] if wanted.seeds else []
    command = ["neumann", "train", *(["-m"] if len(wanted.seeds) > 1 else []), *words]
    lines = [
        f"best of {', '.join([count, *other])}: trial {best.number}, validation error {100 * best.told():.2f} %{seeds}",
        f"  {shlex.join(command)}",
    ]
    for key, dimension in wanted.space.items():
        side = dimension.edge(best.values[key])
        if side:
            lines.append(
                f"warning: {key}={best.values[key]} is at the {side} edge of '{dimension.line}': better values may lie "
                "beyond it, so search further there"
            )
    lines.append(
        f"The best of {len(trials)} is an optimistic number, as it was chosen by this very validation error: train it "
        "at seeds that had no part in the choice before you compare it with anything"
    )
    return lines


def _trial(wanted: Search, number: int, params: dict[str, Any]) -> Trial:
    values = {}
    for key, dimension in wanted.space.items():
        if isinstance(dimension, Interval):
            values[key] = dimension.text(params[key])
        else:
            values[key] = dimension.values[params[key]] if dimension.ordered else str(params[key])
    return Trial(number, values, [])


def _short(text: str) -> str:
    try:
        return min(text, f"{float(text):.4g}", key=len)
    except ValueError:
        return text


def _run_label(wanted: Search, trial: Trial, spec: RunSpec) -> str:
    return f"{trial.label()} seed={spec.config.seed}" if wanted.seeds else trial.label()


def _heading(wanted: Search, launcher: Trainer) -> str:
    size = _generation(wanted, launcher)
    each = f", each at {len(wanted.seeds)} seeds" if len(wanted.seeds) > 1 else ""
    text = f"{wanted.n_trials} trials by {wanted.sampler} (sampler seed {wanted.settings['seed']}){each}"
    if wanted.sampler != "tpe":
        return text
    return f"{text}, chosen {size} at a time: hydra.sweeper.n_jobs={size} gives the same ones on any machine"


def _generation(wanted: Search, launcher: Trainer) -> int:
    """Return how many trials are asked for at once. Only TPE learns, so only its trials depend on it."""
    if wanted.n_jobs is not None or wanted.sampler != "tpe":
        return wanted.n_jobs or wanted.n_trials
    return math.ceil(launcher.parallel / max(1, len(wanted.seeds)))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("hydra/sweeper=optuna needs Optuna: pip install 'neumann[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what matters is said here
    return optuna


def _distribution(dimension: Interval | Choices) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choices):
        if dimension.ordered:
            return IntDistribution(0, len(dimension.values) - 1)
        return CategoricalDistribution(dimension.values)
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _sampler(wanted: Search, space: dict[str, BaseDistribution]) -> BaseSampler:
    from optuna import samplers
    from optuna.exceptions import ExperimentalWarning

    settings: dict[str, Any] = wanted.settings
    if wanted.sampler == "tpe":
        return samplers.TPESampler(**settings)
    if wanted.sampler == "random":
        return samplers.RandomSampler(**settings)

    class Known(samplers.QMCSampler):
        """Optuna infers the space from the first trial, which it draws at random; ours is known before."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
            return dict(space)

    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        return Known(**settings)
