"""The norms of the two regularizers are those of what the reference optimizer adds to the gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.optim import Lookahead
from torch import Tensor, nn

from neumann.optim import Neumann, NeumannReference, TwoLoopNeumann
from neumann.optim.regularizers import regularizer_norms

SETTINGS: dict[str, dict[str, Any]] = {
    "both": {"alpha": 0.3, "beta": 0.02},
    "scalars": {"alpha": 0.3, "beta": 0.02, "beta_count": "scalars"},
    "guarded": {"alpha": 0.3, "beta": 0.02, "min_distance": 5.0},
    "literal": {"alpha": 0.3, "beta": 0.02, "min_distance": 0.0},
    "no_alpha": {"alpha": 0.0, "beta": 0.02},
    "no_beta": {"alpha": 0.3, "beta": 0.0},
    "neither": {"alpha": 0.0, "beta": 0.0},
}


def _weights() -> list[Tensor]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in ((3, 2), (4,))]


def _steps(optimizer: torch.optim.Optimizer, params: list[Tensor], count: int = 5) -> None:
    for step in range(count):
        for place, p in enumerate(params):
            p.grad = torch.cos(p.detach() * (place + 1) + step)
        optimizer.step()


@pytest.mark.parametrize("name", SETTINGS)
def test_they_are_the_references(name: str) -> None:
    settings, params, others = SETTINGS[name], _weights(), _weights()
    optimizer, reference = Neumann(params, 0.1, **settings), NeumannReference(others, 0.1, **settings)
    _steps(optimizer, params)
    _steps(reference, others)
    found = regularizer_norms(optimizer)
    assert found is not None
    distance = reference.distance()
    assert found.distance == pytest.approx(distance, rel=1e-10)
    group = reference.param_groups[0]
    for key, expected in (("alpha", found.attraction), ("beta", found.repulsion)):
        alone = {**group, "alpha": 0.0, "beta": 0.0, key: group[key]}
        if group["min_distance"] is None:  # δ = √β, whichever term is looked at
            alone["min_distance"] = math.sqrt(reference._beta(group))
        pushes = [reference._regularizers(alone, w, reference.state[w]["v"], distance) for w in others]
        norm = float(torch.cat([push.flatten() for push in pushes]).norm())
        assert expected is None if settings[key] == 0 else expected == pytest.approx(norm, rel=1e-9)


def test_groups_have_coefficients_of_their_own() -> None:
    params = _weights()
    optimizer = Neumann([{"params": params[:1], "alpha": 0.5}, {"params": params[1:], "alpha": 0.0}], 0.1, beta=0.0)
    _steps(optimizer, params)
    found = regularizer_norms(Lookahead(optimizer))
    assert found is not None
    first = float(optimizer.state[params[0]]["r"].norm())
    assert found.attraction == pytest.approx(0.5 * found.distance * first, rel=1e-10)
    assert found.repulsion is None


def test_an_inner_loops_are_those_at_its_weights() -> None:
    params = _weights()
    optimizer = TwoLoopNeumann(params, 0.1, 0.1, 2, alpha=0.3, beta=0.02, beta_count="absolute")

    def closure() -> float:
        for p in params:
            p.grad = torch.cos(p.detach())
        return 0.0

    assert regularizer_norms(optimizer) is None
    for _ in range(3):
        optimizer.step(closure)
    found, r = regularizer_norms(optimizer), torch.cat([optimizer.state[p]["r"].flatten() for p in params])
    assert found is not None
    assert found.distance == pytest.approx(float(r.norm()), rel=1e-12)
    assert found.attraction == pytest.approx(0.3 * float(r.norm()) ** 2, rel=1e-12)
    size = float(r.norm())
    assert found.repulsion == pytest.approx(0.02 * size / max(size, math.sqrt(0.02)) ** 3, rel=1e-12)


def test_another_optimizer_has_none() -> None:
    params = _weights()
    optimizer = torch.optim.SGD(params, 0.1)
    _steps(optimizer, params)
    assert regularizer_norms(optimizer) is None
