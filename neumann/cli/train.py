"""`neumann train`: one run, or with -m the runs of a sweep or a search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from neumann.cli.arguments import Parser, asks_for_help, parsed
from neumann.errors import EXIT_FAILED, UserError, printable

if TYPE_CHECKING:
    from neumann.config import RunSpec

HELP = """\
Overrides are Hydra's: GROUP=OPTION chooses a file, KEY=VALUE sets a value in it.

  neumann train optimizer=nesterov seed=3
  neumann train optimizer=neumann optimizer.alpha=0 data=image_folder data.root=/path/to/images
  neumann train --cfg job optimizer=adam          print the resolved configuration and train nothing
  neumann train --estimate optimizer=adam         print what it costs, by a few measured steps, and train nothing
  neumann train --estimate=1200 model=timm ...    the same at a stated rate: images/s of a device, or FLOP/s as 60TFLOPS
  neumann train experiment=table2/resnet50_neumann data.root=/data/imagenet trainer.devices=8
                                                  a run of the paper; what the command sets replaces what the file sets

Many runs, each in a process of its own; what is finished is not trained again:

  neumann train -m optimizer=neumann,sgd seed=range(0,3) launch.parallel=2
  neumann train -m +sweeps=rates                  a grid from a file, see the group sweeps
  neumann train -m hydra/sweeper=optuna hydra.sweeper.n_trials=20 'optimizer.lr=tag(log,interval(0.001,1))'
  neumann train -m launch=slurm launch.partition=gpu launch.gpus_per_node=1 seed=range(0,50)

