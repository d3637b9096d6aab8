"""Memory that a step frees stays with the process, so that the next step finds it there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# blocks of 4 MB and one of 40, as the activations of a step: taken, written to and freed all together
FAULTS = """
import resource, sys
from neumann.freed_memory import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
def step():
    blocks = [bytearray(b"x") * (4 << 20) for _ in range(16)] + [bytearray(b"x") * (40 << 20)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(choice: str, **variables: str) -> tuple[str, int]:
    """Return what `keep_freed_memory` returned, and how many pages three steps had to be given."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, choice], capture_output=True, text=True, check=True, env=env | variables
    )
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back like this")
def test_a_step_finds_the_memory_of_the_step_before() -> None:
    kept, few = faults("keep")
    _, many = faults("leave")
    assert kept == "True"
    assert few < 100 < 10_000 < many


def test_a_users_own_setting_stays() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"


GIVEN_BACK = """
import os
from neumann.freed_memory import give_back_freed_memory, keep_freed_memory
def resident():
    return int(open("/proc/self/statm", encoding="ascii").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
assert keep_freed_memory()
before = resident()
blocks = [bytearray(b"x") * (4 << 20) for _ in range(16)]
above = bytearray(b"x") * 1000
del blocks
kept = resident() - before
give_back_freed_memory()
print(kept >> 20, resident() - before >> 20)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system tells no resident size")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps it")
def test_what_a_step_does_not_need_is_given_back() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True, env=env)
    kept, left = map(int, done.stdout.split())
    assert left < 16 < 48 < kept
