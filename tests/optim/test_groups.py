"""Groups, parameters that come, go and freeze, rates and schedulers: the usual operations on a torch optimizer."""

import copy
from itertools import product

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from neumann.optim import NesterovInner, Neumann, NeumannReference, argument_checks
from tests.support.optimizer_paths import EVERY_PATH, QUICK, every_path, path
from tests.support.optimizer_problems import copies, new_params, relative, same_bits, train

STRONG = {"lr": 0.05, "alpha": 3e-2, "beta": 1e-2, "burn_in_steps": 3, "reset_period": 7}

OTHER = {  # another value than in STRONG, or than the default
    "lr": 0.02,
    "alpha": 0.1,
    "beta": 5e-2,
    "beta_count": "scalars",
    "gamma": 0.8,
    "momentum": 0.7,
    "momentum_unit": 4,
    "burn_in_steps": 9,
    "reset_period": 4,
    "reset_growth": 1.5,
    "reset_rule": "absolute",
    "weight_decay": 0.3,
    "min_distance": 2.0,
    "maximize": True,
}
OF_THE_KERNEL = ("lr", "gamma", "weight_decay", "min_distance", "maximize")  # what it gets from a group, at any step
HOW = ("foreach", "fused", "capturable")  # these say how a step is taken, not which


def test_every_hyperparameter_is_tried_below():
    assert set(OTHER) | set(HOW) == set(
        argument_checks.neumann_hyperparameters(Neumann([torch.zeros(1)]).param_groups[0])
    )


@pytest.mark.medium
@every_path("key", OTHER, OF_THE_KERNEL)
def test_a_group_has_its_own_value_of(key, name):
    def groups(params):
        return [{"params": params[:1]}, {"params": params[1:], key: OTHER[key]}]

    params, literal_params, same = new_params(), new_params(), new_params()
    steps = range(8 if name == "Triton" and key in OF_THE_KERNEL else 30)
    with path(name) as how:
        ours, literal = Neumann(groups(params), **how, **STRONG), NeumannReference(groups(literal_params), **STRONG)
        train(ours, params, steps)
        train(literal, literal_params, steps)
    train(Neumann(same, foreach=False, **STRONG), same, steps)
    assert relative(params, literal_params) < 1e-12
    assert relative(params[1:], same[1:]) > 1e-5  # the value matters


@pytest.mark.medium
@EVERY_PATH
def test_parameters_freeze_thaw_and_join(name):
    """A parameter without a gradient stays whole; one that had none at first begins when it gets one."""

    def has(index, step):
        return {0: step < 6 or step > 10, 1: step > 4}.get(index, True) and step != 8

    params, literal_params = new_params(), new_params()
    end = 14 if name == "Triton" else 25
    with path(name) as how:
        ours, literal = Neumann(params, **how, **STRONG), NeumannReference(literal_params, **STRONG)
        for step in range(end):
            params[0].requires_grad_(has(0, step))
            train(ours, params, [step], has=has)
            train(literal, literal_params, [step], has=has)
            if step == 11:
                for optimizer, members in ((ours, params), (literal, literal_params)):
                    late = new_params(start=3)
                    members += late
                    optimizer.add_param_group({"params": late, "lr": 0.01})
        ours.eval()
    assert relative(params, literal.answer()) < 1e-12


@pytest.mark.medium
@EVERY_PATH
def test_no_gradient_at_all_at_first(name):
    params, others = new_params(), new_params()
    with path(name) as how:
        waited, twin = Neumann(params, **how, **STRONG), Neumann(others, **how, **STRONG)
        for _ in range(3):
            waited.step()
        waited.eval()
        waited.train()
        assert float(waited.distance()) == 0
        assert (waited.param_groups[0]["step"], len(waited.state)) == (0, 0)
        train(waited, params, range(6))
        train(twin, others, range(6))
    assert same_bits(params, others)


@pytest.mark.medium
@EVERY_PATH
def test_gradients_of_zero_are_gradients(name):
    """zero_grad(set_to_none=False) leaves zeros: the momentum goes on, as it does in torch's SGD."""
    params, literal_params = new_params(), new_params()
    with path(name) as how:
        ours, literal = Neumann(params, **how, **STRONG), NeumannReference(literal_params, **STRONG)
        for optimizer, members in ((ours, params), (literal, literal_params)):
            train(optimizer, members, range(9))
            before = copies(members)
            for _ in range(3):
                optimizer.zero_grad(set_to_none=False)
                assert all(p.grad is not None and not p.grad.any() for p in members)
                optimizer.step()
            assert not same_bits(members, before)
    assert relative(params, literal_params) < 1e-12


