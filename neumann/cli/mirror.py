"""`neumann runs mirror`: replay runs from their own files to W&B, TensorBoard or MLflow."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from neumann.cli.arguments import Parser, parsed
from neumann.cli.chosen_run import chosen_run, take_output
from neumann.errors import EXIT_FAILED, UserError, did_you_mean, printable
from neumann.folders import folder_of

if TYPE_CHECKING:
    from neumann.training.mirror_rows import Recorded

Replay = Callable[["Recorded"], list[str]]
OPTIONS = {  # of each target, by the name of its attribute; the names are those of W&B, TensorBoard and MLflow
    "wandb": ("mode", "project", "entity", "dir"),
    "tensorboard": ("logdir",),
    "mlflow": ("tracking_uri", "experiment_name"),
}
MODES = ("offline", "online")

HELP = """\
Replays runs from their own files: each gets one run there, with the names and axes that a live W&B mirror has. It is a
way to repair a mirror that was cut off, and to look at a run with a client that it was not trained with.

  neumann runs mirror RUN ... --to wandb [--mode online] [--project NAME] [--entity NAME] [--dir FOLDER]
  neumann runs mirror RUN ... --to tensorboard [--logdir FOLDER]
  neumann runs mirror RUN ... --to mlflow [--tracking-uri URI] [--experiment-name NAME]

To W&B it writes offline files in the run's folder (or in --dir), or uploads with --mode online; the project is neumann.
To TensorBoard it writes RUN/tensorboard, or FOLDER/STUDY/RUN; it needs pip install 'neumann[tensorboard]'.
To MLflow it writes to --tracking-uri (a server's address or a folder), else $MLFLOW_TRACKING_URI, else ./mlruns; the
experiment is neumann; it needs pip install 'neumann[mlflow]'.

RUN is a path, a name or a signature's beginning, as in neumann runs show; it is looked for in ./runs, or in the folder
that output=FOLDER names. TensorBoard and MLflow keep what is there already: a run that is there is refused. On W&B a
second mirror has the id of the first, which is told: W&B keeps the one that is uploaded last. It exits with 0; with 1
where a run could not be mirrored, the others are all the same; with 2 for wrong input.
"""


def mirror(words: Sequence[str], console: Console) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    given = parsed(parser, words)
    if given is None:
        return 0
    output, names = take_output(given.words)
    if not names:
        raise UserError("neumann runs mirror takes runs: a signature's beginning, a name or a path of each")
    if wrong := next((name for name in names if "=" in name and not Path(name).exists()), None):
        raise UserError(f"neumann runs mirror takes no '{wrong}': its settings are options, see --help")
    if given.to not in OPTIONS:
        named = "--to is missing" if given.to is None else f"--to {given.to} is not a choice"
        raise UserError(f"{named}: {did_you_mean(given.to or '', OPTIONS)}")
    options = _options(given)
    folders = list(dict.fromkeys(chosen_run(output, name) for name in names))
    replay = _replay(given.to, options)

    from neumann.training.mirror_rows import Recorded

    failed = 0
    for folder in folders:
        try:
            said = replay(Recorded.read(folder))
        except UserError as error:
            if len(folders) == 1:
                raise
            failed += 1
            said = [f"not mirrored: {error}"]
        console.print(Text(printable(folder.name), style="bold"), soft_wrap=True)
        for sentence in said:
            console.print(Text(f"  {printable(sentence)}"), soft_wrap=True)
    return EXIT_FAILED if failed else 0


def _parser() -> Parser:
    parser = Parser(prog="neumann runs mirror", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="RUN", help="and output=FOLDER")
    parser.take_help()
    parser.add_argument("--to", metavar="TARGET", help="wandb, tensorboard or mlflow")
    parser.add_argument("--mode", metavar="MODE", help="W&B: offline (files for wandb sync) or online")
    parser.add_argument("--project", metavar="NAME", help="W&B: the project (neumann)")
    parser.add_argument("--entity", metavar="NAME", help="W&B: user or team (the account's own)")
    parser.add_argument("--dir", metavar="FOLDER", help="W&B: where its files go, in wandb/ in it (the run's folder)")
    parser.add_argument("--logdir", metavar="FOLDER", help="TensorBoard: where event files go, in STUDY/RUN in it")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow: a server's address, or a folder (mlruns)")
    parser.add_argument("--experiment-name", metavar="NAME", help="MLflow: the experiment (neumann)")
    return parser


def _options(given: argparse.Namespace) -> dict[str, str | None]:
    """Return the options of the target. Raises UserError for one of another target, and for an empty one."""
    for target, names in OPTIONS.items():
        for name in names:
            value, option = getattr(given, name), f"--{name.replace('_', '-')}"
            if value is not None and target != given.to:
                own = ", ".join(f"--{one.replace('_', '-')}" for one in OPTIONS[given.to])
                raise UserError(f"{option} is about --to {target}: --to {given.to} takes {own}")
            if value == "":
                raise UserError(f"{option} is empty")
    return {name: getattr(given, name) for name in OPTIONS[given.to]}


def _replay(target: str, options: Mapping[str, str | None]) -> Replay:
    """Return what replays a run to ``target``. Raises UserError for wrong options, and where a package is missing."""
    if target == "wandb":
        return _to_wandb(options)
    if target == "tensorboard":
        return _to_tensorboard(options)
    return _to_mlflow(options)


def _to_wandb(options: Mapping[str, str | None]) -> Replay:
    from neumann.config.wandb_settings import check_project
    from neumann.training import replay_wandb

    mode, project = options["mode"] or "offline", options["project"] or "neumann"
    if mode not in MODES:
        raise UserError(f"--mode {mode} is not a choice: {did_you_mean(mode, MODES)}")
    check_project("--project ", project)
    if os.environ.get("WANDB_SWEEP_ID"):
        raise UserError("an agent of a W&B sweep has a run of its own: unset WANDB_SWEEP_ID to mirror other runs")
    if mode == "online":
        replay_wandb.log_in()
    folder = None if options["dir"] is None else Path(folder_of("--dir", options["dir"]))
    entity = options["entity"]
    return lambda run: replay_wandb.replay(run, mode=mode, project=project, entity=entity, folder=folder)


def _to_tensorboard(options: Mapping[str, str | None]) -> Replay:
    from neumann.training import replay_tensorboard

    replay_tensorboard.check_installed()
    logdir = None if options["logdir"] is None else Path(folder_of("--logdir", options["logdir"]))
    return lambda run: replay_tensorboard.replay(run, logdir=logdir)


def _to_mlflow(options: Mapping[str, str | None]) -> Replay:
    from neumann.training import replay_mlflow

    client, experiment = replay_mlflow.connect(options["tracking_uri"]), options["experiment_name"] or "neumann"
    return lambda run: replay_mlflow.replay(run, client, experiment)
