"""Stateful test of the optimizer under operations in any order: each path follows the reference, resuming changes no bit."""

import pytest
import torch
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.stateful_machine import Trainings

pytestmark = pytest.mark.medium

# The same examples in every run: a commit passes or fails by what it changes
SETTINGS = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
SLOW = pytest.mark.slow
LONG = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]
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


@pytest.mark.parametrize(
    ("dtype", "seeds", "actions"),
    [
        ("float64", 1, 20),
        ("bfloat16", 1, 15),
        pytest.param("float64", 4, 30, marks=SLOW),
        pytest.param("float32", 2, 30, marks=SLOW),
        pytest.param("float64", 12, 30, marks=LONG),
        pytest.param("float32", 5, 30, marks=LONG),
        pytest.param("bfloat16", 5, 30, marks=LONG),
    ],
)
def test_anything_in_any_order(dtype, seeds, actions):
    run(Trainings, dtype, seeds, actions)


@pytest.mark.parametrize(
    ("dtype", "seeds", "actions"),
    [
        ("float64", 1, 5),
        pytest.param("float64", 1, 15, marks=SLOW),
        pytest.param("float32", 2, 15, marks=LONG),
    ],
)
def test_anything_in_any_order_interpreted(dtype, seeds, actions):
    pytest.importorskip("triton")
    run(Interpreted, dtype, seeds, actions)
