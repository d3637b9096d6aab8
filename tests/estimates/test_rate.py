"""--estimate=RATE is images or FLOPs per second of a device, and nothing else."""

from __future__ import annotations

import pytest

from neumann.errors import UserError
from neumann.estimates.rate import Rate, duration, read_rate, with_prefix


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("", None),
        ("1200", Rate(images=1200)),
        ("1.5k", Rate(images=1500)),
        ("2e3 images/s", Rate(images=2000)),
        ("60TFLOPS", Rate(flops=6e13)),
        ("0.5 PFLOP/s", Rate(flops=5e14)),
    ],
)
def test_a_rate_is_images_unless_it_says_flops(text: str, rate: Rate | None) -> None:
    assert read_rate(text) == rate


@pytest.mark.parametrize("text", ["fast", "0", "-3", "inf", "1e999", "1.2.3", "60TFLOPs", "12 steps/s", "1,200"])
def test_what_is_no_rate_is_refused_with_both_forms(text: str) -> None:
    with pytest.raises(UserError, match=r"is no rate: .*--estimate=1200.*--estimate=60TFLOPS"):
        read_rate(text)


def test_counts_and_durations_are_short() -> None:
    assert [with_prefix(value) for value in (0, 12, 999.6, 2.45e10, 3e20)] == ["0 ", "12 ", "1 k", "24.5 G", "300 E"]
    assert [duration(s) for s in (3, 200, 7260)] == ["3 s", "3 min", "2 h 1 min"]
