"""Variables of the surroundings that have no effect beside a run's own settings, and what a command says of them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from neumann.config.schema import RunConfig
from neumann.config.wandb_settings import ignored_variables as of_mirrors

TRAINER_VARIABLES = "PL_TRAINER_"  # opens those that Lightning's Trainer takes its defaults from


def ignored_variables(config: RunConfig, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence for each variable of ``environment`` that asks for something else than ``config``."""
    of_trainer = sorted(name for name, value in environment.items() if name.startswith(TRAINER_VARIABLES) and value)
    own = vars(config.trainer)
    said = []
    for name in of_trainer:
        key = name.removeprefix(TRAINER_VARIABLES).lower()
        decides = f"trainer.{key}" if key in own else "a run's configuration"
        said.append(f"{name}={environment[name]} has no effect: {decides} decides")
    return [*said, *of_mirrors(config, environment)]
