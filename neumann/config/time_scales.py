"""The conversion of epochs to optimizer steps: the resolvers of the YAML files, and `horizon`.

``${steps:X}`` is X epochs in whole optimizer steps and ``${share:X}`` the share X of the run in epochs. ``${unit:X,N}``
is X epochs in steps, unrounded, and ``${decay:X,G}`` the share that a moving average keeps in a step, so that 1/e is
left after X epochs; where X is null they are N and G. All read the configuration they stand in, so they follow the data
set, the batch size and the horizon, and a user's own YAML may use them too.
"""

from __future__ import annotations

import math

from omegaconf import DictConfig, OmegaConf

from neumann.bounds import Bounds
from neumann.errors import UserError

MOST_STEPS = 2**53  # of a run: a float counts no further


def steps(epochs: float | None, *, _root_: DictConfig) -> int | None:
    """Return ``epochs`` in whole optimizer steps, at least one unless ``epochs`` is zero; None stays None.

    Raises UserError for what is not a number from 0 up.
    """
    if epochs is None:
        return None
    if isinstance(epochs, bool) or not isinstance(epochs, int | float) or not 0 <= epochs < math.inf:
        raise UserError(f"${{steps:{epochs}}} is not a number of epochs: write a number from 0 up")
    return max(1, round(epochs * _root_.derived.steps_per_epoch)) if epochs > 0 else 0


def share(part: float, *, _root_: DictConfig) -> float:
    """Return ``part`` of the run, in epochs. Raises UserError for what is not a number from 0 up."""
    if isinstance(part, bool) or not isinstance(part, int | float) or not 0 <= part < math.inf:
        raise UserError(f"${{share:{part}}} is not a share of a run: write a number from 0 to 1")
    return part * float(_root_.trainer.max_epochs)


def unit(epochs: float | None, steps_otherwise: float, *, _root_: DictConfig) -> float:
    """Return ``epochs`` in optimizer steps, unrounded; ``steps_otherwise`` where ``epochs`` is None.

    Raises UserError for what is not a number above 0.
    """
    if epochs is None:
        return steps_otherwise
    if isinstance(epochs, bool) or not isinstance(epochs, int | float) or not 0 < epochs < math.inf:
        raise UserError(f"${{unit:{epochs},…}} and ${{decay:{epochs},…}} take a number of epochs above 0, or null")
    return float(epochs * _root_.derived.steps_per_epoch)


def decay(epochs: float | None, per_step_otherwise: float, *, _root_: DictConfig) -> float:
    """Return the share that a moving average keeps in a step, so that 1/e of an old value is left after ``epochs``.

    It is ``per_step_otherwise`` where ``epochs`` is None. Raises UserError as `unit` does.
    """
    return per_step_otherwise if epochs is None else math.exp(-1 / unit(epochs, 1, _root_=_root_))


def register_resolvers() -> None:
    """Make the resolvers of this module known to OmegaConf; a second call changes nothing."""
    OmegaConf.register_new_resolver("steps", steps, replace=True)
    OmegaConf.register_new_resolver("share", share, replace=True)
    OmegaConf.register_new_resolver("unit", unit, replace=True)
    OmegaConf.register_new_resolver("decay", decay, replace=True)


def steps_per_epoch(batch_size: int, train_count: int) -> int:
    """Return how many whole global batches the training images hold: an epoch drops the last, incomplete one.

    Raises UserError for a batch larger than the training split.
    """
    steps = train_count // batch_size if batch_size > 0 else 0
    if steps < 1:
        raise UserError(
            f"batch.size={batch_size} does not fit the {train_count} training images: choose from 1 to {train_count}"
        )
    return steps


def horizon(*, max_epochs: float, eval_every_epochs: float, batch_size: int, train_count: int) -> dict[str, int]:
    """Return the counts of ``derived`` in optimizer steps: the horizon and the evaluation grid.

    An epoch has as many steps as whole global batches of ``batch_size`` examples fit the ``train_count`` training
    images. ``max_epochs`` and ``eval_every_epochs`` may be fractions and become at least one step. Raises UserError
    for a batch larger than the training split and for epochs that are not above 0.
    """
    steps = steps_per_epoch(batch_size, train_count)
    return {
        "train_examples": train_count,
        "steps_per_epoch": steps,
        "total_steps": _at_least_one(max_epochs, steps, "trainer.max_epochs"),
        "eval_every_steps": _at_least_one(eval_every_epochs, steps, "trainer.check_val_every_n_epoch"),
    }


def _at_least_one(epochs: float, steps_per_epoch: int, key: str) -> int:
    Bounds(above=0).check(key, epochs)
    if epochs * steps_per_epoch >= MOST_STEPS:
        raise UserError(f"{key}={epochs:g} is more steps than can be counted: choose fewer epochs")
    return max(1, round(epochs * steps_per_epoch))
