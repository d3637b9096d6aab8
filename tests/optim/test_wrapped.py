"""The evaluation points of an optimizer inside a wrapper, and the way there and back bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed.algorithms.model_averaging.averagers as averagers
from torch.distributed.optim import PostLocalSGDOptimizer

from neumann.optim import NesterovInner, Neumann, NeumannReference, WeightAverage, at, eval_point, evaluating, points
from neumann.optim.private_names import base_optimizer
from neumann.optim.wrappers import load_states, wrapped
from tests.support.optimizer_problems import copies, new_params, relative, same_bits, train


class Sharpness(torch.optim.Optimizer):
    """A SAM without its first half: a full torch optimizer that shares its groups with the one inside."""

    def __init__(self, base_optimizer):
        super().__init__(base_optimizer.param_groups, {})
        self.base_optimizer = base_optimizer
        self.param_groups = base_optimizer.param_groups

    def step(self, closure=None):
        return self.base_optimizer.step(closure)


class Larc:
    """apex's LARC: no torch optimizer, and everything is passed on."""

    def __init__(self, optim):
        self.optim, self.param_groups = optim, optim.param_groups

    def step(self):
        self.optim.step()


class Passing(torch.optim.Optimizer):
    """A wrapper that calls nothing of torch's, with the optimizer under a private name."""

    def __init__(self, optimizer):
        self._optimizer = optimizer

    def state_dict(self):
        return {"state": {}, "param_groups": []}

    def load_state_dict(self, state_dict):
        assert state_dict == self.state_dict()

    @property
    def param_groups(self):
        return self._optimizer.param_groups

    def step(self, closure=None):
        return self._optimizer.step(closure)


class Averager(averagers.ModelAverager):
    """Averages nothing: it has one process."""

    def __init__(self):
        self.step = 0

    def average_parameters(self, params):
        self.step += 1


def prepared(optimizer):
    from accelerate import Accelerator  # imports for seconds

    return Accelerator(cpu=True).prepare_optimizer(optimizer)


def lookahead(optimizer):
    from timm.optim import Lookahead

    return Lookahead(optimizer, k=100)


WRAPPERS = {
    "SAM": Sharpness,
    "LARC": Larc,
    "_optimizer": Passing,
    "PostLocalSGD": lambda inner: PostLocalSGDOptimizer(inner, Averager()),
    "Lookahead": lookahead,
    "two": lambda inner: Passing(Sharpness(inner)),
    "accelerate": pytest.param(prepared, marks=pytest.mark.medium),
}
EVERY = pytest.mark.parametrize(
    "wrap",
    [each if hasattr(each, "marks") else pytest.param(each) for each in WRAPPERS.values()],
    ids=list(WRAPPERS),
)
INNER = {
    "Neumann": (
        lambda params: Neumann(params, lr=0.05, alpha=3e-2, beta=1e-2, reset_period=50),
        ("held", "base", "average"),
    ),
    "NesterovInner": (lambda params: NesterovInner(params, lr=0.05), ("held", "base")),
    "Nesterov": (lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True), ("held", "base")),
    "Adam": (lambda params: torch.optim.Adam(params, lr=0.05), ("held",)),
}
KINDS = pytest.mark.parametrize(("make", "expected"), INNER.values(), ids=INNER)


@EVERY
@KINDS
def test_the_points_are_those_of_the_optimizer_inside(wrap, make, expected):
    params, others = new_params(), new_params()
    optimizer, alone = wrap(make(params)), make(others)
    assert points(optimizer) == expected
    train(optimizer, params, range(20))
    train(alone, others, range(20))
    held = copies(params)
    assert same_bits(held, others)
    for point in expected:
        with at(optimizer, point), at(alone, point):
            assert same_bits(params, others)
            assert same_bits(params, held) == (point == "held")
        assert same_bits(params, held)
    with evaluating(optimizer), at(alone, eval_point(alone)):
        assert same_bits(params, others)
        with at(optimizer, "held"):
            assert same_bits(params, held)
    assert same_bits(params, held)
    train(optimizer, params, range(20, 30))
    train(alone, others, range(20, 30))
    assert same_bits(params, others)


