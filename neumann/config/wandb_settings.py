"""What W&B's client takes, and the variables of the surroundings that have no effect beside a run's own settings.

A variable that was set for another project must not change what is recorded of a run: with $WANDB_RUN_ID every run of a
sweep would be the same one. `neumann.training.mirror` hides these variables from the client, and a command says so.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING

from neumann.errors import UserError

if TYPE_CHECKING:
    from neumann.config.schema import LoggerConfig, RunConfig

PROJECT_LENGTH, TAG_LENGTH = 128, 64  # characters, as W&B's client allows
NOT_IN_A_PROJECT = "/\\#?%:"

_INSTEAD = {  # the variables that a setting of ours stands for: the setting
    "WANDB_MODE": "logger.mode",
    "WANDB_DISABLED": "logger",
    "WANDB_PROJECT": "logger.project",
    "WANDB_JOB_TYPE": "logger.job_type",
    "WANDB_TAGS": "logger.tags",
    "WANDB_RUN_GROUP": "study",
    "WANDB_NAME": "name",
}
_ALONE = (  # those that none stands for
    *("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM", "WANDB_REINIT", "WANDB_NOTES"),
    *("WANDB_DIR", "WANDB_CONFIG_PATHS", "WANDB_IGNORE_GLOBS", "WANDB_CONSOLE", "WANDB_SAVE_CODE"),
)
_OF_AN_AGENT = ("WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_NAME")  # it names its run by them
_SAID = ("WANDB_REINIT", "WANDB_CONSOLE", "WANDB_SAVE_CODE", "WANDB_IGNORE_GLOBS")  # nothing in the record misses them


def under_agent() -> bool:
    """Return whether an agent of a W&B sweep has started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def check_logger(logger: LoggerConfig) -> None:
    """Raise UserError for a project or a tag that W&B's client would refuse after training."""
    if logger.kind == "none":
        return
    check_project("logger.project=", logger.project)
    for tag in logger.tags:
        if not 1 <= len(tag) <= TAG_LENGTH:
            raise UserError(f"logger.tags: {tag!r} has {len(tag)} characters, and a tag of W&B has 1 to {TAG_LENGTH}")


def check_project(given: str, project: str) -> None:
    """Raise UserError for a project that W&B's client would refuse; ``given`` stands before it in the sentence."""
    if not project or len(project) > PROJECT_LENGTH or set(project) & set(NOT_IN_A_PROJECT):
        raise UserError(
            f"{given}{project!r} cannot be a project of W&B: it has 1 to {PROJECT_LENGTH} characters "
            f"and none of {' '.join(NOT_IN_A_PROJECT)}"
        )


def ignored_variables(config: RunConfig, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a sentence for each variable of the surroundings that asks for another mirror than ``config``."""
    if config.logger.kind == "none":
        return []
    found = []
    for name in _hidden():
        asked = environment.get(name, "").strip()
        if not asked or name in _SAID:
            continue
        key = _INSTEAD.get(name)
        if key is None:
            found.append(f"{name}={asked} has no effect: a run's mirror is told by its configuration alone")
        elif (remedy := _remedy(name, key, asked, config)) is not None:
            found.append(f"{name}={asked} has no effect: {_decides(key, config)} decides{remedy}")
    return found


def hide_variables(environment: MutableMapping[str, str] = os.environ) -> None:
    """Remove those variables for the rest of this process; W&B's client would read them."""
    for name in _hidden():
        environment.pop(name, None)


def _hidden() -> list[str]:
    return [name for name in (*_INSTEAD, *_ALONE) if not (under_agent() and name in _OF_AN_AGENT)]


def _remedy(name: str, key: str, asked: str, config: RunConfig) -> str | None:
    """Return what to add to the command, as an end of the sentence; None where the variable asks for what is so."""
    logger = config.logger
    if name == "WANDB_DISABLED":
        return ", and logger=none changes it" if asked.lower() in ("true", "1", "yes", "t", "y") else None
    if name == "WANDB_MODE":
        remedies = {"online": "logger.mode=online", "offline": "logger.mode=offline", "disabled": "logger=none"}
        return None if asked == logger.mode else f", and {remedies[asked]} changes it" if asked in remedies else ""
    if name == "WANDB_TAGS":
        asked = f"[{asked}]"
        ours = f"[{','.join(logger.tags)}]"
    else:
        ours = str({"study": config.study, "name": config.name}.get(key, getattr(logger, key.partition(".")[2], "")))
    return None if asked == ours else f", and {shlex.quote(f'{key}={asked}')} changes it"


def _decides(key: str, config: RunConfig) -> str:
    if key == "logger":
        return f"logger={config.logger.kind}"
    section, _, name = key.rpartition(".")
    value = getattr(config.logger if section else config, name)
    return f"{key}={'null' if value is None else value}"
