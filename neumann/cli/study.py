"""`neumann study` and `neumann report`: train what a study lacks, and write its report."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from neumann.cli.arguments import Parser, parsed
from neumann.errors import UserError

ANY = "neumann report --runs PATTERN ... writes the page of any runs instead: see neumann report --runs --help."


def study(words: Sequence[str]) -> int:
    """Run `neumann study` and return its exit code."""
    parser = _parser("study", "Train what a study lacks, then write its report. Without NAME, list the studies.")
    parser.add_argument("--plan", action="store_true", help="print what would be trained, and train nothing")
    parser.take_estimate()
    return _run("study", parser, words)


def report(words: Sequence[str]) -> int:
    """Run `neumann report` and return its exit code."""
    parser = _parser("report", f"Write a study's report from what is there. Without NAME, list the studies. {ANY}")
    parser.add_argument("--publish", action="store_true", help="copy a whole report to experiments/NAME/results/BUDGET")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="while it is trained: render the page again as runs end, and let the browser reload it; Ctrl-C ends it",
    )
    parser.add_argument(
        "--wandb-report",
        action="store_true",
        help="write it as a W&B report too, wandb-report.json; its panels show the runs that were mirrored to W&B. "
        "logger.project and logger.entity say where. It needs pip install 'neumann[wandb-report]'",
    )
    parser.add_argument("--push", action="store_true", help="with --wandb-report: send that to W&B as a new report")
    return _run("report", parser, words)


def _parser(command: str, description: str) -> Parser:
    parser = Parser(prog=f"neumann {command}", description=description)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a study in ./experiments or neumann's own, or a path")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="what cannot change a result: output, logger, launch, ..."
    )
    parser.add_argument("-b", "--budget", default="full", help="full, or one that the study names, such as small")
    parser.add_argument(
        "--no-archive", action="store_true", help="count no run that is finished in the study's archive alone"
    )
    parser.take_help()
    parser.take_config_dirs()
    return parser


def _run(command: str, parser: Parser, words: Sequence[str]) -> int:
    given = parsed(parser, words)
    if given is None:
        return 0
    from neumann.studies import run as studies

    options = vars(given)
    if options.get("plan") and options.get("estimate") is not None:
        raise UserError("--plan lists the runs and --estimate says what they cost: give one of the two")
    name, _ = options.pop("name"), options.pop("help")
    if name is None:
        studies.print_studies(Console())
        return 0
    if options.get("push") and not options["wandb_report"]:
        raise UserError("--push sends what --wandb-report writes: give both")
    if options.pop("watch", False):
        if options.pop("wandb_report") | options.pop("push"):
            raise UserError("--watch shows a report that changes, and --wandb-report writes one: give one of the two")
        if options.pop("publish"):
            raise UserError("--publish copies a whole report and --watch shows one that is not: give one of the two")
        from neumann.studies.watch import watch

        return watch(name, console=Console(), **options)
    done: int = getattr(studies, command)(name, console=Console(), **options)
    return done
