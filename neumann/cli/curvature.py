"""`neumann curvature`: both ends of the Hessian's spectrum at runs' weights, and what the paper makes of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from neumann.cli.arguments import Parser, parsed
from neumann.cli.chosen_run import ABOUT_RUN, chosen_run, take_output
from neumann.cli.own_images import WHERE, own_section, recorded_data
from neumann.errors import UserError, did_you_mean, printable
from neumann.fitting import print_table
from neumann.folders import folder_of

if TYPE_CHECKING:
    from neumann.training.measured_curvature import Asked, Measured
    from neumann.training.trained import Trained

MATRICES = ("hessian", "gauss-newton")  # as `neumann.training.measured_curvature`, which imports torch
STATISTICS = ("eval", "batch")
IMAGES, ITERATIONS, TOLERANCE, BATCH = 256, 50, 0.001, 64

HELP = f"""\
Measures the curvature of finished runs' training loss at their weights (the optimizer's answer): λ_max and λ_min of
the Hessian by Lanczos, with residual bounds, and the paper's μ = λ_max/(|λ_min| + λ_max) and η = 1/λ_max.

  neumann curvature RUN                                  on {IMAGES} of its training images
  neumann curvature RUN RUN RUN --images 1024            a table of several
  neumann curvature RUN --iterations 10 --tolerance 0 --shift --images 128
                                                         as the paper's figure 4
  neumann curvature RUN --density                        and how the eigenvalues are spread

The loss is the mean cross-entropy with the run's label smoothing, without weight decay, on images prepared as in its
evaluation; dropout is off. An iteration is one product with the matrix, counted as two gradients of all the images,
and keeps one vector of the network's size. curvature.json goes to a new folder: --to, or
RUN.curvature/MATRIX-IMAGES beside the run; with --density, density.svg and .png too.

{ABOUT_RUN}.
"""


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = parsed(_parser(), words)
    if given is None:
        return 0
    output, rest = take_output(given.words)
    moved = [word for word in rest if word.startswith("data.")]
    names = [word for word in rest if word not in moved]
    _check(given, names, moved)
    folders = [chosen_run(output, name) for name in names]
    to = None
    if given.to is not None:
        from neumann.store.new_folder import check_free

        to = Path(folder_of("--to", given.to))
        check_free(to)

    from neumann.training.measured_curvature import Asked
    from neumann.training.trained import read

    asked = Asked(
        matrix=given.matrix,
        batch_norm=given.batch_norm,
        iterations=given.iterations,
        tolerance=given.tolerance or None,
        shifted=given.shift,
        density=given.density,
        double=given.float64,
        seed=given.seed,
        batch_size=given.batch_size,
    )
    runs = [read(folder) for folder in folders]  # all of them, before the first is measured
    found = [_measure(run, asked, moved, to, given) for run in runs]
    if given.json:
        print(json.dumps([record for _, record, _ in found], indent=2, allow_nan=False))
    elif len(found) == 1:
        _print(runs[0], *found[0])
    else:
        _print_table(runs, [measured for measured, _, _ in found], [record for _, record, _ in found])
    return 0


def _parser() -> Parser:
    parser = Parser(prog="neumann curvature", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="RUN", help="one or several; data.root=FOLDER and output=FOLDER")
    parser.take_help()
    parser.add_argument("--images", "-n", type=int, metavar="N", help=f"training images ({IMAGES}, or all)")
    parser.add_argument("--matrix", default="hessian", metavar="MATRIX", help="hessian or gauss-newton")
    parser.add_argument(
        "--batch-norm",
        default="eval",
        metavar="WHICH",
        help="statistics that batch norm is held at: eval, the running ones, or batch, those of the images",
    )
    parser.add_argument(
        "--iterations", type=int, default=ITERATIONS, metavar="N", help=f"of Lanczos, at most ({ITERATIONS})"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="T",
        help=f"residual of both ends, as a share of the larger ({TOLERANCE}); 0 makes all iterations",
    )
    parser.add_argument(
        "--shift", action="store_true", help="λ_min by a second Lanczos, of H − λ_max I, as in the paper"
    )
    parser.add_argument("--density", action="store_true", help="the spectral density too, and a figure of it")
    parser.add_argument("--float64", action="store_true", help="compute in double precision")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the images and the start vectors (0)")
    parser.add_argument(
        "--batch-size", "-b", type=int, default=BATCH, metavar="N", help=f"images at once, by memory ({BATCH})"
    )
    parser.add_argument("--to", metavar="FOLDER", help="where to, of one run; nothing is overwritten")
    parser.add_argument("--json", action="store_true", help="print what the files hold, as an array of runs")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1")
    return parser


def _check(given: argparse.Namespace, names: Sequence[str], moved: Sequence[str]) -> None:
    """Raise UserError for a word or an option that is none."""
    from neumann.config.override_text import refuse_twice

    wrong = next((word for word in names if "=" in word), None)
    if wrong is not None:
        raise UserError(
            f"neumann curvature takes no '{wrong}': it measures on images that the run was trained on, and data.root "
            "says where they lie now"
        )
    if not names:
        raise UserError("neumann curvature takes a run or several: a signature's beginning, a name or a path")
    refuse_twice(moved)
    for word in moved:
        if word.partition("=")[0].removeprefix("data.") not in WHERE:
            raise UserError(
                f"'{word}' would make other images of the run's own set: say only where they lie, with data.root"
            )
    for option, least in (("images", 1), ("iterations", 1), ("batch_size", 1), ("seed", 0)):
        if (value := getattr(given, option)) is not None and value < least:
            raise UserError(f"--{option.replace('_', '-')} {value}: give {least} or more")
    if not 0 <= given.tolerance < 1:
        raise UserError(f"--tolerance {given.tolerance:g}: give a share of λ_max below 1, or 0 for a fixed number")
    for option, choices in (("matrix", MATRICES), ("batch_norm", STATISTICS)):
        word = getattr(given, option)
        if word not in choices:
            raise UserError(f"--{option.replace('_', '-')} {word} is not a choice: {did_you_mean(word, choices)}")
    if given.to == "":
        raise UserError("--to is empty: name a folder")
    if given.to is not None and len(names) > 1:
        raise UserError(f"--to is the folder of one run, and {len(names)} are given: leave it out, or name one run")


def _measure(
    run: Trained, asked: Asked, moved: Sequence[str], to: Path | None, given: argparse.Namespace
) -> tuple[Measured, dict[str, Any], Path]:
    """Return the run's measurement, its record and the folder that it was written to."""
    from neumann.data.other_sets import own_images
    from neumann.store.new_folder import free_beside
    from neumann.studies.curvature_files import write
    from neumann.training.answers import device_of
    from neumann.training.measured_curvature import measure, some_of

    data = own_section(run, moved)
    chosen = some_of(own_images(data, recorded_data(run), "train"), given.images, asked.seed, IMAGES)
    device = device_of(given.device)
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        tasks = {what: progress.add_task(what, visible=False, total=None) for what in ("eigenvalues", "density")}

        def told(what: str, done: int, most: int) -> None:
            progress.update(tasks[what], completed=done, total=most, visible=True)

        measured = measure(run, data, chosen, asked, device, told)
    record = {
        "run": {"signature": run.signature, "folder": str(run.folder), "point": run.point},
        "data": {
            "kind": data["kind"],
            "root": data.get("root"),
            "fingerprint": chosen.facts.fingerprint,
            "split": chosen.split,
            "n": len(chosen.indices),
        },
        "matrix": asked.matrix,
        "iterations": asked.iterations,
        "tolerance": asked.tolerance,
        "shifted": asked.shifted,
        "seed": asked.seed,
        "device": str(device),
        **measured.record(),
    }
    home = run.folder.parent / f"{run.folder.resolve().name}.curvature"
    place = to if to is not None else free_beside(home / f"{asked.matrix}-{len(chosen.indices)}")
    return measured, write(record, place), place


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}".replace("-", "−")


