"""torch.distributed.checkpoint saves at any point and loads into a fresh model and optimizer, to the same bits."""

import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from neumann.optim import NesterovInner, Neumann
from tests.support.optimizer_problems import copies, same_bits

pytestmark = [
    pytest.mark.medium,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated"),
]
KINDS = {
    "Neumann": lambda params: Neumann(params, lr=0.01, alpha=3e-2, beta=1e-2, burn_in_steps=2, reset_period=5),
    "NesterovInner": lambda params: NesterovInner(params, lr=0.01),
}


def new(kind):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    return model, KINDS[kind](model.parameters())


def go_on(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        model(torch.linspace(-1, 1, 15).reshape(5, 3) + step).square().mean().backward()
        optimizer.step()


def saved(folder, model, optimizer, options):
    weights, state = get_state_dict(model, optimizer, options=options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder, no_dist=True)


def loaded(folder, model, optimizer, options):
    weights, state = get_state_dict(model, optimizer, options=options)
    content = {"model": weights, "optimizer": state}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(content, checkpoint_id=folder, no_dist=True)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
        options=options,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("point", ["held", "base", "average"])
def test_a_fresh_optimizer_at_the_same_point_loads_it(kind, flat, point, tmp_path):
    model, optimizer = new(kind)
    if point not in optimizer.points:
        return
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    go_on(model, optimizer, range(9))
    held = copies(list(model.parameters()))
    optimizer.move_to(point)
    there = copies(list(model.parameters()))
    assert same_bits(there, held) == (point == "held")
    saved(tmp_path / "checkpoint", model, optimizer, options)

    other, resumed = new(kind)
    resumed.move_to(point)
    loaded(tmp_path / "checkpoint", other, resumed, options)
    assert resumed.point == point
    assert same_bits(list(other.parameters()), there)
    resumed.train()
    assert same_bits(list(other.parameters()), held)
    optimizer.train()
    go_on(model, optimizer, range(9, 14))
    go_on(other, resumed, range(9, 14))
    assert same_bits(list(other.parameters()), list(model.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_optimizer_at_the_held_point_is_told_what_to_do(kind, tmp_path):
    model, optimizer = new(kind)
    go_on(model, optimizer, range(9))
    optimizer.eval()
    saved(tmp_path / "checkpoint", model, optimizer, None)
    other, resumed = new(kind)
    with pytest.raises(ValueError, match=r"call optimizer.eval\(\) on the new optimizer before torch.distributed"):
        loaded(tmp_path / "checkpoint", other, resumed, None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_at_the_eval_point_stays_refused(kind):
    model, optimizer = new(kind)
    optimizer.eval()
    for lr, scale in ((0.1, 0.0), (0.0, 1.0)):
        optimizer.param_groups[0]["lr"] = lr
        for p in model.parameters():
            p.grad = torch.full_like(p, scale)
        with pytest.raises(RuntimeError, match="where they are evaluated, not trained"):
            optimizer.step()
        assert not optimizer.state
