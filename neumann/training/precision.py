"""Precision that a processor can only emulate."""

from __future__ import annotations

import re
from pathlib import Path

PROCESSOR = Path("/proc/cpuinfo")  # of Linux; elsewhere nothing is told
FLAGS = re.compile(r"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)  # as x86 and ARM call them
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is ARM's


def slow_precision(accelerator: str, precision: str) -> list[str]:
    """Return a sentence where a run of ``precision`` would be slower than in float32 on this machine's processor."""
    if accelerator != "cpu" or precision != "bf16-mixed":
        return []
    try:
        found = FLAGS.search(PROCESSOR.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []
    if found is None or BF16 & set(found[1].split()):
        return []
    return [
        "trainer.precision=bf16-mixed: this processor has no instructions for bf16, so torch emulates it, which is "
        "slower than 32-true"
    ]
