"""Whatever is done to the optimizer, in any order: every path stays with the twin, and resuming changes no bit."""

import pytest
import torch
from hypothesis import HealthCheck, settings
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


def run(machine, dtype, examples, actions):
    machine = type(machine.__name__, (machine,), {"dtype": DTYPES[dtype]})
    run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=examples, stateful_step_count=actions))


@pytest.mark.parametrize(("dtype", "examples"), [("float64", 30), ("float32", 8), ("bfloat16", 8)])
def test_anything_in_any_order(dtype, examples):
    run(Trainings, dtype, examples, 20)


def test_anything_in_any_order_interpreted():
    pytest.importorskip("triton")
    run(Interpreted, "float64", 4, 8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("dtype", "examples"), [("float64", 400), ("float32", 100), ("bfloat16", 100)])
def test_anything_in_any_order_for_long(dtype, examples):
    run(Trainings, dtype, examples, 40)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_anything_in_any_order_interpreted_for_long(dtype):
    pytest.importorskip("triton")
    run(Interpreted, dtype, 30, 20)
