"""The rules by which a run is tried again or given up and a launch stops, decided from journals alone."""

from __future__ import annotations

import time
from typing import Any

import pytest

from neumann.launch.slurm.folder import JournalEntry
from neumann.launch.slurm.retry_rules import SILENT_S, LaunchState, ThrottledState, launch_state

LIMITS: dict[str, Any] = {"max_attempts": 3, "stop_after_failures": 3, "gpu_hours": None}


class PlayedJournals:
    """Journals as jobs would have written them, a line a minute."""

    def __init__(self) -> None:
        self.entries: list[JournalEntry] = []
        self.at = 1000.0

    def line(self, job: str, what: str, submission: int = 1, after: float = 60, **said: Any) -> PlayedJournals:
        self.at += after
        self.entries.append(JournalEntry(job, submission, what, self.at, said))
        return self

    def ended(
        self, job: str, run: str, status: str, message: str | None = None, step: int = 0, **more: Any
    ) -> PlayedJournals:
        self.line(job, "start", run=run, **more)
        return self.line(job, "end", run=run, status=status, message=message, step=step, seconds=60, **more)

    def state(
        self, submission: int = 1, alive: list[str] | None = None, later: float = 1, **limits: Any
    ) -> LaunchState:
        return launch_state(self.entries, {**LIMITS, **limits}, submission, alive=alive, now=self.at + later)


def test_a_run_is_open_until_a_job_trains_it_or_it_is_over() -> None:
    told = (
        PlayedJournals()
        .line("1_0", "began", gpus=0)
        .line("1_0", "start", run="a")
        .ended("1_0", "b", "finished", step=9)
    )
    state = told.ended("1_0", "c", "diverged").state()
    assert state.history("a").running
    assert not state.history("a").open
    assert not state.history("b").open
    assert not state.history("c").open
    assert state.history("d").open


def test_the_same_failure_twice_is_final_and_another_one_is_not() -> None:
    told = PlayedJournals().line("1_0", "began").ended("1_0", "a", "failed", "boom")
    assert told.state().history("a").open
    told.ended("1_0", "a", "failed", "no memory")
    assert told.state().history("a").open
    told.ended("1_0", "a", "failed", "no memory")
    given_up = told.state().history("a")
    assert not given_up.open
    assert given_up.given_up == "failed twice alike: no memory"


def test_attempts_are_capped_whatever_ended_them() -> None:
    told = PlayedJournals().line("1_0", "began").ended("1_0", "a", "failed", "boom").ended("1_0", "a", "failed", "bang")
    assert told.state(max_attempts=3).history("a").open
    assert told.state(max_attempts=2).history("a").given_up == "2 attempts, and launch.max_attempts=2: bang"
    told.line("1_0", "start", run="a").line("1_0", "began")  # the node failed, and Slurm has requeued the job
    state = told.state(max_attempts=3).history("a")
    assert state.status == "lost"
    assert "3 attempts" in str(state.given_up)
    assert "vanished" in str(state.given_up)


def test_a_run_that_gets_further_may_be_stopped_for_ever_and_one_that_does_not_may_not() -> None:
    told = PlayedJournals().line("1_0", "began")
    for step in range(10, 200, 10):
        told.ended("1_0", "a", "interrupted", step=step)
        told.ended("1_0", "b", "interrupted", step=10)
    state = told.state()
    assert state.history("a").open
    assert "attempts" in str(state.history("b").given_up)


def test_a_run_is_lost_with_its_job_and_not_before() -> None:
    told = PlayedJournals().line("1_0", "began").line("1_0", "start", run="a")
    assert told.state(later=SILENT_S - 1).history("a").running
    assert told.state(later=SILENT_S + 1).history("a").open  # it is silent for too long
    assert told.state(later=SILENT_S + 1, alive=["1_0"]).history("a").running  # the queue knows better
    assert (
        launch_state(told.entries, LIMITS, 1, gone=["1_0"], now=told.at).history("a").open
    )  # the launcher has asked the queue
    lost = told.state(alive=["1_1"]).history("a")
    assert lost.status == "lost"
    assert lost.open
    told.line("host-77", "began").line("host-77", "start", run="b")  # a worker started by hand is in no queue
    assert told.state(alive=[]).history("b").running


def test_a_run_that_another_process_holds_was_not_attempted() -> None:
    told = PlayedJournals().line("1_0", "began")
    for _ in range(9):
        told.ended("1_0", "a", "claimed")
    assert told.state().history("a").attempts == []
    assert told.state().history("a").open


def test_different_runs_that_fail_alike_in_a_row_stop_the_launch() -> None:
    told = (
        PlayedJournals().line("1_0", "began").ended("1_0", "a", "failed", "no such file").ended("1_0", "b", "finished")
    )
    told.ended("1_0", "c", "failed", "no such file").ended("1_0", "d", "failed", "no such file")
    told.ended("1_0", "d", "failed", "no such file")  # one run twice is one run
    assert told.state().stopped is None
    told.ended("1_1", "e", "failed", "no such file")
    assert "3 runs in a row failed alike" in str(told.state().stopped)
    assert "no such file" in str(told.state().stopped)
    assert told.state(stop_after_failures=4).stopped is None
    assert told.state(stop_after_failures=None).stopped is None
    told.ended("1_1", "f", "finished")
    assert told.state().stopped is not None  # what was decided holds for every worker
    assert told.state(submission=2).stopped is None  # and not for the next command


def test_failures_that_differ_do_not_stop_the_launch() -> None:
    told = PlayedJournals().line("1_0", "began")
    for i, run in enumerate("abcdef"):
        told.ended("1_0", run, "failed", f"failure {'ab'[i % 2]} at {i}")
    assert told.state().stopped is None


def test_gpu_hours_are_summed_over_jobs_sessions_and_submissions() -> None:
    told = PlayedJournals().line("1_0", "began", gpus=4).line("1_0", "beat", after=900)  # 1 h
    told.line("1_0", "began", gpus=4, after=10_000).line("1_0", "left", after=900)  # 1 h; waiting costs nothing
    told.line("2_0", "began", gpus=1, submission=2).line("2_0", "beat", submission=2, after=1800)  # 0.5 h
    state = told.state(submission=2, gpu_hours=3)
    assert abs(state.gpu_hours - 2.5) < 1e-9
    assert state.stopped is None
    assert not state.spent
    state = told.state(submission=2, gpu_hours=2.5)
    assert state.spent
    assert "2.50 GPU-hours" in str(state.stopped)
    assert "launch.gpu_hours=2.5 allows no more" in str(state.stopped)


@pytest.mark.medium
def test_looks_at_a_state_take_a_twentieth_of_the_time() -> None:
    looks: list[float] = []

    def look() -> LaunchState:
        looks.append(time.monotonic())
        time.sleep(0.02)
        return LaunchState({}, 0.0, None)

    throttled = ThrottledState()
    begun = time.monotonic()
    while time.monotonic() - begun < 1:
        throttled(look)
    assert 1 <= len(looks) <= 3  # every 0.4 s, or later on a machine that is busy
    before = len(looks)
    throttled(look, fresh=True)
    throttled(look)
    assert len(looks) == before + 1
    throttled.expire()
    throttled(look)
    assert len(looks) == before + 2