@pytest.mark.medium
@EVERY_PATH
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_rate_may_be_a_tensor_that_its_owner_fills(name, shape):
    params, literal_params = new_params(), new_params()
    rate = torch.full(shape, 0.05, dtype=torch.float64)
    with path(name) as how:
        ours = Neumann([{"params": params[:2]}, {"params": params[2:], "lr": 0.01}], **how, **{**STRONG, "lr": rate})
        literal = NeumannReference(
            [{"params": literal_params[:2]}, {"params": literal_params[2:], "lr": 0.01}], **STRONG
        )
        for step in range(12):
            rate.fill_(0.05 / (1 + step))
            literal.param_groups[0]["lr"] = 0.05 / (1 + step)
            train(ours, params, [step])
            train(literal, literal_params, [step])
        assert ours.param_groups[0]["lr"] is rate
    assert relative(params, literal_params) < 1e-12


@QUICK
def test_a_rate_of_one_number_suits_nesterov_inner_too(name):
    params, others = new_params(), new_params()
    foreach = name == "foreach"
    train(NesterovInner(params, lr=torch.tensor([0.05], dtype=torch.float64), foreach=foreach), params, range(9))
    train(NesterovInner(others, lr=0.05, foreach=foreach), others, range(9))
    assert relative(params, others) < 1e-15


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 4),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 9]),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.CosineAnnealingLR(o, 9)], [6]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 9),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=5, cycle_momentum=True),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 30),
    "SWALR": lambda o: SWALR(o, 0.01, anneal_epochs=5),
}


def test_every_scheduler_of_torch_is_tried_below():
    assert set(lr_scheduler.__all__) - {"LRScheduler"} <= set(SCHEDULERS)


@pytest.mark.medium
@every_path(
    "kind, as_tensor", product(SCHEDULERS, (False, True)), [("OneCycleLR", as_tensor) for as_tensor in (False, True)]
)
def test_schedulers_set_what_the_next_step_takes(kind, as_tensor, name):
    """Those that cycle the momentum replace our pair (0.5, 0.9) by numbers of theirs, as they do with any optimizer's."""
    rate = torch.tensor(0.05, dtype=torch.float64) if as_tensor else 0.05
    params, literal_params = new_params(), new_params()
    with path(name) as how:
        ours = Neumann(params, capturable=as_tensor, **how, **{**STRONG, "lr": rate})
        literal = NeumannReference(literal_params, **STRONG)
        rates, momenta = set(), set()
        scheduler = SCHEDULERS[kind](ours)
        for step in range(8 if name == "Triton" else 15):
            literal.param_groups[0].update(
                lr=float(ours.param_groups[0]["lr"]), momentum=ours.param_groups[0]["momentum"]
            )
            rates.add(float(ours.param_groups[0]["lr"]))
            momenta.add(ours.param_groups[0]["momentum"])
            train(ours, params, [step])
            train(literal, literal_params, [step])
            scheduler.step(*([1.0] if kind == "ReduceLROnPlateau" else []))
        assert (ours.param_groups[0]["lr"] is rate) == as_tensor
        assert relative(params, literal_params) < 1e-12
    assert len(rates) > 1
    cycles = kind in ("CyclicLR", "OneCycleLR")
    assert {type(value) for value in momenta} == ({float} if cycles else {tuple})
    assert len(momenta) > 3 if cycles else momenta == {(0.5, 0.9)}


@EVERY_PATH
def test_a_scheduler_may_raise_the_momentum_to_one(name):
    """The constructor would refuse it, but torch's schedulers set it without asking."""
    params, literal_params = new_params(), new_params()
    with path(name) as how:
        ours, literal = Neumann(params, **how, **STRONG), NeumannReference(literal_params, **STRONG)
        for step in range(8):
            for optimizer in (ours, literal):
                optimizer.param_groups[0]["momentum"] = 1.0 if step > 4 else 0.9
            train(ours, params, [step])
            train(literal, literal_params, [step])
    assert relative(params, literal_params) < 1e-12


def test_a_scheduler_of_momentum_survives_saving():
    """Its number, not our pair, is what the checkpoint holds; base and maximum ride along in the group."""
    params = new_params()
    ours = Neumann(params, **STRONG)
    scheduler = lr_scheduler.OneCycleLR(ours, 0.1, total_steps=40)
    for step in range(8):
        train(ours, params, [step])
        scheduler.step()
    others = [p.detach().clone().requires_grad_() for p in params]
    resumed = Neumann(others, **STRONG)
    again = lr_scheduler.OneCycleLR(resumed, 0.1, total_steps=40)
    resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    again.load_state_dict(scheduler.state_dict())
    for step in range(8, 20):
        for optimizer, members, each in ((ours, params, scheduler), (resumed, others, again)):
            train(optimizer, members, [step])
            each.step()
    assert same_bits(params, others)


