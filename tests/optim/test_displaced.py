"""Tests of evaluating(), and of the one warning when a watched model is evaluated at the displaced point."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from torch import nn

from neumann.optim import NesterovInner, Neumann, WeightAverage, at, evaluating
from neumann.optim.displaced import Watcher
from tests.support.optimizer_problems import copies, new_params, same_bits, train

KINDS = {
    "neumann": lambda params: Neumann(params, lr=0.05),
    "nesterov_inner": lambda params: NesterovInner(params, lr=0.05),
    "nesterov": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda params: torch.optim.Adam(params, lr=0.05),
}
INPUTS = torch.ones(2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_goes_to_the_eval_point_of_any_optimizer_and_back(kind: str) -> None:
    params = new_params(torch.float32)
    optimizer = KINDS[kind](params)
    train(optimizer, params, range(20))
    held = copies(params)
    with at(optimizer, "held" if kind == "adam" else "base"):
        answer = copies(params)
    assert same_bits(answer, held) == (kind == "adam")
    with evaluating(optimizer):
        assert same_bits(params, answer)
        with evaluating(optimizer):
            assert same_bits(params, answer)
        assert same_bits(params, answer)
    assert same_bits(params, held)
    with pytest.raises(KeyError), evaluating(optimizer):
        raise KeyError
    assert same_bits(params, held)


@pytest.mark.parametrize("kind", ["neumann", "nesterov_inner"])
def test_the_method_beside_eval_and_train_nests_with_everything(kind: str) -> None:
    params = new_params(torch.float32)
    optimizer = KINDS[kind](params)
    train(optimizer, params, range(20))
    held = copies(params)
    optimizer.eval()
    answer = copies(params)
    optimizer.train()
    assert not same_bits(answer, held)
    with optimizer.evaluating():
        assert optimizer.point == "base"
        assert same_bits(params, answer)
        with pytest.raises(RuntimeError, match="evaluated, not trained"):
            optimizer.step()
        with at(optimizer, "held"):
            assert same_bits(params, held)
            with optimizer.evaluating():
                assert same_bits(params, answer)
            assert same_bits(params, held)
        with pytest.raises(KeyError), optimizer.evaluating():
            raise KeyError
        assert same_bits(params, answer)
    assert optimizer.point == "held"
    assert same_bits(params, held)
    optimizer.eval()  # a block within eval() ends where it began
    with optimizer.evaluating():
        pass
    assert optimizer.point == "base"
    optimizer.train()
    assert same_bits(params, held)


def test_from_the_average_the_block_ends_at_the_average() -> None:
    params = new_params(torch.float32)
    optimizer = Neumann(params, lr=0.05)
    train(optimizer, params, range(20))
    optimizer.move_to("average")
    average = copies(params)
    with optimizer.evaluating():
        assert not same_bits(params, average)
    assert optimizer.point == "average"
    assert same_bits(params, average)


def trained(steps: int = 5, **settings: object) -> tuple[nn.Module, Neumann]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = Neumann(model.parameters(), lr=0.05, **settings)
    optimizer.watch(model)
    go_on(model, optimizer, steps)
    return model, optimizer


def go_on(model: nn.Module, optimizer: Neumann, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(INPUTS).sum().backward()
        optimizer.step()


def said(model: nn.Module, times: int = 1) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            model(INPUTS)
    ours = [w for w in caught if "runs in eval mode" in str(w.message)]
    assert all(w.filename == __file__ for w in ours), "the warning names the line that ran the model"
    return len(ours)


def test_a_model_in_eval_mode_at_the_displaced_point_is_said_once() -> None:
    model, optimizer = trained()
    assert said(model) == 0  # it trains
    model.eval()
    assert said(model, times=3) == 1
    go_on(model, optimizer, 1)
    assert said(model) == 0


def test_the_weights_and_the_output_are_the_same_with_and_without() -> None:
    (model, _), (plain, other) = trained(), trained(0)
    plain._forward_pre_hooks.clear()
    go_on(plain, other, 5)
    assert same_bits(list(model.parameters()), list(plain.parameters()))
    model.eval(), plain.eval()
    with pytest.warns(UserWarning, match="eval mode"):
        assert torch.equal(model(INPUTS), plain(INPUTS))


@pytest.mark.parametrize(
    "settings",
    [{"burn_in_steps": 9}, {"reset_period": 4}],
    ids=["burn-in", "after a reset"],
)
def test_nothing_is_said_where_both_points_are_one(settings: dict[str, int]) -> None:
    model, optimizer = trained(0, **settings)
    model.eval()
    assert said(model) == 0  # before the first step
    model.train()
    go_on(model, optimizer, 5)
    model.eval()
    assert said(model) == 0
    model.train()
    go_on(model, optimizer, 6)
    model.eval()
    assert said(model) == 1


def test_nothing_is_said_where_a_point_was_asked_for() -> None:
    model, optimizer = trained()
    model.eval()
    for point in ("held", "base", "average"):
        with at(optimizer, point):
            assert said(model) == 0
    with at(optimizer, "base"), at(optimizer, "held"):
        assert said(model) == 0
    with optimizer.evaluating():
        assert said(model) == 0
    optimizer.eval()
    assert said(model) == 0
    optimizer.train()
    with pytest.raises(KeyError), at(optimizer, "held"):
        raise KeyError
    assert said(model) == 1  # and only now


def test_nothing_is_said_at_an_attached_average() -> None:
    model = nn.Linear(3, 1)
    optimizer = NesterovInner(model.parameters(), lr=0.05)
    WeightAverage(optimizer, 0.9)
    optimizer.watch(model)
    go_on(model, optimizer, 3)
    model.eval()
    with at(optimizer, "average"):
        assert said(model) == 0
    assert said(model) == 1


def test_the_handle_ends_it() -> None:
    model, optimizer = trained()
    model._forward_pre_hooks.clear()
    handle = optimizer.watch(model)
    handle.remove()
    model.eval()
    assert said(model) == 0
    assert not model._forward_pre_hooks


@pytest.mark.medium
def test_neither_keeps_the_other_alive() -> None:
    model, optimizer = trained()
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    model.eval()
    assert said(model) == 0


def test_copies_of_the_model_leave_it_behind() -> None:
    model, _ = trained()
    for copied in (copy.deepcopy(model), copy.copy(pickle.loads(pickle.dumps(model)))):
        assert not any(isinstance(hook, Watcher) for hook in copied._forward_pre_hooks.values())
        copied.eval()
        assert said(copied) == 0
        assert torch.equal(copied(INPUTS), copied[2](copied[1](copied[0](INPUTS))))
        copied.train()
        copied(INPUTS).sum().backward()
    model.eval()
    assert said(model) == 1  # it is still watched itself


@pytest.mark.medium
def test_a_saved_model_is_no_larger_and_loads_without_this_package(tmp_path) -> None:
    model, _ = trained()
    file, plain = tmp_path / "model.pt", io.BytesIO()
    torch.save(model, file)
    model._forward_pre_hooks.clear()
    torch.save(model, plain)
    assert file.stat().st_size - len(plain.getvalue()) < 1000
    code = f"""
