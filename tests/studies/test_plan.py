"""Tests of a study's plan: its evaluation points of an optimizer are those of the optimizer that is built."""

from __future__ import annotations

import pytest
import torch

from neumann.config import make_spec
from neumann.config.compose import list_groups
from neumann.optim.points import points
from neumann.training.optimizers import build_optimizer

pytestmark = pytest.mark.medium

NAMED = {"torch": "optimizer.name=Adagrad", "timm": "optimizer.name=lion"}


@pytest.mark.parametrize("name", list_groups()["optimizer"])
def test_an_optimizer_keeps_an_average_of_its_own_where_its_file_has_a_gamma(name: str) -> None:
    section = make_spec([f"optimizer={name}", *([NAMED[name]] if name in NAMED else [])]).config.optimizer
    optimizer = build_optimizer(torch.nn.Linear(2, 2), section, "none")
    assert ("average" in points(optimizer)) == ("gamma" in section)
