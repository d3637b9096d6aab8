"""Precision that a device can only emulate, and bf16 that a processor offers."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PROCESSOR = Path("/proc/cpuinfo")  # of Linux; elsewhere nothing is told
FLAGS = re.compile(r"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)  # as x86 and ARM call them
BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is ARM's


def processor_has_bf16() -> bool | None:
    """Return whether this machine's processor has instructions for bf16, None where it does not list them."""
    try:
        found = FLAGS.search(PROCESSOR.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return None if found is None else bool(BF16 & set(found[1].split()))


def slow_precision(accelerator: str, precision: str) -> list[str]:
    """Return a sentence where a run of ``precision`` would be slower than in float32 on this machine's device."""
    if precision != "bf16-mixed":
        return []
    if accelerator == "cpu":
        slow, device, better = processor_has_bf16() is False, "processor", "32-true"
    else:
        slow, device, better = not torch.cuda.is_bf16_supported(including_emulation=False), "GPU", "16-mixed or 32-true"
    return [
        f"trainer.precision={precision}: this {device} has no instructions for bf16, so torch emulates it, which is "
        f"slower than {better}"
    ] * slow
