"""`neumann evaluate`: score a run's weights on its own test split again, or on another set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from neumann.cli.arguments import Parser, parsed
from neumann.cli.chosen_run import ABOUT_RUN, chosen_run, take_output
from neumann.cli.own_images import WHERE, own_section, recorded_data
from neumann.errors import UserError, did_you_mean, printable
from neumann.fitting import SHORTEST, padded, shortened
from neumann.folders import folder_of

if TYPE_CHECKING:
    from neumann.data.other_sets import ChosenImages
    from neumann.studies.evaluation_files import Evaluation
    from neumann.training.scored import Scored
    from neumann.training.trained import Trained

SPLITS = ("test", "validation", "train", "all")  # as `neumann.data.other_sets`, which imports the readers of images
RUNS_OWN = ("augmentation", "channels", "image_size", "mean", "std")  # of its network: another set cannot change them
LISTED = 10  # classes and confusions on the terminal; the files have all
BESIDE = 50  # columns that the numbers of a class take at most

HELP = f"""\
Scores a finished run's weights, at the optimizer's answer: error and loss with 95 % intervals, per class, and which
classes were taken for which. Without data=, on its own test split, which gives the recorded error again.

  neumann evaluate RUN                                   its own test split
  neumann evaluate RUN data.root=/new/place              the same, where its images have moved
  neumann evaluate RUN data=image_folder data.root=/path/to/images --split all
  neumann evaluate RUN data=cifar10 data.root=/path/to/cifar --to results

Images are prepared as in the run's evaluation, and classes are matched by name. Without --split it is the test split,
or all images of another folder that has no splits. evaluation.json, classes.csv, confusion.csv, images.csv and
confusion.svg and .png go to a new folder: --to, or RUN.evaluations/SET-SPLIT beside the run.

