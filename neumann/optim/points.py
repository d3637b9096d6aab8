"""The points at which any torch optimizer's weights can be evaluated, and the way there and back.

``held`` is where the gradient is taken, ``base`` is the answer where the held point is a displaced one, ``average`` is
a moving average of the weights. To compare one optimizer at its base point with another at its held point is a
confound, so all of them have the same names of points::

    for point in points(optimizer):
        with at(optimizer, point):
            record[point] = validate(model)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from neumann.optim.average import WeightAverage
from neumann.optim.displaced import DisplacedOptimizer
from neumann.optim.private_names import is_sharding_wrapper, optimizers_beside_each_other, passes_modes_on
from neumann.optim.wrappers import wrapped

POINTS = ("held", "base", "average")
# attribute of an optimizer at its base point: the held weights, which nested blocks and move_back restore
HELD = "_neumann_held"


def points(optimizer: Optimizer) -> tuple[str, ...]:
    """Return the points that ``optimizer`` has, some of ``("held", "base", "average")`` in this order.

    ========================================  =======  ==============  ===========
    optimizer                                 held     base            average
    ========================================  =======  ==============  ===========
    :class:`~neumann.optim.Neumann`           w        w − μm          v = w − r
    :class:`~neumann.optim.NesterovInner`     w        w − μm
    torch.optim.SGD, nesterov, momentum > 0   w        w + ημ·buf
    with ``eval()`` and ``train()``           train()  eval()
    any other                                 w
    others with a :class:`WeightAverage`      same     same            v
    wrappers (Lookahead, accelerate's, SAM)   those of the optimizer that they wrap
    ========================================  ======================================

    A wrapper is followed by its attribute ``optimizer``, ``optim``, ``base_optimizer`` or either with an underscore,
    and by any other that holds a torch optimizer of the same tensors.

    Raises:
        ValueError: the points are those of an optimizer inside that has other tensors than its wrapper, such as one
            rank's shards in torch's ZeroRedundancyOptimizer: to move those would leave the model's weights behind. Or
            ``optimizer`` keeps several, each for a part of the model, and one of them has a point beside the held one.
    """
    own = _own_points(_unwrapped(optimizer))
    return own if _average(optimizer) is None else (*own, "average")


def eval_point(optimizer: Optimizer) -> str:
    """Return the point to validate, test, predict and export at: ``"base"`` where there is one, else ``"held"``."""
    return "base" if "base" in points(optimizer) else "held"


@contextmanager
def at(optimizer: Optimizer, point: str) -> Iterator[None]:
    """Hold the parameters at ``point`` within the block and restore them bit for bit after it, also on exceptions.

    The block is for evaluating: what it does to the parameters is dropped. For torch's Nesterov the base point takes
    the last step's rate and momentum from the group, so schedules must set them before a step (as `neumann.training`
    does), not after it; before the first step, the base point is the held one.

    Args:
        optimizer: any torch optimizer, or a wrapper around one.
        point: one of :func:`points` of it.

    Raises:
        ValueError: ``optimizer`` does not have ``point``; the message names those it has. Or as in :func:`points`.
    """
    valid = points(optimizer)
    average = _average(optimizer)
    optimizer = _unwrapped(optimizer)
    if point not in valid:
        raise ValueError(f"{type(optimizer).__name__} has the points {', '.join(valid)}; got {point!r}")
    if average is None:
        with _at_own(optimizer, point):
            yield
    elif point == "average":
        with _asked_by_name(optimizer), average.at_average():
            yield
    else:
        with average.put_back(), _at_own(optimizer, point):
            yield


@contextmanager
def evaluating(optimizer: Optimizer) -> Iterator[None]:
    """Hold the parameters at the eval point of ``optimizer`` within the block, and put them back as :func:`at` does.

    A loop with this block evaluates every optimizer at the right point; for most of them nothing moves.
    """
    with at(optimizer, eval_point(optimizer)):
        yield


def move_to_eval_point(optimizer: Optimizer) -> None:
    """Move the parameters to the eval point and leave them there, until :func:`move_back`; :func:`at` nests within it.

    For callers whose beginning and end are two calls, as hooks are; a block is :func:`evaluating`. Idempotent.
    """
    optimizer = _unwrapped(optimizer)
    if isinstance(optimizer, DisplacedOptimizer):
        optimizer.eval()
    elif eval_point(optimizer) == "base" and getattr(optimizer, HELD, None) is None:
        setattr(optimizer, HELD, _stash(optimizer))
        if has_modes(optimizer):
            _switch_mode(optimizer, training=False)
        else:
            _move_to_nesterov_base(optimizer)


def move_back(optimizer: Optimizer, *, quietly: bool = False) -> None:
    """Undo :func:`move_to_eval_point`, bit for bit. Idempotent.

    Args:
        optimizer: any torch optimizer, or a wrapper around one.
        quietly: do not warn where other weights are dropped, since the caller has a copy of them or replaces them.
    """
    optimizer = _unwrapped(optimizer)
    if isinstance(optimizer, DisplacedOptimizer):
        if quietly:
            optimizer._written = None
        optimizer.train()
        return
    held: list[tuple[Tensor, Tensor]] | None = getattr(optimizer, HELD, None)
    if held is None:
        return
    if has_modes(optimizer):
        _switch_mode(optimizer, training=True)
    _restore(held)
    setattr(optimizer, HELD, None)


def is_moved(optimizer: Optimizer) -> bool:
    """Return whether the parameters are where :func:`move_to_eval_point` has moved them, away from the held point."""
    optimizer = _unwrapped(optimizer)
    if isinstance(optimizer, DisplacedOptimizer):
        return optimizer.point != "held"
    return getattr(optimizer, HELD, None) is not None


def _unwrapped(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that moves the weights: the one inside a wrapper, else ``optimizer`` itself.

    Lookahead interpolates the held weights between two steps and leaves the momentum alone, so the base point of the
    interpolated w is still w − μm. A wrapper with modes of its own around an optimizer that has the held point alone
    is not looked into.

    Raises:
        ValueError: as in :func:`points`.
    """
    chain = [each for each in wrapped(optimizer) if isinstance(each, Optimizer)]
    inside = chain[-1] if chain else optimizer
    for member in optimizers_beside_each_other(inside):
        if points(member) != ("held",):
            raise ValueError(
                f"{type(inside).__name__} keeps several optimizers, and {type(member).__name__} among them has "
                "evaluation points of its own: evaluate within a block of each, with at(member, point) or "
                "evaluating(member), instead of one of the whole"
            )
    if inside is optimizer:
        return optimizer
    if _own_points(inside) == ("held",):
        return next(filter(has_modes, chain), inside)
    outer, inner = ({id(p) for group in each.param_groups for p in group["params"]} for each in (optimizer, inside))
    if outer != inner or any(map(is_sharding_wrapper, wrapped(optimizer))):
        raise ValueError(
            f"the evaluation points of {type(inside).__name__} inside {type(optimizer).__name__} cannot be reached: it "
            "has other tensors than the model, such as this rank's shards of it; use FSDP2, whose DTensors keep the "
            "points, or an optimizer that is evaluated where it trains"
        )
    return inside


