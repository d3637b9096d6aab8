"""Check of an optimizer's parameter groups at every step: what was set in them after construction must be valid."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neumann.optim import argument_checks
from neumann.optim.private_names import write_count

Groups = list[dict[str, Any]]
Validated = Callable[..., dict[str, Any]]


class GroupChecks:
    """Refuses hyperparameters that were set in an optimizer's groups after construction and are not valid.

    Values that have been found valid are compared only. Schedules change the rate and the momentum at every step, so
    those two are checked by themselves. A rate that is a tensor on a device, or of a capturable optimizer, is read
    where another one has taken its place alone, since reading it waits for the device.
    """

    def __init__(self) -> None:
        self._settings: Callable[[dict[str, Any]], tuple[Any, ...]] | None = None  # those that no schedule changes
        self._sizes: list[int] = []  # the number of keys of each group, when it was found valid
        self._kept: list[tuple[Any, ...]] = []  # and its settings
        self._scheduled: list[tuple[Any, Any]] = []  # and its rate and momentum

    def require_valid(self, groups: Groups, optimizer: str, validated: Validated) -> None:
        """Check ``groups``; this runs in every step.

        Args:
            groups: the optimizer's parameter groups.
            optimizer: the name of its class, for messages.
            validated: returns a group's hyperparameters as plain, valid values, see `DisplacedOptimizer._validated`.

        Raises:
            ValueError: a hyperparameter is not valid or its key is misspelt; the message names the group.
        """
        if torch.compiler.is_compiling():
            return
        scheduled = [*map(_scheduled, groups)]
        if self._are_kept(groups):
            if scheduled != self._scheduled:
                self._require_valid_schedule(groups, scheduled)
        else:
            self._require_all_valid(groups, optimizer, validated)
        self._scheduled = scheduled

    def _are_kept(self, groups: Groups) -> bool:
        """Return whether the groups have the keys and the settings that were found valid."""
        if self._settings is None or [*map(len, groups)] != self._sizes:
            return False
        try:
            return [*map(self._settings, groups)] == self._kept
        except KeyError:  # one was taken out and another put in
            return False

    def _require_valid_schedule(self, groups: Groups, scheduled: list[tuple[Any, Any]]) -> None:
        for number, (group, before, now) in enumerate(zip(groups, self._scheduled, scheduled, strict=True)):
            try:
                if now[0] != before[0]:
                    argument_checks.learning_rate(_readable(group["lr"]))
                if now[1] != before[1]:
                    argument_checks.momentum(group["momentum"], set_later=True)
            except ValueError as error:
                raise _of_group(number, error) from error

    def _require_all_valid(self, groups: Groups, optimizer: str, validated: Validated) -> None:
        self._settings = None
        names: list[str] = []
        for number, group in enumerate(groups):
            try:
                valid = validated({**group, "lr": _readable(group["lr"])}, set_later=True)
                argument_checks.known_keys(group, valid, optimizer)
            except ValueError as error:
                raise _of_group(number, error) from error
            names = sorted(valid.keys() - {"lr", "momentum"})
        settings = operator.itemgetter(*names)
        self._sizes, self._kept = [*map(len, groups)], [*map(settings, groups)]
        self._settings = settings


def _of_group(number: int, error: ValueError) -> ValueError:
    """Return ``error`` with the number of the parameter group that it is about."""
    return ValueError(f"param_groups[{number}]: {error}")


def _scheduled(group: dict[str, Any]) -> tuple[Any, Any]:
    """Return the rate and the momentum of ``group``, as values that differ where these have changed."""
    lr, momentum = group["lr"], group["momentum"]
    if isinstance(lr, Tensor):
        lr = _Same(lr, _writes(lr, group))
    return lr, tuple(momentum) if isinstance(momentum, list) else momentum  # a list may be edited in place


def _writes(lr: Tensor, group: dict[str, Any]) -> int:
    """Return how often torch has written to a rate; 0 on a device, where one that is filled at every step would be
    waited for.
    """
    counted = lr.device.type == "cpu" and not group.get("capturable") and not lr.is_inference()
    return write_count(lr) if counted else 0


def _readable(lr: Any) -> Any:
    """Return ``lr``, or 0 for a tensor on a device whose stream is captured in a CUDA graph, which cannot be read."""
    unreadable = isinstance(lr, Tensor) and lr.is_cuda and torch.cuda.is_current_stream_capturing()
    return 0.0 if unreadable else lr


class _Same:
    """A tensor that equals itself alone while ``count`` is the same, without a look at what is in it."""

    def __init__(self, tensor: Tensor, count: int) -> None:
        self._tensor, self._count = tensor, count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._tensor is self._tensor and other._count == self._count

    __hash__ = None  # type: ignore[assignment]
