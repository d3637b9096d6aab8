"""A run has one writer: under many takers, after kills, across machines (as forged leases), and after being cut off."""

from __future__ import annotations

import errno
import fcntl
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from neumann.errors import UserError
from neumann.store import RunFolder, claim
from neumann.store.claim import Claimed, Lost
from neumann.store.files import read_json, replace_file
from neumann.store.lease_holder import Holder
from tests.support.forged_leases import ELSEWHERE, forge, leases
from tests.support.launching import wait_for


def test_it_is_given_back_and_taken_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert not folder.held()
    for number in (1, 2, 3):
        with folder.claim():
            assert folder.held()
            assert leases(folder.path)[-1] == number
            with pytest.raises(Claimed, match=rf"trained right now by process {os.getpid()} on"), folder.claim():
                pass
        assert not folder.held()
    assert leases(folder.path) == [2, 3]  # the files of earlier claims do not pile up
    assert {path.name for path in folder.path.iterdir()} == {".claim.2", ".claim.3"}


def test_another_thread_of_the_same_process_is_refused_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    refused: list[BaseException] = []

    def take() -> None:
        try:
            with folder.claim():
                pass
        except Claimed as error:
            refused.append(error)

    with folder.claim():
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert len(refused) == 1


FORK = multiprocessing.get_context("fork")  # a fresh interpreter would take most of the time


