"""Decoding workers: stop signals to all processes of a run leave them at work, and none outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from neumann.data import facts
from neumann.data.decoding_workers import decoded, pass_over_signals
from neumann.data.module import build
from neumann.errors import KILLED_WORKER, ending_of
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


READER = """
import multiprocessing, signal, sys, time
from pathlib import Path
from neumann.errors import ending_of
from tests.data.test_decoding_workers import stream
passes = iter(stream(Path(sys.argv[1])))
next(passes)
worker = multiprocessing.active_children()[0]
try:
    worker.kill()
    for _ in passes:
        time.sleep(0.01)
except RuntimeError as error:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    print(worker.pid, *ending_of(error), sep="|")
"""


class CutShort:
    """A loader of which a worker is killed while it sends its second batch."""

    def __iter__(self) -> Iterator[int]:
        yield 1
        raise EOFError


def test_a_worker_that_was_killed_while_it_sent_images_is_told_so() -> None:
    batches = decoded(CutShort())  # type: ignore[arg-type]
    assert next(batches) == 1
    with pytest.raises(RuntimeError) as raised:
        next(batches)
    assert ending_of(raised.value) == ("failed", KILLED_WORKER)


@pytest.mark.medium
def test_a_killed_worker_is_named_with_what_kills_most(make_folder: MakeFolder) -> None:
    """In a process of its own: at the end of a killed worker, torch raises wherever its main thread is, twice at times."""
    root = make_folder({"a": 400, "b": 400})
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    answer = subprocess.run([sys.executable, "-c", READER, str(root)], capture_output=True, text=True, env=env)
    assert answer.stdout, answer.stderr
    worker, status, message = answer.stdout.splitlines()[0].split("|")
    assert status == "failed"
    assert message.replace(f" (process {worker})", "") == KILLED_WORKER  # torch names it where it did not send images


@pytest.mark.parametrize("said", ["(pid 7) is killed by signal: Killed. ", "(pid(s) 7) exited unexpectedly"])
def test_what_torch_says_of_a_killed_worker_is_said_with_what_kills_most(said: str) -> None:
    assert ending_of(RuntimeError(f"DataLoader worker {said}")) == (
        "failed",
        "a decoding worker (process 7) was killed or has ended by itself; out of memory? The kernel's log (dmesg) "
        "tells; fewer data.workers need less",
    )
