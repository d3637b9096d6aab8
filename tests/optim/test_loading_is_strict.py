"""A state of another optimizer, a damaged one and a misspelt key end in one sentence, and nothing has changed then."""

import copy
import functools
import inspect
import math

import pytest
import timm.optim
import torch

from neumann.optim import BurnInSGD, NesterovInner, Neumann
from neumann.optim.foreign_settings import SETTINGS
from tests.support.optimizer_problems import copies, new_params, same_bits, train

MAKERS = {
    "Neumann": lambda params: Neumann(params, lr=0.05, burn_in_steps=2, reset_period=5),
    "NesterovInner": lambda params: NesterovInner(params, lr=0.05),
    "BurnInSGD": lambda params: BurnInSGD(params, lr=0.05, burn_in_steps=2),
}
FOREIGN = {
    "SGD": lambda params: torch.optim.SGD(params, lr=3.0, momentum=0.9),
    "Nesterov": lambda params: torch.optim.SGD(params, lr=3.0, momentum=0.9, nesterov=True),
    "Adam": lambda params: torch.optim.Adam(params, lr=3.0),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=3.0, momentum=0.5),
    "Neumann with a constant momentum": lambda params: Neumann(params, lr=3.0, momentum=0.9),
    **MAKERS,
}
GPU_ONLY = ["bnb*", "fused*"]
OURS = pytest.mark.parametrize("name", MAKERS)


def trained(make, steps=20):
    params = new_params()
    optimizer = make(params)
    train(optimizer, params, range(steps))
    return optimizer, params


