"""The launcher on the login node: it submits jobs once, joins those that are there, and tells losses from failures.

The tests play the jobs: they write the journals and the results that real ones would write.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from neumann.cli.main import main
from neumann.config import RunSpec, SlurmLaunchConfig, make_specs
from neumann.errors import Interrupted, UserError
from neumann.launch.protocol import RunOutcome
from neumann.launch.slurm import queue
from neumann.launch.slurm.folder import JournalWriter, LaunchFolder
from neumann.launch.slurm.launcher import SlurmLauncher
from neumann.search.grid import expand
from neumann.store import RunFolder, find
from tests.support.fake_slurm import FakeSlurm

QUICK = ["batch.size=64", "logger=none"]
SCORES = {"held": {"loss": 1.0, "error": 0.5, "n": 300}}


class PlayingView:
    """A view that plays the jobs: it calls ``act`` at every tick with the number of the tick, from 1."""

    def __init__(self, act: Callable[[int], None] = lambda tick: None) -> None:
        self.act, self.ticks = act, 0
        self.over: list[RunOutcome] = []
        self.begun: list[RunSpec] = []

    def label(self, spec: RunSpec) -> str:
        return spec.name

    def started(self, spec: RunSpec) -> None:
        self.begun.append(spec)

    def done(self, outcome: RunOutcome) -> None:
        self.over.append(outcome)

    def tick(self, running: Sequence[RunSpec], waiting: int) -> None:
        self.ticks += 1
        assert self.ticks < 200, "it does not end"
        self.act(self.ticks)


class PlayedLaunch:
    """A launch of three runs on a cluster that the test plays."""

    def __init__(self, fake: FakeSlurm, *words: str) -> None:
        self.fake = fake
        self.specs = make_specs(expand([*QUICK, *(words or ("seed=0,1,2",))]))
        self.folder = LaunchFolder.of(self.specs)
        self.said: list[str] = []

    def launch(self, view: PlayingView | None = None, settings: SlurmLaunchConfig | None = None) -> list[RunOutcome]:
        with SlurmLauncher(settings or SlurmLaunchConfig(), self.said.append) as launcher:
            return launcher.run(self.specs, view or PlayingView())

    def journal(self, job: str = "7_0", submission: int = 1) -> JournalWriter:
        return JournalWriter(self.folder, job, submission)

    def train(self, journal: JournalWriter, *specs: RunSpec) -> None:
        """Write what a worker leaves that trains ``specs``."""
        for spec in specs:
            journal.write("start", run=spec.signature)
            RunFolder(spec.folder).path.mkdir(parents=True, exist_ok=True)
            result = {"status": "finished", "signature": spec.signature, "step": 9, "validation": SCORES}
            find(spec).write_result({**result, "test": SCORES})
            journal.write("end", run=spec.signature, status="finished", step=9, seconds=2.5)

    def fail(self, journal: JournalWriter, spec: RunSpec, message: str) -> None:
        journal.write("start", run=spec.signature)
        journal.write("end", run=spec.signature, status="failed", message=message, step=0, seconds=1)


@pytest.fixture
def place(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> PlayedLaunch:
    for place in ("launcher", "monitor"):
        monkeypatch.setattr(f"neumann.launch.slurm.{place}.TICK_S", 0.001)
    monkeypatch.setattr("neumann.launch.slurm.monitor.POLL_S", 0.0)
    # these runs can be built, which takes seconds to find out
    monkeypatch.setattr(SlurmLauncher, "_check", lambda launcher, specs, view: None)
    return PlayedLaunch(fake)


@pytest.mark.slow
def test_a_run_that_cannot_be_built_is_refused_before_any_job_is_submitted(
    fake: FakeSlurm, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "-m", *QUICK, "launch=slurm", "launch.gpus_per_node=1", "trainer.accelerator=gpu"]
    assert main([*words, "optimizer.alpha=0.1,-3"]) == 2
    err = " ".join(capfd.readouterr().err.split())
    assert "1 of 2 runs cannot be trained, so none was started: optimizer.alpha=-3" in err
    assert not fake.scripts()
    assert not Path("runs").exists()
    fake.refuse("Invalid account")
    assert main([*words, "optimizer.alpha=0.1,0.2"]) == 2  # no GPU is needed here
    assert "Slurm takes no job: Invalid account" in " ".join(capfd.readouterr().err.split())


@pytest.mark.slow
def test_a_search_builds_both_ends_of_an_interval_before_any_job_is_submitted(
    fake: FakeSlurm, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "-m", *QUICK, "launch=slurm", "launch.gpus_per_node=1", "trainer.accelerator=gpu"]
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"]
    assert main([*words, *search, "optimizer.alpha=interval(-3,1)"]) == 2
    err = " ".join(capfd.readouterr().err.split())
    assert "cannot be trained, so none was started: optimizer.alpha=-3.0: optimizer: " in err
    assert not fake.scripts()
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_login_node_without_pytorch_submits_all_the_same(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_warm(server: object, timeout: float = 0.0) -> bool:
        raise UserError("no run can be started")

    monkeypatch.setattr("neumann.launch.fork_server.ForkServer.warm_up", lambda server: None)
    monkeypatch.setattr("neumann.launch.fork_server.ForkServer.is_warm", is_warm)
    fake.refuse("Invalid account")
    place = PlayedLaunch(fake)
    with pytest.raises(UserError, match="Invalid account"):
        place.launch()
    assert "PyTorch cannot be imported here, so a wrong value is found when its run's turn comes" in place.said


def test_outcomes_come_from_journals_and_results(place: PlayedLaunch) -> None:
    def act(tick: int) -> None:
        if tick == 1:
            place.fake.queue({"7_0": "RUNNING", "7_1": "PENDING", "7_2": "PENDING"})
            journal = place.journal()
            journal.write("began", gpus=0)
            place.train(journal, *place.specs[:2])
            place.fail(journal, place.specs[2], "boom")
            place.fail(journal, place.specs[2], "boom")

    place.fake.queue({"7_0": "PENDING"})
    place.fake.queue({})
    view = PlayingView(act)
    outcomes = place.launch(view)
    assert [outcome.status for outcome in outcomes] == ["finished", "finished", "failed"]
    assert [outcome.seconds for outcome in outcomes] == [2.5, 2.5, 2]
    assert outcomes[2].message == "failed twice alike: boom"
    assert not any(outcome.reused for outcome in outcomes)
    assert len(view.begun) == 3
    assert len(place.fake.scripts()) == 1
    assert "array=0-2%3" in place.fake.scripts()[0]  # three runs need no eight workers
    assert "submitted: 3 jobs for 3 runs (7)" in place.said[0]
    # again: what is over is answered, what failed is submitted anew
    place.fake.queue({})

    def second(tick: int) -> None:
        place.train(place.journal("8", 2), place.specs[2])

    outcomes = place.launch(PlayingView(second))
    assert [outcome.reused for outcome in outcomes] == [True, True, False]
    assert outcomes[2].status == "finished"
    assert len(place.fake.scripts()) == 2
    place.launch()
    assert len(place.fake.scripts()) == 2  # nothing is left, so nothing is asked


def test_the_same_command_joins_its_jobs_and_refuses_other_settings(place: PlayedLaunch) -> None:
    def stop(tick: int) -> None:
        place.fake.queue({"7_0": "RUNNING", "7_1": "RUNNING"})
        if tick == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"detached; jobs 7 stay in the queue and go on \('scancel 7' ends them\)"):
        place.launch(PlayingView(stop))
    with pytest.raises(UserError, match=r"jobs 7 are in the queue for these runs with launch\.time=60: .*scancel 7"):
        place.launch(settings=SlurmLaunchConfig(time="90"))

    def work(tick: int) -> None:
        place.train(place.journal(), *place.specs)

    outcomes = place.launch(PlayingView(work), SlurmLaunchConfig(max_attempts=9))
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert len(place.fake.scripts()) == 1
    assert "joined: 2 of its jobs are in the queue already (7)" in place.said[-1]
    assert place.folder.settings()["launch"]["max_attempts"] == 9  # a limit may change under way


def test_runs_of_a_vanished_job_get_another(place: PlayedLaunch) -> None:
    def act(tick: int) -> None:
        if tick == 1:
            place.fake.queue({"7_0": "RUNNING"})
            journal = place.journal()
            journal.write("began", gpus=0)
            place.train(journal, place.specs[0])
            journal.write("start", run=place.specs[1].signature)
        elif tick == 5:
            place.fake.queue({"7_0": "NODE_FAIL", "7_1": "COMPLETED", "7_2": "COMPLETED"})
        elif len(place.fake.scripts()) == 2:
            place.fake.queue({"7_0": "NODE_FAIL", "8_0": "RUNNING"})
            place.train(place.journal("8_0"), *place.specs[1:])

    outcomes = place.launch(PlayingView(act))
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert len(place.fake.scripts()) == 2
    assert "2 runs have no job left, and get others" in place.said[1]
    assert "7_0" in place.folder.settings()["gone"]  # so that the next job need not wait for its silence


def test_a_cancelled_job_of_an_earlier_submission_is_no_reason_to_give_up(place: PlayedLaunch) -> None:
    def act(tick: int) -> None:
        if tick == 5:
            place.fake.queue({"3_0": "CANCELLED", "7_0": "FAILED"})
        elif len(place.fake.scripts()) == 2:
            place.fake.queue({"3_0": "CANCELLED", "7_0": "FAILED", "8_0": "RUNNING"})
            place.train(place.journal("8_0"), *place.specs[1:])
        elif tick == 1:
            place.fake.queue({"3_0": "CANCELLED", "7_0": "RUNNING"})
            place.train(place.journal(), place.specs[0])

    place.fake.queue({"3_0": "CANCELLED"})  # by the user, before this command
    assert [outcome.status for outcome in place.launch(PlayingView(act))] == ["finished"] * 3


def test_what_the_user_cancels_is_not_submitted_again(place: PlayedLaunch) -> None:
    def act(tick: int) -> None:
        if tick == 1:
            place.fake.queue({"7_0": "RUNNING"})
            place.train(place.journal(), place.specs[0])
        elif tick == 5:
            place.fake.queue({"7_0": "CANCELLED", "7_1": "CANCELLED"})

    outcomes = place.launch(PlayingView(act))
    assert [outcome.status for outcome in outcomes] == ["finished", "interrupted", "interrupted"]
    assert outcomes[1].message == "job 7 was cancelled"
    assert len(place.fake.scripts()) == 1


def test_jobs_that_end_before_any_run_are_not_submitted_for_ever(place: PlayedLaunch) -> None:
    def act(tick: int) -> None:
        place.fake.queue({"7_0": "FAILED", "7_1": "FAILED", "7_2": "FAILED"})

    outcomes = place.launch(PlayingView(act))
    assert [outcome.status for outcome in outcomes] == ["failed"] * 3
    assert "its jobs ended (FAILED) before any run began: see " in str(outcomes[0].message)
    assert len(place.fake.scripts()) == 1


@pytest.mark.medium
def test_a_queue_that_does_not_answer_is_asked_again(place: PlayedLaunch) -> None:
    def act(tick: int) -> None:
        place.fake.queue(None if tick < 5 else {"7_0": "RUNNING"})
        if tick == 10:
            place.train(place.journal(), *place.specs)

    outcomes = place.launch(PlayingView(act))
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert sum("squeue does not answer" in text for text in place.said) == 1
    place.fake.queue(None)
    with pytest.raises(UserError, match="squeue does not answer, so nothing can be submitted"):
        PlayedLaunch(place.fake, "seed=7").launch()


@pytest.mark.medium
def test_failures_alike_and_spent_gpu_hours_end_the_launch_with_a_sentence(place: PlayedLaunch) -> None:
    settings = SlurmLaunchConfig(gpus_per_node=1, gpu_hours=5, stop_after_failures=2)

    def act(tick: int) -> None:
        place.fake.queue({"7_0": "RUNNING"})
        if tick == 1:
            journal = place.journal()
            journal.write("began", gpus=100_000)
            place.fail(journal, place.specs[0], "no such module")
            time.sleep(0.3)  # 8 GPU-hours
            place.fail(journal, place.specs[1], "no such module")

    outcomes = place.launch(PlayingView(act), settings)
    assert {outcome.status for outcome in outcomes} == {"failed", "interrupted"}
    assert all("launch.gpu_hours=5 allows no more: raise it to go on" in str(o.message) for o in outcomes)
    place.fake.queue({})
    with pytest.raises(UserError, match=r"launch\.gpu_hours=5 allows no more"):
        place.launch(settings=settings)
    assert len(place.fake.scripts()) == 1

    place.fake.queue({"7_0": "RUNNING"})
    outcomes = place.launch(settings=SlurmLaunchConfig(gpus_per_node=1, stop_after_failures=2))
    assert all("stopped after 2 runs in a row failed alike" in str(outcome.message) for outcome in outcomes)


@pytest.mark.medium
def test_runs_on_several_devices_have_a_job_each(fake: FakeSlurm, place: PlayedLaunch) -> None:
    mixed = PlayedLaunch(fake, "trainer.devices=1,2", "seed=0,1", "trainer.accelerator=cpu")

    def act(tick: int) -> None:
        fake.queue({"7_0": "RUNNING", "8_0": "RUNNING"})
        mixed.train(mixed.journal(), *mixed.specs)

    mixed.launch(PlayingView(act))
    workers, groups = fake.scripts()
    assert "ntasks-per-node=1" in workers
    assert "ntasks-per-node=2" in groups
    assert "array=0-1" in workers
    assert "array=0-1" in groups


class MixedLaunch(PlayedLaunch):
    """A launch of runs on one device, which share workers, and of runs on two, which have a job each.

    The queue answers at every tick with `states`; jobs that are submitted are added to it as pending.
    """

    def __init__(self, fake: FakeSlurm, seeds: str = "0,1") -> None:
        super().__init__(fake, "trainer.devices=1,2", f"seed={seeds}", "trainer.accelerator=cpu")
        self.alone = [spec for spec in self.specs if spec.config.trainer.devices == 1]
        self.groups = [spec for spec in self.specs if spec.config.trainer.devices == 2]
        self.states: dict[str, str] = {}

    def play(self, act: Callable[[int], None]) -> list[RunOutcome]:
        """Launch it while ``act`` plays the jobs, called with the number of each tick."""

        def step(tick: int) -> None:
            for job in self.folder.jobs():
                self.states.setdefault(job, "RUNNING")
            act(tick)
            self.fake.queue(self.states)

        return self.launch(PlayingView(step))

    def job_of(self, spec: RunSpec) -> str:
        """Return the last job that was submitted for a run on two devices."""
        return [job for job, purpose in self.folder.jobs().items() if purpose == spec.signature][-1]

    def finish(self, job: str, *specs: RunSpec) -> None:
        """Play a job that trains ``specs`` and ends."""
        self.train(self.journal(job), *specs)
        self.states[job] = "COMPLETED"


@pytest.fixture
def mixed(fake: FakeSlurm, place: PlayedLaunch) -> MixedLaunch:
    return MixedLaunch(fake)


@pytest.mark.medium
def test_a_lost_run_of_several_devices_gets_a_job_while_others_live(mixed: MixedLaunch) -> None:
    lost: list[str] = []

    def act(tick: int) -> None:
        first, second = mixed.groups
        if tick == 2:
            lost.append(mixed.job_of(first))
            mixed.journal(lost[0]).write("start", run=first.signature)
            mixed.states[lost[0]] = "NODE_FAIL"
        elif tick > 2 and mixed.job_of(first) not in lost and mixed.states.get("7_0") == "RUNNING":
            assert mixed.states[mixed.job_of(second)] == "RUNNING"
            assert lost[0] in mixed.folder.settings()["gone"]
            mixed.finish(mixed.job_of(first), first)
            mixed.finish(mixed.job_of(second), second)
            mixed.finish("7_0", *mixed.alone)

    assert [outcome.status for outcome in mixed.play(act)] == ["finished"] * 4
    _, groups, again = mixed.fake.scripts()
    assert "array=0-1" in groups
    assert "array=" not in again  # it is for this run alone
    assert "ntasks-per-node=2" in again
    assert sum("1 runs have no job left, and get others" in said for said in mixed.said) == 1


@pytest.mark.medium
def test_lost_workers_are_replaced_while_a_run_of_several_devices_trains(mixed: MixedLaunch) -> None:
    def act(tick: int) -> None:
        if tick == 2:
            mixed.journal("7_0").write("start", run=mixed.alone[0].signature)
            mixed.states |= {"7_0": "FAILED", "7_1": "COMPLETED"}
        elif mixed.states.get("9_0") == "RUNNING":
            assert mixed.states[mixed.job_of(mixed.groups[0])] == "RUNNING"
            mixed.finish("9_0", *mixed.alone)
            for group in mixed.groups:
                mixed.finish(mixed.job_of(group), group)

    assert [outcome.status for outcome in mixed.play(act)] == ["finished"] * 4
    assert "ntasks-per-node=1" in mixed.fake.scripts()[2]


@pytest.fixture
def groups_refused(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Have Slurm refuse jobs of several processes while the list is not empty, an entry for each array."""
    submit = queue.submit
    refusals: list[bool] = []

    def refuse_groups(*words: Any) -> list[str]:
        if words[3] != (1, 1) and refusals:
            refusals.pop()
            raise queue.Refused("Slurm takes no job: too many jobs", [])
        return submit(*words)

    monkeypatch.setattr(queue, "submit", refuse_groups)
    return refusals


