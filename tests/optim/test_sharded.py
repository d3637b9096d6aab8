"""A model that is cut over ranks trains as it does in one process. Real processes over gloo."""

from __future__ import annotations

import pytest
import torch

from neumann.optim.kernels import cpu
from tests.support import sharded_runs as runs
from tests.support.optimizer_problems import relative
from tests.support.optimizer_ranks import on_ranks

pytestmark = pytest.mark.medium

POINTS = ("held", "base", "average")
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}
OVER_BOTH = "FSDP2 over tensor parallel"


def same(ours, theirs, close=1e-12):
    assert ours["distance"] == pytest.approx(theirs["distance"], rel=close)
    assert "held" in ours
    for point in POINTS:
        if point in ours:
            assert relative(ours[point], theirs[point]) < close, point


def hows():
    return [how for how in runs.HOW if how != "C++" or cpu.load() is not None]


def size_of(layout):
    return 4 if layout == OVER_BOTH else 2


def scalars(number):
    """Expected traffic of the steps: ``number`` scalars each where the norm is needed, else nothing."""
    return [(0, []) if step in runs.QUIET else (number, [1] * number) for step in range(1, runs.STEPS + 1)]


CASES = {
    "FSDP2": [
        *((torch.float64, how, "tensors") for how in runs.HOW),
        *((torch.float32, how, "tensors") for how in runs.HOW),
        (torch.float64, "for-loop", "scalars"),
    ],
    "HSDP": [(torch.float64, "C++", "tensors")],
    OVER_BOTH: [(torch.float64, "for-loop", "scalars"), (torch.float64, "C++", "tensors")],
}


@pytest.mark.parametrize("layout", ["FSDP2", "HSDP", pytest.param(OVER_BOTH, marks=pytest.mark.slow)])
def test_sharded_is_as_in_one_process_for_one_scalar_a_step(layout):
    cases = [case for case in CASES[layout] if case[1] in hows()]
    for said in on_ranks(runs.as_in_one_process, layout, cases, size=size_of(layout)):
        for (dtype, how, count), each in zip(cases, said, strict=True):
            same(each, runs.alone(dtype=dtype, **runs.HOW[how], beta_count=count), ROUNDING[dtype])
            assert each["sent"] == scalars(2 if layout == OVER_BOTH else 1)  # one over each dimension of the mesh
            assert ("_StridedShard" in each["placements"]) == (layout == OVER_BOTH)


def test_shards_that_torch_does_not_call_so():
    assert on_ranks(runs.strided) == [pytest.approx(0.25 * 4**0.5)] * 2


def test_the_norm_is_not_asked_for_where_nothing_needs_it():
    for sent in on_ranks(runs.without_regularizers):
        assert sent == [(0, [])] * 7


def test_placed_by_hand_beside_plain_tensors():
    expected = runs.by_hand_alone(runs.STEPS)
    for how in hows():
        for said in on_ranks(runs.placed_by_hand, how, runs.STEPS):
            same(said, expected)
            assert {tuple(sizes) for _, sizes in said["sent"]} == {(), (1,)}


def test_replicas_stay_the_same_to_the_bit():
    cases = [(how, torch.float32, how != "for-loop") for how in (*hows(), "Triton")]
    cases.append((hows()[-1], torch.bfloat16, True))
    zero, one = on_ranks(runs.replicas, cases)
    for (net, state, unused, _), (other_net, other_state, _, _) in zip(zero, one, strict=True):
        assert unused
        assert all(torch.equal(net[key], other_net[key]) for key in net)
        assert state["param_groups"] == other_state["param_groups"]
        for index, own in state["state"].items():
            other = other_state["state"][index]
            assert all(torch.equal(own[key], other[key]) for key in ("m", "r"))
            assert own.get("squares") == other.get("squares")
    assert any(addresses != {0} for _, _, _, addresses in zero)  # views of a bucket lie as they come


@pytest.mark.parametrize(
    ("layout", "steps", "point"),
    [
        ("FSDP2", 0, "held"),
        ("FSDP2", 8, "base"),
        pytest.param("FSDP2", 8, "held", marks=pytest.mark.slow),
        pytest.param(OVER_BOTH, 8, "base", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_on_on_ranks_and_in_one_process(tmp_path, layout, steps, point):
    """Before the first step too: torch takes one with rate 0 to have a state made, which may not count."""
    expected = runs.alone()
    for said in on_ranks(runs.saved, layout, str(tmp_path), steps, point, size=size_of(layout)):
        same(said, expected)
    for kind in ("full", "pieces"):
        for said in on_ranks(runs.resumed, layout, str(tmp_path), kind, point, steps, size=size_of(layout)):
            same(said, expected)
        same(runs.resumed(None, str(tmp_path), kind, point, steps), expected)


def test_a_state_without_the_held_weights_is_refused(tmp_path):
    on_ranks(runs.saved, "FSDP2", str(tmp_path), 7, "base")
    with pytest.raises(
        ValueError, match=r"saved at the point 'base', and the held weights of parameter first.weight are not"
    ):
        runs.resumed(None, str(tmp_path), "pieces", "held", 7)


@pytest.mark.parametrize("all_on_one", [False, True])
def test_shards_that_cannot_be_seen(all_on_one):
    expected = runs.halves_alone(runs.STEPS)
    for how in hows():
        zero, one = on_ranks(runs.slices, how, runs.STEPS, all_on_one)
        assert zero["sent"] == scalars(1)
        assert one["distance"] == zero["distance"]
        if all_on_one:
            same(zero, expected)
        else:
            same({**zero, **{point: zero[point] + one[point] for point in POINTS}}, expected)


def test_what_is_refused_with_a_process_group():
    count = "ValueError: with process_group the variables cannot be counted: beta_count must be 'absolute', got "
    copied = "TypeError: an optimizer with a process_group cannot be copied or pickled; save its state_dict()"
    kinds = ("tensors", "scalars", "tensors", "scalars", "tensors")
    for said in on_ranks(runs.refusals):
        loaded = "ValueError: the state of Neumann is not valid in its parameter group 0: "
        expected = [f"{count}{kind!r}" for kind in kinds]
        expected[-1] = expected[-1].replace("ValueError: ", loaded)
        assert said == [*expected, copied, copied]


def test_zero_redundancy_optimizer():
    for how in hows():
        zero, one = on_ranks(runs.zero, how, runs.STEPS)
        assert zero["mine"]
        assert one["mine"]
        assert not set(zero["mine"]) & set(one["mine"])
        expected = runs.alone(runs.STEPS, **runs.HOW[how], **runs.ABSOLUTE)
        for said in (zero, one):
            same(said, expected)
            assert [sizes for _, sizes in said["sent"]] == [sizes for _, sizes in scalars(1)]


def test_an_inner_loop_is_as_in_one_process():
    expected = runs.with_inner_loop(None)
    for said in on_ranks(runs.with_inner_loop, "FSDP2"):
        assert relative(said, expected) < 1e-12
