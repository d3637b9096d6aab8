"""What can I do with neumann on the command line?

neumann train [OVERRIDE ...]     compose, train, evaluate and record one run
neumann train -m seed=0,1,2      a run for each value, several at once; -m +sweeps=NAME runs a grid from sweeps/
neumann wandb-sweep OVERRIDE ... print the same sweep as a file for `wandb sweep`, whose agents train the runs
neumann study NAME [--plan]      train what a study lacks, then write its report
neumann report NAME              write a study's report from what is there
neumann runs                     list the runs that there are; show, watch, clean, resume
neumann worker FOLDER            train runs of a launch here too: what the jobs of launch=slurm do
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from neumann.cli.arguments import Parser, parsed
from neumann.errors import UserError, did_you_mean, ending_of, printable

if TYPE_CHECKING:
    from neumann.config import RunSpec

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_TRAIN_HELP = """\
Overrides are Hydra's: GROUP=OPTION chooses a file, KEY=VALUE sets a value in it.

  neumann train optimizer=nesterov seed=3
  neumann train optimizer=neumann optimizer.alpha=0 data=image_folder data.root=/path/to/images
  neumann train --cfg job optimizer=adam          print the resolved configuration and train nothing

Many runs, each in a process of its own; what is finished is not trained again:

  neumann train -m optimizer=neumann,sgd seed=range(0,3) launch.parallel=2
  neumann train -m +sweeps=rates                  a grid from a file, see the group sweeps
  neumann train -m hydra/sweeper=optuna hydra.sweeper.n_trials=20 'optimizer.lr=tag(log,interval(0.001,1))'
  neumann train -m launch=slurm launch.partition=gpu launch.gpus_per_node=1 seed=range(0,50)

groups:
{groups}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and "" not in sys.path:
        sys.path.insert(0, "")  # as for `python -m`: one's own optimizer may lie in the working directory
    commands = {
        "train": _train,
        "wandb-sweep": _wandb_sweep,
        "study": _study,
        "report": _report,
        "runs": _runs,
        "worker": _worker,
    }
    errors = Console(stderr=True)
    if not words or words[0] in ("-h", "--help", "help"):
        print((__doc__ or "").split("\n", 2)[2].rstrip())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"neumann {version('neumann')}")
        return 0
    try:
        if words[0] not in commands:
            raise UserError(f"there is no command '{words[0]}': {did_you_mean(words[0], commands)}")
        return commands[words[0]](words[1:])
    except (Exception, KeyboardInterrupt) as error:
        status, message = ending_of(error)
        if isinstance(error, UserError):
            errors.print(
                f"[bold red]error:[/] {escape(printable(message, lines=True))}", soft_wrap=True, highlight=False
            )
            return EXIT_USAGE
        if status == "interrupted":
            if argv is None:  # the process ends here, and a further Ctrl-C would only tear its clean-up
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            errors.print(f"{message}: the same command goes on from there", highlight=False, soft_wrap=True)
            return EXIT_INTERRUPTED
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        if not notes:
            raise
        _say_failed(message + notes)
        return EXIT_FAILED


def _say_failed(what: str) -> None:
    Console(stderr=True).print(f"[bold red]failed:[/] {escape(printable(what))}", soft_wrap=True, highlight=False)


def _train(words: list[str]) -> int:
    from neumann.config import make_spec

    parser = argparse.ArgumentParser(prog="neumann train", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("-cd", "--config-dir", action="append", default=[])
    parser.add_argument("-m", "--multirun", action="store_true")
    arguments, unknown = parser.parse_known_intermixed_args(words)
    if arguments.help:
        from neumann.config.compose import list_groups

        rows = [f"  {group:<12}{', '.join(options)}" for group, options in list_groups(arguments.config_dir).items()]
        print(
            "neumann train [-m] [--config-dir DIR] [--cfg job] [OVERRIDE ...]\n\n"
            + _TRAIN_HELP.format(groups="\n".join(rows))
        )
        return 0
    if unknown:
        known = ["--help", "--cfg", "--config-dir", "--multirun"]
        raise UserError(f"neumann train takes no {unknown[0]}: {did_you_mean(unknown[0], known)}")
    if arguments.multirun:
        return _train_many(arguments.overrides, arguments.config_dir, print_only=bool(arguments.cfg))
    spec = make_spec(arguments.overrides, arguments.config_dir)
    if arguments.cfg:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.create(spec.as_dict())), end="")
        return 0
    return _train_one(spec)


def _train_one(spec: RunSpec) -> int:
    from neumann.cli.result_panel import result_panel
    from neumann.config import LocalLaunchConfig
    from neumann.processes.ranks import RankPlace, world_size
    from neumann.store import find, finished_result

    console = Console()
    ranks = RankPlace.from_environment()
    if ranks is not None:
        ranks.check(spec)
    result = finished_result(spec) if ranks is None else None  # answered without importing torch; ranks decide together
    if result is not None:
        if spec.config.logger.kind == "wandb" and os.environ.get("WANDB_SWEEP_ID"):
            from neumann.training.mirror import replay

            replay(spec, find(spec), result)
        result_panel(console, find(spec).path, result, returned=True)
        return 0
    if ranks is None and not isinstance(spec.config.launch, LocalLaunchConfig):
        return _launch([spec], [""])
    if ranks is None and world_size(spec) > 1:
        return _train_in_processes(spec, console)
    from neumann.training.run import run

    result = run(spec, console, ranks=ranks)
    if ranks is None or ranks.rank == 0:
        result_panel(console, find(spec).path, result)
    return 0