@pytest.mark.medium
@EVERY_PATH
def test_a_closure_and_hooks(name):
    params, others = new_params(torch.float32), new_params(torch.float32)
    said = []
    with path(name) as how:
        by_closure, by_hand = Neumann(params, **how, **STRONG), Neumann(others, **how, **STRONG)
        by_closure.register_step_pre_hook(lambda *_: said.append("before"))
        by_closure.register_step_post_hook(lambda *_: said.append("after"))

        def closure():
            assert torch.is_grad_enabled()
            said.append("closure")
            by_closure.zero_grad()
            loss = sum((p.square() + p.sin()).sum() for p in params)
            loss.backward()
            return loss

        for _ in range(6):
            with torch.no_grad():
                loss = by_closure.step(closure)
            assert loss.requires_grad
            by_hand.zero_grad()
            sum((p.square() + p.sin()).sum() for p in others).backward()
            assert by_hand.step() is None
    assert said == ["before", "closure", "after"] * 6
    assert same_bits(params, others)


KINDS = pytest.mark.parametrize("kind", [Neumann, NesterovInner])


@KINDS
def test_torch_says_what_is_wrong_with_the_parameters(kind):
    p, q = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        kind([], lr=0.1)
    with pytest.raises(TypeError, match="should be an iterable of Tensors or dicts"):
        kind(p, lr=0.1)
    with pytest.warns(UserWarning, match="a parameter group with duplicate parameters"):
        kind([p, p], lr=0.1)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        kind([{"params": p}, {"params": p}], lr=0.1)
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        kind([p * 2], lr=0.1)
    with pytest.raises(ValueError, match="Some param names are missing"):
        kind([("weight", p), q], lr=0.1)
    with pytest.raises(ValueError, match="cannot add param group with names"):
        kind([{"params": [p]}, {"params": [("weight", q)]}], lr=0.1)
    optimizer = kind(iter([p]), lr=0.1)
    for wrong, error, message in (
        ([q], TypeError, "param_group must be a dict, but got <class 'list'>"),
        ({"params": ["q"]}, TypeError, "optimizer can only optimize Tensors"),
        ({"params": {q}}, TypeError, "ordered collections"),
        ({"params": [p]}, ValueError, "more than one parameter group"),
    ):
        with pytest.raises(error, match=message):
            optimizer.add_param_group(wrong)
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": (each for each in [q])})
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


@KINDS
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_parameters_that_cannot_be_trained_are_named(kind, dtype):
    unfit = torch.zeros(2, dtype=dtype)
    with pytest.raises(ValueError, match=rf"trains real floating-point parameters, got parameter 'mask' of {dtype}"):
        kind([("weight", torch.zeros(1)), ("mask", unfit)], lr=0.1)
    with pytest.raises(ValueError, match=rf"got one of {dtype}"):
        kind([torch.zeros(1), unfit], lr=0.1)


@KINDS
def test_sparse_gradients_are_refused_by_name(kind):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"words": torch.nn.Embedding(5, 2, sparse=True), "head": torch.nn.Linear(2, 1)})

    def gradients():
        model["head"](model["words"](torch.tensor([1, 3]))).sum().backward()

    named, plain = kind(model.named_parameters(), lr=0.1), kind(model.parameters(), lr=0.1)
    gradients()
    weights = copies(list(model.parameters()))
    with pytest.raises(RuntimeError, match=r"parameter 'words.weight' has one: build the embedding with sparse=False"):
        named.step()
    with pytest.raises(RuntimeError, match=r"a parameter of shape \(5, 2\) has one"):
        plain.step()
    assert same_bits(list(model.parameters()), weights)
    assert len(named.state) == 0


def test_names_reach_the_groups_and_the_checkpoint():
    model = torch.nn.Linear(2, 2)
    decayed, rest = list(model.named_parameters())
    groups = [{"params": [decayed], "weight_decay": 0.1}, {"params": [rest]}]
    optimizer = Neumann(groups, lr=0.1)
    assert [group["param_names"] for group in optimizer.param_groups] == [["weight"], ["bias"]]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [group["param_names"] for group in optimizer.state_dict()["param_groups"]] == [["weight"], ["bias"]]
