"""A kernel that is given addresses must notice whatever else people do to tensors; the other paths must agree with it."""

import copy
from itertools import product

import pytest
import torch

from neumann.optim import NesterovInner, Neumann
from tests.support.optimizer_paths import EVERY_PATH, PATHS, QUICK, every_path, path
from tests.support.optimizer_problems import copies, new_params, relative, same_bits, set_gradients, train

STRONG = {"lr": 0.05, "alpha": 3e-2, "beta": 1e-2, "reset_period": 7}


def pair(how, dtype=torch.float32, steps=3, **setting):
    """Two optimizers that have trained alike."""
    made = []
    for _ in range(2):
        params = new_params(dtype)
        optimizer = Neumann(params, **{**STRONG, **how, **setting})
        train(optimizer, params, range(steps))
        made.append((optimizer, params))
    return made


@pytest.mark.medium
@EVERY_PATH
def test_state_that_is_offloaded_through_data_is_found_where_it_is(name):
    """`state.data = ...` is how optimizers are moved to the host and back; the old memory is no longer ours."""
    with path(name) as how:
        (moved, params), (stayed, others) = pair(how)
        before = {p: {key: moved.state[p][key].clone() for key in ("m", "r")} for p in params}
        for p in params:
            for key in ("m", "r"):
                old = moved.state[p][key].data
                moved.state[p][key].data = old.clone()
                old.fill_(torch.nan)
        train(moved, params, range(5, 9))
        train(stayed, others, range(5, 9))
    assert same_bits(params, others)
    assert all(not torch.equal(moved.state[p]["r"], before[p]["r"]) for p in params)
    assert all(torch.equal(moved.state[p]["r"], stayed.state[q]["r"]) for p, q in zip(params, others, strict=True))


@pytest.mark.medium
@EVERY_PATH
def test_a_hand_that_torch_does_not_see_on_r_says_so_by_loading(name):
    """`.data`, NumPy and collectives raise no version; the norm that is carried would be that of the old r."""
    with path(name) as how:
        (written, params), (looped, others) = pair(how)[0], pair({"foreach": False})[0]
        for optimizer, members in ((written, params), (looped, others)):
            for p in members:
                optimizer.state[p]["r"].data.mul_(3)
            optimizer.load_state_dict(optimizer.state_dict())
            train(optimizer, members, range(3, 9))
    assert relative(params, others) < 1e-6


