"""With capturable=True the phases are found on the device: the same steps, and nothing waits. GradScaler relies on it.

There need be no GPU for this: what would wait for one asks a tensor for its value, and that can be forbidden.
"""

import contextlib
import copy
import pickle
from itertools import product
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neumann.optim import Neumann, NeumannReference
from tests.support.optimizer_paths import EVERY_PATH, QUICK, every_path, path
from tests.support.optimizer_problems import copies, new_params, relative, same_bits, set_gradients, train

STRONG = {"lr": 0.05, "alpha": 3e-2, "beta": 1e-2}
CASES = {
    "burn-in and resets by countdown": {"burn_in_steps": 4, "reset_period": 5, "weight_decay": 0.1},
    "resets by absolute steps": {"burn_in_steps": 4, "reset_period": 5, "reset_rule": "absolute"},
    "fixed period": {"reset_period": 6, "reset_growth": 1, "momentum": 0.8},
    "growth 1.5, absolute": {"reset_period": 4, "reset_growth": 1.5, "reset_rule": "absolute"},
    "slow ramp of momentum": {"reset_period": 7, "reset_growth": 1.5, "momentum": (0.1, 0.95), "momentum_unit": 5},
    "no regularizers, no guard": {"alpha": 0.0, "beta": 0.0, "min_distance": 0.0, "maximize": True, "lr": 0.01},
}


class _Waiting(TorchDispatchMode):
    """Code that asks for the value of a tensor would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        asked = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select")
        assert func._schema.name.removeprefix("aten::") not in asked, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def nothing_waits():
    refuse = mock.Mock(side_effect=AssertionError("waits for the device"))
    names = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(torch.Tensor, name, refuse))
        stack.enter_context(_Waiting())
        yield


@pytest.mark.medium
@every_path("case", CASES, ["burn-in and resets by countdown"])
def test_equals_the_twin_and_what_is_not_capturable(case, name):
    params, members, literal_params = new_params(), new_params(), new_params()
    setting = {**STRONG, **CASES[case]}

    def groups(params):
        return [{"params": params[:1]}, {"params": params[1:], "lr": 0.02, "gamma": 0.9, "weight_decay": 0.2}]

    with path(name) as how:
        on_device = Neumann(groups(params), capturable=True, **how, **setting)
        plain = Neumann(groups(members), **how, **setting)
        literal = NeumannReference(groups(literal_params), **setting)
        late = [new_params(start=3) for _ in range(3)]
        for step in range(20 if name == "Triton" else 30):
            if step == 17:
                for optimizer, each, new in zip(
                    (on_device, plain, literal), (params, members, literal_params), late, strict=True
                ):
                    optimizer.add_param_group({"params": new, "alpha": 1e-3})
                    each += new
            for optimizer, each in ((on_device, params), (plain, members), (literal, literal_params)):
                train(optimizer, each, [step], has=lambda index, step: (index + step) % 4 != 0)
            assert relative(params, literal_params) < 1e-12, f"apart after step {step}"
            assert relative(params, members) < 1e-12
        assert float(on_device.distance()) == pytest.approx(literal.distance(), rel=1e-11)
        on_device.eval()
        assert relative(params, literal.answer()) < 1e-12
    assert {type(group["step"]) for group in on_device.param_groups} == {torch.Tensor}
    assert {int(group["step"]) for group in on_device.param_groups} == {plain.param_groups[0]["step"]}
    assert {state["coefficient"].dtype for state in on_device.state.values()} == {torch.float64}


@QUICK
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_a_step_asks_for_no_value(name, capturable, as_tensor):
    """Not capturable, the lists and the loop must not wait either; what they are told by the host is in numbers.

    Triton's interpreter works on values; its kernel is launched without asking, as the one in C++ is.
    """
    params = new_params(torch.float32)
    rate = torch.tensor(0.05) if as_tensor else 0.05
    setting = {**STRONG, "lr": rate, "reset_period": 4, "burn_in_steps": 5, "weight_decay": 0.1}
    with path(name) as how:
        optimizer = Neumann(params, capturable=capturable, **how, **setting)
        train(optimizer, params, range(3))  # makes state and tables
        weights = copies(params)
        set_gradients(params, 3)
        with nothing_waits():
            for _ in range(12):
                optimizer.step()
            optimizer.distance()
            optimizer.eval()
            optimizer.train()
    assert not same_bits(params, weights)
    with pytest.raises(AssertionError, match="waits"), nothing_waits():
        bool(torch.ones(()) > 0)


@QUICK
def test_loading_takes_the_saved_setting_as_torch_does_and_may_be_told_otherwise(name):
    """The flag `capturable` is saved, as in torch's Adam; a user changes it in the group after loading."""
    with path(name) as how:

        def make(capturable, params=None):
            params = new_params() if params is None else [p.clone().requires_grad_() for p in params]
            setting = {**STRONG, "burn_in_steps": 3, "reset_period": 5}
            return Neumann(params, capturable=capturable, **how, **setting), params

        uninterrupted, ended = make(False)
        train(uninterrupted, ended, range(16))
        for saving in (False, True):
            for asked in (None, False, True):
                for when in ("in the state", "by hand"):
                    first, params = make(saving)
                    train(first, params, range(9))
                    state = copy.deepcopy(first.state_dict())
                    if asked is not None and when == "in the state":
                        state["param_groups"][0]["capturable"] = asked
                    second, others = make(not saving, copies(params))
                    second.load_state_dict(state)
                    if asked is not None and when == "by hand":
                        second.param_groups[0]["capturable"] = asked
                    train(second, others, range(9, 16))
                    is_on_device = isinstance(second.param_groups[0]["step"], torch.Tensor)
                    assert is_on_device == (saving if asked is None else asked)
                    assert isinstance(second.state[others[0]]["coefficient"], torch.Tensor) == is_on_device
                    assert relative(others, ended) < 1e-12
                    second.eval()
                    uninterrupted.eval()
                    assert relative(others, ended) < 1e-12
                    uninterrupted.train()


