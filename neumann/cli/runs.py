"""`neumann runs`: list the runs of a results folder, show one, follow, remove, resume, mirror or pack them."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, Group
from rich.text import Text

from neumann.cli.arguments import Parser, parsed
from neumann.cli.chosen_run import chosen_run
from neumann.cli.runs_table import age, percent, print_runs, steps, table
from neumann.errors import UserError, did_you_mean, printable
from neumann.fitting import padded
from neumann.folders import folder_of
from neumann.store import details, records, removal
from neumann.store.code_digests import codes, contributing, differing, in_words
from neumann.store.folder import OVER, STATUSES, RunFolder
from neumann.store.listing import Filters, Row, find_folders, is_called, list_runs, read_row

if TYPE_CHECKING:
    from neumann.config import RunSpec

REFRESH_S = 1.0
UNFINISHED = ("pending", "running")
VERBS = ("show", "compare", "watch", "clean", "resume", "mirror", "pack")
OWN = ("launch", "logger")  # sections that name shell commands, accounts and servers: never taken from a folder

HELP = """\
Lists the runs of a results folder (./runs, or output=FOLDER, or a path), those that were active last at the end.

  neumann runs                                     all
  neumann runs '*-sgd-*' --study rates             by name and study, as globs
  neumann runs --status failed,interrupted         by status
  neumann runs --where optimizer.lr=0.1 --where seed=3   by what the configuration says
  neumann runs show RUN                            one of them; RUN is a signature's beginning, a name or a path
  neumann runs compare RUN RUN                     what differs between two, and their curves side by side
  neumann runs watch                               follow them live; the same filters
  neumann runs clean                               remove those that failed, after asking
  neumann runs resume RUN [logger=none ...]        go on with one from what its folder says; where it trains and who is
                                                   told are not the folder's to say: give launch and logger here
  neumann runs mirror RUN ... --to wandb|tensorboard|mlflow   replay runs there from their own files
  neumann runs pack STUDY                          write a study's finished runs into one file to commit

It exits with 0; with 1 where no run fits the filters of the list or of watch --until-done, or something could not be
done; with 2 for wrong input. clean exits with 0 where there is nothing to remove.
"""


def main(words: Sequence[str], console: Console, train: Callable[[RunSpec], int]) -> int:
    """Run the command and return its exit code.

    words     of the command line, after `neumann runs`
    console   where it prints
    train     trains one run for `resume` and returns the exit code
    """
    verb = words[0] if words and words[0] in VERBS else None
    if verb == "mirror":
        from neumann.cli.mirror import mirror

        return mirror(words[1:], console)
    if verb == "pack":
        from neumann.cli.pack import pack

        return pack(words[1:], console)
    if verb == "compare":
        from neumann.cli.compare import compare

        return compare(words[1:], console)
    parser = _parser(verb)
    given = parsed(parser, words[1:] if verb else words)
    if given is None:
        return 0
    own = [word for word in given.words if verb == "resume" and word.partition("=")[0].split(".")[0] in OWN]
    rest = [word for word in given.words if word not in own]
    output, names = _output(rest)
    # a run's name may hold an equals sign, so only what stands beside a name is a setting
    if verb == "resume" and len(names) > 1 and (more := [word for word in names if re.match(r"[\w.]+=", word)]):
        key = more[0].partition("=")[0]
        raise UserError(f"{parser.prog} takes no '{more[0]}': with another {key} it would be another run")
    if verb in ("show", "resume"):
        if len(names) != 1:
            raise UserError(f"{parser.prog} takes one run: a signature's beginning, a name or a path")
        folder = chosen_run(output, names[0])
        return train(_spec(folder, own, trust=given.trust)) if verb == "resume" else _show(folder, given, console)
    _refuse_values(output, names)
    filters = _filters(given, names)
    if verb == "watch":
        return _watch(output, filters, given, console)
    if verb == "clean":
        return _clean(output, filters, given, console)
    return _list(output, filters, given, console)


def _parser(verb: str | None) -> Parser:
    one = verb in ("show", "resume")
    parser = Parser(
        prog=f"neumann runs {verb}" if verb else "neumann runs",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="RUN" if one else "NAME", help="and output=FOLDER, or its path")
    parser.take_help()
    if not one:
        parser.add_argument("--study", action="append", default=[], metavar="GLOB", help="runs of this study")
        default = "failed" if verb == "clean" else None
        parser.add_argument("--status", default=default, metavar="STATUS[,STATUS]", help="runs that are this far")
        parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="by the configuration")
    if verb in (None, "show"):
        parser.add_argument("--json", action="store_true", help="print JSON, errors as fractions")
    if verb == "watch":
        parser.add_argument("--until-done", action="store_true", help="end when no run is pending or running")
    if verb == "clean":
        parser.add_argument("--yes", action="store_true", help="do not ask")
    if verb == "resume":
        parser.add_argument("--trust", action="store_true", help="let its configuration run code of its author's")
    return parser


def _output(words: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the results folder and the names of runs. Raises UserError for a folder that is not there, and for two."""
    output, names = None, []
    for word in words:
        given = word.removeprefix("output=")
        if given != word and given[:1] in ("'", '"'):  # as the same word is written for `neumann train`
            from neumann.config.override_text import value_of  # it imports Hydra, which a list does without

            given = value_of(word)
        folder = given != word or (Path(word).is_dir() and not records.RUN.fullmatch(Path(word).resolve().name))
        if not folder:
            if os.sep in word.rstrip(os.sep) and not any(mark in word for mark in "*?[") and not Path(word).exists():
                raise UserError(f"there is no folder {printable(word)}")
            names.append(word)
        elif output is not None:
            raise UserError(f"neumann runs lists one results folder at a time, not {output} and {given}")
        elif not given:
            raise UserError("output is empty: name a results folder, or . for the working directory")
        else:
            output = Path(folder_of("output", given))
    return output or Path("runs"), names


