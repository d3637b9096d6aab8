"""Whatever is done to the optimizer, in any order: every path stays with the twin, and resuming changes no bit."""

import pytest
import torch
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from stateful_machine import Trainings

# The same examples in every run: a commit passes or fails by what it changes
SETTINGS = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


class Interpreted(Trainings):
    """Triton's interpreter takes 50 ms for a step."""

    names = ("for-loop", "Triton")
    shapes = ((3, 4), (5,), ())
    most_steps = 1
    most_groups = 3


def run(machine, dtype, seeds, actions):
    """Ten examples of each seed: of more, five in six would be variations of the one before."""
    for number in range(seeds):
        machine = seed(number)(type(machine.__name__, (machine,), {"dtype": DTYPES[dtype]}))
        run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=10, stateful_step_count=actions))


@pytest.mark.parametrize(("dtype", "seeds"), [("float64", 2), ("float32", 1), ("bfloat16", 1)])
def test_anything_in_any_order(dtype, seeds):
    run(Trainings, dtype, seeds, 20)


def test_anything_in_any_order_interpreted():
    pytest.importorskip("triton")
    run(Interpreted, "float64", 1, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "seeds"), [("float64", 10), ("float32", 4), ("bfloat16", 4)])
def test_anything_in_any_order_for_longer(dtype, seeds):
    run(Trainings, dtype, seeds, 30)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_anything_in_any_order_interpreted_for_longer(dtype):
    pytest.importorskip("triton")
    run(Interpreted, dtype, 2, 15)