{ABOUT_RUN}.
"""


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parsed(_parser(), words)
    if given is None:
        return 0
    output, rest = take_output(given.words)
    names = [word for word in rest if not word.startswith(("data=", "data."))]
    asked = [word for word in rest if word.startswith(("data=", "data."))]
    if len(names) != 1:
        wrong = next((word for word in names if "=" in word), None)
        only = f"neumann evaluate takes no '{wrong}', only data=... and its settings"
        raise UserError(only if wrong else "neumann evaluate takes one run: a signature's beginning, a name or a path")
    if given.batch_size is not None and given.batch_size < 1:
        raise UserError(f"--batch-size {given.batch_size}: give 1 or more")
    if given.split is not None and given.split not in SPLITS:
        raise UserError(f"--split {given.split} is not a choice: {did_you_mean(given.split, SPLITS)}")
    folder = chosen_run(output, names[0])
    to = None if given.to is None else _named(given.to)
    section = _section(asked, given.config_dirs)

    from neumann.training.trained import read

    return _evaluate(read(folder), section, asked, to, given)


def _parser() -> Parser:
    parser = Parser(prog="neumann evaluate", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="RUN", help="then data=SET and its settings; and output=FOLDER")
    parser.take_help()
    parser.add_argument("--split", metavar="SPLIT", help="test, validation, train or all")
    parser.add_argument("--to", metavar="FOLDER", help="where to; nothing is overwritten")
    parser.add_argument("--batch-size", "-b", type=int, metavar="N", help="images at once (as the run's evaluation)")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1")
    parser.take_config_dirs()
    return parser


def _named(text: str) -> Path:
    from neumann.store.new_folder import check_free

    if not text:
        raise UserError("--to is empty: name a folder")
    path = Path(folder_of("--to", text))
    check_free(path)
    return path


def _section(asked: Sequence[str], config_dirs: Sequence[str]) -> dict[str, Any] | None:
    """Return the data section of another set, None where ``asked`` names none. Raises UserError."""
    from neumann.config.override_text import key_of, refuse_twice

    refuse_twice(asked)
    another = any(key_of(word) == "data" for word in asked)
    for word in asked:
        name = key_of(word).removeprefix("data.")
        if name in RUNS_OWN:
            raise UserError(f"'{word}' cannot be set: images are prepared as they were for the run's own network")
        if not another and name not in WHERE:
            raise UserError(
                f"'{word}' would make other images of the run's own set: name a set with data=, or say only where its "
                "images lie, with data.root"
            )
    if not another:
        return None

    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from neumann.config.compose import composing
    from neumann.config.hydra_words import interpolation

    with composing(config_dirs) as composer:
        composed, _ = composer.compose(asked)
    try:
        data: Any = OmegaConf.to_container(composed.data, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"data: {interpolation(error)}") from error
    if isinstance(data.get("root"), str):
        data["root"] = folder_of("data.root", data["root"])
    return {str(key): value for key, value in data.items()}


def _chosen(run: Trained, section: Mapping[str, Any] | None, own: Mapping[str, Any], split: str | None) -> ChosenImages:
    from neumann.data.other_sets import other_images, own_images

    recorded = recorded_data(run)
    if section is None:
        return own_images(own, recorded, split or "test")
    return other_images(
        section,
        run.class_names,
        image_size=run.image_size,
        channels=run.channels,
        interpolation=run.interpolation,
        crop_pct=run.crop_pct,
        split=split,
        own=recorded["fingerprint"],
    )


def _evaluate(
    run: Trained, section: Mapping[str, Any] | None, asked: Sequence[str], to: Path | None, given: argparse.Namespace
) -> int:
    from neumann.store.new_folder import free_beside
    from neumann.studies.evaluation_files import Evaluation, write
    from neumann.training.answers import Answerer, device_of
    from neumann.training.scored import other_batches, own_batches, score

    data = own_section(run, asked) if section is None else section
    chosen = _chosen(run, section, data, given.split)
    device = device_of(given.device)
    answerer = Answerer(run, device)
    make = own_batches if section is None else other_batches
    batches = make(run, data, chosen, batch_size=given.batch_size, device=device)
    errors = Console(stderr=True)
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("", total=len(chosen.indices))
        scored = score(answerer, batches, len(run.class_names), lambda count: progress.advance(task, count))
    kind, root = str(data["kind"]), data.get("root")
    name = Path(str(root)).resolve().name if kind == "image_folder" else kind
    home = run.folder.parent / f"{run.folder.resolve().name}.evaluations"
    place = to if to is not None else free_beside(home / f"{name}-{chosen.split}")
    paths = chosen.facts.examples.paths
    evaluation = Evaluation(
        run={
            "signature": run.signature,
            "folder": str(run.folder),
            "point": run.point,
            **(_recorded(run, scored) if section is None and chosen.split == "test" else {}),
        },
        data={
            "kind": kind,
            "root": root,
            "fingerprint": chosen.facts.fingerprint,
            "split": chosen.split,
            "images": chosen.said,
            "absent_classes": list(chosen.absent),
        },
        machine={"device": str(device), "precision": run.precision},
        class_names=run.class_names,
        images=[paths[i] if paths else str(i) for i in chosen.indices.tolist()],
        labels=scored.labels,
        predicted=scored.predicted,
        losses=scored.losses,
        confusion=scored.confusion,
    )
    write(evaluation, place)
    _print(evaluation, place)
    return 0


def _recorded(run: Trained, scored: Scored) -> dict[str, Any]:
    """Return the recorded scores, and how many images were answered otherwise then, None where that is not known."""
    from neumann.store import per_image

    try:
        right = per_image.read(run.folder, run.result).get(f"test.{run.point}")
    except UserError:
        right = None
    now = scored.labels == scored.predicted
    known = right is not None and len(right) == len(now)
    return {"recorded": dict(run.scores()), "changed": int((right != now).sum()) if known else None}


def _compared(evaluation: Evaluation) -> str:
    """Return how the scores of the own test split compare with those that the run recorded."""
    recorded, changed, wrong = evaluation.run["recorded"], evaluation.run["changed"], evaluation.summary()["wrong"]
    if changed == 0:
        return "as recorded, image by image"
    if changed is not None:
        return f"recorded: {recorded.get('wrong')} wrong; {changed} image(s) otherwise, as other devices round"
    why = "which images were right is not recorded, as in runs of earlier versions"
    return (
        f"as recorded; {why}" if recorded.get("wrong") == wrong else f"recorded: {recorded.get('wrong')} wrong; {why}"
    )


def _print(evaluation: Evaluation, place: Path) -> None:
    summary = evaluation.summary()
    said = [f"{100 * summary[key]:.2f} %" for key in ("error", "error_low", "error_high")]
    print(f"{printable(evaluation.data['images'])}: {summary['n']:,} images, {evaluation.run['point']} point")
    print(f"  error  {said[0]}  95 % interval [{said[1]}, {said[2]}]  ({summary['wrong']:,} wrong)")
    bounds = [summary[key] for key in ("loss_low", "loss_high")]
    between = f"  95 % interval [{bounds[0]:.4f}, {bounds[1]:.4f}]" if None not in bounds else ""
    loss = "not finite" if summary["loss"] is None else f"{summary['loss']:.4f} nats"
    print(f"  loss   {loss}{between}")
    if "recorded" in evaluation.run:
        print(f"         {_compared(evaluation)}")
    classes = sorted((one for one in evaluation.by_class() if one["n"]), key=lambda one: -one["error"])
    if classes:
        wide = max(cell_len(printable(one["class"])) for one in classes[:LISTED])
        if sys.stdout.isatty():
            wide = min(wide, max(SHORTEST, Console().width - BESIDE))
        print("  worst classes:" if len(classes) > LISTED else "  by class:")
        for one in classes[:LISTED]:
            low, high = 100 * one["error_low"], 100 * one["error_high"]
            name = padded(shortened(printable(one["class"]), wide), wide)
            print(f"    {name}  {100 * one['error']:6.2f} %  [{low:.2f} %, {high:.2f} %]  (n = {one['n']:,})")
    if absent := evaluation.data["absent_classes"]:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        print(f"  classes of the run without images: {printable(', '.join(absent[:3]))}{more}")
    print(f"  in {printable(place)}: evaluation.json  classes.csv  confusion.csv  images.csv  confusion.svg  .png")
