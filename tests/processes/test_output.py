"""A stream that cannot be written costs no run; a command that only prints ends at it; closed descriptors are /dev/null."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neumann.store import RunFolder
from tests.support.quick_runs import QUICK

PRINTS = """
import sys
from neumann.processes.output import open_streams
open_streams()
for _ in range(3):
    print("x" * 100_000)
    print("y" * 100_000, file=sys.stderr)
file = open("kept", "w")
assert file.fileno() > 2
print("not in the file", flush=True)
file.write("whole")
"""
NEUMANN = f"{sys.executable} -m neumann"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("streams", ["> /dev/full 2> /dev/full", "| true", ">&- 2>&- <&-", ">&-", "<&-", "2>&-"])
def test_what_cannot_be_printed_is_dropped(streams: str) -> None:
    Path("script.py").write_text(PRINTS)
    assert shell(f"{sys.executable} script.py {streams}").returncode == 0
    assert Path("kept").read_text() == "whole"


@pytest.mark.medium
@pytest.mark.parametrize("words", ["--help", "train --help", "train --cfg job"])
def test_a_command_that_only_prints_says_that_it_could_not(words: str) -> None:
    full = shell(f"{NEUMANN} {words} > /dev/full")
    assert full.returncode == 1
    assert full.stderr == "error: the output cannot be written: No space left on device\n"
    closed = shell(f"{NEUMANN} {words} | true")
    assert closed.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "-m seed=0,1 launch.parallel=2"])
def test_output_is_never_worth_a_run(more: str) -> None:
    words = f"train {' '.join(QUICK)} optimizer=sgd {more}"
    for study, streams in (("full", "> /dev/full 2> /dev/full"), ("left", "| true"), ("closed", "<&- >&- 2>&-")):
        done = shell(f"{NEUMANN} {words} study={study} {streams}")
        assert done.returncode == 0, (streams, done.stderr)
        runs = [RunFolder(path) for path in Path("runs", study).glob("d*")]
        assert [run.status()["status"] for run in runs] == ["finished"] * (2 if more else 1)