@pytest.mark.medium
def test_jobs_that_slurm_refused_are_submitted_when_another_job_has_ended(
    mixed: MixedLaunch, groups_refused: list[bool]
) -> None:
    groups_refused += [True, True]

    def act(tick: int) -> None:
        if tick < 20:
            assert len(mixed.fake.scripts()) == 1  # nothing has changed since
            assert len(groups_refused) == 1
        elif tick == 20:
            mixed.finish("7_1", mixed.alone[1])
        elif len(mixed.fake.scripts()) == 1 and not groups_refused and mixed.states["7_0"] == "RUNNING":
            mixed.finish("7_0", mixed.alone[0])  # refused again, until this one has ended too
        elif mixed.groups[1].signature in mixed.folder.jobs().values():
            for group in mixed.groups:
                mixed.finish(mixed.job_of(group), group)

    assert [outcome.status for outcome in mixed.play(act)] == ["finished"] * 4
    assert sum("too many jobs; 2 runs have no job yet: Slurm is asked again" in said for said in mixed.said) == 1
    assert not any("no job left" in said for said in mixed.said)


@pytest.mark.medium
def test_jobs_that_slurm_refused_are_tried_again_after_a_while(
    mixed: MixedLaunch, groups_refused: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neumann.launch.slurm.monitor.REFUSED_S", 0.0)
    groups_refused += [True] * 5

    def act(tick: int) -> None:
        if mixed.groups[1].signature in mixed.folder.jobs().values():
            for job, specs in [("7_0", mixed.alone), *((mixed.job_of(run), [run]) for run in mixed.groups)]:
                mixed.finish(job, *specs)

    assert [outcome.status for outcome in mixed.play(act)] == ["finished"] * 4
    assert not groups_refused


@pytest.mark.medium
def test_what_slurm_refuses_to_the_end_has_failed_with_its_sentence(
    mixed: MixedLaunch, groups_refused: list[bool]
) -> None:
    groups_refused += [True] * 9

    def act(tick: int) -> None:
        if tick == 2:
            mixed.finish("7_0", *mixed.alone)
            mixed.states["7_1"] = "COMPLETED"

    outcomes = {outcome.spec.signature: outcome for outcome in mixed.play(act)}
    assert [outcomes[spec.signature].status for spec in mixed.alone] == ["finished"] * 2
    for spec in mixed.groups:
        assert (outcomes[spec.signature].status, outcomes[spec.signature].message) == (
            "failed",
            "Slurm takes no job: too many jobs",
        )


@pytest.mark.medium
def test_after_a_cancelled_job_nothing_is_submitted_any_more(mixed: MixedLaunch, groups_refused: list[bool]) -> None:
    groups_refused += [True]

    def act(tick: int) -> None:
        if tick == 2:
            mixed.states |= {"7_0": "CANCELLED", "7_1": "CANCELLED"}

    outcomes = mixed.play(act)
    assert {(outcome.status, outcome.message) for outcome in outcomes} == {("interrupted", "job 7 was cancelled")}
    assert len(mixed.fake.scripts()) == 1


@pytest.mark.medium
def test_a_second_launcher_takes_over_the_jobs_that_the_first_has_submitted_again(mixed: MixedLaunch) -> None:
    other = MixedLaunch(mixed.fake)
    first = mixed.groups[0]

    def act(tick: int) -> None:
        if tick == 2:
            lost = mixed.job_of(first)
            mixed.journal(lost).write("start", run=first.signature)
            mixed.states[lost] = "NODE_FAIL"
        elif mixed.states.get("9") == "RUNNING":
            other.states = mixed.states
            mixed.fake.queue(mixed.states)
            other.play(finish_all)

    def finish_all(tick: int) -> None:
        if tick == 5:
            for job, specs in [("7_0", mixed.alone), *((mixed.job_of(run), [run]) for run in mixed.groups)]:
                mixed.finish(job, *specs)

    assert [outcome.status for outcome in mixed.play(act)] == ["finished"] * 4
    assert len(mixed.fake.scripts()) == 3
    assert "joined: 5 of its jobs" not in other.said[0]  # the lost one is not among them
    assert "joined: 4 of its jobs" in other.said[0]


@pytest.mark.medium
def test_a_job_that_no_launcher_has_recorded_may_be_for_any_run(mixed: MixedLaunch) -> None:
    """A launcher that is killed right after sbatch records nothing: what its job trains is not submitted twice."""

    def act(tick: int) -> None:
        if tick == 2:
            mixed.states["33_0"] = "RUNNING"
            lost = mixed.job_of(mixed.groups[0])
            mixed.journal(lost).write("start", run=mixed.groups[0].signature)
            mixed.states[lost] = "NODE_FAIL"
        elif tick == 20:
            assert len(mixed.fake.scripts()) == 2
            mixed.states["33_0"] = "FAILED"
        elif len(mixed.fake.scripts()) == 3:
            for job, specs in [("7_0", mixed.alone), *((mixed.job_of(run), [run]) for run in mixed.groups)]:
                mixed.finish(job, *specs)

    assert [outcome.status for outcome in mixed.play(act)] == ["finished"] * 4


def test_one_run_in_two_folders_is_refused(fake: FakeSlurm) -> None:
    with pytest.raises(UserError, match="is to lie in two folders"):
        PlayedLaunch(fake, "study=a,b").launch()


@pytest.mark.medium
def test_the_command_line_launches_one_run_and_many(
    place: PlayedLaunch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.fake.refuse("Invalid account")
    for words in (["-m", "seed=0,1"], ["seed=0"]):
        assert main(["train", "launch=slurm", *QUICK, *words]) == 2
        assert "Slurm takes no job: Invalid account" in " ".join(capsys.readouterr().err.split())
    assert main(["study", "regularizers", "--budget", "small", "logger=none", "launch=slurm", "launch.workers=3"]) == 2
    assert "Slurm takes no job: Invalid account" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["train", "launch=slurm", *QUICK, "seed=0"]) == 2
    assert "start it on a login node" in " ".join(capsys.readouterr().err.split())


@pytest.mark.medium
def test_the_login_node_imports_no_torch(place: PlayedLaunch, tmp_path: Path) -> None:
    code = "import sys, neumann.launch.slurm.launcher, neumann.launch.slurm.worker, neumann.launch.slurm.rank_job; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
