"""Whatever is done to the optimizer, in any order: every path stays with the twin, and resuming changes no bit."""

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from stateful_machine import Trainings

# derandomize: every machine sees the same examples, so that a commit passes or fails by what it changes
EACH_TIME = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
FAST = settings(EACH_TIME, max_examples=60, stateful_step_count=25)


def test_anything_in_any_order():
    run_state_machine_as_test(Trainings, settings=FAST)
