"""A wrong argument ends in one sentence: which, what it was, and what is valid."""

import math

import pytest
import torch

from neumann.optim import NesterovInner, Neumann

WRONG = [
    ({"lr": -0.1}, r"lr must be a finite number >= 0, got -0\.1"),
    ({"lr": math.nan}, r"lr must be a finite number >= 0, got nan"),
    ({"lr": "0.1"}, r"lr must be a finite number >= 0, got '0\.1'"),
    ({"lr": None}, r"lr must be a finite number >= 0, got None"),
    ({"lr": torch.tensor([0.1, 0.2])}, r"Tensor lr must be 1-element, got one of shape \(2,\)"),
    ({"lr": torch.tensor(-1.0)}, r"lr must be a finite number >= 0, got -1\.0"),
    ({"alpha": -1e-7}, r"alpha must be a finite number >= 0, got -1e-07"),
    ({"alpha": "1e-7"}, r"alpha must be a finite number >= 0, got '1e-7'"),
    ({"alpha": True}, r"alpha must be a finite number >= 0, got True"),
    ({"beta": -1}, r"beta must be a finite number >= 0, got -1"),
    ({"beta": math.inf}, r"beta must be a finite number >= 0, got inf"),
    (
        {"beta_count": "tensor"},
        r"beta_count must be one of 'tensors', 'scalars', 'absolute', got 'tensor'; did you mean 'tensors'\?",
    ),
    ({"beta_count": 3}, r"beta_count must be one of 'tensors', 'scalars', 'absolute', got 3$"),
    ({"gamma": 1.0}, r"gamma must be a finite number >= 0 and < 1, got 1\.0"),
    ({"gamma": -0.5}, r"gamma must be a finite number >= 0 and < 1, got -0\.5"),
    ({"momentum": 1}, r"momentum must be a finite number >= 0 and < 1, got 1"),
    ({"momentum": -0.1}, r"momentum must be a finite number >= 0 and < 1, got -0\.1"),
    ({"momentum": (0.9, 0.5)}, r"momentum must be a pair \(start, peak\) with start <= peak, got \(0\.9, 0\.5\)"),
    ({"momentum": (0.5, 1.0)}, r"momentum's peak must be a finite number >= 0 and < 1, got 1\.0"),
    ({"momentum": [-1, 0.5]}, r"momentum's start must be a finite number >= 0 and < 1, got -1"),
    ({"momentum": (0.5,)}, r"momentum must be a number in \[0, 1\) or a pair \(start, peak\) of them, got \(0\.5,\)"),
    ({"momentum": "0.9"}, r"momentum must be a finite number >= 0 and < 1, got '0\.9'"),
    ({"momentum_unit": 0}, r"momentum_unit must be a finite number > 0, got 0"),
    ({"burn_in_steps": -1}, r"burn_in_steps must be a whole number >= 0, got -1"),
    ({"burn_in_steps": 2.5}, r"burn_in_steps must be a whole number >= 0, got 2\.5"),
    ({"burn_in_steps": None}, r"burn_in_steps must be a whole number >= 0, got None"),
    ({"reset_period": 0}, r"reset_period must be a whole number >= 1, got 0"),
    ({"reset_period": 10.5}, r"reset_period must be a whole number >= 1, got 10\.5"),
    ({"reset_period": True}, r"reset_period must be a whole number >= 1, got True"),
    ({"reset_period": math.inf}, r"reset_period must be a whole number >= 1, got inf"),
    (
        {"reset_period": 1, "reset_growth": 1},
        r"reset_period must be at least 2 where reset_growth is 1, got 1: every step",
    ),
    ({"reset_growth": 0.5}, r"reset_growth must be a finite number >= 1, got 0\.5"),
    ({"reset_rule": "count_down"}, r"reset_rule must be one of .*, got 'count_down'; did you mean 'countdown'\?"),
    ({"weight_decay": -1e-4}, r"weight_decay must be a finite number >= 0, got -0\.0001"),
    ({"min_distance": -1}, r"min_distance must be a finite number >= 0, got -1"),
    ({"min_distance": "none"}, r"min_distance must be a finite number >= 0, got 'none'"),
    ({"maximize": 1}, r"maximize must be True or False, got 1"),
    ({"foreach": "yes"}, r"foreach must be True, False or None, got 'yes'"),
    ({"fused": True, "foreach": True}, r"fused and foreach cannot both be True: leave one at None"),
    ({"capturable": None}, r"capturable must be True or False, got None"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[str(wrong) for wrong, _ in WRONG])
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        Neumann([torch.zeros(1)], **wrong)
    with pytest.raises(ValueError, match=message):
        Neumann([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], **wrong}])
    optimizer = Neumann([torch.zeros(1)])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [torch.zeros(1)], **wrong})
    assert len(optimizer.param_groups) == 1


