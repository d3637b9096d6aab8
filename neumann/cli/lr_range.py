"""`neumann lr-range`: between which learning rates an optimizer is stable and makes progress, over several seeds."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from neumann.cli.arguments import Parser, parsed
from neumann.errors import EXIT_FAILED, UserError, printable
from neumann.fitting import print_table
from neumann.folders import folder_of

if TYPE_CHECKING:
    from neumann.config import RunSpec
    from neumann.search.stable_range import Interval, StableRange, Trial

LOWEST, HIGHEST, PER_DECADE, REFINEMENTS = 1e-5, 10.0, 2, 3
STEPS, SEEDS, IMAGES, VALUES = 100, 3, 1000, 4
HELP = f"""\
Learning-rate range test of any optimizer: trains {STEPS} steps at each of many constant rates, always from the same
start and on the same batches, with {SEEDS} seeds, and prints the interval of rates at which training is stable and
makes progress for every seed.

  neumann lr-range optimizer=neumann data=fashion14 model=mlp
  neumann lr-range optimizer=sgd batch.size=1024 --seeds 5 --steps 300
  neumann lr-range optimizer=adamw --from 1e-6 --to 1
  neumann lr-range optimizer=nesterov --write space.yaml      the search space of a study, {VALUES} rates in it

Overrides are those of `neumann train`, but for optimizer.lr. A rate is stable if every training loss is finite and the
loss ends no higher than it began, and makes progress if the loss falls by at least a tenth of the largest fall. The
loss is the mean cross-entropy of {IMAGES:,} training images without augmentation, at the optimizer's evaluation point;
no validation or test image is looked at. The schedule is not applied, a burn-in is left out, and a momentum that rises
over epochs is at its peak after a few steps. Nothing is recorded, and weights start from model.checkpoint where there
is one.
"""


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parsed(_parser(), words)
    if given is None:
        return 0
    _check(given)
    place = _free(given.write)

    from neumann.cli.train import use_launch
    from neumann.config import LocalLaunchConfig, making_specs
    from neumann.config.spectral import follows_spectrum
    from neumann.processes.ranks import world_size
    from neumann.search.stable_range import StableRange, space_of

    with making_specs(given.config_dirs) as make:

        def spec_at(rate: float, seed: int) -> RunSpec:
            return make([[*_but_seed(given.overrides), f"optimizer.lr={rate!r}", f"seed={seed}"]])[0]

        given_run = make([given.overrides])[0].config
        if follows_spectrum(given_run.schedule):
            raise UserError("schedule=spectral measures the rate, so there is none to try: choose another schedule")
        first = given_run.seed
        seeds = range(first, first + given.seeds)
        spec = spec_at(given.lowest, first)
        if world_size(spec) > 1:
            raise UserError(
                f"trainer.devices={spec.config.trainer.devices}, trainer.num_nodes={spec.config.trainer.num_nodes}: a "
                "range test is made in one process: set both to 1, with a batch.size that one device holds or "
                "batch.max_per_device"
            )
        if not isinstance(spec.config.launch, LocalLaunchConfig):
            raise UserError(
                "launch=slurm: a range test is made in this process: leave it out, and start the command by srun where "
                "it is to be made elsewhere"
            )
        threads = use_launch(spec, alone=True)  # before torch is imported
        from neumann.training.rate_trials import SeedTrials, cut_short, prepare

        prepare(threads)
        _, notes = cut_short(spec)
        began = time.perf_counter()
        errors = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
            planned = (_places(given.lowest, given.highest, given.per_decade) + 2 * given.refine) * given.seeds
            task = progress.add_task("trials", total=planned)
            runners = {seed: SeedTrials(spec_at(given.lowest, seed), given.steps, given.images) for seed in seeds}

            def try_rate(rate: float) -> list[Trial]:
                from neumann.search.stable_range import Trial

                tried = []
                for seed, runner in runners.items():
                    progress.update(task, description=f"lr {rate:.4g}, seed {seed}")
                    start, end, steps, gradients = runner.train(cut_short(spec_at(rate, seed))[0])
                    tried.append(Trial(rate, seed, start, end, steps, gradients))
                    progress.advance(task)
                return tried

            found = StableRange(try_rate)
            interval = found.search(given.lowest, given.highest, given.per_decade, given.refine)
    seconds = time.perf_counter() - began
    why = ""
    try:
        space = space_of(interval, given.values)
    except ValueError as error:
        space, why = None, str(error)
    if place is not None and space is not None:
        _write(place, given, space, interval)
    if given.json:
        print(json.dumps(_record(given, found, interval, space, notes, seconds), indent=2, allow_nan=False))
    else:
        _print(given, spec, found, interval, notes, seconds)
        listed = f"optimizer.lr: [{', '.join(f'{rate:g}' for rate in space)}]" if space else f"none, since {why}"
        print(f"space of a study: {listed}")
    if place is not None:
        if space is None:
            raise UserError(f"--write {given.write}: nothing is written, since {why}")
        if not given.json:
            print(f"written: {printable(place)}")
    return 0 if interval.low is not None else EXIT_FAILED


def _parser() -> Parser:
    parser = Parser(prog="neumann lr-range", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as of `neumann train`")
    parser.take_help()
    parser.take_config_dirs()
    parser.add_argument(
        "--from",
        dest="lowest",
        type=float,
        default=LOWEST,
        metavar="RATE",
        help=f"lowest rate of the grid ({LOWEST:g})",
    )
    parser.add_argument(
        "--to",
        dest="highest",
        type=float,
        default=HIGHEST,
        metavar="RATE",
        help=f"highest rate of the grid ({HIGHEST:g})",
    )
    parser.add_argument(
        "--per-decade", type=int, default=PER_DECADE, metavar="N", help=f"rates in a factor of ten ({PER_DECADE})"
    )
    parser.add_argument(
        "--refine",
        type=int,
        default=REFINEMENTS,
        metavar="N",
        help=f"times that the gap at either end is halved, on the logarithmic scale ({REFINEMENTS})",
    )
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"optimizer steps at each rate ({STEPS})")
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, metavar="N", help=f"how many, from the run's own seed on ({SEEDS})"
    )
    parser.add_argument(
        "--images", type=int, default=IMAGES, metavar="N", help=f"training images for the loss ({IMAGES}, or all)"
    )
    parser.add_argument(
        "--values", type=int, default=VALUES, metavar="N", help=f"rates in the space of a study ({VALUES})"
    )
    parser.add_argument("--write", metavar="FILE", help="write that space as YAML; nothing is overwritten")
    parser.add_argument("--json", action="store_true", help="print everything, each trial too, as JSON")
    return parser


def _check(given: argparse.Namespace) -> None:
    """Raise UserError for an option or a setting that is none here."""
    from neumann.config.override_text import key_of

    for word in given.overrides:
        if key_of(word).lstrip("+~") == "optimizer.lr":
            raise UserError(f"'{word}': the rate is what a range test varies; --from and --to are the ends of its grid")
    for option, least in (("per_decade", 1), ("refine", 0), ("steps", 1), ("seeds", 1), ("images", 1), ("values", 2)):
        if (value := getattr(given, option)) < least:
            raise UserError(f"--{option.replace('_', '-')} {value}: give {least} or more")
    for option, rate in (("from", given.lowest), ("to", given.highest)):
        if not 0 < rate < math.inf:
            raise UserError(f"--{option} {rate:g}: give a rate above 0")
    if given.lowest >= given.highest:
        raise UserError(f"--from {given.lowest:g} --to {given.highest:g}: the first is to be the lower one")


def _free(write: str | None) -> Path | None:
    """Return the file to write; None where none is asked for. Raises UserError where it is there."""
    if write is None:
        return None
    if not write:
        raise UserError("--write is empty: name a file")
    place = Path(folder_of("--write", write))
    if place.exists() or place.is_symlink():
        raise UserError(f"--write {write}: it is there already, and nothing is overwritten: name another file")
    if not place.parent.is_dir():
        raise UserError(f"--write {write}: there is no folder {place.parent}")
    return place


def _but_seed(overrides: Sequence[str]) -> list[str]:
    from neumann.config.override_text import key_of

    return [word for word in overrides if key_of(word) != "seed"]


def _places(lowest: float, highest: float, per_decade: int) -> int:
    return round(per_decade * math.log10(highest / lowest)) + 1


def _write(place: Path, given: argparse.Namespace, space: Sequence[float], interval: Interval) -> None:
    command = shlex.join(["neumann", "lr-range", *given.overrides])
    place.write_text(
        f"# {command}: {_said(interval)}, {given.seeds} seed{'' if given.seeds == 1 else 's'} of {given.steps} steps\n"
        f"space:\n  optimizer.lr: [{', '.join(repr(rate) for rate in space)}]\n",
        encoding="utf-8",
    )


def _record(
    given: argparse.Namespace,
    found: StableRange,
    interval: Interval,
    space: Sequence[float] | None,
    notes: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    trials = [trial for rate in sorted(found.trials) for trial in found.trials[rate]]
    seeds = sorted({trial.seed for trial in trials})
    return {
        "overrides": list(given.overrides),
        "steps": given.steps,
        "interval": vars(interval),
        "by_seed": {str(seed): vars(found.interval(seed)) for seed in seeds},
        "space": None if space is None else {"optimizer.lr": list(space)},
        "notes": list(notes),
        "trials": [vars(trial) for trial in trials],
        "gradient_evaluations": sum(trial.gradients for trial in trials),
        "seconds": seconds,
    }


def _print(
    given: argparse.Namespace,
    spec: RunSpec,
    found: StableRange,
    interval: Interval,
    notes: Sequence[str],
    seconds: float,
) -> None:
    rows = []
    for rate in sorted(found.trials):
        trials = found.trials[rate]
        ends = [trial.end for trial in trials if trial.end is not None]
        inside = interval.low is not None and interval.high is not None and interval.low <= rate <= interval.high
        rows.append(
            [
                Text(f"{rate:.4g}"),
                Text(f"{sum(trial.stable for trial in trials)} of {len(trials)}"),
                Text(f"{statistics.median(ends):.4g}" if ends else "not finite"),
                Text(f"{min(ends):.4g} to {max(ends):.4g}" if len(ends) > 1 else ""),
                Text("stable, progress" if inside else ""),
            ]
        )
    names = ("lr", "seeds stable", "loss at the end", "over seeds", "")
    print_table(Console(), names, rows, right=names[:3])
    trials = [trial for each in found.trials.values() for trial in each]
    starts = {trial.seed: trial.start for trial in trials}
    print(
        f"{printable(spec.name.rpartition('-s')[0])}: {_said(interval)}, for {len(starts)} "
        f"seed{'' if len(starts) == 1 else 's'}"
    )
    if len(starts) > 1:
        alone = "; ".join(f"{seed}: {_said(found.interval(seed))}" for seed in sorted(starts))
        print(f"by seed: {alone}")
    print(
        f"{given.steps} steps a trial at a constant rate; the loss begins at "
        f"{statistics.median(starts.values()):.4g}; {sum(trial.gradients for trial in trials):,} gradient evaluations, "
        f"{seconds:.0f} s"
    )
    factor = spec.config.derived.rate_factor
    if factor != 1:
        print(f"recipe.lr_scaling multiplies each of these rates by {factor:g}")
    for note in notes:
        print(f"note: {note}")


def _said(interval: Interval) -> str:
    """Return the interval in words."""
    if interval.high is None:
        return "no rate is stable"
    if interval.low is None:
        return f"stable up to {interval.high:.4g}, and no rate makes progress"
    low, high = (
        f"{'≤ ' if interval.low_open else ''}{interval.low:.4g}",
        f"{'≥ ' if interval.high_open else ''}{interval.high:.4g}",
    )
    return f"stable and making progress from {low} to {high}"
