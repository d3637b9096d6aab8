"""A user's own wrapper around an optimizer, in a whole run that is stopped and goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from neumann.errors import Interrupted
from neumann.store import find
from neumann.training.stopping import Stop
from tests.support.quick_runs import Train, quick

YAML = """\
# sharpness-aware minimization: neumann train optimizer=sharp
_target_: tests.support.sharpness.SAM
base: {base} # the optimizer inside
lr: 0.05 # rate of the optimizer inside
weight_decay: 0.0 # of the optimizer inside
rho: 0.05 # how far to climb, in the unit of the weights
"""


@pytest.mark.medium
@pytest.mark.parametrize("base", ["sgd", "neumann"])
def test_sam_goes_on_to_the_same_bits(
    base: str, train: Train, own_group: Callable[[str, str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dirs = (own_group("optimizer", "sharp", YAML.format(base=base) + ("momentum: 0.9\n" if base == "sgd" else "")),)
    choice = ("optimizer=sharp", "+model.kwargs.drop_rate=0.2")
    whole, untouched = train(*choice, "study=untouched", dirs=dirs)
    assert set(whole["test"]) == ({"held"} if base == "sgd" else {"held", "base", "average"})
    original = Stop.on_train_batch_end

    def stop_once(self: Stop, *words: Any) -> None:
        if words[-1] == 24:
            monkeypatch.setattr(Stop, "on_train_batch_end", original)
            signal.raise_signal(signal.SIGINT)
        original(self, *words)

    monkeypatch.setattr(Stop, "on_train_batch_end", stop_once)
    with pytest.raises(Interrupted, match="stopped at step 25"):
        train(*choice, dirs=dirs)
    result, folder = train(*choice, dirs=dirs)
    assert find(quick(*choice, dirs=dirs)).path == folder.path
    assert result["test"] == whole["test"]
    mine, other = (torch.load(each.eval_weights, weights_only=True)["state_dict"] for each in (folder, untouched))
    assert all(torch.equal(value, other[name]) for name, value in mine.items())