groups:
{groups}
"""


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="neumann train")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.take_help()
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.take_config_dirs()
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.take_estimate()
    if asks_for_help(words):
        _print_help(parser.parse_known_intermixed_args(words)[0].config_dirs)
        return 0
    given = parsed(parser, words)
    assert given is not None
    if given.cfg and given.estimate is not None:
        raise UserError("--cfg prints a configuration and --estimate what it costs: give one of the two")
    if given.multirun and given.estimate is not None:
        return _estimate_many(given.overrides, given.config_dirs, given.estimate)
    if given.multirun:
        return _train_many(given.overrides, given.config_dirs, print_only=bool(given.cfg))
    from neumann.config import make_spec

    spec = make_spec(given.overrides, given.config_dirs)
    _say_unread([given.overrides], given.config_dirs)
    if given.cfg:
        _print_config(spec)
        return 0
    if given.estimate is not None:
        return _estimate([spec], [spec.name], given.estimate, several=False)
    return train_one(spec)


def _print_help(config_dirs: Sequence[str]) -> None:
    from neumann.config.compose import list_groups

    rows = [row for group, options in list_groups(config_dirs).items() for row in _help_on(group, options)]
    print("neumann train [-m] [--config-dir DIR] [--cfg job | --estimate[=RATE]] [OVERRIDE ...]\n")
    print(HELP.format(groups="\n".join(rows)))


def _help_on(group: str, options: Sequence[str]) -> list[str]:
    """Return a line for the options of a group, and one for those of each folder in it."""
    folders: dict[str, list[str]] = {}
    for option in options:
        folder, slash, name = option.rpartition("/")
        folders.setdefault(folder + slash, []).append(name)
    return [
        f"  {group if first else '':<12}{folder + ': ' if folder else ''}{', '.join(names)}"
        for first, (folder, names) in zip((True, *[False] * len(folders)), folders.items(), strict=False)
    ]


def _print_config(spec: RunSpec) -> None:
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(OmegaConf.create(spec.as_dict())), end="")


def train_one(spec: RunSpec) -> int:
    """Train one run where its configuration says, print what came out, and return the exit code.

    As a rank that torchrun or srun has started it trains in this process; a run that is over is not trained again.
    """
    from neumann.cli.result_panel import result_panel
    from neumann.config import LocalLaunchConfig
    from neumann.launch.progress import print_notes
    from neumann.processes.ranks import RankPlace, world_size
    from neumann.store import find, finished_result

    console = Console()
    ranks = RankPlace.from_environment()
    if ranks is not None:
        ranks.check(spec)
    result = finished_result(spec) if ranks is None else None  # answered without importing torch; ranks decide together
    if result is None:
        _say_beforehand([spec])
    else:
        if spec.config.logger.kind == "wandb" and os.environ.get("WANDB_SWEEP_ID"):
            from neumann.training.mirror import replay

            replay(spec, find(spec), result)
        print_notes([(spec, find(spec).path, result)])
        result_panel(console, find(spec).path, result, returned=True)
        return 0
    if ranks is None and not isinstance(spec.config.launch, LocalLaunchConfig):
        return _launch([spec], [""])
    if ranks is None and world_size(spec) > 1:
        return _train_in_processes(spec, console)
    threads = use_launch(spec, alone=ranks is None)
    from neumann.training.run import run

    there = finished_result(spec) if ranks is not None and ranks.rank == 0 else None
    if there is not None:
        print_notes([(spec, find(spec).path, there)])
    result = run(spec, console, threads=threads, ranks=ranks)
    if ranks is None or ranks.rank == 0:
        result_panel(console, find(spec).path, result)
    return 0


def use_launch(spec: RunSpec, *, alone: bool) -> int | None:
    """Obey the launch section for a run in this process, before torch is imported; return its number of threads.

    None leaves torch's own number. Where the run is ``alone``, its GPU is the first of launch.devices; ranks get theirs
    from whoever has started them. Raises UserError for GPUs that are not there.
    """
    from neumann.config import LocalLaunchConfig
    from neumann.launch.gpus import chosen_gpus
    from neumann.visible_gpus import variables_for

    launch = spec.config.launch
    if not isinstance(launch, LocalLaunchConfig):
        return None
    if launch.devices is not None and alone:
        os.environ |= variables_for(chosen_gpus(launch.devices)[:1])
    return launch.threads


def _train_in_processes(spec: RunSpec, console: Console) -> int:
    """Train a run on several devices of this machine, in processes that the launcher starts."""
    from neumann.cli.result_panel import result_panel
    from neumann.launch import make_launcher
    from neumann.launch.progress import SweepView
    from neumann.store import RunFolder

    with (
        make_launcher(spec.config.launch, console) as launcher,
        SweepView(console, launcher.preparation, [spec], [spec.name]) as view,
    ):
        (outcome,) = launcher.run([spec], view)
    if outcome.result is None:
        trace = RunFolder(outcome.folder).error
        where = f" (traceback in {trace})" if trace.exists() else ""
        print_failure(f"{outcome.message}{where}")
        return EXIT_FAILED
    result_panel(console, outcome.folder, outcome.result)
    return 0


def _estimate(specs: Sequence[RunSpec], labels: Sequence[str], rate: str, *, several: bool) -> int:
    """Print what those of ``specs`` cost that are not over; train nothing."""
    from neumann.estimates.printed import print_estimate
    from neumann.store import finished_result

    left = [(spec, label, 1.0) for spec, label in zip(specs, labels, strict=True) if finished_result(spec) is None]
    print_estimate(Console(), left, finished=len(specs) - len(left), rate=rate, several=several)
    return 0


def _estimate_many(overrides: Sequence[str], config_dirs: Sequence[str], rate: str) -> int:
    """Print what the runs of a sweep or a search cost that are not over; train nothing."""
    from neumann.config import make_specs
    from neumann.search.grid import read_sweep, varying
    from neumann.search.space import Search

    asked = read_sweep(overrides, config_dirs)
    if not isinstance(asked, Search):
        specs = make_specs(asked, config_dirs)
        labels = [" ".join(words) for words in varying(asked)]
        _refuse_same(specs, labels)
        return _estimate(specs, labels, rate, several=True)
    from neumann.estimates.printed import print_estimate
    from neumann.estimates.recorded import runs_at_once
    from neumann.search.remaining import remaining

    first = make_specs(asked.corners()[:1], config_dirs)[0]
    left, over = remaining(asked, config_dirs, runs_at_once(first.config.launch))
    print_estimate(Console(), [(spec, spec.name, n) for spec, n in left], finished=over, rate=rate, several=True)
    return 0


def _train_many(overrides: Sequence[str], config_dirs: Sequence[str], *, print_only: bool) -> int:
    """Train, or only print, the runs of a sweep; train those of a search, which cannot be printed beforehand."""
    from neumann.config import make_specs
    from neumann.processes.ranks import RankPlace
    from neumann.search.grid import expand, read_sweep, varying
    from neumann.search.space import Search

    if os.environ.get("WANDB_SWEEP_ID"):
        raise UserError("an agent of a W&B sweep trains one run at a time: leave out -m, or unset WANDB_SWEEP_ID")
    if (ranks := RankPlace.from_environment()) is not None:
        raise UserError(f"{ranks.starter} starts the ranks of one run, and -m is many: leave out one of the two")
    asked = read_sweep(overrides, config_dirs)
    if isinstance(asked, Search) and not print_only:
        from neumann.search.optuna import run_search

        return 0 if run_search(asked, config_dirs, Console()) else EXIT_FAILED
    # `expand` raises the sentence that says why a search has no list
    runs = asked if isinstance(asked, list) else expand(overrides, config_dirs)
    specs = make_specs(runs, config_dirs)
    labels = [" ".join(words) for words in varying(runs)]
    _refuse_same(specs, labels)
    _say_unread(runs, config_dirs)
    if print_only:
        for label, spec in zip(labels, specs, strict=True):
            print(f"--- # {label}")
            _print_config(spec)
        return 0
    return _launch(specs, labels)


def _refuse_same(specs: Sequence[RunSpec], labels: Sequence[str]) -> None:
    """Raise UserError where runs of a sweep differ in nothing that makes them two: one would not be trained."""
    from neumann.store.records import flat

    first: dict[tuple[Path, str], tuple[RunSpec, str]] = {}
    for spec, label in zip(specs, labels, strict=True):
        other, its_label = first.setdefault((spec.folder.parent, spec.signature), (spec, label))
        if other.config == spec.config:
            continue
        one = dict(flat(other.as_dict()))
        differ = [key for key, value in flat(spec.as_dict()) if one.get(key) != value]
        raise UserError(
            f"'{its_label}' and '{label}' are the same run, since {differ[0] if differ else 'what differs'} cannot "
            "change a result: give it one value, or a study=NAME to each"
        )


def _launch(specs: Sequence[RunSpec], labels: Sequence[str]) -> int:
    """Train runs with the launcher that their configuration names, print what became of each, return the exit code."""
    from neumann.launch import make_launcher
    from neumann.launch.progress import SweepView, status_table
    from neumann.store.folder import OVER

    _say_beforehand(specs)
    console = Console()
    with (
        make_launcher(specs[0].config.launch, console) as launcher,
        SweepView(console, launcher.preparation, specs, labels) as view,
    ):
        outcomes = launcher.run(specs, view)
    status_table(console, outcomes, labels)
    return 0 if all(outcome.status in OVER for outcome in outcomes) else EXIT_FAILED


def _say_beforehand(specs: Sequence[RunSpec]) -> None:
    """Say which variables the runs ignore, and which of them are over in the precision of another device."""
    from neumann.config import ignored_variables
    from neumann.launch.progress import print_note
    from neumann.store.other_precision import said_of_others

    for sentence in ignored_variables(specs[0].config):
        Console(stderr=True).print(Text(printable(sentence)), soft_wrap=True)
    print_note(said_of_others(specs))


def _say_unread(jobs: Sequence[Sequence[str]], config_dirs: Sequence[str]) -> None:
    """Say which time scales were given that no setting of these runs reads."""
    from neumann.config import unread_scales
    from neumann.launch.progress import print_note

    found = unread_scales(jobs, config_dirs)
    if found:
        runs = "this run reads" if len(jobs) == 1 else "these runs reads"
        print_note(f"no schedule and no optimizer of {runs} {', '.join(found)}: it changes nothing here")


def print_failure(what: str) -> None:
    """Print one line about a run that failed to standard error."""
    Console(stderr=True).print(f"[bold red]failed:[/] {escape(printable(what))}", soft_wrap=True, highlight=False)
