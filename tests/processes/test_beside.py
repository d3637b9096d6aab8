"""`beside`: what a second process returns and raises, and when the work stays in this one.

The cases run in a process of their own: it has one thread and no torch, as a command has.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from neumann.processes.beside import beside

SETUP = """
import os, signal, sys, threading, time
from neumann.errors import UserError
from neumann.processes import beside as module
from neumann.processes.beside import beside
module.os.sched_getaffinity = lambda _: {0, 1}  # of a machine with one core too
here = os.getpid()
"""


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
class TestForked:
    def test_it_returns_what_another_process_made_of_the_arguments(self) -> None:
        made = "wait = beside(lambda a, b: (a + b, os.getpid() != here), 2, 3)"
        assert _run(f"{made}\nprint(wait())") == "(5, True)"

    def test_both_work_at_the_same_time(self) -> None:
        code = """
def other():
    os.write(there, b"1")
    return os.read(at_there, 1)
at_here, there = os.pipe()
at_there, to_there = os.pipe()
wait = beside(other)
os.read(at_here, 1)  # the other has begun, and waits for what this process does next
os.write(to_there, b"2")
print(wait())
"""
        assert _run(code) == "b'2'"

    def test_it_raises_what_the_function_raised(self) -> None:
        code = """
def refuse():
    raise UserError("batch.size=0: give a number above 0")
try:
    beside(refuse)()
except UserError as error:
    print(os.getpid() == here, error)
"""
        assert _run(code) == "True batch.size=0: give a number above 0"

    def test_the_work_of_a_process_that_died_is_done_here(self) -> None:
        code = """
def once():
    if os.getpid() != here:
        os.kill(os.getpid(), signal.SIGKILL)
    return "here"
print(beside(once)())
"""
        assert _run(code) == "here"

    def test_ctrl_c_is_answered_by_this_process_alone_and_the_other_ends_with_it(self) -> None:
        code = """
def slowly():
    print("begun", os.getpid(), flush=True)
    time.sleep(60)
wait = beside(slowly)
try:
    wait()
except KeyboardInterrupt:
    print("stopped", flush=True)
"""
        words = [sys.executable, "-c", SETUP + code]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            other = int(process.stdout.readline().removeprefix("begun "))
            time.sleep(0.1)
            for pid in (other, process.pid):
                os.kill(pid, signal.SIGINT)
            begun = time.monotonic()
            assert process.stdout.read().split() == ["stopped"]
            assert process.stderr.read() == ""
            assert time.monotonic() - begun < 30


def test_beside_other_threads_the_work_is_done_here() -> None:
    free = threading.Event()
    thread = threading.Thread(target=free.wait)
    thread.start()
    try:
        assert beside(threading.get_ident)() == threading.get_ident()
        seen: list[int] = []
        beside(seen.append, 1)()
        assert seen == [1]
    finally:
        free.set()
        thread.join()
