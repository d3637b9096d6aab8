"""A run that resumes from a state is the uninterrupted one, whatever way the state goes and whatever hooks it meets."""

import copy
import io
import pickle
import warnings

import pytest
import torch

from neumann.optim import BurnInSGD, NesterovInner, Neumann
from tests.support.optimizer_paths import EVERY_PATH, QUICK, path
from tests.support.optimizer_problems import copies, new_params, relative, same_bits, set_gradients, train

STRONG = {"lr": 0.05, "alpha": 3e-2, "beta": 1e-2, "burn_in_steps": 2, "reset_period": 5}


def trained(how, dtype=torch.float32, steps=6, params=None):
    params = new_params(dtype) if params is None else params
    optimizer = Neumann(params, **how, **STRONG)
    train(optimizer, params, range(steps))
    return optimizer, params


def fresh(params):
    return [p.detach().clone().requires_grad_() for p in params]


def through_a_file(content):
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.medium
@EVERY_PATH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "weights_only"])
def test_a_copy_goes_on_as_the_original_on_every_path(name, dtype, way):
    end = 8 if name == "Triton" else 16
    with path(name) as how:
        optimizer, params = trained(how, dtype)
        if way == "weights_only":
            saved = through_a_file({"weights": copies(params), "optimizer": optimizer.state_dict()})
            others = fresh(saved["weights"])
            twin = Neumann(others, lr=9.0, **how)
            twin.load_state_dict(saved["optimizer"])
        else:
            both = (optimizer, params)
            twin, others = copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
        for p, q in zip(params, others, strict=True):
            for key in ("m", "r"):
                assert torch.equal(optimizer.state[p][key], twin.state[q][key])
                assert twin.state[q][key].dtype == torch.float32
        train(optimizer, params, range(6, end))
        train(twin, others, range(6, end))
    assert same_bits(params, others)


@QUICK
def test_a_checkpoint_from_before_one_pass_existed(name):
    """Its groups know no fused and capturable, its halves have a state of halves, and no squares are carried."""
    known = {
        "alpha": 3e-2, "beta": 1e-2, "beta_count": "tensors", "gamma": 0.99, "momentum": (0.5, 0.9), "momentum_unit": 1.0,
        "burn_in_steps": 2, "reset_period": 5, "reset_growth": 2.0, "reset_rule": "countdown", "weight_decay": 0.0,
        "min_distance": None, "maximize": False, "foreach": None, "lr": 0.05, "step": 6, "point": "held",
    }  # fmt: skip
    with path(name) as how:
        reference, params = trained(how, torch.bfloat16)
        state = {
            index: {key: value.bfloat16() if key in "mr" else value for key, value in own.items() if key != "squares"}
            for index, own in reference.state_dict()["state"].items()
        }
        old = {"state": state, "param_groups": [{**known, "params": [0, 1, 2]}]}
        others = fresh(params)
        optimizer = Neumann(others, lr=1.0, **how)
        optimizer.load_state_dict(through_a_file(old))
        group = optimizer.param_groups[0]
        assert (group["step"], group["capturable"], group["fused"]) == (6, False, how.get("fused"))
        for p, q in zip(params, others, strict=True):
            assert optimizer.state[q]["r"].dtype == torch.float32
            assert torch.equal(optimizer.state[q]["r"], reference.state[p]["r"].bfloat16().float())
        train(optimizer, others, range(6, 12))
        train(reference, params, range(6, 12))
        assert relative(others, params) < 2e-2

        pickled = optimizer.__getstate__()  # as that version would have it: a whole optimizer with fewer arguments
        pickled["defaults"] = {key: value for key, value in known.items() if key not in ("step", "point")}
        pickled["param_groups"] = [{**known, "params": others, "step": 12}]
        pickled["state"] = {
            p: {key: value.bfloat16() if key in "mr" else value for key, value in own.items() if key != "squares"}
            for p, own in pickled["state"].items()
        }
        opened = Neumann.__new__(Neumann)
        opened.__setstate__(copy.deepcopy({**pickled, "param_groups": [{**known, "params": others, "step": 12}]}))
        assert opened.defaults["capturable"] is False
        assert opened.param_groups[0]["step"] == 12
        opened = pickle.loads(pickle.dumps(opened))
        train(opened, opened.param_groups[0]["params"], range(12, 15))
        opened.add_param_group({"params": new_params(start=3)})
        assert opened.param_groups[1]["fused"] is None