def _refuse_values(output: Path, names: Sequence[str]) -> None:
    """Raise UserError for one of ``names`` that is a setting with its value, and no run's name."""
    for name in names:
        if re.match(r"[\w.]+=", name) and not any(is_called(folder, [name]) for folder in find_folders(output)):
            raise UserError(f"neumann runs cannot read '{name}': a value is looked for with --where {name}")


def _filters(given: argparse.Namespace, names: Sequence[str]) -> Filters:
    """Return the filters that the options ask for. Raises UserError where one cannot be read."""
    where = []
    for text in given.where:
        key, sign, value = text.partition("=")
        if not (key and sign):
            raise UserError(f"--where {text}: write KEY=VALUE, such as optimizer.lr=0.1")
        where.append((key, value))
    statuses = [status.strip() for status in given.status.split(",")] if given.status is not None else []
    if "" in statuses:
        raise UserError(f"--status '{given.status}' has an empty part: choose from {', '.join(STATUSES)}")
    return Filters(given.study, statuses, names, where)


def _list(output: Path, filters: Filters, given: argparse.Namespace, console: Console) -> int:
    rows = list_runs(output, filters)
    if given.json:
        print(json.dumps([row.as_record() for row in rows], indent=1))
    elif rows:
        print_runs(rows, console)
        for row in rows:
            if row.message and (row.status in OVER or row.status == "pending"):  # a result is not as it was written
                then = ", and train and report refuse it" if row.status in OVER else ""
                told = f"{row.name}-{row.signature}: {row.message}{then}"
                console.print(Text(printable(told), style="red"), soft_wrap=True)
    else:
        near = [verb for name in filters.names for verb in difflib.get_close_matches(name, VERBS, n=1, cutoff=0.7)]
        meant = f"; did you mean neumann runs {near[0]}?" if near else ""
        console.print(Text(f"no run in {printable(output)} fits{meant}"), soft_wrap=True)
    return 0 if rows else 1


def _show(folder: Path, given: argparse.Namespace, console: Console) -> int:
    from neumann.config import make_spec

    row = read_row(folder)
    run = RunFolder(folder)
    no_comparison = None
    changes: list[tuple[str, str, str]] = []
    try:
        changes = details.differences(records.read_config(folder), make_spec().as_dict())
    except UserError as error:
        no_comparison = str(error)
    edited = details.edited(run)
    if given.json:
        result = run.result() or {}
        print(json.dumps({**row.as_record(), "changes": changes, "edited": edited, "result": result}, indent=1))
        return 0
    about = [("status", row.status + (f": {row.message}" if row.message else "")), ("folder", str(folder))]
    about += [("study", row.study), ("seed", str(row.seed)), ("attempts", str(row.attempt))]
    about += [("steps", steps(row)), ("last change", f"{age(row.time)} ago")]
    if mixed := differing(codes(contributing(run.attempts()))):
        about.append(("code", f"{in_words(mixed)} changed between its attempts"))
    about += [("edited", sentence) for sentence in edited]
    parts: list[Text | str] = [Text(printable(folder.name), style="bold"), _pairs(about)]
    if changes:
        parts += ["", Text("changed against the default:", style="bold")]
        parts.append(_pairs([(key, f"{mine}  (default {default})") for key, default, mine in changes]))
    elif no_comparison is None:
        parts += ["", "the default configuration"]
    else:
        parts += ["", Text(printable(f"no comparison with the default: {no_comparison}"))]
    if found := details.metrics(run):
        parts += ["", Text("latest metrics:", style="bold"), _pairs(found)]
    if found := details.terms(run):
        parts += ["", Text("the optimizer's terms, when last measured:", style="bold"), _pairs(found)]
    for path in (run.error, folder / "output.log"):
        if lines := details.tail(path):
            parts += [
                "",
                Text(f"last lines of {path.name}:", style="bold"),
                Text(printable("\n".join(lines), lines=True)),
            ]
    console.print(Group(*parts), soft_wrap=True)  # folded by the terminal, so that what is copied is whole
    return 0


