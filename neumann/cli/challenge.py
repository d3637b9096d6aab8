"""`neumann challenge`: compare one's own optimizer with the baselines, whose runs come with the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

from neumann.cli.arguments import Parser, parsed
from neumann.errors import UserError
from neumann.fitting import say

HELP = """\
Compares a torch optimizer of yours with SGD, Nesterov, RMSProp, Adam, AdamW, LARS and Neumann on fashion14, at equal
budget: as many trials for yours as each of them had, on the same seeds. Theirs come with the package, so only yours is
trained: 24 runs, some minutes on two cores.

  neumann challenge my_package.MyOptimizer
  neumann challenge my_package.MyOptimizer --space lr=0.001,0.01,0.1,1
  neumann challenge my_package.MyOptimizer optimizer.momentum=0.95 --name my_095
  neumann challenge torch.optim.NAdam --against adamw

It first tries what torch's users expect of an optimizer, writes experiments/challenge-NAME, a study like any other,
and then does what `neumann study challenge-NAME` does. The report's page has all of it. Settings that are not named
have the constructor's defaults; without --space, four rates around the constructor's own are tried.
"""


def main(words: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = Parser(prog="neumann challenge", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", metavar="OPTIMIZER", help="the class, as package.module.Class")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="optimizer.KEY=VALUE, or what cannot change a result"
    )
    parser.add_argument(
        "--space", action="append", default=[], metavar="KEY=V,V,...", help="values of a setting to choose from"
    )
    parser.add_argument("--against", default=None, metavar="ROW", help="the baseline of the main comparison (nesterov)")
    parser.add_argument("--name", default=None, help="of the optimizer in files (its class, in small letters)")
    parser.add_argument("--plan", action="store_true", help="write the study and print what it would train")
    parser.take_help()
    given = parsed(parser, words)
    if given is None:
        return 0
    if given.target is None:
        raise UserError("neumann challenge takes an optimizer: its class, as package.module.Class")
    from neumann.challenge import files
    from neumann.studies import run as studies

    console = Console()
    own = [word for word in given.overrides if word.startswith("optimizer.")]
    rest = studies.checked([word for word in given.overrides if word not in own])
    from neumann.challenge.optimizer import challenger_of, maker, refuse_values

    challenger = files.spaced(challenger_of(given.target, given.name, own, files.as_space(given.space)))
    chosen = (f"{key} is chosen from {', '.join(map(str, values))}" for key, values in challenger.space.items())
    say(console, f"{given.target}: {'; '.join(chosen)}")
    from neumann.challenge.contracts import KEPT, TRAINS, contracts
    from neumann.challenge.cost import cost

    make = maker(challenger)
    refuse_values(challenger, make)
    found = contracts(make)
    if (why := found[TRAINS]) != KEPT:
        raise UserError(f"{given.target} does not train a small regression, so nothing is compared: {why}")
    for name, finding in found.items():
        if finding != KEPT:
            say(console, (f"{name}: ", "yellow"), finding)
    if all(finding == KEPT for finding in found.values()):
        say(console, f"it keeps all {len(found)} contracts that are tried")
    study, conf = files.write(challenger, given.against or files.AGAINST, found, lambda: cost(make))
    say(console, f"study: {study}")
    return studies.study(study.parent.name, plan=given.plan, overrides=rest, config_dirs=[str(conf)], console=console)