def _train_in_processes(spec: RunSpec, console: Console) -> int:
    """Train a run on several devices, each a process that the launcher starts."""
    from neumann.cli.result_panel import result_panel
    from neumann.launch import make_launcher
    from neumann.launch.progress import SweepProgress
    from neumann.store import RunFolder

    with make_launcher(spec.config.launch, console) as launcher, SweepProgress(console, [spec], [spec.name]) as view:
        (outcome,) = launcher.run([spec], view)
    if outcome.result is None:
        trace = RunFolder(outcome.folder).error
        where = f" (traceback in {trace})" if trace.exists() else ""
        _say_failed(f"{outcome.message}{where}")
        return EXIT_FAILED
    result_panel(console, outcome.folder, outcome.result)
    return 0


def _train_many(overrides: list[str], config_dirs: list[str], *, print_only: bool) -> int:
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
    jobs = asked if isinstance(asked, list) else expand(overrides, config_dirs)  # which says why there is no list
    specs = make_specs(jobs, config_dirs)
    labels = [" ".join(words) for words in varying(jobs)]
    if print_only:
        from omegaconf import OmegaConf

        for label, spec in zip(labels, specs, strict=True):
            print(f"--- # {label}\n{OmegaConf.to_yaml(OmegaConf.create(spec.as_dict()))}", end="")
        return 0
    return _launch(specs, labels)


def _launch(specs: Sequence[RunSpec], labels: Sequence[str]) -> int:
    """Train runs where their launch says, and print what became of each."""
    from neumann.launch import make_launcher
    from neumann.launch.progress import SweepProgress, status_table
    from neumann.store.folder import OVER

    console = Console()
    with (
        make_launcher(specs[0].config.launch, console) as launcher,
        SweepProgress(console, specs, labels, first=launcher.first) as view,
    ):
        outcomes = launcher.run(specs, view)
    status_table(console, outcomes, labels)
    return 0 if all(outcome.status in OVER for outcome in outcomes) else EXIT_FAILED


def _wandb_sweep(words: list[str]) -> int:
    from neumann.search.wandb import sweep_file

    description = "Print the W&B sweep of what neumann train -m would train, for `wandb sweep FILE`."
    parser = Parser(prog="neumann wandb-sweep", description=description, add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as after neumann train -m, or +sweeps=NAME")
    _common_options(parser)
    given = parsed(parser, words)
    if given is not None:
        print(sweep_file(given.overrides, given.config_dirs), end="")
    return 0


def _runs(words: list[str]) -> int:
    from neumann.cli.runs import main as command

    return command(words, Console(), train=_train_one)


def _worker(words: list[str]) -> int:
    parser = Parser(
        prog="neumann worker",
        description="Train runs of a launch in this process's children, until nobody has to train any more of them.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="the folder of the launch, <output>/.launches/NUMBER")
    parser.add_argument("-h", "--help", action="store_true", help="print this")
    parser.add_argument("--trust", action="store_true", help="run optimizers that the launch brings from elsewhere")
    if {"-h", "--help"} & set(words):
        parser.print_help()
        return 0
    given = parsed(parser, words)
    from pathlib import Path

    from neumann.launch.slurm.folder import LaunchFolder
    from neumann.launch.slurm.worker import work

    assert given is not None
    work(LaunchFolder(Path(given.folder)), trust=given.trust)
    return 0


def _study(words: list[str]) -> int:
    parser = _study_parser("study", "Train what a study lacks, then write its report. Without NAME, list the studies.")
    parser.add_argument("--plan", action="store_true", help="print what would be trained, and train nothing")
    return _run_study(parser, words, "study")


def _report(words: list[str]) -> int:
    parser = _study_parser("report", "Write a study's report from what is there. Without NAME, list the studies.")
    parser.add_argument("--publish", action="store_true", help="copy a whole report to experiments/NAME/results/BUDGET")
    return _run_study(parser, words, "report")


def _run_study(parser: argparse.ArgumentParser, words: list[str], command: str) -> int:
    from neumann.studies import run as studies

    given = parsed(parser, words)
    if given is None:
        return 0
    options = vars(given)
    name, _ = options.pop("name"), options.pop("help")
    if name is None:
        studies.print_studies(Console())
        return 0
    done: int = getattr(studies, command)(name, console=Console(), **options)
    return done


def _study_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"neumann {command}", description=description, add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a study in ./experiments or neumann's own, or a path")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="what cannot change a result: output, logger, launch, ..."
    )
    parser.add_argument("-b", "--budget", default="full", help="full, or one that the study names, such as small")
    _common_options(parser)
    return parser


def _common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-h", "--help", action="store_true", help="print this")
    parser.add_argument(
        "-cd",
        "--config-dir",
        dest="config_dirs",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with groups of your own",
    )
