"""Search by Optuna: Optuna chooses a generation of trials, our launcher trains them, and Optuna is told the results.

Nothing of Optuna's is stored. Its sampler is seeded and is told the same results in the same order, so the same command
asks for the same trials again, however the last one ended: runs that are over are found by their signature, and the
search goes on. A trial with a failed run is told as failed, and TPE leaves it out; a trial that diverged on any seed is
told as the worst possible error, so TPE keeps away from there. No trial is pruned or stopped early.
"""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from neumann.config import MakeSpecs, RunSpec, making_specs
from neumann.errors import Interrupted, UserError, printable
from neumann.launch import make_launcher
from neumann.launch.progress import SweepView, status_table
from neumann.launch.protocol import Checks, Launcher, RunOutcome
from neumann.search.grid import varying
from neumann.search.space import Choices, Interval, Search
from neumann.store.folder import OVER
from neumann.store.lookup import finished_result
from neumann.store.scores import headline, objective

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
class Trial:
    """One setting of a search.

    number     from 0, in the order in which Optuna was asked
    values     {key: value}, as on the command line
    outcomes   of its runs, one for each seed
    """

    number: int
    values: dict[str, str]
    outcomes: list[RunOutcome]

    @property
    def status(self) -> str:
        """Return failed where any seed's run has no result, else diverged where any diverged, else finished."""
        statuses = {outcome.status for outcome in self.outcomes}
        return "failed" if statuses - set(OVER) else "diverged" if "diverged" in statuses else "finished"

    def objective(self) -> float:
        """Return the number that Optuna minimises, an error as a fraction: the mean over the seeds.

        Where a seed diverged it is the worst of theirs. A trial that failed has none.
        """
        values = [objective(outcome.result or {}) for outcome in self.outcomes]
        return max(values) if self.status == "diverged" else fmean(values)

    def rank(self) -> tuple[float, float, int]:
        """Return the sort key of finished trials: the objective, then the mean validation loss, then the number."""
        losses = [headline((outcome.result or {})["validation"])["loss"] for outcome in self.outcomes]
        return self.objective(), fmean(math.inf if loss is None else loss for loss in losses), self.number

    def label(self) -> str:
        """Return its number and values for a table, numbers with four digits."""
        return " ".join([f"trial {self.number}", *(f"{key}={_short(text)}" for key, text in self.values.items())])


def run_search(wanted: Search, config_dirs: Sequence[str], console: Console) -> bool:
    """Run the search, print its trials and the best one, and return whether every run is over.

    Raises UserError before any run trains, where Optuna is missing or a corner of the space does not compose.
    """
    _optuna()
    with making_specs(config_dirs) as make:
        corners = make(wanted.corners())
        total = wanted.n_trials * max(1, len(wanted.seeds))
        with (
            make_launcher(corners[0].config.launch, console) as launcher,
            SweepView(console, launcher.preparation, total=total) as view,
        ):
            console.print(Text(printable(_heading(wanted, launcher))), soft_wrap=True)
            trials = search(wanted, make, launcher, view, corners)
    outcomes = [outcome for trial in trials for outcome in trial.outcomes]
    labels = [_run_label(wanted, trial, outcome.spec) for trial in trials for outcome in trial.outcomes]
    status_table(console, outcomes, labels, test=False)
    for line in conclusion(wanted, trials, config_dirs):
        console.print(Text(printable(line)), soft_wrap=True)
    return all(outcome.status in OVER for outcome in outcomes)