@pytest.mark.parametrize(
    ("name", "to"),  # Triton's interpreter cuts bfloat16 off instead of rounding it, as GPUs do
    [case for case in product(PATHS, (torch.float64, torch.bfloat16)) if case != ("Triton", torch.bfloat16)],
)
def test_a_module_that_is_cast_takes_its_state_along(name, to):
    """module.to(dtype) sets `.data`; m and r then follow, to float32 where the weights are halves."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4)
    inputs = torch.randn(6, 3)
    with path(name) as how:
        optimizer = Neumann(model.parameters(), **how, **{**STRONG, "lr": 1e-2})
        for dtype in (torch.float32, to):
            model.to(dtype)
            for _ in range(4):
                optimizer.zero_grad()
                model(inputs.to(dtype)).square().sum().backward()
                optimizer.step()
    wide = torch.promote_types(to, torch.float32)
    states = list(optimizer.state.values())
    assert {state[key].dtype for state in states for key in ("m", "r")} == {wide}

    torch.manual_seed(0)
    reference = torch.nn.Linear(3, 4).double()
    torch.randn(6, 3)
    literal = Neumann(reference.parameters(), foreach=False, **{**STRONG, "lr": 1e-2})
    for _ in range(8):
        literal.zero_grad()
        reference(inputs.double()).square().sum().backward()
        literal.step()
    assert relative(list(model.parameters()), list(reference.parameters())) < (1e-2 if to == torch.bfloat16 else 1e-6)


@EVERY_PATH
def test_memory_that_was_given_back_and_taken_again_is_not_mistaken(name):
    """A weight of another type may come to lie where the old one was."""
    with path(name) as how:
        (optimizer, params), _ = pair(how, torch.float64, steps=4)
        room = params[0].data  # 12 numbers of 8 bytes
        params[0].data = room.view(torch.float32).view(-1)[:12].view(3, 4).copy_(torch.linspace(-1, 1, 12).view(3, 4))
        assert params[0].data_ptr() == room.data_ptr()
        beyond = room.view(torch.float32).view(-1)[12:].clone()
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert torch.equal(room.view(torch.float32).view(-1)[12:], beyond)
        assert optimizer.state[params[0]]["r"].dtype == torch.float32
        assert torch.isfinite(params[0]).all()


@EVERY_PATH
def test_gradients_of_another_type_are_read_as_what_they_are(name):
    if not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("this torch gives every gradient the type of its parameter")
    ended = []
    for grad_type in (torch.float32, torch.float64):
        p = torch.ones(5, requires_grad=True)
        p.grad_dtype = grad_type
        with path(name) as how:
            optimizer = Neumann([p], **how, **STRONG)
            for step in range(5):
                p.grad = torch.full((5,), 0.25 * (step + 1), dtype=grad_type)
                optimizer.step()
        ended.append(p)
    assert torch.equal(*ended)


def test_a_stale_gradient_of_another_size_is_refused():
    with path("C++") as how:
        (optimizer, params), _ = pair(how)
        params[1].data = torch.zeros(2)
        optimizer.state[params[1]].update(m=torch.zeros(2), r=torch.zeros(2))
        with pytest.raises(
            RuntimeError, match=r"a gradient of shape \(5,\) does not fit its parameter of shape \(2,\)"
        ):
            optimizer.step()


@pytest.mark.medium
@EVERY_PATH
def test_state_of_another_shape_is_refused(name):
    """torch does not compare shapes; a kernel would write beyond the end."""
    saved = Neumann([torch.zeros(2, 3, requires_grad=True)], lr=0.1)
    saved.param_groups[0]["params"][0].grad = torch.ones(2, 3)
    saved.step()
    with path(name) as how:
        p = torch.ones(4, 3, requires_grad=True)
        optimizer = Neumann([("head.weight", p)], **how, **STRONG)
        message = r"the state 'm' of parameter 'head.weight' has the shape \(2, 3\), but the parameter has \(4, 3\)"
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(saved.state_dict())
        assert len(optimizer.state) == 0
        p.grad = torch.ones(4, 3)
        optimizer.step()
        optimizer.state[p]["r"] = torch.zeros(2, 3)
        with pytest.raises(RuntimeError, match=r"shape|size"):
            train(optimizer, [p], range(2))


def test_state_of_another_shape_is_refused_by_every_displaced_optimizer():
    saved = NesterovInner([torch.zeros(2, requires_grad=True)], lr=0.1)
    saved.param_groups[0]["params"][0].grad = torch.ones(2)
    saved.step()
    with pytest.raises(ValueError, match=r"the state 'm' of parameter 0 has the shape \(2,\)"):
        NesterovInner([torch.zeros(3, requires_grad=True)], lr=0.1).load_state_dict(saved.state_dict())


@EVERY_PATH
def test_a_parameter_that_replaces_another_in_its_group_is_trained(name):
    """Model surgery: param_groups are edited in place, and nothing else changes."""
    with path(name) as how:
        (optimizer, params), (twin, others) = pair(how)
        for each, members in ((optimizer, params), (twin, others)):
            old = members[1]
            members[1] = each.param_groups[0]["params"][1] = torch.ones(5, requires_grad=True)
            if each is twin:  # the other way to say it
                del each.state[old]
            train(each, members, range(5, 8))
        assert not torch.equal(params[1], torch.ones(5))
        assert same_bits(params, others)


@pytest.mark.parametrize(
    ("name", "capturable"),
    [case for case in product(PATHS, (False, True)) if case != ("Triton", True)],  # the interpreter itself asks then
)
def test_the_default_device_is_not_asked(name, capturable):
    """torch.set_default_device("cuda") is common; here "meta" tells whether anything relies on the default."""
    with path(name) as how:
        (optimizer, params), (twin, others) = pair(how, steps=0, capturable=capturable)
        for step in range(5):
            set_gradients(params, step)
            with torch.device("meta"):
                optimizer.step()
                optimizer.distance()
                optimizer.eval()
                optimizer.train()
        train(twin, others, range(5))
        with torch.device("meta"):
            again = copy.deepcopy(optimizer)
            again.load_state_dict(optimizer.state_dict())
        assert str(again.param_groups[0]["step"]) == str(optimizer.param_groups[0]["step"])
    assert same_bits(params, others)


@QUICK
@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_the_default_type_is_not_asked(name, default):
    with path(name) as how:
        (optimizer, params), (twin, others) = pair(how, steps=0, capturable=True)
        torch.set_default_dtype(default)
        try:
            train(optimizer, params, range(9))
        finally:
            torch.set_default_dtype(torch.float32)
        train(twin, others, range(9))
    assert same_bits(params, others)


@EVERY_PATH
def test_inference_mode_and_autocast_change_nothing(name):
    with path(name) as how:
        (optimizer, params), (twin, others) = pair(how, steps=0)
        with torch.inference_mode():  # the state is made within, and used outside
            train(optimizer, params, range(3))
            optimizer.eval()
            optimizer.train()
        train(optimizer, params, range(3, 6))
        with torch.inference_mode():
            optimizer.state_dict()
            train(optimizer, params, range(6, 8))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            train(optimizer, params, range(8, 10))
        train(twin, others, range(10))
    assert same_bits(params, others)


@EVERY_PATH
def test_no_elements_and_no_dimensions(name):
    def run(how):
        params = [torch.zeros(0, requires_grad=True), torch.ones((), requires_grad=True)]
        params.append(torch.zeros(3, 0, 2, requires_grad=True))
        optimizer = Neumann([{"params": params[:1]}, {"params": params[1:]}], **how, **STRONG)
        for step in range(6):
            for p in params:
                p.grad = torch.sin(p.detach() + step)
            optimizer.step()
        return params

    with path(name) as how:
        params = run(how)
        nothing = torch.zeros(0, requires_grad=True)
        alone = Neumann([nothing], **how, **STRONG)
        for _ in range(3):
            nothing.grad = torch.zeros(0)
            alone.step()
        assert float(alone.distance()) == 0
        assert alone.param_groups[0]["step"] == 3
    looped = run({"foreach": False})
    assert relative(params[1:2], looped[1:2]) < 1e-6
    assert float(params[1].detach()) != 1


@pytest.mark.parametrize("name", ["foreach", "C++"])
def test_thousands_of_small_parameters(name):
    shapes = tuple((1 + index % 3,) for index in range(2000))
    looped, params = new_params(shapes=shapes), new_params(shapes=shapes)
    assert len(params) == 2000
    for each, how in ((looped, {"foreach": False}), (params, None)):
        with path(name) as own:
            optimizer = Neumann(each, **(how or own), **STRONG)
            for step in range(4):
                for p in each:
                    p.grad = torch.full_like(p, 0.1 * step + 0.1)
                optimizer.step()
    assert relative(params, looped) < 1e-12


@pytest.mark.medium
@every_path("bad", ["nan", "inf"], ["nan"])
def test_numbers_that_are_not_finite_show_and_a_good_state_recovers(bad, name):
    with path(name) as how:
        (optimizer, params), (twin, others) = pair(how)
        weights, state = copies(params), copy.deepcopy(optimizer.state_dict())
        set_gradients(params, 5)
        params[0].grad[0, 0] = float(bad)
        optimizer.step()
        train(optimizer, params, range(6, 8))
        assert not torch.isfinite(params[0][0, 0])
        assert not torch.isfinite(optimizer.distance())
        assert not (params[1].abs() < 1e30).any()  # by the norm that they share
        with torch.no_grad():
            for p, weight in zip(params, weights, strict=True):
                p.copy_(weight)
        optimizer.load_state_dict(state)
        for each, members in ((optimizer, params), (twin, others)):
            train(each, members, range(5, 9))
    assert same_bits(params, others)
