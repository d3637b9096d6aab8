"""Operations on an optimizer in any order, on every path at once, compared with the reference implementation.

Each path is run twice over, on the same gradients. The first run is only trained; the second is saved, loaded, copied,
evaluated and asked for its distance all the while, and must stay the first one's to the bit. In float64 both are held
to the twin, in the other types the paths are held to each other.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from neumann.optim import Neumann, NeumannReference, at
from neumann.optim.kernels import CHUNK, cpu
from tests.support.optimizer_paths import path
from tests.support.optimizer_problems import copies

HOW = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "C++": {"fused": True},
    "Triton": {"fused": True},
    "capturable foreach": {"foreach": True, "capturable": True},
    "capturable C++": {"fused": True, "capturable": True},
}
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}  # of the weights; bfloat16: a bit or two
SHAPES = [(3, 4), (5,), (), (2, 3, 2, 2), (0,), (CHUNK + 3,)]
SWITCHES = [(None, None), (False, None), (True, None), (None, True), (False, False)]  # (foreach, fused)

# Strong regularizers, as large as the gradients, and a guard against the pole: an error in them must show, and not grow
HYPERPARAMETERS = st.fixed_dictionaries(
    {
        "lr": st.floats(0.01, 0.1),
        "alpha": st.sampled_from([3e-2, 0.1, 0.0]),
        "beta": st.sampled_from([1e-2, 3e-2, 0.0]),
        "beta_count": st.sampled_from(["tensors", "scalars", "absolute"]),
        "gamma": st.sampled_from([0.9, 0.99, 0.5, 0.0]),
        "momentum": st.sampled_from([(0.5, 0.9), 0.8, 0.0, (0.1, 0.95), (0.0, 0.6)]),
        "momentum_unit": st.sampled_from([1, 2.5, 10]),
        "burn_in_steps": st.integers(0, 6),
        "reset_period": st.sampled_from([5, None, 1, 2, 3, 4, 7]),
        "reset_growth": st.sampled_from([2.0, 1, 1.1, 1.5, 3]),
        "reset_rule": st.sampled_from(["countdown", "absolute"]),
        "weight_decay": st.sampled_from([0.1, 0.0, 1.0]),
        "min_distance": st.sampled_from([None, 0.3, 5.0, 0.0]),
        "maximize": st.booleans(),
    }
).map(lambda drawn: {**drawn, "reset_growth": 2.0} if drawn["reset_period"] == drawn["reset_growth"] == 1 else drawn)
MISSING = st.sets(st.integers(0, 7), max_size=3)  # which parameters have no gradient


@dataclass
class Run:
    """An optimizer and its parameters."""

    optimizer: Any
    params: list[Tensor]


def doing(**drawn: Any) -> Callable[[Callable[..., None]], Any]:
    """A rule, after which the second runs are asked, or not, and training goes on for three steps at most."""

    def decorate(method: Callable[..., None]) -> Any:
        def do_and_train(self: Trainings, asked: bool, then: int, missing: set[int], **values: Any) -> None:
            method(self, **values)
            if asked:
                self.ask([run for _, run in self.pairs.values()])
            self.train(then, missing)

        do_and_train.__name__ = method.__name__
        return rule(asked=st.booleans(), then=st.sampled_from([1, 0, 2, 3]), missing=MISSING, **drawn)(do_and_train)

    return decorate


class Trainings(RuleBasedStateMachine):
    """The paths in ``names``, and the twin."""

    names: ClassVar[tuple[str, ...]] = tuple(name for name in HOW if name != "Triton")
    dtype: ClassVar[torch.dtype] = torch.float64
    shapes: ClassVar[list[tuple[int, ...]]] = SHAPES
    most_steps: ClassVar[int] = 4
    most_groups: ClassVar[int] = 4

    def __init__(self) -> None:
        super().__init__()
        self._left = contextlib.ExitStack()
        self.count = 0  # of steps
        self.frozen: set[int] = set()
        self.point = "held"  # where the second runs are

    def teardown(self) -> None:
        self._left.close()

    # What is made

    @initialize(
        hyperparameters=HYPERPARAMETERS,
        others=st.none() | HYPERPARAMETERS,
        shapes=st.data(),
        named=st.booleans(),
        rate_is_tensor=st.booleans(),
    )
    def start(self, hyperparameters, others, shapes, named, rate_is_tensor):
        drawn = shapes.draw(st.lists(st.sampled_from(self.shapes), min_size=1, max_size=4))
        self.named, self.rate_is_tensor = named, rate_is_tensor
        self.hyperparameters = hyperparameters
        self.twin = None
        if self.dtype == torch.float64:
            params = self.new_params(drawn)
            self.twin = Run(NeumannReference(params, **self.hyperparameters), params)
        self.pairs: dict[str, tuple[Run, Run]] = {}
        for name in self.names:
            if name.endswith("C++") and cpu.load() is None:
                continue
            if name == "Triton":
                self._left.enter_context(path(name))
            self.pairs[name] = self.new_run(name, self.new_params(drawn)), self.new_run(name, self.new_params(drawn))
        if others is not None:
            self.add(shapes.draw(st.lists(st.sampled_from(self.shapes), min_size=1, max_size=2)), others)

    def new_params(self, shapes, first=0):
        params = []
        for index, shape in enumerate(shapes, first):
            generator = torch.Generator().manual_seed(index)
            p = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)
            p = p.contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p
            params.append(p.requires_grad_())
        return params

    def new_run(self, name, params):
        return Run(Neumann(self.members(params), **self.given(self.hyperparameters), **HOW[name]), params)

    def members(self, params, first=0):
        return [(f"p{i}", p) for i, p in enumerate(params, first)] if self.named else params

    def given(self, hyperparameters):
        """Hyperparameters for one optimizer or group, which must not share a tensor with others."""
        if not self.rate_is_tensor or "lr" not in hyperparameters:
            return hyperparameters
        return {**hyperparameters, "lr": torch.tensor(hyperparameters["lr"], dtype=torch.float64)}

    @property
    def first(self) -> Run:
        return next(iter(self.pairs.values()))[0]

    @property
    def runs(self) -> list[Run]:
        return [run for pair in self.pairs.values() for run in pair]

    @property
    def all_runs(self) -> list[Run]:
        return self.runs if self.twin is None else [self.twin, *self.runs]

    # What is done to all of them

    @rule(
        steps=st.integers(1, 4),
        missing=MISSING,
        scale=st.sampled_from([1.0, 0.25, 3.0, 0.0]),
        by_closure=st.booleans(),
    )
    def step(self, steps, missing, scale, by_closure):
        self.train(steps, missing, scale, by_closure)

    def train(self, steps, missing, scale=1.0, by_closure=False):
        if not steps:
            return
        if self.point != "held":
            self.refused()
            self.go_to("held")
        for _ in range(min(steps, self.most_steps)):
            self.count += 1
            where = (self.twin or self.first).params
            grads = [
                None if i in missing | self.frozen else gradient(p, i, self.count) * scale for i, p in enumerate(where)
            ]
            for run in self.all_runs:
                self.step_once(run, grads, by_closure)
            # Where α‖r‖² throws the weights out, rounding grows as they do: another example says more
            assume(all(p.detach().abs().max() < 1e3 for p in where if p.numel()))

    def step_once(self, run, grads, by_closure):
        own = [None if g is None else g.clone() for g in grads]
        before = copies(run.params), [run.optimizer.state.get(p, {}).get("r", torch.zeros(())) + 0 for p in run.params]

        def closure():
            for p, g in zip(run.params, own, strict=True):
                p.grad = g
            assert torch.is_grad_enabled()
            return 0.5

        if by_closure:
            assert run.optimizer.step(closure) == 0.5
        else:
            closure()
            assert run.optimizer.step() is None
        for g, given in zip(own, grads, strict=True):
            if g is not None:
                assert torch.equal(g, given), "a step has written to a gradient"
        if self.dtype == torch.bfloat16:
            self.follows_what_was_stored(run, *before)

    def follows_what_was_stored(self, run, weights, rs):
        """r ← γ(r + u) with the u that rounding has left of the move, or r + u in burn-in."""
        for p, w, r in zip(run.params, weights, rs, strict=True):
            if p.grad is not None and p.numel():
                group = next(group for group in run.optimizer.param_groups if any(p is q for q in group["params"]))
                moved = r + (p.detach().float() - w.float())
                errors = [apart([run.optimizer.state[p]["r"]], [gamma * moved]) for gamma in (1.0, group["gamma"])]
                assert min(errors) < 1e-5, "r has not followed the weights as they are stored"

    def refused(self):
        for _, run in self.pairs.values():
            before = copies(tensors_of(run))
            with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\)"):
                run.optimizer.step()
            assert all(map(torch.equal, tensors_of(run), before))

    @precondition(lambda self: len(self.first.optimizer.param_groups) < self.most_groups)
    @doing(data=st.data(), hyperparameters=HYPERPARAMETERS)
    def add_group(self, data, hyperparameters):
        self.add(data.draw(st.lists(st.sampled_from(self.shapes), min_size=1, max_size=2)), hyperparameters)

    def add(self, shapes, hyperparameters):
        # Those of the first group are not named, for they are the defaults
        chosen = {key: value for key, value in hyperparameters.items() if value != self.hyperparameters[key]}
        chosen["lr"] = hyperparameters["lr"]
        for run in self.all_runs:
            late, first = self.new_params(shapes, len(run.params)), len(run.params)
            members, group = (late, chosen) if run is self.twin else (self.members(late, first), self.given(chosen))
            run.optimizer.add_param_group({"params": members, **group})
            run.params += late

    @doing(index=st.integers(0, 7))
    def freeze_or_thaw(self, index):
        index %= len(self.first.params)
        self.frozen ^= {index}
        for run in self.all_runs:
            run.params[index].requires_grad_(index not in self.frozen)

    @doing(index=st.integers(0, 7), by=st.sampled_from([0.5, -0.25, 1.0]))
    def edit_from_outside(self, index, by):
        self.go_to("held")
        index %= len(self.first.params)
        with torch.no_grad():
            for run in self.runs:
                run.params[index].add_(by)
            if self.twin is not None:
                self.twin.params[index].add_(by)
                self.twin.optimizer.state[self.twin.params[index]]["v"].add_(by)  # so that w − v is what it was

    @doing(
        index=st.integers(0, 7), by=st.sampled_from([0.5, 1e-8]), how=st.none() | st.sampled_from(["new", "deepcopy"])
    )
    def move_the_average(self, index, by, how):
        """Towards the weights, in place, perhaps as the first thing after loading."""
        if how is not None:
            self.go_on(how)
        index %= len(self.first.params)
        for run in self.runs:
            own = run.optimizer.state.get(run.params[index], {})
            if "r" in own:
                own["r"].mul_(1 - by)
        if self.twin is not None:
            w, v = self.twin.params[index].detach(), self.twin.optimizer.state[self.twin.params[index]]["v"]
            v.add_(by * (w - v))

    @doing(index=st.integers(0, 3), rate=st.sampled_from([0.03, 0.1, 0.0, 1e-9]))
    def change_rate(self, index, rate):
        if any(group["min_distance"] == 0 for group in self.first.optimizer.param_groups):
            rate = max(rate, 0.03)  # r may not fade away: near the pole rounding would decide
        if rate == 0 and int(self.first.optimizer.param_groups[0]["step"]) == 0:
            rate = 0.03  # a first step of nothing at rate 0 has a state made for torch.distributed.checkpoint, no more
        for run in self.all_runs:
            group = self.group(run, index)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @doing(index=st.integers(0, 3), momentum=st.sampled_from([0.95, 0.3, 0.0, (0.5, 0.9)]))
    def change_momentum(self, index, momentum):
        """As a scheduler does right after the step; the answer is still that of the last step."""
        self.train(1, set())
        for run in self.all_runs:
            self.group(run, index)["momentum"] = momentum
        self.ask([run for _, run in self.pairs.values()])

    @doing(index=st.integers(0, 3), decay=st.sampled_from([0.0, 0.3]))
    def change_decay(self, index, decay):
        for run in self.all_runs:
            self.group(run, index)["weight_decay"] = decay

    @doing(name=st.integers(0, 5), index=st.integers(0, 3), switch=st.sampled_from(SWITCHES))
    def switch_path(self, name, index, switch):
        pair = list(self.pairs.values())[name % len(self.pairs)]
        for run in pair:
            self.group(run, index).update(foreach=switch[0], fused=switch[1])

    def group(self, run, index):
        return run.optimizer.param_groups[index % len(run.optimizer.param_groups)]

    # What is done to the second runs only, and may not change a bit

    @doing(how=st.sampled_from(["new", "same", "deepcopy", "pickle", "as it lies"]))
    def go_on_from_a_copy(self, how):
        self.go_on(how)

    def go_on(self, how):
        for name, (_, run) in self.pairs.items():
            if how == "deepcopy":
                self.take(run, *copy.deepcopy((run.optimizer, run.params)))
            elif how == "pickle":
                self.take(run, *pickle.loads(pickle.dumps((run.optimizer, run.params))))
            elif how == "as it lies":
                run.optimizer.load_state_dict(run.optimizer.state_dict())
            elif how == "same":
                saved = through_a_file({"weights": copies(run.params), "optimizer": run.optimizer.state_dict()})
                spoil(tensors_of(run))
                with torch.no_grad():
                    for p, w in zip(run.params, saved["weights"], strict=True):
                        p.copy_(w)
                run.optimizer.load_state_dict(saved["optimizer"])
            else:
                saved = through_a_file({"weights": copies(run.params), "optimizer": run.optimizer.state_dict()})
                params = [w.requires_grad_(p.requires_grad) for p, w in zip(run.params, saved["weights"], strict=True)]
                self.take(run, self.newly_made(name, run, params, saved["optimizer"]), params)

    def newly_made(self, name, run, params, state):
        sizes, rest = [len(group["params"]) for group in run.optimizer.param_groups], list(params)
        other = None
        for size in sizes:
            first, members, rest = len(params) - len(rest), rest[:size], rest[size:]
            if other is None:
                other = Neumann(self.members(members), **self.given(self.hyperparameters), **HOW[name])
            else:
                other.add_param_group({"params": self.members(members, first)})
        other.load_state_dict(state)
        return other

    def take(self, run, optimizer, params):
        """Go on with these; code that still looks at the old ones finds nothing but nan."""
        spoil(tensors_of(run))
        run.optimizer, run.params = optimizer, params

    @rule(point=st.sampled_from(["held", "base", "average"]))
    def go_to(self, point):
        self.point = point
        for _, run in self.pairs.values():
            {"held": run.optimizer.train, "base": run.optimizer.eval}.get(
                point, lambda run=run: run.optimizer.move_to("average")
            )()

    @rule(point=st.sampled_from(["held", "base", "average"]))
    def look_from(self, point):
        for _, run in self.pairs.values():
            with at(run.optimizer, point):
                assert run.optimizer.point == point
            assert run.optimizer.point == self.point

    @doing(what=st.sampled_from(["weights", "state", "state, in place"]))
    def move_to_other_memory(self, what):
        """As `Module.to` does with weights, and offloading with the state."""
        for _, run in self.pairs.values():
            for p in run.params:
                own = run.optimizer.state.get(p, {})
                tensors = {key: value for key, value in own.items() if isinstance(value, Tensor)}
                old = [p.data] if what == "weights" else [value.data for value in tensors.values()]
                if what == "weights":
                    p.data = p.data.clone()
                elif what == "state":
                    own.update({key: value.clone() for key, value in tensors.items()})
                else:
                    for value in tensors.values():
                        value.data = value.data.clone()
                spoil(old)

    @precondition(lambda self: self.point != "held")
    @rule()
    def scribble_where_nothing_is_trained(self):
        with torch.no_grad():
            for _, run in self.pairs.values():
                for p in run.params:
                    if "m" in run.optimizer.state.get(p, ()):
                        p.fill_(7.0)
        self.go_to("held")

    @precondition(lambda self: self.count > 20)
    @rule()
    def asked_all(self):
        """The first runs too, but late."""
        self.go_to("held")
        self.ask(self.runs)

    @rule()
    def asked(self):
        self.ask([run for _, run in self.pairs.values()])

    # What must hold

    @invariant()
    def together(self):
        if not hasattr(self, "pairs"):
            return
        expected = (self.twin or self.first).params
        for name, (alone, disturbed) in self.pairs.items():
            error = apart(alone.params, expected)
            assert error < CLOSE[self.dtype], f"{name} is {error:.1e} apart"
            assert disturbed.optimizer.point == self.point
            for p, q in zip(alone.params, disturbed.params, strict=True):
                own = disturbed.optimizer.state.get(q, {})
                held = own.get("held", q)
                assert ("held" in own) == (self.point != "held" and "m" in own)
                first = alone.optimizer.state.get(p, {})
                assert ("m" in first) == ("m" in own)
                same = [(p, held), *((first[key], own[key]) for key in ("m", "r") if "m" in first)]
                assert all(torch.equal(*both) for both in same), f"{name} has not gone on to the bit"
                if "m" in first:
                    assert float(first["coefficient"]) == float(own["coefficient"])
                assert p.stride() == q.stride()

    @invariant()
    def in_order(self):
        if not hasattr(self, "pairs"):
            return
        steps = {int(group["step"]) for run in self.all_runs for group in run.optimizer.param_groups}
        assert len(steps) == 1
        assert {group["point"] for _, run in self.pairs.values() for group in run.optimizer.param_groups} == {
            self.point
        }
        wide = torch.promote_types(self.dtype, torch.float32)
        for run in self.runs:
            capturable = run.optimizer.param_groups[0]["capturable"]
            assert all(isinstance(group["step"], Tensor) == capturable for group in run.optimizer.param_groups)
            for p, own in run.optimizer.state.items():
                assert {own[key].dtype for key in ("m", "r") if key in own} <= {wide}
                assert own["m"].stride() == own["r"].stride() == p.stride()
                coefficient = own["coefficient"]
                assert coefficient.dtype == torch.float64 if capturable else type(coefficient) is float

    def ask(self, runs):
        """Hold distance and points to the twin's, or to the first path's."""
        close = CLOSE[self.dtype]
        expected = self.expected_points()
        size = float(torch.cat([p.flatten() for p in expected["held"]]).norm())
        for run in runs:
            distance = float(run.optimizer.distance())
            assert distance == pytest.approx(self.expected_distance(), rel=10 * close, abs=close * size)
            for point in run.optimizer.points:
                with at(run.optimizer, point):
                    assert apart(run.params, expected[point]) < close, point

    def expected_distance(self):
        if self.twin is not None:
            return self.twin.optimizer.distance()
        return sum(float(own["r"].double().square().sum()) for own in self.first.optimizer.state.values()) ** 0.5

    def expected_points(self):
        if self.twin is not None:
            average = [self.twin.optimizer.state[p]["v"] for p in self.twin.params]
            return {"held": copies(self.twin.params), "base": self.twin.optimizer.answer(), "average": average}
        held = [p.double() for p in copies(self.first.params)]
        states = [self.first.optimizer.state.get(p, {}) for p in self.first.params]
        base = [w - float(s["coefficient"]) * s["m"].double() if s else w for w, s in zip(held, states, strict=True)]
        average = [w - s["r"].double() if s else w for w, s in zip(held, states, strict=True)]
        return {"held": held, "base": base, "average": average}


def gradient(p: Tensor, index: int, step: int) -> Tensor:
    """Bounded, so that the weights are; it depends on weights, parameter and step."""
    generator = torch.Generator().manual_seed(1000 * step + index)
    noise = torch.rand(p.shape, generator=generator, dtype=torch.float64) - 0.5
    g = torch.sin(2 * p.detach().double() + index) + 1 + noise
    if p.numel() > CHUNK:
        g = g / 64  # as long as the others
    return g.to(p.dtype).contiguous()  # also where p lies in channels


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all tensors together, 0 where all of them are empty."""
    mine, other = (torch.cat([p.detach().flatten().double() for p in params]) for params in (ours, theirs))
    return float((mine - other).norm() / other.norm().clamp(min=1e-3))


def through_a_file(content: Any) -> Any:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def tensors_of(run: Run) -> list[Tensor]:
    states = [value for own in run.optimizer.state.values() for value in own.values() if isinstance(value, Tensor)]
    return [*run.params, *states]


def spoil(tensors: list[Tensor]) -> None:
    """Fill them with nan, without torch's counting it as a write, so that code that still looks at them fails."""
    for tensor in tensors:
        tensor.data.fill_(torch.nan)
