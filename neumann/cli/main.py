"""The command line of neumann: the table of its commands, and what a command's errors become."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape

from neumann.cli import (
    cache,
    challenge,
    curvature,
    evaluate,
    export,
    lr_range,
    predict,
    report,
    study,
    train,
    wandb_sweep,
    worker,
)
from neumann.cli.arguments import asks_estimate
from neumann.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    Interrupted,
    UserError,
    did_you_mean,
    ending_of,
    printable,
)
from neumann.processes.output import open_streams, warn_in_sentences

# not a docstring: python -OO drops those
HELP = """\
neumann train [OVERRIDE ...]     compose, train, evaluate and record one run
neumann train --estimate ...     what a run, a sweep or a study costs, by a few measured steps; it trains nothing
neumann train -m seed=0,1,2      a run for each value, several at once; -m +sweeps=NAME runs a grid from sweeps/
neumann wandb-sweep OVERRIDE ... print the same sweep as a file for `wandb sweep`, whose agents train the runs
neumann study NAME [--plan]      train what a study lacks, then write its report
neumann report NAME              write a study's report from what is there
neumann report --runs RUNS ...   the same page of any finished runs, without a study; exploratory
neumann challenge PKG.CLASS      compare an optimizer of yours with the baselines, whose runs come with the package
neumann runs                     list the runs that there are; show, compare, watch, clean, resume, ...
neumann evaluate RUN [data=...]  score a run's weights again, or on another set: per class, confusion matrix
neumann curvature RUN ...        the Hessian's extreme eigenvalues at runs' weights, and the μ and η they imply
neumann lr-range OVERRIDE ...    between which learning rates an optimizer is stable, over seeds
neumann predict RUN IMAGE ...    classes and probabilities of images, or of folders of them
neumann export RUN               write a run's weights for timm and the Hugging Face Hub, with a model card
neumann cache [--clear]          what is kept to save time, and its removal
neumann worker FOLDER            train runs of a launch here too: what the jobs of launch=slurm do
"""

# what a folder or a disk is to blame for, and not the program
OF_THE_PLACE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR),
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted.

    ``argv`` are its words; None takes them from the process's command line.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an α that the locale lacks must not end a command
    commands = {
        "train": train.main,
        "wandb-sweep": wandb_sweep.main,
        "study": study.study,
        "report": report.main,
        "runs": _runs,
        "evaluate": evaluate.main,
        "curvature": curvature.main,
        "lr-range": lr_range.main,
        "predict": predict.main,
        "export": export.main,
        "cache": cache.main,
        "challenge": challenge.main,
        "worker": worker.main,
    }
    if argv is None:
        open_streams(stdout_needed=_only_prints(words))
        warn_in_sentences()
    errors = Console(stderr=True)
    try:
        code = _run(words, commands, errors, whole_process=argv is None)
        if argv is None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # as in `neumann runs | head -1`, where there is nothing left to do
        return EXIT_FAILED
    except OSError as error:
        if argv is not None or not _only_prints(words) or error.filename is not None:
            raise
        errors.print(f"[bold red]error:[/] the output cannot be written: {error.strerror}", highlight=False)
        return EXIT_FAILED


def _only_prints(words: Sequence[str]) -> bool:
    """Return whether all that a command does is to print, so that it ends where it cannot; others go on."""
    if list(words) in (["study"], ["report"]):  # they list the studies
        return True
    works = [
        ["train"],
        ["study"],
        ["report"],
        ["challenge"],
        ["worker"],
        ["evaluate"],
        ["curvature"],
        ["export"],
        ["lr-range"],
    ]
    trains = words[:1] in works or words[:2] in (["runs", "resume"], ["runs", "mirror"], ["runs", "pack"])
    return not trains or bool({"-h", "--help", "-c", "--cfg", "--plan"} & set(words)) or asks_estimate(words)


def _run(
    words: Sequence[str],
    commands: Mapping[str, Callable[[Sequence[str]], int]],
    errors: Console,
    *,
    whole_process: bool,
) -> int:
    """Run a command of ``commands`` and return its exit code; ``errors`` gets its one sentence where it fails.

    ``whole_process`` says that the process ends with it.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"neumann {version('neumann')}")
        return 0
    try:
        if words[0] not in commands:
            raise UserError(f"there is no command '{words[0]}': {did_you_mean(words[0], commands)}")
        _check_working_directory()
        return commands[words[0]](words[1:])
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        status, message = ending_of(error)
        if isinstance(error, UserError):
            sentence = escape(printable(message, lines=True))
            errors.print(f"[bold red]error:[/] {sentence}", soft_wrap=True, highlight=False)
            return EXIT_USAGE
        if isinstance(error, OSError) and error.errno in OF_THE_PLACE and _is_bare(error):
            verb = "read" if isinstance(error, PermissionError) else "used"
            sentence = escape(printable(f"{error.filename} cannot be {verb}: {(error.strerror or '').lower()}"))
            errors.print(f"[bold red]error:[/] {sentence}", soft_wrap=True, highlight=False)
            return EXIT_USAGE
        if status == "interrupted":
            if whole_process:  # the process ends here, and a further Ctrl-C would only tear its clean-up
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            begins_anew = words[0] in ("evaluate", "curvature", "export", "predict", "lr-range") or words[:2] in (
                ["runs", "mirror"],
                ["runs", "pack"],
            )
            then = "" if begins_anew else f": the same command {getattr(error, 'again', Interrupted.again)}"
            errors.print(f"{message}{then}", highlight=False, soft_wrap=True)
            return EXIT_INTERRUPTED
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        if not notes:
            raise
        train.print_failure(message + notes)
        return EXIT_FAILED


def _check_working_directory() -> None:
    try:
        os.getcwd()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"the working directory cannot be used ({reason}): change to another folder") from None


def _is_bare(error: OSError) -> bool:
    """Return whether ``error`` names a file and says nothing more."""
    return error.filename is not None and not hasattr(error, "__notes__")


def _runs(words: Sequence[str]) -> int:
    from neumann.cli import runs  # it reads folders, which the other commands need not import

    return runs.main(words, Console(), train=train.train_one)
