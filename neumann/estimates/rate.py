"""The rate that `--estimate=RATE` states: images or FLOPs per second of one device."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from neumann.errors import UserError

MEASURE = ""  # what --estimate alone says
PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
RATE = re.compile(r"(?P<number>[\d.]+(?:e[+-]?\d+)?) *(?P<prefix>[kKMGTPE]?) *(?P<unit>|images/s|img/s|FLOPS|FLOP/s)")


@dataclass(frozen=True)
class Rate:
    """What one device does in a second of training; one of the two is None."""

    images: float | None = None
    flops: float | None = None

    def __str__(self) -> str:
        """Return it with its unit."""
        if self.images is not None:
            return f"{self.images:,.6g} images/s a device"
        assert self.flops is not None
        return f"{with_prefix(self.flops)}FLOP/s a device"


def read_rate(text: str) -> Rate | None:
    """Return the rate that ``text`` states, None where it asks for a measurement. Raises UserError for what is no rate.

    A number is images per second; FLOPS or FLOP/s after it makes it floating-point operations per second, and may have
    one of the prefixes k, M, G, T, P and E.
    """
    if text == MEASURE:
        return None
    match = RATE.fullmatch(text.strip())
    try:
        value = float(match["number"]) * PREFIXES[match["prefix"]] if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not 0 < value < math.inf:
        raise UserError(
            f"--estimate={text} is no rate: write images per second of a device, such as --estimate=1200, or its "
            "floating-point operations per second, such as --estimate=60TFLOPS; --estimate alone measures a few steps"
        )
    return Rate(flops=value) if match["unit"].startswith("FLOP") else Rate(images=value)


def with_prefix(value: float) -> str:
    """Return a count in three digits and a prefix: 2.45e10 is "24.5 G"."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} E" if value < 999.5 else f"{value:,.0f} E"


def duration(seconds: float) -> str:
    """Return a duration in the two largest units that it has, in seconds below a minute."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"