@QUICK
def test_missing_keys_get_todays_defaults(name):
    with path(name) as how:
        optimizer, params = trained(how)
        saved = optimizer.state_dict()
        for key in ("gamma", "momentum_unit", "min_distance", "fused", "capturable", "maximize", "foreach"):
            saved["param_groups"] = [{k: v for k, v in group.items() if k != key} for group in saved["param_groups"]]
        others = fresh(params)
        resumed = Neumann(others, **how)
        resumed.load_state_dict(copy.deepcopy(saved))
        assert resumed.param_groups[0] == {**optimizer.param_groups[0], "params": others}
        train(optimizer, params, range(6, 12))
        train(resumed, others, range(6, 12))
    assert same_bits(params, others)


@QUICK
def test_hooks_on_loading_have_the_last_word(name):
    """A hook before may return another dict, one after may change the state: of halves too, which we restore."""
    with path(name) as how:
        optimizer, params = trained(how, torch.bfloat16)
        saved = copy.deepcopy(optimizer.state_dict())

        def tripled(_, state_dict):
            state = {
                index: {key: value * 3 if key == "m" else value for key, value in own.items()}
                for index, own in state_dict["state"].items()
            }
            return {**state_dict, "state": state}

        def doubled(loaded):
            seen.append({state["m"].dtype for state in loaded.state.values()})
            for state in loaded.state.values():
                state["m"].mul_(2)

        seen, others = [], fresh(params)
        resumed = Neumann(others, lr=1.0, **how)
        resumed.register_load_state_dict_pre_hook(tripled)
        resumed.register_load_state_dict_post_hook(doubled)
        resumed.load_state_dict(saved)
        for p, q in zip(params, others, strict=True):
            assert torch.equal(resumed.state[q]["m"], optimizer.state[p]["m"] * 6)
            assert torch.equal(resumed.state[q]["r"], optimizer.state[p]["r"])
        assert seen == [{torch.float32}]
        assert (
            len(resumed._optimizer_load_state_dict_pre_hooks) == len(resumed._optimizer_load_state_dict_post_hooks) == 1
        )
        with pytest.raises(ValueError, match="different number of parameter groups"):
            resumed.load_state_dict({"state": {}, "param_groups": []})
        assert len(resumed._optimizer_load_state_dict_post_hooks) == 1


@QUICK
def test_hooks_on_saving_see_all_that_is_saved(name):
    with path(name) as how:
        optimizer, _ = trained(how)
        seen = []
        optimizer.register_state_dict_pre_hook(lambda each: seen.append("before"))
        optimizer.register_state_dict_post_hook(lambda _, packed: seen.append(set(packed["state"][0])))
        handle = optimizer.register_state_dict_post_hook(lambda _, packed: {"wrapped": packed})
        assert set(optimizer.state_dict()) == {"wrapped"}
        carried = {"squares"} if how.get("fused") else set()
        assert seen == ["before", {"m", "r", "coefficient"} | carried]
        handle.remove()
        assert set(optimizer.state_dict()) == {"state", "param_groups"}


@QUICK
def test_loading_leaves_the_dict_as_it_was(name):
    with path(name) as how:
        optimizer, params = trained(how, torch.bfloat16)
        saved = copy.deepcopy(optimizer.state_dict())
        before = copy.deepcopy(saved)
        Neumann(fresh(params), **how).load_state_dict(saved)
    assert str(saved) == str(before)