INNER = ("lr", "momentum", "weight_decay", "maximize", "foreach")
WRONG_INNER = [
    ({"lr": 0.1, **w}, m) for w, m in WRONG if set(w) <= set(INNER) and not isinstance(w.get("momentum"), (tuple, list))
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_INNER, ids=[str(wrong) for wrong, _ in WRONG_INNER])
def test_wrong_arguments_of_nesterov_inner(wrong, message):
    with pytest.raises(ValueError, match=message):
        NesterovInner([torch.zeros(1)], **wrong)
    with pytest.raises(ValueError, match=message):
        NesterovInner([{"params": [torch.zeros(1)], **wrong}], lr=0.1)


def test_nesterov_inner_has_no_ramp():
    with pytest.raises(ValueError, match=r"momentum must be a finite number"):
        NesterovInner([torch.zeros(1)], lr=0.1, momentum=(0.5, 0.9))


@pytest.mark.parametrize("make", [Neumann, lambda params: NesterovInner(params, lr=0.1)], ids=["neumann", "inner"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_parameters_that_are_not_real_numbers(make, dtype):
    with pytest.raises(ValueError, match=f"trains real floating-point parameters, got one of {dtype}"):
        make([torch.zeros(3, dtype=dtype)])
    optimizer = make([torch.zeros(3)])
    with pytest.raises(ValueError, match="real floating-point"):
        optimizer.add_param_group({"params": [torch.zeros(3, dtype=dtype)]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("make", [Neumann, lambda params: NesterovInner(params, lr=0.1)], ids=["neumann", "inner"])
def test_sparse_gradients_are_refused_before_anything_moves(make):
    dense = torch.ones(2, requires_grad=True)
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = make([{"params": [dense]}, {"params": embedding.parameters()}])
    dense.grad = torch.ones(2)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(2))
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("steps", [0, -1, "100", math.nan, None])
def test_paper_wants_a_number_of_steps(steps):
    with pytest.raises(ValueError, match=r"steps_per_epoch must be a finite number > 0, got"):
        Neumann.paper([torch.zeros(1)], 0.1, steps_per_epoch=steps)


@pytest.mark.parametrize(
    "right",
    [
        {"lr": 0},
        {"lr": torch.tensor(0.1)},
        {"momentum": 0},
        {"momentum": [0.5, 0.9]},
        {"momentum": (0.9, 0.9)},
        {"reset_period": 2, "reset_growth": 1},
        {"reset_period": 1, "reset_growth": 1.5},
        {"min_distance": 0},
        {"gamma": 0},
        {"fused": False, "foreach": False},
    ],
    ids=str,
)
def test_what_lies_on_the_border_is_accepted(right):
    p = torch.ones(3, requires_grad=True)
    optimizer = Neumann([p], **right)
    for _ in range(5):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert torch.isfinite(p).all()


def test_keys_that_others_keep_in_groups_are_left_alone():
    optimizer = Neumann([{"params": [torch.zeros(1)], "name": "head", "lr_scale": 0.5}])
    assert (optimizer.param_groups[0]["name"], optimizer.param_groups[0]["lr_scale"]) == ("head", 0.5)
    named = Neumann(torch.nn.Linear(2, 2).named_parameters())
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