def as_it_is(optimizer):
    """All that loading may change: groups, states by parameter, hooks."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    states = [
        {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in optimizer.state[p].items()}
        for group in optimizer.param_groups
        for p in group["params"]
        if p in optimizer.state
    ]
    hooks = len(optimizer._optimizer_load_state_dict_pre_hooks) + len(optimizer._optimizer_load_state_dict_post_hooks)
    return copy.deepcopy((groups, states, hooks))


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def assert_refused(name, saved, message):
    """Loading ``saved`` is refused in a sentence, changes nothing, and the run goes on to the bits it had."""
    optimizer, params = trained(MAKERS[name])
    undisturbed, others = trained(MAKERS[name])
    before, weights = as_it_is(optimizer), copies(params)
    with pytest.raises(ValueError, match=message) as refused:
        optimizer.load_state_dict(saved)
    assert "\n" not in str(refused.value)
    assert equal(as_it_is(optimizer), before)
    assert same_bits(params, weights)
    train(optimizer, params, range(20, 25))
    train(undisturbed, others, range(20, 25))
    assert same_bits(params, others)


@OURS
@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("steps", [0, 20])
def test_a_state_of_another_optimizer_is_refused(name, foreign, steps):
    if foreign.startswith(name):
        return
    saved = trained(FOREIGN[foreign], steps)[0].state_dict()
    assert_refused(name, saved, f"the state was not saved by {name}: its parameter group 0 has")


def groups(**changed):
    def damage(saved):
        saved["param_groups"][-1].update(changed)

    return damage


def state(key, change):
    def damage(saved):
        own = saved["state"][1]
        own[key] = change(own.pop(key))

    return damage


def without(key):
    def damage(saved):
        del saved["state"][1][key]

    return damage


def no_state(saved):
    saved["state"] = {}


NEUMANN = [
    (groups(momentum=math.nan), "parameter group 0: momentum must be a finite number >= 0 and < 1, got nan"),
    (groups(momentum=1.5), "momentum must be .* got 1.5"),
    (groups(momentum=True), "momentum must be .* got True"),
    (groups(momentum=(0.5, 1.5)), "momentum's peak must be .* got 1.5"),
    (groups(lr=-3.0), "parameter group 0: lr must be a finite number >= 0, got -3.0"),
    (groups(lr=torch.tensor(math.nan)), "lr must be a finite number >= 0, got nan"),
    (groups(beta_count="x"), "beta_count must be one of .* got 'x'"),
    (groups(reset_period=0), "reset_period must be a whole number >= 1, got 0"),
    (groups(alhpa=1.0), "Neumann has no hyperparameter 'alhpa' for a group: did you mean 'alpha'"),
    (groups(step=-20), "parameter group 0: step must be a whole number >= 0, got -20"),
    (groups(step="20"), "step must be a whole number >= 0, got '20'"),
    (groups(step=torch.tensor([1, 2])), "step must be a whole number"),
    (groups(point="bse"), "one of the points held, base, average, the state has 'bse'"),
    (groups(point="base"), "saved at the point 'base', and the held weights of parameter 0 are not in it"),
    (without("m"), "the state of parameter 1 has no 'm'"),
    (without("r"), "the state of parameter 1 has no 'r'"),
    (without("coefficient"), "the state of parameter 1 has no 'coefficient'"),
    (state("m", lambda m: 0.5), "'m' of parameter 1 is a float, not a tensor"),
    (state("m", lambda m: m.sum()), r"'m' of parameter 1 has the shape \(\), but the parameter has \(5,\)"),
    (state("r", lambda r: r[:2]), r"'r' of parameter 1 has the shape \(2,\)"),
    (state("m", lambda m: m.long()), "'m' of parameter 1 has the type torch.int64"),
    (state("r", lambda r: r.to(torch.complex64)), "'r' of parameter 1 has the type torch.complex64"),
    (state("coefficient", lambda c: math.nan), "'coefficient' of parameter 1 must be a finite number .* got nan"),
    (state("coefficient", lambda c: torch.ones(2)), r"'coefficient' of parameter 1 has the shape \(2,\)"),
    (no_state, "the state was saved after 20 steps, and no parameter's m and r are in it"),
    (lambda saved: saved.pop("state"), "Neumann loads what its state_dict.. returns"),
    (lambda saved: saved.update(param_groups={}), "Neumann loads what its state_dict.. returns"),
    (lambda saved: saved["param_groups"].append(saved["param_groups"][0]), "number of parameter groups"),
    (lambda saved: saved["param_groups"][0]["params"].pop(), "doesn't match the size"),
]
INNER = [
    (groups(momentum=math.nan), "parameter group 0: momentum must be a finite number"),
    (groups(momentum=(0.5, 0.9)), "momentum must be a finite number"),
    (
        groups(weight_decya=0.1),
        "NesterovInner has no hyperparameter 'weight_decya' for a group: did you mean 'weight_d",
    ),
    (without("m"), "the state of parameter 1 has no 'm'"),
    (state("m", lambda m: m[0]), r"'m' of parameter 1 has the shape \(\)"),
    (groups(point="average"), "one of the points held, base, the state has 'average'"),
]
BURN_IN = [
    (groups(momentum=1.5), "parameter group 0: momentum must be a finite number"),
    (groups(lr=-1), "lr must be a finite number >= 0, got -1"),
    (groups(step=-1), "step must be a whole number >= 0, got -1"),
    (
        groups(burn_in_step=3),
        "BurnInSGD has no hyperparameter 'burn_in_step' for a group: did you mean 'burn_in_steps'",
    ),
    (state("momentum_buffer", lambda b: b[0]), r"'momentum_buffer' of parameter 1 has the shape \(\)"),
    (no_state, "saved after 20 steps, and no parameter's momentum_buffer is in it"),
    (lambda saved: saved.pop("param_groups"), "BurnInSGD loads what its state_dict.. returns"),
]
DAMAGES = [
    pytest.param(name, damage, message, id=f"{name}: {message}")
    for name, cases in (("Neumann", NEUMANN), ("NesterovInner", INNER), ("BurnInSGD", BURN_IN))
    for damage, message in cases
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES)
def test_a_damaged_state_is_refused(name, damage, message):
    saved = copy.deepcopy(trained(MAKERS[name], 20)[0].state_dict())
    damage(saved)
    assert_refused(name, saved, message)


def test_groups_at_different_steps_or_points_are_refused():
    params = new_params()
    optimizer = Neumann([{"params": params[:1]}, {"params": params[1:]}], lr=0.05)
    train(optimizer, params, range(6))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][1]["step"] = 5
    with pytest.raises(ValueError, match="all at one step, those of the state at the steps 5, 6"):
        optimizer.load_state_dict(saved)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][1]["point"] = "base"
    with pytest.raises(ValueError, match="the state has 'base', 'held'"):
        optimizer.load_state_dict(saved)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][1]["momentum"] = 7
    with pytest.raises(ValueError, match="parameter group 1: momentum"):
        optimizer.load_state_dict(saved)


@OURS
def test_what_a_scheduler_has_left_in_a_state_loads(name):
    """A momentum of 1, and the keys that schedulers and Lookahead keep in groups."""
    optimizer, _ = trained(MAKERS[name])
    notes = {"initial_lr": 1.0, "max_lr": 1.0, "max_momentum": 0.9, "base_momentum": 0.8, "lr_scale": 1, "name": "all"}
    optimizer.param_groups[0].update(momentum=1.0, lookahead_alpha=0.5, swa_lr=1.0, rho=0.05, adaptive=True, **notes)
    other = MAKERS[name](new_params())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0].items() >= {"momentum": 1.0, **notes}.items()


MISSPELT = [
    ("Neumann", "alhpa", "alpha"),
    ("Neumann", "betas", "beta"),
    ("Neumann", "Gamma", "gamma"),
    ("Neumann", "maximise", "maximize"),
    ("Neumann", "burn_in", "burn_in_steps"),
    ("Neumann", "learning_rate", "lr"),
    ("Neumann", "lrate", "lr"),
    ("Neumann", "wd", "weight_decay"),
    ("Neumann", "weightDecay", "weight_decay"),
    ("Neumann", "decoupled_weight_decay", "weight_decay"),
    ("NesterovInner", "learning-rate", "lr"),
    ("NesterovInner", "momentum_decay", "momentum"),
    ("BurnInSGD", "LearningRate", "lr"),
    ("NesterovInner", "momentun", "momentum"),
    ("BurnInSGD", "weight-decay", "weight_decay"),
    ("BurnInSGD", "burnin_steps", "burn_in_steps"),
]


@pytest.mark.parametrize(("name", "key", "meant"), MISSPELT)
def test_a_misspelt_key_of_a_group_is_refused_wherever_groups_come_from(name, key, meant):
    message = f"{name} has no hyperparameter '{key}' for a group: did you mean '{meant}'?"
    if key == "burn_in":  # 'burn_in' is near enough too
        message = f"{name} has no hyperparameter 'burn_in'"
    with pytest.raises(ValueError, match=message):
        MAKERS[name]([{"params": new_params(), key: 0.5}])
    optimizer, _ = trained(MAKERS[name])
    before = as_it_is(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": new_params(start=3), key: 0.5})
    assert equal(as_it_is(optimizer), before)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Neumann", "nesterov"),
        ("Neumann", "eps"),
        ("Neumann", "trust_coeff"),
        ("NesterovInner", "betas"),
        ("NesterovInner", "nesterov"),
        ("BurnInSGD", "betas"),
    ],
)
def test_a_setting_of_other_optimizers_is_no_note(name, key):
    message = (
        f"{name} has no hyperparameter '{key}' for a group, which is one of other optimizers; it has .*lr.*momentum"
    )
    with pytest.raises(ValueError, match=message):
        MAKERS[name]([{"params": new_params(), key: 0.5}])


def test_every_setting_of_torchs_and_timms_optimizers_is_known():
    timms = [timm.optim.get_optimizer_class(name) for name in timm.optim.list_optimizers(exclude_filters=GPU_ONLY)]
    torchs = [each for each in vars(torch.optim).values() if inspect.isclass(each)]
    kinds = {each.func if isinstance(each, functools.partial) else each for each in [*timms, *torchs]}
    kinds = {
        each for each in kinds if each.__module__.partition(".")[0] in ("timm", "torch")
    }  # others may be registered
    found = {
        name
        for kind in kinds
        if kind is torch.optim.SGD or not inspect.isclass(kind) or issubclass(kind, torch.optim.Optimizer)
        for name in inspect.signature(kind).parameters
    }
    left_out = {"params", "defaults", "args", "kwargs", "rho", "adaptive", "differentiable"}
    assert found - left_out <= SETTINGS
    assert "nesterov" in found


NOTES = "initial_lr max_lr min_lr base_lr swa_lr lr_scale param_names name max_momentum base_momentum rho adaptive"


@OURS
def test_notes_of_frameworks_stay(name):
    params = new_params()
    notes = dict.fromkeys(NOTES.split(), 0.5) | {"param_names": [str(number) for number, _ in enumerate(params)]}
    optimizer = MAKERS[name]([{"params": params, **notes}])
    optimizer._said_cycled = True
    train(optimizer, params, range(2))
    assert optimizer.param_groups[0].items() >= notes.items()


BY_HAND = [
    ("Neumann", {"momentum": 1.5}, "momentum must be a finite number >= 0 and < 1, got 1.5"),
    ("Neumann", {"momentum": (0.5, 1.5)}, "momentum's peak"),
    ("Neumann", {"beta_count": "x"}, "beta_count must be one of"),
    ("Neumann", {"lr": math.nan}, "lr must be a finite number >= 0, got nan"),
    ("Neumann", {"lr": -0.1}, "lr must be a finite number >= 0, got -0.1"),
    ("Neumann", {"lr": torch.tensor(math.nan)}, "lr must be a finite number >= 0, got nan"),
    ("Neumann", {"lr": torch.tensor([-0.1], dtype=torch.float64)}, "lr must be a finite number >= 0, got -0.1"),
    ("Neumann", {"lr": torch.tensor([0.1, 0.2])}, "Tensor lr must be 1-element"),
    ("Neumann", {"step": -4}, "step must be a whole number >= 0, got -4"),
    ("Neumann", {"step": 2.5}, "step must be a whole number >= 0, got 2.5"),
    ("Neumann", {"step": math.nan}, "step must be a whole number >= 0, got nan"),
    ("Neumann", {"step": "x"}, "step must be a whole number >= 0, got 'x'"),
    ("Neumann", {"step": torch.tensor(-4)}, "step must be a whole number >= 0, got -4"),
    ("NesterovInner", {"lr": torch.tensor(math.inf)}, "lr must be a finite number >= 0, got inf"),
    ("BurnInSGD", {"lr": torch.tensor(-1.0)}, "lr must be a finite number >= 0, got -1.0"),
    ("BurnInSGD", {"step": -4}, "step must be a whole number >= 0, got -4"),
    ("Neumann", {"gamma": 1}, "gamma must be"),
    ("Neumann", {"gama": 0.5}, "did you mean 'gamma'"),
    ("NesterovInner", {"momentum": -1}, "momentum must be a finite number"),
    ("NesterovInner", {"weight_decay": "no"}, "weight_decay must be"),
    ("BurnInSGD", {"momentum": 1.5}, "momentum must be a finite number"),
    ("BurnInSGD", {"lr": -1}, "lr must be a finite number"),
]


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(("name", "wrong", "message"), BY_HAND)
def test_what_is_set_in_a_group_by_hand_is_checked_before_the_next_step(name, wrong, message, steps):
    params = new_params()
    optimizer = MAKERS[name]([{"params": params[:1]}, {"params": params[1:]}])
    train(optimizer, params, range(steps))
    before, right = copies(params), dict(optimizer.param_groups[1])
    optimizer.param_groups[1].update(wrong)
    with pytest.raises(ValueError, match=rf"param_groups\[1\]: .*{message}"):
        train(optimizer, params, [steps])
    assert same_bits(params, before)
    for key in wrong:
        if key in right:
            optimizer.param_groups[1][key] = right[key]
        else:
            del optimizer.param_groups[1][key]
    others = new_params()
    undisturbed = MAKERS[name]([{"params": others[:1]}, {"params": others[1:]}])
    train(undisturbed, others, range(steps + 4))
    train(optimizer, params, range(steps, steps + 4))
    assert same_bits(params, others)


@pytest.mark.parametrize("name", ["Neumann", "NesterovInner", "BurnInSGD"])
def test_a_rate_that_its_owner_fills_with_what_cannot_be_one_is_refused(name):
    params, others = new_params(), new_params()
    rate = torch.tensor(0.05, dtype=torch.float64)
    optimizer, undisturbed = (MAKERS[name](each) for each in (params, others))
    optimizer.param_groups[0]["lr"] = rate
    undisturbed.param_groups[0]["lr"] = 0.05
    train(optimizer, params, range(3))
    for wrong in (math.nan, -0.1):
        rate.fill_(wrong)
        before = copies(params)
        with pytest.raises(ValueError, match=rf"param_groups\[0\]: lr must be a finite number >= 0, got {wrong}"):
            train(optimizer, params, [3])
        assert same_bits(params, before)
    rate.fill_(0.05)
    train(optimizer, params, range(3, 6))
    train(undisturbed, others, range(6))
    torch.testing.assert_close(params, others, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["Neumann", "BurnInSGD"])
def test_the_groups_count_together(name):
    params = new_params()
    optimizer = MAKERS[name]([{"params": params[:1]}, {"params": params[1:]}])
    train(optimizer, params, range(3))
    optimizer.param_groups[1]["step"] = 7
    with pytest.raises(ValueError, match="the step must be the same in all groups, which count together, and is 3, 7"):
        train(optimizer, params, [3])
    for group in optimizer.param_groups:
        group["step"] = 7.0
    train(optimizer, params, [3])
    assert [(group["step"], type(group["step"])) for group in optimizer.param_groups] == [(8, int)] * 2


def test_a_pair_of_momenta_that_is_edited_in_place_is_checked():
    params = new_params()
    optimizer = Neumann(params, lr=0.05)
    pair = [0.5, 0.9]
    optimizer.param_groups[0]["momentum"] = pair
    train(optimizer, params, range(2))
    pair[1] = 1.5
    with pytest.raises(ValueError, match="momentum's peak must be"):
        train(optimizer, params, [2])


@pytest.mark.parametrize("name", ["Neumann", "NesterovInner"])
def test_a_point_that_was_set_by_hand_is_refused(name):
    params = new_params()
    optimizer = MAKERS[name]([{"params": params[:1]}, {"params": params[1:]}])
    train(optimizer, params, range(3))
    optimizer.param_groups[1]["point"] = "base"
    with pytest.raises(RuntimeError, match="are at one point, and theirs were set to 'held', 'base'"):
        train(optimizer, params, [3])
    optimizer.param_groups[1]["point"] = "held"
    train(optimizer, params, [3])
    optimizer.eval()
    for group in optimizer.param_groups:
        group["point"] = "held"
    with pytest.raises(RuntimeError, match="was set to 'held' while the parameters are at another one"):
        train(optimizer, params, [4])
