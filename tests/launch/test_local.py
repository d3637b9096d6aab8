"""Many runs at once on this machine: each is what its specification says, and a failure stops no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neumann.config import LocalLaunchConfig, RunSpec, make_specs
from neumann.errors import Interrupted, UserError
from neumann.launch.local import LocalLauncher
from neumann.launch.protocol import RunOutcome
from neumann.search.grid import expand
from neumann.store import RunFolder, find, finished_result
from neumann.store.files import read_json
from neumann.store.vouching import DIGEST, sealed
from tests.support.launching import LONG, QUICK, RecordingView, left_over, own_optimizer, wait_for

pytestmark = pytest.mark.medium

TWO = LocalLaunchConfig(parallel=2, threads=1)
FAILED_ON_PURPOSE = ["raise", "exit", "leave", "kill", "stop"]


def quick(*overrides: str, dirs: tuple[str, ...] = (), base: list[str] = QUICK) -> list[RunSpec]:
    return make_specs(expand([*base, *overrides], dirs), dirs)


def launch(
    specs: list[RunSpec], view: RecordingView | None = None, settings: LocalLaunchConfig = TWO
) -> list[RunOutcome]:
    with LocalLauncher(settings) as launcher:
        return launcher.run(specs, view or RecordingView())


def attempts(folder: Path) -> list[dict[str, object]]:
    return list(read_json(RunFolder(folder).provenance)["attempts"])


def test_every_run_is_exactly_what_was_asked_for_and_is_trained_once() -> None:
    specs = quick("optimizer=sgd,nesterov", "seed=0,1")
    view = RecordingView()
    outcomes = launch([*specs, specs[0]], view, LocalLaunchConfig(parallel=2, threads=3))
    assert [o.spec for o in outcomes] == [*specs, specs[0]]
    assert len({o.folder for o in outcomes}) == 4
    assert {o.status for o in outcomes} == {"finished"}
    assert view.most == 2
    assert sorted(s.signature for s in view.begun) == sorted(s.signature for s in specs)
    for outcome in outcomes:
        assert OmegaConf.to_container(OmegaConf.load(outcome.folder / "config.yaml")) == outcome.spec.as_dict()
        assert outcome.result == read_json(outcome.folder / "result.json")
        assert outcome.result is not None
        assert outcome.result["signature"] == outcome.spec.signature
        assert outcome.seconds > 0
        assert not outcome.reused
        (attempt,) = attempts(outcome.folder)
        assert attempt["torch_threads"] == 3
        assert "step 36/36" in (outcome.folder / "output.log").read_text()
    assert not list(Path("runs/default").glob(".*"))
    view = RecordingView()
    again = launch([*specs, *quick("optimizer=sgd", "seed=0,1", "name=other")], view)
    assert view.begun == []
    assert all(o.reused and o.seconds == 0 and o.status == "finished" for o in again)
    assert [o.result for o in again[:4]] == [o.result for o in outcomes[:4]]
    assert again[4].folder == outcomes[0].folder
    assert all(len(attempts(o.folder)) == 1 for o in again)


def test_a_run_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    dirs = (own_optimizer(Path.cwd()),)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setenv("MARK", "the environment of this moment")
    endings = [*FAILED_ON_PURPOSE, "mark"]
    specs = quick("optimizer=mine", f"optimizer.ends={','.join(endings)}", dirs=dirs)
    outcomes = launch(specs)
    by_ending = dict(zip(endings, outcomes, strict=True))
    said = {ending: (o.status, o.message) for ending, o in by_ending.items()}
    assert said == {
        "raise": ("failed", "it broke"),
        "exit": ("failed", "its process left with exit code 3"),
        "leave": ("failed", "the program left with exit code 4"),
        "kill": ("failed", "killed by signal 9 (SIGKILL); out of memory?"),
        "stop": ("interrupted", said["stop"][1]),
        "mark": ("finished", None),
    }
    assert str(said["stop"][1]).startswith("stopped at step ")
    assert Path("mark").read_text() == "the environment of this moment"
    for ending in ("raise", "exit", "leave", "kill"):
        folder = RunFolder(by_ending[ending].folder)
        assert folder.status()["status"] == "failed"
        assert folder.status()["attempt"] == 1
        assert folder.status()["message"] == by_ending[ending].message
        assert by_ending[ending].result is None
        assert "said at step 20" in (folder.path / "output.log").read_text()
    assert "RuntimeError: it broke" in RunFolder(by_ending["raise"].folder).error.read_text()
    assert not list(Path("runs/default").glob(".*"))
    # mended, they are tried again and go on from their last evaluation
    own_optimizer(Path.cwd(), Path("my_optimizers.py").read_text().replace("self.steps == self.at", "False"))
    mended = launch(specs[:4])
    assert {o.status for o in mended} == {"finished"}
    assert [len(attempts(o.folder)) for o in mended] == [2, 2, 2, 2]
    assert not RunFolder(mended[0].folder).error.exists()


def test_results_that_cannot_be_written_are_refused_before_anything_starts() -> None:
    view = RecordingView()
    with pytest.raises(UserError, match="the results folder /proc/neumann/default cannot be written"):
        launch(quick("seed=0,1", "output=/proc/neumann"), view)
    assert view.begun == []


def test_a_run_of_another_process_is_waited_for() -> None:
    mine, theirs, left = quick("optimizer=sgd", "seed=5,6,7")
    order: list[int] = []

    def elsewhere(spec: RunSpec, finish: bool) -> None:
        folder = find(spec)
        with folder.claim():
            claimed.wait(60)
            wait_for(lambda: finished_result(mine))
            time.sleep(0.5)
            order.append(spec.config.seed)
            if finish:
                result = json.loads((find(mine).path / "result.json").read_text())
                unsealed = {key: value for key, value in result.items() if key != DIGEST}
                folder.write_result(sealed({**unsealed, "signature": spec.signature}))

    claimed = threading.Barrier(3)
    threads = [threading.Thread(target=elsewhere, args=a) for a in ((theirs, True), (left, False))]
    for thread in threads:
        thread.start()
    claimed.wait(60)
    view = RecordingView()
    outcomes = launch([theirs, left, mine], view)
    for thread in threads:
        thread.join()
    assert [o.status for o in outcomes] == ["finished"] * 3
    assert [o.reused for o in outcomes] == [True, False, False]
    assert not (outcomes[0].folder / "provenance.json").exists()  # we never trained it
    assert len(attempts(outcomes[1].folder)) == 1
    assert sorted(order) == [6, 7]


def test_a_run_that_another_launcher_ends_meanwhile_is_not_counted_as_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    (spec,) = quick("optimizer=sgd", "seed=9")
    (mine,) = launch([spec])
    assert not mine.reused
    monkeypatch.setattr(RunOutcome, "of_result", classmethod(lambda cls, spec: None))  # it looked too early
    (again,) = launch([spec])
    assert (again.status, again.reused, again.result) == ("finished", True, mine.result)
    assert len(attempts(again.folder)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_every_run_where_the_same_command_goes_on(number: int) -> None:
    specs = quick("optimizer=sgd", "seed=0,1,2", base=LONG)
    sent: list[float] = []

    def stop(running: object) -> None:
        if not sent and all(find(spec).read_measurements() for spec in specs[:2]):
            sent.append(time.monotonic())
            os.kill(os.getpid(), number)

    view = RecordingView(stop)
    before = signal.getsignal(signal.SIGINT)  # not Python's own where a shell has started the tests in the background
    with pytest.raises(Interrupted, match="stopped with 0 of 3 runs finished"):
        launch(specs, view)
    assert time.monotonic() - sent[0] < 15
    assert [o.status for o in view.over] == ["interrupted"] * 2
    for spec in specs[:2]:
        assert find(spec).status()["status"] == "interrupted"
        assert find(spec).last.exists()
        assert not find(spec).held()
    assert not find(specs[2]).path.exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_kills(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("neumann.launch.local.SLOW_S", 0.2)
    dirs = (own_optimizer(Path.cwd()),)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    specs = quick("optimizer=mine", "optimizer.ends=hang", dirs=dirs)
    sent: list[float] = []

    def stop(running: object) -> None:
        if find(specs[0]).read_measurements() and (not sent or (len(sent) == 1 and time.monotonic() > sent[0] + 1)):
            time.sleep(0.2)  # for the step that hangs
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        launch(specs, RecordingView(stop))
    assert len(sent) == 2
    assert time.monotonic() - sent[1] < 5
    assert not find(specs[0]).held()
    told = capsys.readouterr().err
    assert told.count("1 of the runs have not left yet") == 1
    assert "a second Ctrl-C or signal kills them" in told


def test_an_error_of_the_caller_leaves_no_run_behind() -> None:
    specs = quick("optimizer=sgd", "seed=8", base=LONG)

    def stop(running: object) -> None:
        if find(specs[0]).read_measurements():
            raise KeyError("the view is broken")

    with pytest.raises(KeyError):
        launch(specs, RecordingView(stop))
    assert find(specs[0]).status()["status"] == "interrupted"
    assert not find(specs[0]).held()


def test_the_machine_decides_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    (spec,) = quick()
    for hidden, gpu in (("", False), ("-1", False), (None, any(Path("/dev").glob("nvidia[0-9]*")))):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if hidden is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        launcher = LocalLauncher(LocalLaunchConfig())
        assert (launcher.parallel, launcher.threads(spec)) == ((1, 12) if gpu else (12, 1))
    for parallel, threads, expected in ((5, None, (5, 2)), (24, None, (24, 1)), (3, 7, (3, 7))):
        launcher = LocalLauncher(LocalLaunchConfig(parallel=parallel, threads=threads))
        assert (launcher.parallel, launcher.threads(spec)) == expected
    (wide,) = quick("trainer.devices=4")
    assert LocalLauncher(LocalLaunchConfig(parallel=1)).threads(wide) == 3


SCRIPT = """
import sys
from neumann.config import LocalLaunchConfig, make_specs
from neumann.search.grid import expand
from neumann.launch.local import LocalLauncher

