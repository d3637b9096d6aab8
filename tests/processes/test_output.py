"""A stream that cannot be written costs no run; a command that only prints ends at it; closed descriptors are /dev/null."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from neumann.processes import output
from neumann.processes.output import warn_in_sentences
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


def test_a_warning_is_one_line_that_steers_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    warn_in_sentences()
    text = UserWarning("a run's \x1b[2Jname\nis odd")
    ours = warnings.formatwarning(text, UserWarning, f"{output.OURS}store/folder.py", 7)
    assert ours == "warning: a run's \\x1b[2Jname is odd\n"
    other = warnings.formatwarning(text, UserWarning, "/lib/torch/x.py", 7, "code()")
    assert other == "warning: a run's \\x1b[2Jname is odd (UserWarning, /lib/torch/x.py:7)\n"


@pytest.mark.medium
def test_help_needs_no_docstrings() -> None:
    done = shell(f"{sys.executable} -OO -m neumann --help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == shell(f"{NEUMANN} --help").stdout
    assert done.stdout.startswith("neumann train ")


@pytest.mark.medium
@pytest.mark.parametrize("words", ["study", "report"])
def test_a_list_of_studies_ends_where_it_cannot_be_printed(words: str) -> None:
    full = shell(f"{NEUMANN} {words} > /dev/full")
    assert (full.returncode, full.stderr) == (1, "error: the output cannot be written: No space left on device\n")