def _pairs(rows: Sequence[tuple[str, str]]) -> Text:
    wide = max(cell_len(printable(name)) for name, _ in rows) + 2
    return Text("\n".join(f"  {padded(printable(name), wide)}{printable(value)}" for name, value in rows))


def _spec(folder: Path, own: Sequence[str], *, trust: bool) -> RunSpec:
    """Return the run of ``folder``, to be trained where the folder lies. Raises UserError as `load_spec` does.

    The folder may be another user's, so its launch and logger sections are replaced by this user's, as the overrides
    ``own`` and the files of conf/ give them. A folder that says `logger=none` keeps that unless ``own`` names a logger.
    """
    from neumann.config import load_spec, make_spec
    from neumann.config.override_text import refuse_twice

    spec = load_spec(records.read_record(folder), trust=trust)
    silent = spec.config.logger.kind == "none" and not any(word.startswith("logger") for word in own)
    refuse_twice(own)
    mine = make_spec([*own, *(["logger=none"] if silent else [])]).config
    here = folder.resolve().parent
    output = folder.parent.parent if folder.parent.name else here.parent
    config = replace(spec.config, output=str(output), study=here.name, launch=mine.launch, logger=mine.logger)
    return replace(spec, config=config)


def _watch(output: Path, filters: Filters, given: argparse.Namespace, console: Console) -> int:
    from rich.live import Live

    seen: dict[str, tuple[object, ...]] = {}
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    try:
        if live is not None:
            live.start()
        while True:
            rows = list_runs(output, filters)
            if live is not None:
                live.update(_window(rows, console.width, console.height), refresh=True)
            else:
                _print_changes(rows, seen, console)
            if given.until_done and not any(row.status in UNFINISHED for row in rows):
                return 0 if rows else 1
            time.sleep(REFRESH_S)
    except KeyboardInterrupt:
        return 0  # Ctrl-C is the usual end of watching
    finally:
        if live is not None:
            live.stop()


def _window(rows: Sequence[Row], width: int, height: int) -> Group:
    """Return as many rows as fit a terminal, the running ones last, and a line with the count of each status."""
    ordered = sorted(rows, key=lambda row: row.status == "running")
    counts = {status: sum(row.status == status for row in rows) for status in dict.fromkeys(row.status for row in rows)}
    summary = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no run yet"
    most = max(1, height - 4)
    shown = table(ordered[-most:], width)
    while most > 1 and len(shown.plain.splitlines()) > height - 3:  # a row may take several lines
        most -= 1
        shown = table(ordered[-most:], width)
    return Group(shown, Text(f"{summary}; Ctrl-C ends this, not the runs"))


def _print_changes(rows: Sequence[Row], seen: dict[str, tuple[object, ...]], console: Console) -> None:
    """Print a line for each run whose status, step or error is not as in ``seen``, and update ``seen``."""
    for row in rows:
        now = (row.status, row.step, row.validation)
        if seen.get(row.folder) != now:
            seen[row.folder] = now
            error = f"validation error {percent(row.validation)}" if row.validation is not None else ""
            words = [time.strftime("%H:%M:%S"), row.study, f"{row.name}-{row.signature}", row.status]
            words += [steps(row), error]
            console.print(Text(printable("  ".join(word for word in words if word))), soft_wrap=True)


def _clean(output: Path, filters: Filters, given: argparse.Namespace, console: Console) -> int:
    for status in filters.statuses:
        if status not in removal.REMOVABLE:
            raise UserError(f"neumann runs clean removes no {status} run: {did_you_mean(status, removal.REMOVABLE)}")
    rows = list_runs(output, filters)
    if not rows:
        console.print(Text(f"no run in {printable(output)} is {' or '.join(filters.statuses)}"), soft_wrap=True)
        return 0
    print_runs(rows, console)
    if not given.yes:
        if not sys.stdin.isatty():
            raise UserError(
                "neumann runs clean asks before it removes, and there is no terminal to answer on: add --yes"
            )
        console.print(f"remove {len(rows)} folder(s), with their checkpoints? (y/N) ", end="", highlight=False)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            console.print("nothing was removed")
            return 1
    left = [(row, why) for row in rows if (why := removal.remove(Path(row.folder), filters.statuses)) is not None]
    for row, why in left:
        console.print(Text(printable(f"kept {row.folder}: {why}")), soft_wrap=True)
    console.print(f"removed {len(rows) - len(left)} of {len(rows)}", highlight=False)
    return 1 if left else 0
