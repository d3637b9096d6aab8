"""Decoding workers: stop signals to all processes of a run leave them at work, and none outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from neumann.data import decoding_workers, facts
from neumann.data.decoding_workers import WorkerEnded, decoded, pass_over_signals
from neumann.data.module import build
from neumann.errors import ending_of
from tests.data.conftest import MakeFolder

ALL = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"]


def stream(root: Path) -> Any:
    data = {"kind": "image_folder", "root": str(root), "in_memory": False, "workers": 2, "image_size": 16}
    return build(data, facts(data), batch_size=4, seed=0).train_dataloader()


@pytest.mark.medium
def test_stop_signals_leave_workers_at_work_and_their_parent_ends_them(make_folder: MakeFolder) -> None:
    before = {child.pid for child in multiprocessing.active_children()}
    batches = stream(make_folder({"a": 40, "b": 40}))
    whole = [images.sum().item() for images, _ in batches]
    workers = [child for child in multiprocessing.active_children() if child.pid not in before]
    assert len(workers) == 2
    again = stream(make_folder({"a": 40, "b": 40}))
    passes = iter(again)
    seen = [next(passes)[0].sum().item()]
    its = [child for child in multiprocessing.active_children() if child.pid not in before and child not in workers]
    assert len(its) == 2
    for name in ALL:
        subprocess.run(["/bin/kill", f"-{name.removeprefix('SIG')}", *[str(worker.pid) for worker in its]], check=True)
    seen += [images.sum().item() for images, _ in passes]
    assert seen == whole
    assert all(worker.is_alive() for worker in its)
    for worker in (*workers, *its):  # as torch does where one does not end, and multiprocessing at exit
        worker.terminate()
        worker.join(20)
        assert not worker.is_alive()


def signalled_at_its_start(worker: int) -> None:
    for name in ALL:
        os.kill(os.getpid(), getattr(signal, name))
    pass_over_signals(worker)


def test_a_worker_that_still_starts_passes_over_stop_signals_too() -> None:
    own = torch.Generator()  # torch's global stream is left alone
    loader = DataLoader(torch.arange(8), 4, num_workers=1, worker_init_fn=signalled_at_its_start, generator=own)  # type: ignore[arg-type]
    assert [batch.tolist() for batch in decoded(loader)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


HOLDER = """
import os, sys
from pathlib import Path
from tests.data.test_decoding_workers import stream
batches = iter(stream(Path(sys.argv[1])))
next(batches)
import multiprocessing
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
if sys.argv[2] == "wait":
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "exits"])
def test_no_worker_outlives_its_parent(end: str, make_folder: MakeFolder) -> None:
    root = make_folder({"a": 40, "b": 40})
    words = [sys.executable, "-c", HOLDER, str(root), "wait" if end == "killed" else "exit"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2
        if end == "killed":
            parent.send_signal(signal.SIGKILL)
        parent.wait(60)
        deadline = time.monotonic() + 30  # torch has a worker look for its parent every 5 s
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.1)


class CutShort:
    """A loader of which a worker is killed while it sends its second batch."""

    num_workers = 1

    def __init__(self, error: Exception, *, killed: bool = True) -> None:
        self.error, self.killed = error, killed
        self.worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)

    def __iter__(self) -> Iterator[int]:
        self.worker.start()
        return self.batches()

    def batches(self) -> Iterator[int]:
        yield 1
        if self.killed:
            self.worker.kill()
        raise self.error


CUT = (EOFError(), ConnectionResetError(), FileNotFoundError(), RuntimeError("received 0 items of ancillary data"))


@pytest.mark.parametrize("error", CUT, ids=lambda error: type(error).__name__)
def test_a_worker_that_was_killed_while_it_sent_images_is_named(error: Exception) -> None:
    loader = CutShort(error)
    batches = decoded(loader)  # type: ignore[arg-type]
    assert next(batches) == 1
    with pytest.raises(WorkerEnded) as raised:
        next(batches)
    assert ending_of(raised.value) == (
        "failed",
        f"a decoding worker (process {loader.worker.pid}) was killed or ended by itself; out of memory? The kernel's "
        "log (dmesg) tells; fewer data.workers need less",
    )


@pytest.mark.parametrize("said", ["(pid 7) is killed by signal: Killed. ", "(pid(s) 7, 8) exited unexpectedly"])
def test_what_torch_says_of_a_worker_that_ended_at_its_start_is_said_in_our_words(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_workers, "ENDS_S", 0.0)
    loader = CutShort(RuntimeError(f"DataLoader worker {said}"), killed=False)
    with pytest.raises(WorkerEnded) as raised:
        list(decoded(loader))  # type: ignore[arg-type]
    assert str(raised.value) == str(WorkerEnded([7, 8] if "8" in said else [7]))
    loader.worker.kill()
    loader.worker.join(20)


def test_an_error_that_no_worker_died_of_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_workers, "ENDS_S", 0.05)
    loader = CutShort(EOFError("a message"), killed=False)
    with pytest.raises(EOFError, match="a message"):
        list(decoded(loader))  # type: ignore[arg-type]
    loader.worker.kill()
    loader.worker.join(20)


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 4000

    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "killed"), [(1, 1), (4, 3)])
@pytest.mark.slow
def test_killed_workers_are_told_once_and_only_where_a_batch_is_waited_for(workers: int, killed: int) -> None:
    """torch's own handler would raise wherever the main thread is, once for every worker that was killed."""
    handler = signal.getsignal(signal.SIGCHLD)
    others = {child.pid for child in multiprocessing.active_children()}
    own = torch.Generator()
    passes = decoded(DataLoader(Numbers(), 4, num_workers=workers, worker_init_fn=pass_over_signals, generator=own))
    next(passes)
    assert signal.getsignal(signal.SIGCHLD) is handler
    assert signal.SIGCHLD not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    its = [child for child in multiprocessing.active_children() if child.pid not in others]
    assert len(its) == workers
    for worker in its[:killed]:
        worker.kill()
    deadline = time.monotonic() + 60
    while any(worker.exitcode is None for worker in its[:killed]):  # an evaluation, or the writing of a checkpoint
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(WorkerEnded) as raised:
        for _ in passes:
            pass
    ended = sorted(worker.pid for worker in its[:killed] if worker.pid is not None)
    assert ending_of(raised.value) == ("failed", str(WorkerEnded(ended)))
    for worker in its[killed:]:  # as the end of the process does
        worker.terminate()
        worker.join(20)
        assert worker.exitcode is not None


@pytest.mark.medium
def test_workers_that_hand_over_nothing_are_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_workers, "LONG_S", 0.3)
    monkeypatch.setattr(decoding_workers, "LOOK_S", 0.05)
    others = {child.pid for child in multiprocessing.active_children()}
    own = torch.Generator()
    passes = decoded(DataLoader(Numbers(), 4, num_workers=1, worker_init_fn=pass_over_signals, generator=own))
    next(passes)
    (worker,) = [child for child in multiprocessing.active_children() if child.pid not in others]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    goes_on = threading.Timer(1.0, os.kill, (worker.pid, signal.SIGCONT))
    goes_on.start()
    with pytest.warns(UserWarning, match="^no images have come for 0 s: ") as told:
        assert len(list(passes)) == 999
    assert [f"`kill -CONT {worker.pid}` ends" in str(one.message) for one in told] == [True]