def _about(records: Sequence[Mapping[str, Any]]) -> str:
    """Return of what the eigenvalues are, by records that differ in the run alone."""
    record, counts = records[0], sorted({one["data"]["n"] for one in records})
    images = " to ".join(f"{count:,}" for count in (counts[0], counts[-1])[: len(counts)])
    matrix = "the Hessian" if record["matrix"] == "hessian" else "the Gauss-Newton matrix"
    held = {"eval": ", batch norm at its running statistics", "batch": ", batch norm at these images' statistics"}
    statistics = next((held[which] for one in records if (which := one["batch_norm"]) is not None), "")
    return f"{matrix} of the mean loss on {images} training images{statistics}"


def _print(run: Trained, measured: Measured, record: Mapping[str, Any], place: Path) -> None:
    ends = measured.ends
    print(f"{printable(run.folder.resolve().name)}, {run.point} point: {_about([record])}")
    scaled = f"  at the run's rate of {measured.rate:g}" if measured.rate is not None else "  the run records no rate"
    for name, value, more in (
        ("λ_max", ends.largest, f"  an eigenvalue within ± {_number(ends.largest_residual)}"),
        ("λ_min", ends.smallest, f"  an eigenvalue within ± {_number(ends.smallest_residual)}"),
        ("μ", ends.mu, "  λ_max / (|λ_min| + λ_max)"),
        ("η", ends.eta, "  1 / λ_max"),
        ("λ_max × rate", measured.scaled_curvature, scaled),
    ):
        print(f"  {name:<12}  {_number(value):>10}{more}")
    if ends.converged is False:
        print(
            f"  not within {record['tolerance']:g} of λ_max after {record['iterations']} iterations: give more of them"
        )
    print(
        f"  {measured.gradient_evaluations} gradient evaluations of all the images, {measured.seconds:.1f} s, "
        f"{record['krylov_bytes'] / 2**20:,.1f} MiB of Krylov vectors of {measured.parameters:,} parameters"
    )
    print(f"  in {printable(place)}: curvature.json{'  density.svg  .png' if measured.density else ''}")


def _print_table(runs: Sequence[Trained], found: Sequence[Measured], records: Sequence[Mapping[str, Any]]) -> None:
    names = ("run", "λ_max", "λ_max ±", "λ_min", "λ_min ±", "μ", "η", "rate", "λ_max × rate", "evaluations")
    rows = [
        [
            Text(printable(run.folder.resolve().name)),
            *(
                Text(_number(value))
                for value in (
                    one.ends.largest,
                    one.ends.largest_residual,
                    one.ends.smallest,
                    one.ends.smallest_residual,
                    one.ends.mu,
                    one.ends.eta,
                    one.rate,
                    one.scaled_curvature,
                )
            ),
            Text(f"{one.gradient_evaluations}{' (not converged)' if one.ends.converged is False else ''}"),
        ]
        for run, one in zip(runs, found, strict=True)
    ]
    print_table(Console(), names, rows, right=names[1:])
    print(f"of {_about(records)}; ±: an eigenvalue lies within it")
    print("curvature.json in RUN.curvature/ beside each run")