class View:
    def label(self, spec): return spec.name
    def started(self, spec): print("started", spec.config.seed, flush=True)
    def done(self, outcome): print("done", outcome.spec.config.seed, outcome.status, outcome.reused, flush=True)
    def tick(self, running, waiting): pass

with LocalLauncher(LocalLaunchConfig(parallel=2, threads=1)) as launcher:
    outcomes = launcher.run(make_specs(expand(sys.argv[1:])), View())
print({"torch", "multiprocessing.forkserver"} & set(sys.modules))
import multiprocessing.forkserver
print("server", multiprocessing.forkserver._forkserver._forkserver_pid)
"""  # it has no `if __name__ == "__main__"`, and needs none


def script(*words: str) -> list[str]:
    path = Path("script.py")
    path.write_text(textwrap.dedent(SCRIPT))
    return [sys.executable, str(path), *words]


def test_what_is_over_is_answered_without_torch_or_a_server(python: Callable[[str], str]) -> None:
    words = [*QUICK, "optimizer=sgd", "seed=0,1"]
    launch(make_specs(expand(words)))
    done = subprocess.run(script(*words), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *lines, modules, server = done.stdout.splitlines()
    assert sorted(lines) == ["done 0 finished True", "done 1 finished True"]
    assert "torch" not in modules
    assert server == "server None"


def test_ctrl_c_while_the_server_imports_ends_everything_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "neumann", "train", "-m", *LONG, "seed=0,1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    marker = f"NEUMANN_CACHE={tmp_path}"
    wait_for(lambda: len(left_over(marker, besides=process.pid)) >= 2)  # the server and the resource tracker
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert err.count("\n") == 1
    assert "stopped with 0 of 2 runs finished: the same command goes on from there" in err
    wait_for(lambda: not left_over(marker), 5)


@pytest.mark.slow
@pytest.mark.parametrize("twice", [False, True])
def test_ctrl_c_in_a_terminal(twice: bool, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "neumann", "train", "-m", *LONG[:-1], "data.augmentation=crop", "seed=0,1,2"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: sum(bool(RunFolder(p).read_measurements()) for p in Path("runs/default").glob("d*")) == 2)
    os.killpg(process.pid, signal.SIGINT)
    if twice:
        time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "the same command goes on from there" in err
    if not twice:
        assert {RunFolder(p).status()["status"] for p in Path("runs/default").glob("d*")} == {"interrupted"}
    wait_for(lambda: not left_over(f"NEUMANN_CACHE={tmp_path}"), 10)
    assert not list(Path("runs/default").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_process_group_interrupts_every_run(number: int, tmp_path: Path) -> None:
    """As `timeout` sends it, to the process and to its group, or a terminal that closes."""
    words = [sys.executable, "-m", "neumann", "train", "-m", *LONG, "launch.parallel=2", "optimizer=sgd", "seed=0,1,2"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: sum(bool(RunFolder(p).read_measurements()) for p in Path("runs/default").glob("d*")) == 2)
    os.kill(process.pid, number)
    time.sleep(0.05)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    folders = [RunFolder(p) for p in Path("runs/default").glob("d*")]
    assert [folder.status()["status"] for folder in folders] == ["interrupted"] * 2
    assert all(folder.last.exists() for folder in folders)
    wait_for(lambda: not left_over(f"NEUMANN_CACHE={tmp_path}"), 30)


@pytest.mark.slow
def test_kill_9_of_the_launcher_leaves_clean_runs_and_no_process(tmp_path: Path) -> None:
    words = script(*LONG[1:], "trainer.max_epochs=60", "optimizer=sgd", "seed=0,1,2")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: sum(bool(RunFolder(p).read_measurements()) for p in Path("runs/default").glob("d*")) == 2)
    process.kill()
    process.communicate(timeout=20)
    wait_for(lambda: not left_over(f"NEUMANN_CACHE={tmp_path}"), 30)
    folders = [RunFolder(p) for p in Path("runs/default").glob("d*")]
    assert {folder.status()["status"] for folder in folders} == {"interrupted"}
    assert all(folder.last.exists() and (folder.path / "output.log").exists() for folder in folders)
    assert not list(Path("runs/default").glob(".*"))
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    folders = [RunFolder(p) for p in Path("runs/default").glob("d*")]
    assert sorted(len(attempts(folder.path)) for folder in folders) == [1, 2, 2]
    assert all(folder.result() for folder in folders)


@pytest.mark.slow
def test_two_launchers_share_the_work() -> None:
    words = script(*LONG[1:], "trainer.max_epochs=20", "optimizer=sgd", "seed=range(0,6)")
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    trained = []
    for out, _ in outs:
        done = [line.split() for line in out.splitlines() if line.startswith("done")]
        assert sorted(int(words[1]) for words in done) == list(range(6))
        assert {words[2] for words in done} == {"finished"}
        trained.append({int(words[1]) for words in done if words[3] == "False"})
    assert trained[0] | trained[1] == set(range(6))
    assert not trained[0] & trained[1]
    assert all(trained)
    assert [len(attempts(folder)) for folder in Path("runs/default").glob("d*")] == [1] * 6