@pytest.mark.medium
@EVERY_PATH
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "weights_only"])
def test_copies_count_for_themselves(name, way, tmp_path):
    setting = {**STRONG, "burn_in_steps": 3, "reset_period": 5, "capturable": True}
    end = 10 if name == "Triton" else 16
    with path(name) as how:
        params = new_params(torch.float32)
        optimizer = Neumann(params, **how, **setting)
        train(optimizer, params, range(7))
        if way == "weights_only":
            torch.save({"w": copies(params), "o": optimizer.state_dict()}, tmp_path / "state.pt")
            saved = torch.load(tmp_path / "state.pt", weights_only=True)
            others = [w.requires_grad_() for w in saved["w"]]
            twin = Neumann(others, **how, **setting)
            twin.load_state_dict(saved["o"])
        else:
            both = (optimizer, params)
            twin, others = copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
        train(optimizer, params, range(7, end))
        assert int(twin.param_groups[0]["step"]) == 7
        train(twin, others, range(7, end))
    assert int(twin.param_groups[0]["step"]) == end
    assert same_bits(params, others)


def test_the_first_group_may_be_empty_and_groups_count_together():
    params, late = new_params(), new_params(start=3)
    optimizer = Neumann([{"params": []}, {"params": params}], capturable=True, **STRONG)
    train(optimizer, params, range(5))
    optimizer.add_param_group({"params": late})
    train(optimizer, params + late, range(5, 7))
    steps = [group["step"] for group in optimizer.param_groups]
    assert [int(step) for step in steps] == [7, 7, 7]
    assert len({step.data_ptr() for step in steps}) == 3
    with pytest.raises(ValueError, match="capturable must be the same in all groups, here it is True"):
        optimizer.add_param_group({"params": [torch.zeros(1)], "capturable": False})
    assert len(optimizer.param_groups) == 3