@EVERY
def test_neumanns_answer_in_a_wrapper_is_the_twins(wrap):
    setting = {"lr": 0.05, "alpha": 3e-2, "beta": 1e-2, "burn_in_steps": 3, "reset_period": 30}
    params, others = new_params(), new_params()
    optimizer, twin = wrap(Neumann(params, **setting)), NeumannReference(others, **setting)
    train(optimizer, params, range(20))
    train(twin, others, range(20))
    with evaluating(optimizer):
        assert relative(params, twin.answer()) < 1e-12
        assert relative(params, others) > 1e-3
    assert relative(params, others) < 1e-12


@EVERY
@pytest.mark.parametrize("kind", ["Neumann", "NesterovInner"])
def test_a_block_ends_at_the_point_at_which_it_began(wrap, kind):
    """transformers' Trainer calls eval() on the wrapper itself, and train() before its next step."""
    params = new_params(torch.float32)
    inner = INNER[kind][0](params)
    optimizer = wrap(inner)
    train(optimizer, params, range(20))
    held = copies(params)
    inner.eval()
    base = copies(params)
    with at(optimizer, "held"):
        assert same_bits(params, held)
    assert (inner.point, same_bits(params, base)) == ("base", True)
    with evaluating(optimizer):
        assert same_bits(params, base)
    assert (inner.point, same_bits(params, base)) == ("base", True)
    inner.train()
    assert same_bits(params, held)


class Schedulefree(torch.optim.Optimizer):
    """A wrapper with modes of its own, which its optimizer inside has not."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {"train_mode": True})
        self.optimizer = optimizer

    def _swap(self, mode, scale):
        for group in self.param_groups:
            if group["train_mode"] != mode:
                group["train_mode"] = mode
                for p in group["params"]:
                    p.data.mul_(scale)

    def train(self):
        self._swap(True, 2.0)

    def eval(self):
        self._swap(False, 0.5)


def test_a_wrapper_with_modes_of_its_own_keeps_them():
    params = new_params()
    optimizer = Schedulefree(torch.optim.Adam(params))
    assert points(optimizer) == ("held", "base")
    before = copies(params)
    with evaluating(optimizer):
        assert same_bits(params, [p / 2 for p in before])
    assert same_bits(params, before)


def test_an_average_of_a_wrapper_is_found_and_follows_its_weights():
    params, others = new_params(), new_params()
    optimizer, alone = Sharpness(INNER["Nesterov"][0](params)), INNER["Nesterov"][0](others)
    for each in (optimizer, alone):
        WeightAverage(each, 0.9)
    train(optimizer, params, range(10))
    train(alone, others, range(10))
    assert points(optimizer) == ("held", "base", "average")
    held = copies(params)
    for point in points(alone):
        with at(optimizer, point), at(alone, point):
            assert same_bits(params, others)
    assert same_bits(params, held)


class Partial(torch.optim.Optimizer):
    """fairscale's OSS, as one rank of several sees it: the optimizer inside has a part of the parameters."""

    def __init__(self, params, inner):
        super().__init__(params, {})
        self.optim = inner(params[1:])

    def step(self, closure=None):
        return self.optim.step(closure)