def search(
    wanted: Search, make: MakeSpecs, launcher: Launcher, view: SweepView, corners: Sequence[RunSpec] = ()
) -> list[Trial]:
    """Ask for trials, train them and tell their results until there are ``wanted.n_trials``; return them.

    wanted     the search
    make       makes specifications from lists of overrides
    launcher   trains their runs
    view       shows them
    corners    runs with every choice and both ends of every interval, which this machine builds before any run trains

    Raises Interrupted where the launcher does, and UserError where one of the corners cannot be built.
    """
    optuna = _optuna()
    distributions = {key: _distribution(dimension) for key, dimension in wanted.space.items()}
    study = optuna.create_study(direction="minimize", sampler=_sampler(wanted, distributions))
    size = _generation(wanted, launcher)
    trials: list[Trial] = []
    while len(trials) < wanted.n_trials:
        asked = [study.ask(distributions) for _ in range(min(size, wanted.n_trials - len(trials)))]
        fresh = [_trial(wanted, trial.number, trial.params) for trial in asked]
        specs = [(trial, spec) for trial in fresh for spec in make(wanted.runs(trial.values))]
        view.add([spec for _, spec in specs], [_run_label(wanted, trial, spec) for trial, spec in specs])
        if isinstance(launcher, Checks) and any(finished_result(spec) is None for _, spec in specs):
            launcher.check(corners, lambda spec: _values_of(wanted, corners, spec))
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
                study.tell(open_trial, trial.objective())
        trials += fresh
    return trials


def conclusion(wanted: Search, trials: Sequence[Trial], config_dirs: Sequence[str]) -> list[str]:
    """Return the lines that end a search: the best trial, its command, warnings, and why its error is optimistic.

    wanted        the search
    trials        all of them, over
    config_dirs   further configuration folders, which the command has to name
    """
    different = len({tuple(trial.values.items()) for trial in trials})
    count = f"{len(trials)} trials" + (f" ({different} different settings)" if different < len(trials) else "")
    other = [f"{n} {s}" for s in ("diverged", "failed") if (n := sum(trial.status == s for trial in trials))]
    finished = [trial for trial in trials if trial.status == "finished"]
    if not finished:
        return [f"none of {count} finished: {', '.join(other)}"]
    best = min(finished, key=Trial.rank)
    error = f"{100 * best.objective():.2f} %"
    seeds = f", mean of {len(wanted.seeds)} seeds" if len(wanted.seeds) > 1 else ""
    words = [word for folder in config_dirs for word in ("--config-dir", folder)] + wanted.overrides(best.values)
    words += [f"seed={','.join(wanted.seeds)}"] if wanted.seeds else []
    command = ["neumann", "train", *(["-m"] if len(wanted.seeds) > 1 else []), *words]
    lines = [
        f"best of {', '.join([count, *other])}: trial {best.number}, validation error {error}{seeds}",
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


def _values_of(wanted: Search, corners: Sequence[RunSpec], spec: RunSpec) -> str:
    """Return the overrides that tell one corner of the space from the others."""
    return " ".join(varying(wanted.corners())[corners.index(spec)])


def _short(text: str) -> str:
    try:
        return min(text, f"{float(text):.4g}", key=len)
    except ValueError:
        return text


def _run_label(wanted: Search, trial: Trial, spec: RunSpec) -> str:
    return f"{trial.label()} seed={spec.config.seed}" if wanted.seeds else trial.label()


def _heading(wanted: Search, launcher: Launcher) -> str:
    size = _generation(wanted, launcher)
    each = f", each at {len(wanted.seeds)} seeds" if len(wanted.seeds) > 1 else ""
    text = f"{wanted.n_trials} trials by {wanted.sampler} (sampler seed {wanted.settings['seed']}){each}"
    if wanted.sampler != "tpe":
        return text
    return f"{text}, chosen {size} at a time: hydra.sweeper.n_jobs={size} gives the same ones on any machine"


def _generation(wanted: Search, launcher: Launcher) -> int:
    """Return how many trials are asked for at once. Only TPE learns from trials, so only its choices depend on it."""
    if wanted.n_jobs is not None or wanted.sampler != "tpe":
        return wanted.n_jobs or wanted.n_trials
    return math.ceil(launcher.parallel / max(1, len(wanted.seeds)))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("hydra/sweeper=optuna needs Optuna: pip install 'neumann[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # this module reports what matters
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

    class KnownSpaceSampler(samplers.QMCSampler):
        """Optuna's sampler with the space given; it would infer the space from a first trial drawn at random."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
            return dict(space)

    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        return KnownSpaceSampler(**settings)