def test_a_capture_needs_capturable():
    """A graph would repeat the phase of one step for ever; it would go unnoticed."""
    params = new_params()
    optimizer = Neumann(params, **STRONG)
    set_gradients(params, 0)
    capturing = mock.patch.multiple(torch.cuda, is_initialized=lambda: True, is_current_stream_capturing=lambda: True)
    with capturing, pytest.raises(RuntimeError, match="construct the optimizer with capturable=True"):
        optimizer.step()
    assert optimizer.param_groups[0]["step"] == 0
    on_device = Neumann(new_params(), capturable=True, foreach=False, **STRONG)
    train(on_device, on_device.param_groups[0]["params"], [0])
    with capturing:
        train(on_device, on_device.param_groups[0]["params"], [1])


def everything(optimizer, params):
    return copy.deepcopy({"weights": copies(params), "optimizer": optimizer.state_dict()})


def bits(content):
    """`content` with bytes in place of its tensors."""
    if isinstance(content, dict):
        return {key: bits(value) for key, value in content.items()}
    if isinstance(content, list):
        return [bits(value) for value in content]
    return content.numpy().tobytes() if isinstance(content, torch.Tensor) else content


@pytest.mark.medium
@every_path("capturable, clipped", product((False, True), (False, True)), [(True, False)])
def test_a_step_that_grad_scaler_skips_changes_nothing(capturable, clipped, name):
    """GradScaler leaves the skip and the division to a fused, capturable optimizer, on the device."""
    params, others = new_params(torch.float32), new_params(torch.float32)
    setting = {**STRONG, "burn_in_steps": 2, "reset_period": 4, "capturable": capturable}
    steps, skipped = (8, (3, 6)) if name == "Triton" else (24, (3, 9, 10, 20))
    with path(name) as how:
        optimizer, unscaled = Neumann(params, **how, **setting), Neumann(others, **how, **setting)
        assert optimizer._step_supports_amp_scaling == (capturable and how.get("fused", False))
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
        for step in range(steps):
            set_gradients(params, step)
            scale = float(scaler.scale(torch.ones(())))
            for p in params:
                p.grad.mul_(scale)
            if step in skipped:
                params[1].grad[2] = torch.inf if step % 2 else torch.nan
            before = everything(optimizer, params)
            if clipped:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            if step in skipped:
                assert bits(everything(optimizer, params)) == bits(before)
            else:
                train(unscaled, others, [step])
    assert not hasattr(optimizer, "grad_scale")
    assert same_bits(params, others)  # powers of two divide without rounding
    assert int(optimizer.param_groups[0]["step"]) == steps - len(skipped)


def test_grad_scaler_neither_asks_nor_divides_where_we_do():
    """The point of doing it ourselves: no look at found_inf on the host, and no pass over the gradients to divide them."""
    params = new_params(torch.float32)
    with path("C++") as how:
        optimizer = Neumann(params, capturable=True, **how, **STRONG)
        train(optimizer, params, range(3))
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        scaler.scale(torch.ones(()))
        set_gradients(params, 3)
        grads = [p.grad.clone() for p in params]
        with nothing_waits():
            scaler.step(optimizer)
        assert same_bits([p.grad for p in params], grads)


def test_a_first_step_that_is_skipped_leaves_zeros():
    """State is made before the device has said whether the step counts, as in torch's fused Adam."""
    params = new_params(torch.float32)
    weights = copies(params)
    with path("C++") as how:
        optimizer = Neumann(params, capturable=True, **how, **STRONG)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        scaler.scale(torch.ones(()))
        for p in params:
            p.grad = torch.full_like(p, torch.inf)
        scaler.step(optimizer)
    assert same_bits(params, weights)
    assert int(optimizer.param_groups[0]["step"]) == 0
    assert all(not value.any() for state in optimizer.state.values() for value in state.values())


def test_no_gradients_at_all_are_no_found_inf():
    optimizer = Neumann(new_params(torch.float32), capturable=True, **STRONG)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    if not optimizer._step_supports_amp_scaling:
        pytest.skip("the scaler itself refuses this")
    scaler.step(optimizer)
    assert int(optimizer.param_groups[0]["step"]) == 0
