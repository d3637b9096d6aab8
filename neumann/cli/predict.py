"""`neumann predict`: classes and probabilities of images, by a trained run."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from neumann.cli.arguments import Parser, parsed
from neumann.cli.chosen_run import ABOUT_RUN, chosen_run, take_output
from neumann.errors import EXIT_FAILED, UserError, printable
from neumann.fitting import SHORTEST, padded, shortened

if TYPE_CHECKING:
    from neumann.training.trained import Trained

HELP = f"""\
Prints the classes of images and their probabilities, by a finished run's weights at the optimizer's answer. Images are
prepared as in the run's evaluation; a folder is taken with all images below it. What cannot be decoded is a line on
stderr each, the others go on, and the command exits with 1 then.

  neumann predict RUN cat.jpg photos/
  neumann predict RUN photos/ --topk 1 --csv > classes.csv

{ABOUT_RUN}.
"""


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parsed(_parser(), words)
    if given is None:
        return 0
    output, names = take_output(given.words)
    if len(names) < 2:
        raise UserError("neumann predict takes a run and then images, or folders of them")
    for option, least in (("topk", 1), ("batch_size", 1), ("workers", 0)):
        if getattr(given, option) < least:
            raise UserError(f"--{option.replace('_', '-')} {getattr(given, option)}: give {least} or more")
    folder = chosen_run(output, names[0])

    from neumann.data.loose_images import found_images

    paths = found_images(names[1:])

    from neumann.training.trained import read

    return _predict(read(folder), paths, given)


def _parser() -> Parser:
    parser = Parser(prog="neumann predict", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="RUN IMAGE", help="and output=FOLDER")
    parser.take_help()
    parser.add_argument("--topk", "--top-k", type=int, default=5, metavar="N", help="classes an image (5)")
    parser.add_argument("--batch-size", "-b", type=int, default=64, metavar="N", help="images at once (64)")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1")
    parser.add_argument("--workers", "-j", type=int, default=2, metavar="N", help="processes that decode (2)")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--json", action="store_true", help="print JSON")
    kinds.add_argument("--csv", action="store_true", help="print CSV, a line for each image and class")
    return parser


def _predict(run: Trained, paths: Sequence[str], given: argparse.Namespace) -> int:
    from neumann.data.loose_images import LooseImages
    from neumann.training.answers import Answerer, device_of

    if run.channels not in (1, 3):
        raise UserError(f"the run takes images of {run.channels} channels, and image files have 1 (grey) or 3 (RGB)")
    answerer = Answerer(run, device_of(given.device))
    images = LooseImages("", paths, **run.preparation())
    most = min(given.topk, len(run.class_names))
    errors = Console(stderr=True)
    bar = errors.is_terminal
    held: list[str] | None = [] if bar and sys.stdout.isatty() else None  # lines between the bar's would tear it
    written = _Written(given, run.class_names, paths, held)
    failed = 0
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=errors, transient=True, disable=not bar) as progress:
            task = progress.add_task("", total=len(paths))
            for indices, pixels, damaged in images.batches(given.batch_size, given.workers):
                if pixels is not None:
                    best = answerer.probabilities(pixels).topk(most)
                    for index, values, classes in zip(
                        indices, best.values.tolist(), best.indices.tolist(), strict=True
                    ):
                        written.answer(paths[index], list(zip(classes, values, strict=True)))
                for one in damaged:
                    failed += 1
                    written.damaged(one.path, one.reason)
                    said = printable(f"{one.path} cannot be decoded: {one.reason}")
                    errors.print(said, soft_wrap=True, highlight=False, markup=False)
                progress.advance(task, len(indices) + len(damaged))
        written.end()
    finally:
        if held:
            print("\n".join(held))
    return EXIT_FAILED if failed else 0


class _Written:
    """The answers on stdout, as a table, JSON or CSV, each as soon as it is known.

    given    says which
    names    of the classes
    paths    of all images, for the table's first column
    held     takes the lines instead, where there is such a list
    """

    def __init__(
        self, given: argparse.Namespace, names: Sequence[str], paths: Sequence[str], held: list[str] | None
    ) -> None:
        self._json, self._csv, self._names, self._held = given.json, given.csv, names, held
        self._lines = 0
        self._class = max(cell_len(printable(name)) for name in ("class", *names))
        self._image = max(cell_len(printable(path)) for path in ("image", *paths))
        if sys.stdout.isatty():
            room = Console().width - 15  # what a probability and the gaps take
            self._class = min(self._class, max(SHORTEST, room - min(self._image, SHORTEST)))
            self._image = min(self._image, max(SHORTEST, room - self._class))
        if self._csv:
            self._print(_csv(["image", "rank", "class", "probability"]))
        elif not self._json:
            self._print(f"{padded('image', self._image)}  {padded('class', self._class)}  probability")

    def answer(self, path: str, best: Sequence[tuple[int, float]]) -> None:
        """Write the classes of an image, (index, probability), the most probable first."""
        if self._json:
            classes = [{"class": self._names[at], "index": at, "probability": value} for at, value in best]
            self._entry({"image": path, "classes": classes})
        elif self._csv:
            for rank, (at, value) in enumerate(best, start=1):
                self._print(_csv([printable(path), rank, printable(self._names[at]), f"{value:.6g}"]))
        else:
            for first, text in zip(self._first(path), self._told(best), strict=False):
                self._print(f"{padded(first, self._image)}  {text}")

    def damaged(self, path: str, reason: str) -> None:
        """Write an image that cannot be decoded, which only JSON has a place for."""
        if self._json:
            self._entry({"image": path, "error": reason})

    def end(self) -> None:
        """Write what ends the document."""
        if self._json:
            self._print("\n]" if self._lines else "[]")

    def _first(self, path: str) -> Iterator[str]:
        yield shortened(printable(path), self._image)
        while True:
            yield ""

    def _told(self, best: Sequence[tuple[int, float]]) -> list[str]:
        wide = self._class
        return [
            f"{padded(shortened(printable(self._names[at]), wide), wide)}  {100 * value:9.2f} %" for at, value in best
        ]

    def _entry(self, entry: dict[str, Any]) -> None:
        self._print(("[\n " if self._lines == 0 else ",\n ") + json.dumps(entry), end="")
        self._lines += 1

    def _print(self, text: str, end: str = "\n") -> None:
        if self._held is None:
            print(text, end=end)
        elif end:
            self._held.append(text)
        else:
            self._held += text.lstrip("\n").split("\n")


def _csv(cells: Sequence[object]) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="").writerow(cells)
    return file.getvalue()
