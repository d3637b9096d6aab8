"""`neumann export`: write a run's weights as a folder that timm and the Hugging Face Hub load."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from neumann.cli.arguments import Parser, parsed
from neumann.cli.chosen_run import ABOUT_RUN, chosen_run, take_output
from neumann.errors import UserError, printable
from neumann.folders import folder_of
from neumann.store import records

HELP = f"""\
Writes the weights of a finished run, at the optimizer's answer, as a folder that timm loads without this package:
model.safetensors, config.json (network, classes, how images are prepared) and README.md (a model card).

  neumann export RUN                  beside the run, as RUN.export
  neumann export RUN --to FOLDER      a folder that is not there yet

  timm.create_model("local-dir:FOLDER", pretrained=True)        timm 1.0.16 or later

{ABOUT_RUN}.
"""


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="neumann export", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="RUN", help="and output=FOLDER")
    parser.take_help()
    parser.add_argument("--to", metavar="FOLDER", help="where to; nothing is overwritten")
    given = parsed(parser, words)
    if given is None:
        return 0
    output, names = take_output(given.words)
    if len(names) != 1:
        raise UserError("neumann export takes one run: a signature's beginning, a name or a path")
    folder = chosen_run(output, names[0])
    here = folder.resolve()
    to = Path(folder_of("--to", given.to)) if given.to is not None else folder.parent / f"{here.name}.export"
    if given.to == "":
        raise UserError("--to is empty: name a folder")

    from neumann.store.new_folder import check_free

    check_free(to)

    from neumann.training.exported import export
    from neumann.training.trained import read

    run = read(folder)
    alone = export(run, to, _command_of(folder))
    print(f"{printable(folder)} at the point {run.point}, in {printable(to)}:")
    print("  model.safetensors  config.json  README.md")
    if alone:
        named = json.dumps(f"local-dir:{printable(to)}", ensure_ascii=False)  # a path may hold quotes
        print(f"  timm.create_model({named}, pretrained=True)")
    else:
        print(f"  timm alone does not know {run.name}: README.md says how it loads")
    return 0


def _command_of(folder: Path) -> list[str] | None:
    """Return the overrides that train the run of ``folder`` again, None where they are not known."""
    from neumann.config.from_record import refuse_foreign_code
    from neumann.config.repeat import words_of

    try:
        record = records.read_record(folder)
        refuse_foreign_code(record["config"])
    except UserError:  # the weights are exported all the same
        return None
    return words_of(record)