@pytest.mark.parametrize("kind", ["Neumann", "Nesterov"])
def test_shards_in_plain_tensors_are_refused(kind):
    optimizer = Partial(new_params(), INNER[kind][0])
    for ask in (points, eval_point, lambda each: evaluating(each).__enter__()):
        with pytest.raises(ValueError, match="inside Partial cannot be reached: it has other tensors than the model"):
            ask(optimizer)
    assert points(Partial(new_params(), INNER["Adam"][0])) == ("held",)


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.medium
def test_torchs_zero_redundancy_optimizer_is_refused(one_rank):
    from torch.distributed.optim import ZeroRedundancyOptimizer as Zero

    for kind, settings in ((NesterovInner, {}), (Neumann, {}), (torch.optim.SGD, {"momentum": 0.9, "nesterov": True})):
        optimizer = Zero(new_params(), optimizer_class=kind, lr=0.1, **settings)
        with pytest.raises(ValueError, match=f"points of {kind.__name__} inside ZeroRedundancyOptimizer cannot be"):
            points(optimizer)
    assert points(Zero(new_params(), optimizer_class=torch.optim.Adam, lr=0.1)) == ("held",)


def test_what_looks_like_a_wrapper_and_is_none():
    optimizer = INNER["Neumann"][0](new_params())
    optimizer.optimizer = optimizer  # itself
    assert base_optimizer(optimizer) is None
    optimizer.optimizer = "adam"
    optimizer.optim = torch.optim  # has neither step nor groups
    assert points(optimizer) == INNER["Neumann"][1]
    one, other = Passing(None), Passing(None)
    one._optimizer, other._optimizer = INNER["Adam"][0](new_params()), one
    one._optimizer.optim = other  # a circle
    assert points(one) == ("held",)


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["Neumann", "Nesterov", "Adam"])
@pytest.mark.parametrize("wrap", [Sharpness, lookahead, lambda inner: Passing(Sharpness(inner))])
def test_a_runs_checkpoint_holds_what_a_wrappers_own_state_leaves_out(wrap, kind):
    make = INNER[kind][0]
    params, others = new_params(), new_params()
    optimizer, resumed = wrap(make(params)), wrap(make(others))
    train(optimizer, params, range(10))
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.data)
    first, *inside = (copy.deepcopy(each.state_dict()) for each in wrapped(optimizer))
    load_states(resumed, first, inside)
    for each in (optimizer, resumed):
        each.param_groups[0]["lr"] = 0.02  # reaches the optimizer inside
    train(optimizer, params, range(10, 20))
    train(resumed, others, range(10, 20))
    assert same_bits(params, others)


class Private(torch.optim.Optimizer):
    """Opacus's DPOptimizer: the optimizer inside has a name of its own."""

    def __init__(self, optimizer):
        self.original_optimizer = optimizer
        self.defaults, self.state = optimizer.defaults, optimizer.state

    @property
    def param_groups(self):
        return self.original_optimizer.param_groups

    def step(self, closure=None):
        return self.original_optimizer.step(closure)


@KINDS
def test_an_optimizer_of_the_same_tensors_is_found_under_any_name(make, expected):
    params = new_params()
    optimizer = Private(make(params))
    train(optimizer, params, range(20))
    assert points(optimizer) == expected
    held = copies(params)
    with evaluating(optimizer):
        assert same_bits(params, held) == (expected == ("held",))
    optimizer.original_optimizer.reference = make(new_params())  # of other tensors: no optimizer inside
    assert points(optimizer) == expected


class Several(torch.optim.Optimizer):
    """One optimizer for each tensor, in a list or a dict."""

    def __init__(self, params, make, kept):
        members = [make([p]) for p in params]
        super().__init__([group for each in members for group in each.param_groups], {})
        self.members = members if kept is list else dict(enumerate(members))


@pytest.mark.parametrize("kept", [list, dict])
def test_several_optimizers_in_one_are_refused_where_their_points_would_be_missed(kept):
    for kind in ("Neumann", "NesterovInner", "Nesterov"):
        optimizer = Several(new_params(), INNER[kind][0], kept)
        for ask in (points, eval_point, lambda each: evaluating(each).__enter__()):
            with pytest.raises(ValueError, match=r"Several keeps several optimizers, and \w+ among them has"):
                ask(optimizer)
    assert points(Several(new_params(), INNER["Adam"][0], kept)) == ("held",)
