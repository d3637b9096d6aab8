"""What can I do with neumann on the command line?

neumann train [OVERRIDE ...]     compose, train, evaluate and record one run
neumann demo                     three short runs on digits, a table and a figure
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from neumann.errors import Interrupted, UserError, did_you_mean, first_line

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_TRAIN_HELP = """\
Overrides are Hydra's: GROUP=OPTION chooses a file, KEY=VALUE sets a value in it.

  neumann train optimizer=nesterov seed=3
  neumann train optimizer=neumann optimizer.alpha=0 data=image_folder data.root=/path/to/images
  neumann train --cfg job optimizer=adam          print the resolved configuration and train nothing

groups:
{groups}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and "" not in sys.path:
        sys.path.insert(0, "")  # as for `python -m`: one's own optimizer may lie in the working directory
    commands = {"train": _train, "demo": _demo}
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
    except UserError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return EXIT_USAGE
    except (Interrupted, KeyboardInterrupt) as stop:
        if argv is None:  # the process ends here, and a further Ctrl-C would only tear its clean-up
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        errors.print(f"{str(stop) or 'stopped'}: the same command goes on from there", highlight=False, soft_wrap=True)
        return EXIT_INTERRUPTED
    except Exception as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        if not notes:
            raise
        errors.print(f"[bold red]failed:[/] {escape(first_line(error) + notes)}", soft_wrap=True, highlight=False)
        return EXIT_FAILED


def _train(words: list[str]) -> int:
    from neumann.config import make_spec
    from neumann.runs import find, finished_result
    from neumann.runs.panel import result_panel

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
            "neumann train [--config-dir DIR] [--cfg job] [OVERRIDE ...]\n\n"
            + _TRAIN_HELP.format(groups="\n".join(rows))
        )
        return 0
    if unknown:
        known = ["--help", "--cfg", "--config-dir"]
        raise UserError(f"neumann train takes no {unknown[0]}: {did_you_mean(unknown[0], known)}")
    if arguments.multirun:
        raise UserError("--multirun is not in this version yet: one command trains one run, so put it in a shell loop")
    spec = make_spec(arguments.overrides, arguments.config_dir)
    if arguments.cfg:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.create(spec.as_dict())), end="")
        return 0
    console = Console()
    result = finished_result(spec)  # answered without importing torch
    if result is not None:
        result_panel(console, find(spec).path, result, returned=True)
        return 0
    from neumann.training.run import run

    result_panel(console, find(spec).path, run(spec, console))
    return 0


def _demo(words: list[str]) -> int:
    from neumann.studies.demo import demo

    if words:
        raise UserError(f"neumann demo takes no {words[0]}")
    return demo(Console())


if __name__ == "__main__":
    sys.exit(main())