@QUICK
@pytest.mark.parametrize("flat", [False, True])
def test_torchs_distributed_checkpoints_take_it(name, flat):
    """They name parameters by their module, make state by a step with rate 0, and flatten what is nested."""
    from torch.distributed.checkpoint import state_dict as dcp

    def train_on(model, optimizer, steps):
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.linspace(-1, 1, 15).reshape(5, 3) + step).square().mean().backward()
            optimizer.step()

    def make(how):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        return model, Neumann(model.parameters(), **how, **{**STRONG, "lr": 1e-2})

    options = dcp.StateDictOptions(flatten_optimizer_state_dict=flat)
    with path(name) as how, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimizer = make(how)
        train_on(model, optimizer, 6)
        saved = copy.deepcopy(dcp.get_optimizer_state_dict(model, optimizer, options=options))
        other, resumed = make(how)
        other.load_state_dict(model.state_dict())
        dcp.set_optimizer_state_dict(other, resumed, through_a_file(saved), options=options)
        assert resumed.param_groups[0]["step"] == 6
        train_on(model, optimizer, 6)
        train_on(other, resumed, 6)
    assert same_bits(list(other.parameters()), list(model.parameters()))


@pytest.mark.parametrize("kind", [Neumann, NesterovInner])
def test_states_with_names_and_without_load_into_each_other(kind):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    named, plain = kind(model.named_parameters(), lr=0.1), kind(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    named.step()
    plain.step()
    assert named.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    plain.load_state_dict(copy.deepcopy(named.state_dict()))
    assert plain.param_groups[0]["param_names"] == ["weight", "bias"]
    without = kind(model.parameters(), lr=0.1)
    without.step()
    named.load_state_dict(copy.deepcopy(without.state_dict()))
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]


@pytest.mark.medium
@QUICK
def test_an_optimizer_is_freed_with_its_last_reference(name):
    """No cycles: a second copy of the model in memory until the garbage collector comes would be too much."""
    import gc
    import weakref

    with path(name) as how:
        optimizer, params = trained(how)
        optimizer.state_dict()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        set_gradients(params, 6)
        optimizer.step()
        gc.collect()
        gc.disable()
        try:
            there = weakref.ref(optimizer)
            del optimizer
            assert there() is None
        finally:
            gc.enable()


class Passing(Neumann):
    """A subclass that passes keywords on, with a default and an argument of its own."""

    def __init__(self, params, note="mine", *, gamma=0.8, **settings):
        super().__init__(params, gamma=gamma, **settings)
        self.note = note


class Plain(BurnInSGD):
    """A subclass that passes everything on."""

    def __init__(self, params, **settings):
        super().__init__(params, **settings)


@pytest.mark.parametrize("kind", [Passing, Plain])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_subclass_that_passes_keywords_on_is_copied_with_its_defaults(kind, duplicate):
    params = new_params()
    optimizer = kind(params, lr=0.05)
    train(optimizer, params, range(5))
    copied, members = duplicate((optimizer, params))
    groups = [[{k: v for k, v in group.items() if k != "params"} for group in each.param_groups] for each in (optimizer, copied)]  # fmt: skip
    assert groups[0] == groups[1]
    assert {k: copied.defaults[k] for k in optimizer.defaults} == optimizer.defaults
    assert copied.defaults.keys() - optimizer.defaults.keys() <= {"differentiable"}
    train(optimizer, params, range(5, 10))
    train(copied, members, range(5, 10))
    assert same_bits(params, members)


def test_a_subclass_pickled_before_a_setting_was_there_gets_its_own_default():
    optimizer = Passing(new_params())
    pickled = optimizer.__getstate__()
    for each in (pickled["defaults"], *pickled["param_groups"]):
        del each["gamma"], each["reset_growth"]
    opened = Passing.__new__(Passing)
    opened.__setstate__(pickled)
    assert [opened.param_groups[0][key] for key in ("gamma", "reset_growth")] == [0.8, 2.0]