def take_and_die(place: Path, seed: int, until: float, links: bool) -> None:
    """Claim and give back, again and again; now and then die while holding. Leaves a file where two held at once."""
    chance = random.Random(seed)
    if not links:
        claim.os.link = no_links  # type: ignore[attr-defined]
    folder = RunFolder(place / "run")
    witness, log = (os.open(place / name, os.O_WRONLY | os.O_CREAT) for name in ("witness", f"log{seed}"))
    while time.time() < until:
        try:
            with folder.claim():
                try:
                    fcntl.flock(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees it at death
                except BlockingIOError:
                    (place / "two-at-once").touch()
                os.write(log, b".")
                time.sleep(chance.random() * 0.004)
                if chance.random() < 0.1:
                    os.kill(os.getpid(), signal.SIGKILL)
                fcntl.flock(witness, fcntl.LOCK_UN)
        except Claimed:
            time.sleep(chance.random() * 0.002)


def no_links(*words: object, **named: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "no links here")


@pytest.mark.medium
@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_holds_it_also_when_some_are_killed(links: bool, tmp_path: Path) -> None:
    until = time.time() + 5
    seeds = itertools.count()

    def start() -> multiprocessing.process.BaseProcess:
        process = FORK.Process(target=take_and_die, args=(tmp_path, next(seeds), until, links))
        process.start()
        return process

    takers = [start() for _ in range(8)]
    killed = 0
    while takers:
        for taker in [one for one in takers if not one.is_alive()]:
            takers.remove(taker)
            assert taker.exitcode in (0, -signal.SIGKILL)
            killed += taker.exitcode != 0
            if taker.exitcode and time.time() < until:
                takers.append(start())
        time.sleep(0.005)
    assert not (tmp_path / "two-at-once").exists()
    assert sum(path.stat().st_size for path in tmp_path.glob("log*")) > 50
    assert killed > 2  # in five seconds, also of a machine with much else to do
    assert len(leases(tmp_path / "run")) <= 2
    with RunFolder(tmp_path / "run").claim():
        pass


def all_tried(path: Path, many: int) -> bool:
    return len(list(path.glob("won-*"))) + len(list(path.glob("lost-*"))) == many  # no hidden files


def race(rounds: list[Path], many: int, ready: Barrier) -> None:
    for path in rounds:
        ready.wait(60)
        try:
            with RunFolder(path).claim():
                (path / f"won-{os.getpid()}").touch()
                wait_for(partial(all_tried, path, many))
        except Claimed:
            (path / f"lost-{os.getpid()}").touch()


@pytest.mark.medium
def test_a_dead_claim_goes_to_one_of_those_who_want_it(tmp_path: Path) -> None:
    rounds = [tmp_path / f"round{i:02}" for i in range(40)]
    for path in rounds:
        forge(path, number=7, silent=2 * claim.LEASE_S)
    ready = FORK.Barrier(6)
    racers = [FORK.Process(target=race, args=(rounds, 6, ready)) for _ in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(100)
        assert racer.exitcode == 0
    assert [len(list(path.glob("won-*"))) for path in rounds] == [1] * len(rounds)


def test_a_slow_process_does_not_take_a_lease_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It found lease 3 dead and slept; 4 was taken and given back, 5 is held. It must not make number 4."""
    folder = RunFolder(tmp_path)
    forge(tmp_path, number=3, silent=2 * claim.LEASE_S)
    found = claim.current(tmp_path)
    with folder.claim():
        pass
    with folder.claim():
        assert leases(tmp_path) == [4, 5]
        (tmp_path / ".claim.4").unlink()  # even where its name is free again
        answers = iter([found])
        real = claim.current
        monkeypatch.setattr(claim, "current", lambda path: next(answers, None) or real(path))
        with pytest.raises(Claimed), RunFolder(tmp_path).claim():
            pass
        assert leases(tmp_path) == [5]
        folder.require_claim()
    monkeypatch.undo()
    assert not folder.held()


def test_a_slow_process_does_not_take_a_folder_that_was_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    forge(path, number=3, silent=2 * claim.LEASE_S)
    real = claim._make
    fresh: list[Iterator[None]] = []

    def late(folder: Path, here: int, number: int, holder: Holder) -> bool:
        monkeypatch.setattr(claim, "_make", real)
        path.rename(tmp_path / "removed")  # as `neumann runs clean` does it
        other = RunFolder(path).claim()
        other.__enter__()
        fresh.append(other)  # type: ignore[arg-type]
        return real(folder, here, number, holder)

    monkeypatch.setattr(claim, "_make", late)
    with pytest.raises(Claimed), RunFolder(path).claim():
        pass
    assert leases(path) == [1]
    assert leases(tmp_path / "removed") == [3]
    fresh[0].__exit__(None, None, None)  # type: ignore[attr-defined]


HOLD = """
import sys, time
from pathlib import Path
from neumann.store import RunFolder, claim
claim.HEARTBEAT_S, claim.LEASE_S = float(sys.argv[2]), float(sys.argv[3])
with RunFolder(Path(sys.argv[1])).claim():
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: RunFolder, heartbeat: float = 15, lease: float = 90) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", HOLD, str(folder.path), str(heartbeat), str(lease)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_kill_frees_it_at_once_on_the_same_machine(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with holder(folder) as process:
        with pytest.raises(UserError, match=rf"being trained right now by process {process.pid} on"), folder.claim():
            pass
        process.kill()
        wait_for(lambda: not folder.held(), 5)  # also before any process has asked for its exit code
        assert folder.why_free() == f"its process {process.pid} is gone"
        with folder.claim():
            pass


def test_a_stopped_process_keeps_it_on_the_same_machine(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with holder(folder) as process:
        process.send_signal(signal.SIGSTOP)
        (lease,) = folder.path.glob(".claim.*")
        os.utime(lease, (0, 0))  # no heartbeat for fifty years
        assert folder.held()
        with pytest.raises(Claimed), folder.claim():
            pass


def test_another_process_with_the_number_of_a_dead_one_is_not_it(tmp_path: Path) -> None:
    me = Holder.myself()
    assert me.started
    forge(tmp_path, replace(me, started=me.started - 1))
    assert not RunFolder(tmp_path).held()
    forge(tmp_path, me)
    assert RunFolder(tmp_path).held()


@pytest.mark.parametrize(
    "who",
    [
        ELSEWHERE,
        replace(Holder.myself(), boot="before the last reboot", pid=2**22),
        replace(Holder.myself(), namespace="pid:[of another container]", pid=2**22),
        claim.HELD,
        claim.HELD + b'{"pid": "x"}',
        b"\xff\x00",
        b"",
    ],
)
def test_a_holder_out_of_sight_is_judged_by_its_heartbeat(who: Holder | bytes, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    forge(folder.path, who, silent=claim.LEASE_S - 10)
    assert folder.held()
    with pytest.raises(Claimed), folder.claim():
        pass
    forge(folder.path, who, silent=claim.LEASE_S + 1)
    assert not folder.held()
    assert "no sign of life from" in (folder.why_free() or "")
    forge(folder.path, who, silent=-claim.LEASE_S - 1)  # touched in the future: the clock was set back since
    assert not folder.held()
    with folder.claim():
        assert leases(folder.path) == [1, 2]


def test_the_clock_is_the_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forge(tmp_path)
    for ours in (0.0, time.time() + 1e6):
        monkeypatch.setattr(time, "time", lambda ours=ours: ours)
        assert RunFolder(tmp_path).held()


def test_the_heartbeat_moves_from_the_claim_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "HEARTBEAT_S", 0.02)
    folder = RunFolder(tmp_path)
    with folder.claim():
        (lease,) = tmp_path.glob(".claim.*")
        os.utime(lease, (0, 0))
        wait_for(lambda: lease.stat().st_mtime > 0, 10)


def taken_over(folder: RunFolder) -> None:
    """Let another machine take the claim that this process holds, as after a long silence."""
    (number,) = leases(folder.path)
    forge(folder.path, number=number + 1)


WRITES: dict[str, Callable[[RunFolder], object]] = {
    "result": lambda folder: folder.write_result({"status": "finished"}),
    "status": lambda folder: folder.set_status("finished"),
    "measurement": lambda folder: folder.append_measurement({"step": 2}),
    "restore": lambda folder: folder.restore_measurements([]),
    "checkpoint": lambda folder: replace_file(folder.last, b"weights"),
    "error": lambda folder: replace_file(folder.error, b"traceback"),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_holder_that_was_cut_off_writes_nothing_more(what: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claim():
        folder.set_status("running")
        folder.append_measurement({"step": 1})
        taken_over(folder)
        before = {path: path.read_bytes() for path in folder.path.iterdir()}
        with pytest.raises(Lost, match="was taken over by another process while this one was cut off"):
            WRITES[what](folder)
        assert {path: path.read_bytes() for path in folder.path.iterdir()} == before
        replace_file(tmp_path / "elsewhere", b"x")
    assert claim.current(folder.path) is not None
    assert folder.held()  # the other's lease was not given back for it
    folder.set_status("interrupted")  # a process that claimed nothing may write


def test_a_successor_says_so_in_the_lease_that_it_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder on another machine may see an old list of the folder; its own file it can open anew."""
    folder = RunFolder(tmp_path)
    with folder.claim() as first:
        monkeypatch.setattr(Holder, "seen", lambda self: False)
        with claim.hold(tmp_path):
            monkeypatch.setattr(claim, "_highest", lambda path: 1)  # the old list
            assert first.lost()
            monkeypatch.undo()


def test_the_holder_hears_that_its_claim_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "HEARTBEAT_S", 0.02)
    heard: list[str] = []
    folder = RunFolder(tmp_path)
    with folder.claim() as held:
        held.when_lost = lambda: heard.append("lost")
        time.sleep(0.2)
        assert heard == []
        taken_over(folder)
        wait_for(lambda: heard, 10)


def test_a_removed_folder_is_a_lost_claim(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claim():
        folder.path.rename(tmp_path / "gone")
        with pytest.raises(Lost):
            folder.require_claim()


def test_a_forked_child_does_not_give_its_parents_claim_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.claim():
        held = claim.mine(tmp_path)
        assert held is not None
        pid = os.fork()
        if pid == 0:
            held.end()
            os._exit(0)
        os.waitpid(pid, 0)
        folder.require_claim()
        assert folder.held()


def test_a_full_disk_refuses_a_claim_and_does_not_keep_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with folder.claim():
        monkeypatch.setattr(os, "write", full)
    assert not folder.held()  # giving it back needs no space
    with pytest.raises(UserError, match=r"cannot be written \(no space left on device\)"), folder.claim():
        pass
    monkeypatch.undo()
    assert {path.name for path in folder.path.iterdir()} == {".claim.1"}


def test_a_running_run_without_a_living_holder_is_interrupted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with holder(folder) as process:
        folder.set_status("running", attempt=2, step=7)
        assert folder.status()["status"] == "running"
        process.kill()
        wait_for(lambda: folder.status()["status"] == "interrupted", 5)
    assert folder.status()["message"] == f"it ended without writing its status: its process {process.pid} is gone"
    assert (folder.status()["attempt"], folder.status()["step"]) == (2, 7)
    assert read_json(folder.path / "status.json")["status"] == "running"  # no process has written there
    forge(folder.path, number=9, silent=claim.LEASE_S + 5)
    assert folder.status()["message"].startswith(
        "it ended without writing its status: no sign of life from another-machine for 9"
    )


def test_a_lease_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    """In another user's folder it may lead to any file of ours."""
    precious = tmp_path / "precious"
    precious.write_text("hello precious")
    os.utime(precious, (1, 1))  # silent for long
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / ".claim.7").symlink_to(precious)
    with folder.claim():
        assert leases(folder.path)[-1] == 8
    assert precious.read_text() == "hello precious"