import sys, torch
model = torch.load({str(file)!r}, weights_only=False)
print(model.eval()(torch.ones(2, 3)).shape, any(name.startswith("neumann") for name in sys.modules))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["torch.Size([2,", "1])", "False"]


@pytest.mark.medium
def test_a_compiled_model_stays_one_graph_and_its_wrapper_can_be_watched() -> None:
    model, optimizer = trained()
    model.eval()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=count, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = compiled(INPUTS)
        optimizer.eval()
        compiled(INPUTS)
        optimizer.train()
        assert torch.equal(compiled(INPUTS), expected)
    assert len(graphs) == 1
    optimizer.watch(compiled)
    with pytest.warns(UserWarning, match="eval mode"):
        compiled(INPUTS)


def test_a_model_can_be_scripted_once_the_handle_is_removed() -> None:
    model, optimizer = trained()
    model._forward_pre_hooks.clear()
    optimizer.watch(model).remove()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(torch.jit.script(model)(INPUTS), model(INPUTS))


# other weights at the eval point


DROPPED = "other weights were put into the model while .* they are dropped, and training goes on from the held weights"


@pytest.mark.parametrize("kind", ["neumann", "nesterov_inner"])
@pytest.mark.parametrize("how", ["eval", "block"])
def test_weights_loaded_at_the_eval_point_are_dropped_with_a_warning(kind: str, how: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = KINDS[kind](model.parameters())
    params = [*model.parameters()]
    train(optimizer, params, range(20))
    held, best = copies(params), nn.Linear(3, 2).state_dict()

    def load() -> None:
        model.load_state_dict(best)
        assert torch.equal(model.weight, best["weight"])

    def judge() -> None:
        if how == "block":
            with evaluating(optimizer):
                load()
        else:
            optimizer.eval()
            load()
            optimizer.eval()  # an evaluation of what was loaded takes it as it is
            assert torch.equal(model.weight, best["weight"])
            optimizer.train()

    with pytest.warns(UserWarning, match=DROPPED) as said:
        judge()
    assert len(said) == 1
    assert same_bits(params, held)
    load()  # at the held point they are trained on from
    train(optimizer, params, range(20, 21))
    assert not same_bits(params, held)


@pytest.mark.parametrize("kind", ["neumann", "nesterov_inner"])
def test_what_is_put_back_at_the_eval_point_is_not_warned_about(kind: str) -> None:
    params = new_params(torch.float32)
    optimizer = KINDS[kind](params)
    train(optimizer, params, range(20))
    held = copies(params)
    for point in ("base", *(["average"] if kind == "neumann" else [])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.move_to(point)
            there = copies(params)
            with torch.no_grad():
                for p, value in zip(params, there, strict=True):  # an average's swap, and back
                    p.zero_()
                    p.copy_(value)
            copied = copy.deepcopy((params, optimizer))
            state = copy.deepcopy(optimizer.state_dict())
            with torch.no_grad():
                params[0].fill_(1.0)
            optimizer.load_state_dict(state)  # the weights of a checkpoint, and then its state
            for ours, its in ((params, optimizer), copied):
                its.train()
                assert same_bits(ours, held)


def test_weights_that_are_not_finite_are_put_back_without_a_warning() -> None:
    params = new_params(torch.float32)
    optimizer = KINDS["neumann"](params)
    train(optimizer, params, range(5))
    params[0].data[0] = torch.nan
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        optimizer.eval()
        params[0].copy_(params[0].clone())
        optimizer.train()


# a rate of 0


@pytest.mark.parametrize("kind", ["neumann", "nesterov_inner"])
def test_at_a_rate_of_0_the_weights_coast_by_what_is_left_of_the_momentum(kind: str) -> None:
    make = {"neumann": lambda p: Neumann(p, lr=0.05, momentum=0.8), "nesterov_inner": lambda p: NesterovInner(p, 0.05, momentum=0.8)}  # fmt: skip
    params = new_params()
    optimizer = make[kind](params)
    train(optimizer, params, range(20))
    held, momenta = copies(params), [optimizer.state[p]["m"].clone() for p in params]
    optimizer.param_groups[0]["lr"] = 0.0
    for count in range(1, 4):
        train(optimizer, params, range(20 + count, 21 + count))
        way = sum(0.8 ** (k + 1) for k in range(1, count + 1))
        for p, w, m in zip(params, held, momenta, strict=True):
            torch.testing.assert_close(p.detach(), w + way * m)
    train(optimizer, params, range(30, 230))
    for p, w, m in zip(params, held, momenta, strict=True):
        torch.testing.assert_close(p.detach(), w + 0.8**2 / (1 - 0.8) * m)
    with evaluating(optimizer):
        for p, w, m in zip(params, held, momenta, strict=True):
            torch.testing.assert_close(p.detach(), w + 0.8**2 / (1 - 0.8) * m)


def test_a_rate_of_0_from_the_start_moves_nothing() -> None:
    params = new_params()
    optimizer = Neumann([{"params": params[:1], "lr": 0.0}, {"params": params[1:]}], lr=0.05)
    before = copies(params)
    train(optimizer, params, range(20))
    assert same_bits(params[:1], before[:1])
    assert not same_bits(params[1:], before[1:])
