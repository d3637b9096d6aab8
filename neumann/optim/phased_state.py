"""State of a phased optimizer: per-parameter tensors, counters, and the squares saved with them.

A parameter's state is ``m`` and ``r``, shaped as the parameter, and ``coefficient``, the factor on m in the last step
that moved it (μ_u). Counters and coefficients are numbers, or tensors on the device where an optimizer is capturable. A
saved state also has the squares that the fused passes carry, so that a resumed run is the same bits.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor

from neumann.optim.fused import SQUARES, FusedPass
from neumann.optim.kernels import state_type
from neumann.optim.sharding import shards_of
from neumann.optim.tensors import Scalar

Groups = list[dict[str, Any]]
Squares = dict[Tensor, dict[int, float]]


def make_missing_states(
    params: Iterable[Tensor], states: MutableMapping[Tensor, dict[str, Any]], *, capturable: bool
) -> bool:
    """Give the state m = r = 0 to the parameters without a state; return whether there were any."""
    made = False
    for p in params:
        state = states[p]
        if "m" not in state:
            made = True
            wide = state_type(p.dtype)
            with torch.inference_mode(False):  # an inference tensor could not be written to in later steps
                state["m"] = torch.zeros_like(p, dtype=wide, memory_format=torch.preserve_format)
                state["r"] = torch.zeros_like(p, dtype=wide, memory_format=torch.preserve_format)
                state["coefficient"] = torch.zeros((), dtype=torch.float64, device=p.device) if capturable else 0.0
    return made


def place_counters(groups: Groups, states: Iterable[tuple[Tensor, dict[str, Any]]]) -> None:
    """Put ``step`` and coefficients on the parameters' device where the first group is capturable, else on the host.

    Args:
        groups: the parameter groups; their ``capturable`` becomes the first one's.
        states: the parameters that have a state, with it.
    """
    capturable = groups[0]["capturable"]
    device = next((p.device for group in groups for p in group["params"]), torch.device("cpu"))
    for group in groups:
        step, group["capturable"] = group["step"], capturable
        group["step"] = _on_device(step, torch.int64, device) if capturable else int(step)
    for p, state in states:
        kept = state["coefficient"]
        state["coefficient"] = _on_device(kept, torch.float64, p.device) if capturable else float(kept)


def counters_are_placed(groups: Groups) -> bool:
    """Return whether ``step`` lies where ``capturable`` says, which a caller may have changed since the last step."""
    return [isinstance(group["step"], Tensor) for group in groups] == [group["capturable"] for group in groups]


def note_coefficient(states: Iterable[dict[str, Any]], coefficient: Scalar, active: Scalar) -> None:
    """Store μ_u of the step that has moved the parameters of ``states``; it leads back to the base point w − μ_u·m.

    Args:
        states: of the parameters that had a gradient.
        coefficient: μ_u.
        active: 0 where the step was skipped on the device.
    """
    for state in states:
        if isinstance(coefficient, Tensor):  # in place, as the replay of a CUDA graph needs it
            kept = state["coefficient"]
            kept.copy_(torch.where(active != 0, coefficient, kept) if isinstance(active, Tensor) else coefficient)
        else:
            state["coefficient"] = coefficient


def carried_squares(passes: Iterable[FusedPass], process_group: Any) -> Squares:
    """Return the squares that ``passes`` carry, by parameter, but not those of shards, which may be cut anew."""
    return {
        p: squares for each in passes if not shards_of(each.first, process_group) for p, squares in each.saved().items()
    }


def with_squares(states: MutableMapping[Tensor, dict[str, Any]], carried: Squares) -> dict[Tensor, dict[str, Any]]:
    """Return the optimizer's states with the carried squares in them, for ``deepcopy`` and ``pickle``."""
    found = {p: {**own, SQUARES: carried[p]} if p in carried else own for p, own in states.items()}
    return defaultdict(dict, found)


def state_dict_with_squares(state_dict: dict[str, Any], groups: Groups, carried: Squares) -> dict[str, Any]:
    """Return ``state_dict``, which numbers the parameters of ``groups``, with the carried squares in it."""
    order = [p for group in groups for p in group["params"]]
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    number_of = dict(zip(order, numbers, strict=True))
    by_number = {number_of[p]: squares for p, squares in carried.items()}
    state = {
        number: {**own, SQUARES: by_number[number]} if number in by_number else own
        for number, own in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def defaults_of_today(optimizer: type) -> dict[str, Any]:
    """Return the defaults of the constructor of ``optimizer``, and of its bases', to which it may pass keywords on."""
    today: dict[str, Any] = {}
    for kind in reversed(optimizer.__mro__):
        if "__init__" in vars(kind):
            arguments = inspect.signature(vars(kind)["__init__"]).parameters.values()
            today.update((each.name, each.default) for each in arguments if each.default is not each.empty)
    return today


def _on_device(value: Scalar, dtype: torch.dtype, device: torch.device) -> Tensor:
    return value.to(device, dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype, device=device)