def _average(optimizer: Optimizer) -> WeightAverage | None:
    """Return the average that is attached to ``optimizer`` or to one that it wraps."""
    found = map(WeightAverage.of, wrapped(optimizer))
    return next((average for average in found if average is not None), None)


@contextmanager
def _asked_by_name(optimizer: Optimizer) -> Iterator[None]:
    """Keep the watcher of ``optimizer`` quiet within the block, whose point is asked for by name."""
    if isinstance(optimizer, DisplacedOptimizer):
        with optimizer._at(optimizer.point):
            yield
    else:
        yield


def _own_points(optimizer: Optimizer) -> tuple[str, ...]:
    """Return the points that ``optimizer`` has without an average that was attached to it."""
    if isinstance(optimizer, DisplacedOptimizer):
        return optimizer.points
    return ("held", "base") if _has_nesterov(optimizer) or has_modes(optimizer) else ("held",)


@contextmanager
def _at_own(optimizer: Optimizer, point: str) -> Iterator[None]:
    """Hold the parameters at one of the optimizer's own points within the block."""
    if isinstance(optimizer, DisplacedOptimizer):
        with optimizer._at(point):
            yield
    elif _own_points(optimizer) == ("held",):
        yield
    elif has_modes(optimizer):
        stash = _stash(optimizer)
        leave = _nothing
        try:
            leave = _switch_mode(optimizer, training=point == "held")
            yield
        finally:
            leave()
            _restore(stash)
    else:
        outer: list[tuple[Tensor, Tensor]] | None = getattr(optimizer, HELD, None)
        stash = _stash(optimizer)
        try:
            if outer is None and point == "base":
                setattr(optimizer, HELD, stash)
                _move_to_nesterov_base(optimizer)
            elif outer is not None and point == "held":  # within a block that is at the base point
                setattr(optimizer, HELD, None)
                _restore(outer)
            yield
        finally:
            setattr(optimizer, HELD, outer)
            _restore(stash)


def _stash(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    return [(p, p.detach().clone()) for group in optimizer.param_groups for p in group["params"]]


def _has_nesterov(optimizer: Optimizer) -> bool:
    is_sgd = isinstance(optimizer, torch.optim.SGD)
    return is_sgd and any(group["nesterov"] and group["momentum"] > 0 for group in optimizer.param_groups)


def has_modes(optimizer: Optimizer) -> bool:
    """Return whether ``optimizer`` has ``eval()`` and ``train()`` of its own, which move the weights."""
    has_both = all(callable(getattr(optimizer, mode, None)) for mode in ("eval", "train"))
    return has_both and not passes_modes_on(optimizer)


def _switch_mode(optimizer: Optimizer, *, training: bool) -> Callable[[], None]:
    """Put an optimizer that has ``train()`` and ``eval()`` into one of its modes; return the call that undoes it.

    Schedule-free optimizers keep their mode in ``group["train_mode"]``; without one, training is assumed.
    """
    was_training = optimizer.param_groups[0].get("train_mode", getattr(optimizer, "train_mode", True))
    enter, leave = getattr(optimizer, "train"), getattr(optimizer, "eval")  # noqa: B009 (typed as a plain Optimizer)
    if not training:
        enter, leave = leave, enter
    if was_training == training:
        return _nothing
    enter()
    return leave


@torch.no_grad()
def _move_to_nesterov_base(optimizer: Optimizer) -> None:
    """Undo the displacement in torch's form of Nesterov momentum.

    buf ← μ buf + g and w ← w − η (g + μ buf) mean that w = θ − ημ buf with θ ← θ − ηg, hence θ = w + ημ buf. This holds
    for maximize too, since torch turns the gradient's sign before it enters buf.
    """
    for group in optimizer.param_groups:
        if not group["nesterov"]:
            continue
        for p in group["params"]:
            buf = optimizer.state[p].get("momentum_buffer") if p in optimizer.state else None
            if buf is not None:
                p.add_(buf * group["momentum"] * group["lr"])


@torch.no_grad()
def _restore(stash: list[tuple[Tensor, Tensor]]) -> None:
    for p, held in stash:
        p.copy_(held)


def _nothing() -> None:
    pass
